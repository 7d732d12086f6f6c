"""Tells broken pictures from a storage that has gone: a mount that vanishes makes every picture unreadable at once.

Broken pictures are set aside for good, and what cannot be reached (an input/output error, a stale handle of NFS) for
this phase. So before any of them are, the last picture that could be read is read once more. If it cannot be read any
more either, it is not the pictures' fault. The same holds where none has been read yet and none can be found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from csr_ray.errors import PicturesGone
from csr_ray.records import Rejection, Rollout

# So many prompts in a row that are set aside make one look, if no answer comes before.
_MANY = 16


class Sieve:
    """Hands results on, those of unreadable pictures only once it is sure that others can be read.

    Args:
        unreadable: why a picture cannot be read, or None.
        find: a picture that can be read now, of all there are; None: there is none. Asked where no answer has come
            yet.
    """

    def __init__(self, *, unreadable: Callable[[str], Exception | None], find: Callable[[], str | None]) -> None:
        self._unreadable = unreadable
        self._find = find
        self._held: list[Rejection] = []
        self._last_read = ""

    def sift(self, results: Iterable[Rollout | Rejection]) -> Iterator[Rollout | Rejection]:
        """The results, in another order.

        Raises:
            PicturesGone: what is held back then is not handed on at all.
        """
        for result in results:
            if isinstance(result, Rejection) and result.fault != "policy":
                self._held.append(result)
                if len(self._held) >= _MANY:
                    self._look()
                    yield from self._let_go()
                continue
            yield result
            if isinstance(result, Rollout):
                # Its picture was read when its turn came, which may be before those that are held failed.
                self._last_read = result.prompt.image
                self._look()
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
        if not self._held:
            return
        if not self._last_read:
            self._last_read = self._find() or ""
            if not self._last_read:
                raise PicturesGone.all_of_them(reason=self._held[0].reason)
        elif (reason := self._unreadable(self._last_read)) is not None:
            raise PicturesGone.since(self._last_read, reason=reason)

    def _let_go(self) -> Iterator[Rejection]:
        while self._held:
            yield self._held.pop(0)
