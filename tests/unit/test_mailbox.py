"""The mailbox of a train group, without Ray: what it tells, and what it keeps."""

from __future__ import annotations

import asyncio

from actors.train.mailbox import MailboxActor
from actors.train.messages import Step


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
