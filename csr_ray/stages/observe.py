"""Makes a run's metrics of what the driver commits and shows: the journal's lines, and the stage that is going on.

So no stage has to think of metrics. Which there are stands in `csr_ray.metrics`; where they go, nobody here knows.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from csr_ray.config.schema import Cluster
from csr_ray.counters import Usage
from csr_ray.machine.cost import cost
from csr_ray.metrics import Exporter
from csr_ray.records import JsonDict
from csr_ray.stages.view import Progress, View
from csr_ray.store.journal import Journal

_HOUR_S = 3600.0
# Of a rollout's line: the counter that each number is added to.
_OF_UNIT = {
    "prompts": "csr_ray_prompts_total",
    "nodes": "csr_ray_nodes_total",
    "tokens": "csr_ray_tokens_total",
    "sentences": "csr_ray_sentences_scored_total",
    "texts_cut": "csr_ray_texts_cut_total",
    "seconds": "csr_ray_rollout_seconds_total",
    "rollout_s": "csr_ray_prompt_time_seconds_total",
    "score_wait_s": "csr_ray_prompt_score_wait_seconds_total",
}


class JournalMetrics:
    """Follows one journal from now on.

    What earlier starts of the run have committed is not counted again, as counters of Prometheus begin at 0 with
    every process; figures that stand (of evaluations, say, and what the whole run has cost) are exported again.

    Args:
        cluster: says what an hour of a GPU or CPU costs, where the user says it.
    """

    def __init__(self, journal: Journal, *, exporter: Exporter, cluster: Cluster) -> None:
        self._exporter = exporter
        self._cluster = cluster
        self._used: list[Usage] = []
        self._use(row for line in journal.all("usage") for row in line["rows"])
        for kind in ("examples", "train", "publish", "eval"):
            for entry in journal.all(kind):
                self._set_gauges(entry)
        journal.listen(self.hear)

    def hear(self, entry: JsonDict) -> None:
        """Take in a line that was just committed."""
        out = self._exporter
        out.add("csr_ray_journal_lines_total", kind=entry["kind"])
        match entry["kind"]:
            case "rollout":
                cycle = _cycle(entry)
                for key, name in _OF_UNIT.items():
                    out.add(name, entry[key], **cycle)
                for fault, num in Counter(one["fault"] for one in entry["rejected"]).items():
                    out.add("csr_ray_set_aside_total", num, fault=fault, **cycle)
            case "examples":
                cycle = _cycle(entry)
                out.add("csr_ray_examples_made_total", entry["made"], **cycle)
                out.add("csr_ray_build_seconds_total", entry["seconds"], **cycle)
                for reason, num in entry["dropped"].items():
                    out.add("csr_ray_examples_dropped_total", num, reason=reason, **cycle)
            case "train":
                cycle = _cycle(entry)
                out.add("csr_ray_train_examples_total", entry["num_pairs"], **cycle)
                out.add("csr_ray_train_seconds_total", entry["seconds"], **cycle)
                out.add("csr_ray_train_optimizer_seconds_total", entry["optimizer_s"], **cycle)
            case "publish":
                cycle = _cycle(entry)
                out.add("csr_ray_publish_bytes_total", entry["bytes"], **cycle)
                out.add("csr_ray_publish_seconds_total", entry["seconds"], **cycle)
            case "eval":
                out.add("csr_ray_eval_seconds_total", entry["seconds"])
            case "start":
                out.add("csr_ray_start_seconds_total", entry["seconds"])
            case "round":
                out.add("csr_ray_rounds_total")
                out.add("csr_ray_round_seconds_total", entry["wall_s"])
        self._set_gauges(entry)

    def _set_gauges(self, entry: JsonDict) -> None:
        out = self._exporter
        match entry["kind"]:
            case "examples":
                for side in ("chosen", "rejected", "answer"):
                    if (reward := entry.get(f"{side}_reward")) is not None:
                        out.set("csr_ray_pair_reward", reward, side=side, **_cycle(entry))
            case "train":
                out.set("csr_ray_policy_version_trained", entry["version"])
                for edge in ("first", "last"):
                    out.set("csr_ray_train_cycle_loss", entry[f"loss_{edge}"], edge=edge, **_cycle(entry))
            case "publish":
                cycle = _cycle(entry)
                out.set("csr_ray_publish_probe_gap_nats", entry["max_probe_gap"], **cycle)
                out.set("csr_ray_publish_kept_ratio", entry["kept"], **cycle)
                out.set("csr_ray_publish_swallowed_ratio", entry["swallowed"], **cycle)
            case "eval":
                for metric, value in entry["metrics"].items():
                    if isinstance(value, int | float):
                        out.set("csr_ray_eval_score", value, metric=metric, version=str(entry["version"]))
            case "usage":
                self._use(entry["rows"])

    def _use(self, rows: Iterable[JsonDict]) -> None:
        """Take in what actors have held since they were last looked at."""
        self._used = Usage.merged([*self._used, *(Usage(**row) for row in rows)])
        for role, spent in cost(self._used, cluster=self._cluster)["roles"].items():
            self._exporter.set("csr_ray_gpu_seconds", _HOUR_S * spent["gpu_hours"], role=role)
            self._exporter.set("csr_ray_cpu_seconds", _HOUR_S * spent["cpu_hours"], role=role)
            self._exporter.set("csr_ray_actor_seconds", _HOUR_S * spent["actor_hours"], role=role)
            busy_s = sum(one.busy_s for one in self._used if one.role == role)
            self._exporter.set("csr_ray_actor_busy_seconds", busy_s, role=role)
            if spent["usd"] is not None:
                self._exporter.set("csr_ray_cost_usd", spent["usd"], role=role)


class ObservedView:
    """A view that shows what another does, and exports how far the stage is that is going on."""

    def __init__(self, view: View, *, exporter: Exporter) -> None:
        self._view = view
        self._exporter = exporter
        self._lock = threading.Lock()
        self._now: tuple[Progress, dict[str, str]] | None = None
        self._counted_s = 0.0  # of the running stage
        exporter.sample(self._look)

    def say(self, line: str, *, is_warning: bool = False) -> None:
        self._view.say(line, is_warning=is_warning)

    def watch(self, health: Callable[[], str]) -> None:
        self._view.watch(health)

    def metrics(self, *, version: int, metrics: dict[str, float]) -> None:
        self._view.metrics(version=version, metrics=metrics)

    @contextlib.contextmanager
    def stage(self, name: str, *, total: int | None, unit: str, round_index: int | None) -> Iterator[Progress]:
        tags = {"stage": name, "round": "" if round_index is None else str(round_index)}
        with self._view.stage(name, total=total, unit=unit, round_index=round_index) as progress:
            with self._lock:
                self._now, self._counted_s = (progress, tags), 0.0
            self._look()
            try:
                yield progress
            finally:
                self._look()
                with self._lock:
                    self._now = None
                for gauge in ("running", "done", "left"):
                    self._exporter.forget(f"csr_ray_stage_{gauge}", **tags)

    def _look(self) -> None:
        with self._lock:
            if self._now is None:
                return
            progress, tags = self._now
            seconds = time.perf_counter() - progress.started_s
            more_s, self._counted_s = max(0.0, seconds - self._counted_s), max(seconds, self._counted_s)
            self._exporter.add("csr_ray_stage_seconds_total", more_s, **tags)
            self._exporter.set("csr_ray_stage_running", 1, **tags)
            self._exporter.set("csr_ray_stage_done", progress.done, **tags)
            if progress.total is not None:
                self._exporter.set("csr_ray_stage_left", progress.total - progress.done, **tags)


def _cycle(entry: JsonDict) -> dict[str, str]:
    return {"round": str(entry["round"]), "phase": str(entry["phase"])}
