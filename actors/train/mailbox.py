"""The mailbox of a train group: orders and names of files go to the workers, events and beats come back.

The class becomes a Ray actor (`actors.train.attempt`) on the driver's node. It keeps nothing that the driver does not
know, so when it dies a new one is filled again. For workers on nodes that do not see the run's folder it is also the
desk where they fetch and hand in files (`actors.train.desk`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from actors.train.desk import Desk
from actors.train.messages import Beat, Done, Event, LastBeat, News, NumberedOrder
from actors.train.stream import JudgedSoFar, OpenStream


class MailboxActor:
    """Hands orders and names of files of examples to the workers, and their events to the driver.

    Once it is closed, workers that ask for an order or for files are answered with None.
    """

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._order: NumberedOrder | None = None
        self._stream = OpenStream()
        self._events: list[Event] = []  # that the driver may not have yet
        self._num_forgotten = 0  # of the events before them
        self._beats: dict[int, LastBeat] = {}  # by rank
        self._num_wakes = 0
        self._closed = False
        self._desk = Desk()
        self._rooms: dict[str, str] = {}  # by node

    async def update(self, order: NumberedOrder | None, *, files: Sequence[str], has_ended: bool) -> None:
        """What is new of the driver's wishes.

        Args:
            order: the next order; None: that of the last call.
            files: more files of the order.
            has_ended: every file of the order has been offered.
        """
        async with self._changed:
            if order is not None:
                self._order, self._stream = order, OpenStream()
            if files:
                self._stream.offer(files)
            if has_ended:
                self._stream.end()
            self._changed.notify_all()

    async def next_order(self, *, after: int) -> NumberedOrder | None:
        """Wait for an order later than number `after`; None once closed."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or self._is_later(after))
            return None if self._closed else self._order

    async def arrived(self, *, start: int) -> tuple[str, ...] | None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or self._stream.arrived(start=start) is not None)
            return None if self._closed else self._stream.arrived(start=start)

    async def judge(self, verdicts: Sequence[Sequence[str | None]], *, start: int) -> bool | None:
        async with self._changed:
            self._stream.judge(verdicts, start=start)
            self._changed.notify_all()
            return None if self._closed else True

    async def judged(self, *, start: int, wait: bool) -> JudgedSoFar | None:
        def is_news() -> bool:
            found = self._stream.judged(start=start)
            return bool(found.files) or found.dropped is not None

        async with self._changed:
            if wait:
                await self._changed.wait_for(lambda: self._closed or is_news())
            return None if self._closed else self._stream.judged(start=start)

    async def desk(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of `actors.train.desk.Desk`, in a thread, so that a slow disk keeps nobody from an answer."""
        return await asyncio.to_thread(getattr(self._desk, method), *args, **kwargs)

    async def room(self, node: str, *, made: str) -> str | None:
        """The folder that the workers of a node share: what the first of them has made. None once closed."""
        return None if self._closed else self._rooms.setdefault(node, made)

    async def post(self, event: Event) -> bool:
        """Add an event; False once closed."""
        async with self._changed:
            if isinstance(event, Done):
                self._order = None
            self._events.append(event)
            self._changed.notify_all()
            return not self._closed

    async def beat(self, rank: int, beat: Beat) -> None:
        last = self._beats.get(rank)
        self._beats[rank] = LastBeat(beat=beat, number=1 if last is None else last.number + 1)

    async def news(self, *, start: int, timeout_s: float) -> News:
        """Events from position `start` on; waits up to `timeout_s` for the first of them, or for `wake`.

        Who asks from `start` on has what is before it, so that is forgotten: a group lives as long as the run.
        """
        async with self._changed:
            del self._events[: start - self._num_forgotten]
            self._num_forgotten = start
            num_wakes = self._num_wakes
            arrived = self._changed.wait_for(lambda: self._events or self._num_wakes > num_wakes)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(arrived, timeout_s)
            return News(events=tuple(self._events), beats=dict(self._beats))

    async def wake(self) -> None:
        """Let `news` return at once."""
        async with self._changed:
            self._num_wakes += 1
            self._changed.notify_all()

    async def close(self) -> None:
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _is_later(self, after: int) -> bool:
        return self._order is not None and self._order.number > after
