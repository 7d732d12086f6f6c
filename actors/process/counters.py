"""The counters of one actor: summed until the driver takes them, and meanwhile exported as Ray's metrics.

What is counted, and what it means, stands in `csr_ray.counters.Counters`.
"""

from __future__ import annotations

import time
from typing import Any

from csr_ray.counters import Counters

_EXPORT_EVERY_S = 1.0


class Counting:
    """The counts of one actor, exported at most once a second as Ray's counters `csr_ray_<name>`, tagged `actor`."""

    def __init__(self, *, actor: str) -> None:
        self._counted = Counters()
        self._unsent = Counters()
        self._actor = actor
        self._metrics: dict[str, Any] = {}
        self._sent_s = time.perf_counter()

    def add(self, more: Counters) -> None:
        self._counted.add(more)
        self._unsent.add(more)
        if time.perf_counter() - self._sent_s >= _EXPORT_EVERY_S:
            self._export()

    def take(self) -> Counters:
        """The counts since the last call."""
        taken, self._counted = self._counted, Counters()
        self._export()
        return taken

    def _export(self) -> None:
        import ray

        self._sent_s = time.perf_counter()
        unsent, self._unsent = self._unsent, Counters()
        if not ray.is_initialized():
            return
        for name, value in unsent.to_plain().items():
            self._metric(name).inc(value)

    def _metric(self, name: str) -> Any:
        if name not in self._metrics:
            from ray.util.metrics import Counter

            self._metrics[name] = Counter(f"csr_ray_{name}", description=f"sum of {name}", tag_keys=("actor",))
            self._metrics[name].set_default_tags({"actor": self._actor})
        return self._metrics[name]
