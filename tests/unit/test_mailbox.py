"""The mailbox of a train group, without Ray: what it tells, and what it keeps."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from actors.train.mailbox import MailboxActor
from actors.train.messages import Beat, Step


def _step(number: int) -> Step:
    return Step(number=0, step=number, num_steps=1000, loss=1.0)


def test_it_forgets_the_events_that_the_driver_has() -> None:
    async def run() -> tuple[list[int], int]:
        mailbox, told = MailboxActor(), list[int]()
        for number in range(1000):
            await mailbox.post(_step(number))
            if number % 3 == 0:
                news = await mailbox.news(start=len(told), timeout_s=1.0)
                told += [event.step for event in news.events if isinstance(event, Step)]
        return told, len(mailbox._events)

    told, num_kept = asyncio.run(run())
    assert told == list(range(1000))
    assert num_kept <= 3


def test_events_of_an_answer_that_was_lost_come_once_more() -> None:
    async def run() -> list[tuple[int, ...]]:
        mailbox = MailboxActor()
        for number in range(3):
            await mailbox.post(_step(number))
        return [
            tuple(
                event.step
                for event in (await mailbox.news(start=start, timeout_s=0.0)).events
                if isinstance(event, Step)
            )
            for start in (0, 0, 2, 2, 3)
        ]

    assert asyncio.run(run()) == [(0, 1, 2), (0, 1, 2), (2,), (2,), ()]


def test_the_workers_of_a_node_share_the_folder_of_the_first_of_them() -> None:
    async def run() -> list[str | None]:
        mailbox = MailboxActor()
        offers = [("a", "/first"), ("a", "/second"), ("b", "/other"), ("a", "/first")]
        rooms = [await mailbox.room(node, made=made) for node, made in offers]
        await mailbox.close()
        return [*rooms, await mailbox.room("a", made="/late")]

    assert asyncio.run(run()) == ["/first", "/first", "/other", "/first", None]


def test_a_slow_disk_keeps_nobody_else_from_an_answer(tmp_path: Path) -> None:
    async def run() -> float:
        mailbox, slow = MailboxActor(), tmp_path / "slow"
        os.mkfifo(slow)  # whoever opens it to write waits for a reader
        writing = asyncio.create_task(mailbox.desk("append", str(slow), b"bytes"))
        await asyncio.sleep(0.1)
        started_s = time.monotonic()
        await mailbox.beat(0, Beat(doing="its start", doing_s=0.0, is_waiting=False))
        took_s = time.monotonic() - started_s
        reader = os.open(slow, os.O_RDONLY | os.O_NONBLOCK)
        await writing
        os.close(reader)
        return took_s

    assert asyncio.run(run()) < 0.1
