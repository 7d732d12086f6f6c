"""The lock of a run folder at a URL: a `LockStore` made of objects that are created and never changed.

Every change of the lock is an object of its own in `run.lock/`, with the next number; the one with the highest is the
lock as it is now. A number can be created once, so of two drivers that both want to change what they have seen one
succeeds. Whoever succeeds removes the earlier ones. The last one of all stays, with nothing in it: it keeps the
numbers from beginning anew, by which a driver that slept for a week would take its old lock for the newest.
"""

from __future__ import annotations

import contextlib
import re
from typing import Final

from csr_ray.store.objects import ObjectStore, StoreError

LOCK_FOLDER: Final = "run.lock"

_NAME = re.compile(rf"{re.escape(LOCK_FOLDER)}/(\d{{9}})")
_FREE: Final = b""
_NUM_LOOKS: Final = 5


class LockObjects:
    """See `csr_ray.store.lock.LockStore`. A tag is a number."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def create(self, content: bytes) -> str | None:
        numbers = self._numbers()
        if numbers and self._store.read(_name(numbers[-1])) != _FREE:
            return None
        return self._put(numbers[-1] + 1 if numbers else 0, content, behind=numbers[-1] if numbers else None)

    def read(self) -> tuple[bytes, str] | None:
        for _ in range(_NUM_LOOKS):
            numbers = self._numbers()
            if not numbers:
                return None
            content = self._store.read(_name(numbers[-1]))
            if content is not None:  # else it has been replaced since the list
                return None if content == _FREE else (content, str(numbers[-1]))
        raise StoreError(f"{LOCK_FOLDER}: changes faster than it can be read")

    def replace(self, content: bytes, *, tag: str) -> str | None:
        number = _number(tag)
        return None if number is None else self._put(number + 1, content, behind=number)

    def delete(self, *, tag: str) -> bool:
        number = _number(tag)
        return number is not None and self._put(number + 1, _FREE, behind=number) is not None

    def forget(self) -> None:
        """Remove what a lock leaves that nobody holds, where nothing was begun; numbers begin anew then."""
        numbers = self._numbers()
        if numbers and self._store.read(_name(numbers[-1])) == _FREE:
            self._store.remove([_name(number) for number in numbers])

    def _put(self, number: int, content: bytes, *, behind: int | None) -> str | None:
        """Create the object of a number; returns it as a tag if it is the newest, and follows on `behind`.

        A number that was another's once may be free again, because earlier ones are removed. Then there is a higher
        one, which was created before that removal, so this list has it.
        """
        if not self._store.create(_name(number), content):
            return None
        numbers = self._numbers()
        if not numbers or numbers[-1] != number or (behind is not None and behind not in numbers):
            self._store.remove([_name(number)])
            return None
        with contextlib.suppress(StoreError):  # the next change removes them
            self._store.remove([_name(earlier) for earlier in numbers[:-1]])
        return str(number)

    def _numbers(self) -> list[int]:
        names = self._store.list(LOCK_FOLDER)
        return sorted(int(found[1]) for name in names if (found := _NAME.fullmatch(name)))


def _name(number: int) -> str:
    return f"{LOCK_FOLDER}/{number:09d}"


def _number(tag: str) -> int | None:
    return int(tag) if tag.isdigit() else None
