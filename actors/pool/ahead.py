"""Fetches results while the driver still works on earlier ones, so that no generator waits for the driver."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

# Results that may wait for the driver; each is one prompt's rollout.
_MOST_WAITING = 256
_LOOK_UP_EVERY_S = 0.2


class Ahead(Generic[T]):
    """Iterates in a thread of its own, a bounded number of items ahead of whoever iterates over this.

    Args:
        make: makes the iterator, inside the thread. Its argument is a function that returns true once nobody wants
            more items; an iterator that may block for long has to call it now and then, and to end if it is true.
    """

    def __init__(self, make: Callable[[Callable[[], bool]], Iterator[T]]) -> None:
        self._make = make
        self._queue: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(_MOST_WAITING)
        self._stopped = threading.Event()

    def __iter__(self) -> Iterator[T]:
        thread = threading.Thread(target=self._run, name="results-ahead", daemon=True)
        thread.start()
        try:
            while (item := self._queue.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item[0]
        finally:
            self._stopped.set()
            thread.join()

    def _run(self) -> None:
        last: BaseException | None = None
        try:
            for item in self._make(self._stopped.is_set):
                if not self._put((item,)):
                    return
        except BaseException as error:  # whatever it is, it has to be raised where the items are awaited
            last = error
        self._put(last)

    def _put(self, item: tuple[T] | BaseException | None) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=_LOOK_UP_EVERY_S)
                return True
            except queue.Full:
                continue
        return False
