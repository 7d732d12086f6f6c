"""Counters of one actor: summed until somebody takes them, and shown to Prometheus as Ray metrics on the way.

Every counter only ever grows by what is added, so the figures of several actors and of several units of work may be
summed; ratios are formed where they are read (`csr_ray.stages.summary`). What this module does not know: what is
counted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

_EXPORT_EVERY_S = 1.0


class Figures:
    """Named sums, exported once a second as counters `csr_ray_<name>` with the tag `actor`."""

    def __init__(self, *names: str, actor: str) -> None:
        self._values = dict.fromkeys(names, 0.0)
        self._unsent = dict.fromkeys(names, 0.0)
        self._actor = actor
        self._metrics: dict[str, Any] | None = None
        self._sent_s = time.perf_counter()

    def add(self, **values: float) -> None:
        """Add to counters; a name that was not declared is a bug and raises KeyError."""
        for name, value in values.items():
            self._values[name] += value
            self._unsent[name] += value
        if time.perf_counter() - self._sent_s >= _EXPORT_EVERY_S:
            self._export()

    def take(self) -> dict[str, float]:
        """The sums since the last call."""
        taken, self._values = self._values, dict.fromkeys(self._values, 0.0)
        self._export()
        return taken

    def _export(self) -> None:
        import ray

        self._sent_s = time.perf_counter()
        unsent, self._unsent = self._unsent, dict.fromkeys(self._unsent, 0.0)
        if not ray.is_initialized():
            return
        if self._metrics is None:
            self._metrics = _counters(unsent, actor=self._actor)
        for name, value in unsent.items():
            if value > 0:
                self._metrics[name].inc(value)


def _counters(names: Mapping[str, float], *, actor: str) -> dict[str, Any]:
    from ray.util.metrics import Counter

    counters = {}
    for name in names:
        counters[name] = Counter(f"csr_ray_{name}", description=f"sum of {name}", tag_keys=("actor",))
        counters[name].set_default_tags({"actor": actor})
    return counters
