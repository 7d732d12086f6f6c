"""Where the seconds of a load go. What vLLM's kernels take to pack a layer is told apart from what we do."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Stopwatch:
    """Seconds by what is being done; what is done in the middle of something else counts once.

    Args:
        doing: what is done unless something else is.
    """

    def __init__(self, doing: str) -> None:
        self._doing = [doing]
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._since_s = time.perf_counter()

    @contextmanager
    def at(self, what: str) -> Iterator[None]:
        """In the block this is done."""
        self._count()
        self._doing.append(what)
        try:
            yield
        finally:
            self._count()
            self._doing.pop()

    def end(self) -> dict[str, float]:
        """Seconds by what was done until now."""
        self._count()
        return dict(self._seconds)

    def _count(self) -> None:
        now_s = time.perf_counter()
        self._seconds[self._doing[-1]] += now_s - self._since_s
        self._since_s = now_s


@contextmanager
def packing(model: Any, *, watch: Stopwatch) -> Iterator[None]:
    """In the block, what the kernels of the model's layers do to weights that were loaded is counted as "pack"."""
    methods = {id(it): it for it in (getattr(layer, "quant_method", None) for layer in model.modules()) if it}
    timed = [it for it in methods.values() if hasattr(it, "process_weights_after_loading")]

    def counted(work: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **kwargs: Any) -> Any:
            with watch.at("pack"):
                return work(*args, **kwargs)

        return counting

    for method in timed:
        method.process_weights_after_loading = counted(method.process_weights_after_loading)
    try:
        yield
    finally:
        for method in timed:
            del method.process_weights_after_loading  # that of its class is left
