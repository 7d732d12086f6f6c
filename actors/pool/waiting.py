"""Work that waits for a generator: whoever is free takes the next, but an image stays with one generator.

So an image is decoded, encoded and cached once, however many prompts ask about it. Pure; knows no actors.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Waiting(Generic[T]):
    """Items in order. The generator that takes an image's first item is asked for all others of that image."""

    def __init__(self, items: Iterable[T], *, image_of: Callable[[T], str]) -> None:
        self._items = deque(items)
        self._image_of = image_of
        self._home: dict[str, int] = {}
        self._bound: dict[int, deque[T]] = {}

    def next_for(self, index: int) -> T | None:
        """The next item for the generator of this number; None if there is none that it may take."""
        if self._bound.get(index):
            return self._bound[index].popleft()
        while self._items:
            item = self._items.popleft()
            home = self._home.setdefault(self._image_of(item), index)
            if home == index:
                return item
            self._bound.setdefault(home, deque()).append(item)
        return None
