"""Tells broken pictures from a storage that has gone: a mount that vanishes makes every picture unreadable at once.

Broken pictures are set aside for good, so before many of them in a row are, the last picture that could be read is
read once more. If it cannot be read any more either, it is not the pictures' fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from csr_ray.errors import PicturesGone
from csr_ray.records import Rejection, Rollout

# So many prompts in a row that are set aside by their own fault make one look.
_MANY = 16


class Sieve:
    """Hands results on, those of unreadable pictures only once it is sure that others can be read.

    Args:
        unreadable: why a picture cannot be read, or None.
    """

    def __init__(self, *, unreadable: Callable[[str], Exception | None]) -> None:
        self._unreadable = unreadable
        self._held: list[Rejection] = []
        self._last_read = ""

    def sift(self, results: Iterable[Rollout | Rejection]) -> Iterator[Rollout | Rejection]:
        """The results, in another order.

        Raises:
            PicturesGone: what is held back then is not handed on at all.
        """
        for result in results:
            is_suspect = isinstance(result, Rejection) and result.fault == "input"
            if is_suspect:
                self._held.append(result)  # type: ignore[arg-type]
                if len(self._held) >= _MANY:
                    self._look()
                    yield from self._let_go()
                continue
            if isinstance(result, Rollout):
                self._last_read = result.prompt.image
            yield result
            yield from self._let_go()
        self._look()
        yield from self._let_go()

    def rest(self) -> list[Rejection]:
        """What is still held back, if pictures can be read; for whoever ends before the results do.

        Raises:
            PicturesGone: they cannot.
        """
        self._look()
        return list(self._let_go())

    def _look(self) -> None:
        if self._held and self._last_read and (reason := self._unreadable(self._last_read)) is not None:
            raise PicturesGone.since(self._last_read, reason=reason)

    def _let_go(self) -> Iterator[Rejection]:
        while self._held:
            yield self._held.pop(0)
