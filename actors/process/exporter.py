"""Exports the figures of one process as Ray's metrics, from where Prometheus fetches them (docs/observability.md).

Calls only note what is to be exported; a thread hands it to Ray every few seconds. That is often enough, because Ray
itself passes metrics on every ten seconds. It hands on gauges again and again, because the node's agent of Ray drops
those that it has not heard of for twenty seconds.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from csr_ray.metrics import CATALOGUE, Metric

_log = logging.getLogger(__name__)

_EXPORT_EVERY_S = 2.0
# Of one histogram between two exports; more come only from a process whose Ray is away.
_MOST_OBSERVED = 10_000

_Tags = tuple[str, ...]  # the values, in the order of `Metric.tag_keys`


class RayExporter:
    """The `csr_ray.metrics.Exporter` of a process that Ray runs in, or will.

    What is noted before Ray is there is exported when it is. If Ray refuses a metric, that is logged once, and
    nothing more is exported.

    Args:
        run: names the run in the tag of this name.
        role: the tag `role` where a call does not say another: generator, scorer, train_worker or driver.
    """

    def __init__(self, *, run: str, role: str) -> None:
        self.run = run
        self._role = role
        self._lock = threading.Lock()  # held for moments only: engine steps wait for it
        self._counts: dict[str, dict[_Tags, float]] = defaultdict(dict)
        self._gauges: dict[str, dict[_Tags, float]] = defaultdict(dict)
        self._fading: set[tuple[str, _Tags]] = set()
        self._observed: dict[str, list[tuple[_Tags, float]]] = defaultdict(list)
        self._looks: list[Callable[[], None]] = []
        self._rays: dict[str, Any] = {}
        self._exporting = threading.Lock()
        self._is_closed = threading.Event()
        self._is_refused = False
        self._thread: threading.Thread | None = None

    def add(self, name: str, value: float = 1.0, **tags: str) -> None:
        metric, values = self._checked(name, "counter", tags)
        assert value >= 0, f"{name} only grows, by {value} it does not"
        if value:
            with self._lock:
                counts = self._counts[metric.name]
                counts[values] = counts.get(values, 0.0) + value

    def set(self, name: str, value: float, **tags: str) -> None:
        metric, values = self._checked(name, "gauge", tags)
        with self._lock:
            self._gauges[metric.name][values] = float(value)
            self._fading.discard((metric.name, values))

    def forget(self, name: str, **tags: str) -> None:
        metric, values = self._checked(name, "gauge", tags)
        with self._lock:
            if values in self._gauges[metric.name]:
                self._gauges[metric.name][values] = 0.0
                self._fading.add((metric.name, values))

    def observe(self, name: str, value: float, **tags: str) -> None:
        metric, values = self._checked(name, "histogram", tags)
        with self._lock:
            if len(self._observed[metric.name]) < _MOST_OBSERVED:
                self._observed[metric.name].append((values, float(value)))

    def sample(self, look: Callable[[], None]) -> None:
        with self._lock:
            self._looks.append(look)
        self._start()

    def close(self) -> None:
        self._is_closed.set()
        if self._thread is not None:
            self._thread.join(timeout=_EXPORT_EVERY_S)
        self._export()

    def _checked(self, name: str, kind: str, tags: dict[str, str]) -> tuple[Metric, _Tags]:
        assert name in CATALOGUE, f"{name} is not in csr_ray/metrics.py"
        metric = CATALOGUE[name]
        assert metric.kind == kind, f"{name} is a {metric.kind}, not a {kind}"
        given = {"run": self.run, "role": self._role, **tags}
        assert given.keys() == set(metric.tag_keys), f"{name} has the tags {metric.tag_keys}, not {sorted(given)}"
        self._start()
        return metric, tuple(given[key] for key in metric.tag_keys)

    def _start(self) -> None:
        if self._thread is None and not self._is_closed.is_set():
            self._thread = threading.Thread(target=self._go_on, name="metrics", daemon=True)
            self._thread.start()

    def _go_on(self) -> None:
        while not self._is_closed.wait(_EXPORT_EVERY_S):
            for look in list(self._looks):
                try:
                    look()
                except Exception:
                    _log.debug("a look at what is exported", exc_info=True)
            self._export()

    def _export(self) -> None:
        if self._is_refused or not _is_ray_there():
            return
        with self._exporting:
            with self._lock:
                counts, self._counts = self._counts, defaultdict(dict)
                observed, self._observed = self._observed, defaultdict(list)
                gauges = {name: dict(values) for name, values in self._gauges.items()}
                for name, values in self._fading:
                    del self._gauges[name][values]
                self._fading.clear()
            try:
                for name, by_tags in counts.items():
                    for values, value in by_tags.items():
                        self._ray(name).inc(value, tags=_named(name, values))
                for name, by_tags in gauges.items():
                    for values, value in by_tags.items():
                        self._ray(name).set(value, tags=_named(name, values))
                for name, pairs in observed.items():
                    for values, value in pairs:
                        self._ray(name).observe(value, tags=_named(name, values))
            except Exception:
                self._is_refused = True
                self._is_closed.set()
                _log.warning("metrics are not exported any more; the run goes on", exc_info=True)

    def _ray(self, name: str) -> Any:
        if name not in self._rays:
            self._rays[name] = _made(CATALOGUE[name])
        return self._rays[name]


def _is_ray_there() -> bool:
    # Not by an import: it would be the process's first, and Ray reads its settings then.
    ray = sys.modules.get("ray")
    return ray is not None and hasattr(ray, "is_initialized") and ray.is_initialized()


def _made(metric: Metric) -> Any:
    from ray.util.metrics import Counter, Gauge, Histogram

    about: dict[str, Any] = {"description": metric.help, "tag_keys": metric.tag_keys}
    if metric.kind == "histogram":
        return Histogram(metric.name, boundaries=list(metric.boundaries), **about)
    return (Counter if metric.kind == "counter" else Gauge)(metric.name, **about)


def _named(name: str, values: _Tags) -> dict[str, str]:
    return dict(zip(CATALOGUE[name].tag_keys, values, strict=True))


def metrics_address() -> str:
    """The URL at which the agent of this process's node serves the metrics of all processes on it; "" if it has none.

    Every node of a cluster has one of its own.
    """
    import ray

    with contextlib.suppress(Exception):
        own = ray.get_runtime_context().get_node_id()
        for node in ray.nodes():
            if node["NodeID"] == own and node.get("MetricsExportPort"):
                return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    return ""
