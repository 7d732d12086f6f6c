"""The counters of one actor: summed until the driver takes them, and meanwhile exported as Ray's metrics.

What is counted, and what it means, stands in `csr_ray.counters.Counters`; the names by which each is exported stand
in `csr_ray.metrics.OF_COUNTERS`.
"""

from __future__ import annotations

import threading

from csr_ray.counters import Counters
from csr_ray.metrics import OF_COUNTERS, Exporter, NoExporter


class Counting:
    """The counts of one actor, by which its `exporter` is fed every few seconds.

    Args:
        actor: names it in the tag of this name: its role and slot.
    """

    def __init__(self, *, actor: str, exporter: Exporter | None = None) -> None:
        self.actor = actor
        self.exporter: Exporter = exporter or NoExporter()
        self._counted = Counters()
        self._unsent = Counters()
        self._lock = threading.Lock()
        self._is_engine = False
        self.exporter.sample(self._export)

    def add(self, more: Counters) -> None:
        with self._lock:
            self._counted.add(more)
            self._unsent.add(more)

    def take(self) -> Counters:
        """The counts since the last call."""
        with self._lock:
            taken, self._counted = self._counted, Counters()
        return taken

    def _export(self) -> None:
        with self._lock:
            unsent, self._unsent = self._unsent, Counters()
        for name, value in unsent.to_plain().items():
            self.exporter.add(OF_COUNTERS[name].name, value, actor=self.actor)
        self._set_ratios(unsent)

    def _set_ratios(self, seen: Counters) -> None:
        """Of what was seen since the last look; an engine that made no step is empty."""
        if not self._is_engine and not seen.engine_steps:
            return
        self._is_engine = True
        occupancy = seen.engine_running / seen.engine_slots if seen.engine_slots else 0.0
        waiting = seen.engine_waiting / seen.engine_steps if seen.engine_steps else 0.0
        self.exporter.set("csr_ray_engine_occupancy_ratio", occupancy, actor=self.actor)
        self.exporter.set("csr_ray_engine_queue", waiting, actor=self.actor)
        if seen.prefix_queries:
            hits = seen.prefix_hits / seen.prefix_queries
            self.exporter.set("csr_ray_prefix_hit_ratio", hits, actor=self.actor)
