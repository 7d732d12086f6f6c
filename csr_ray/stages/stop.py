"""What a stage needs to know of somebody's wish that the run stops. `csr_ray.app.stop` hears it as signals."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Stop(Protocol):
    """Outside `graceful` a wish to stop ends the work at once, by a KeyboardInterrupt."""

    @property
    def is_asked(self) -> bool: ...

    def graceful(self) -> contextlib.AbstractContextManager[None]:
        """Inside, a wish to stop is noted only; the stage has to look at `is_asked`, and ends by `now`."""
        ...

    def until_grace_ends(self, results: Iterable[T]) -> Iterator[T]:
        """The results, of which none is waited for any more `run.grace_s` seconds after a wish to stop."""
        ...

    def now(self) -> None:
        """Raise the KeyboardInterrupt that the wish to stop has not raised yet."""
        ...


class NeverAsked:
    """A `Stop` that nobody asks for."""

    is_asked = False

    def graceful(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def until_grace_ends(self, results: Iterable[T]) -> Iterator[T]:
        yield from results

    def now(self) -> None:
        raise KeyboardInterrupt
