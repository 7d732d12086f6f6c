"""summary.json from the journal. A pure function but for the machine's name."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping

from csr_ray.config.schema import Config
from csr_ray.records import JsonDict
from csr_ray.store.journal import Journal

_EVAL_KEYS = (
    "chair_s",
    "chair_i",
    "recall",
    "repeat",
    "sentences",
    "pope_acc",
    "pope_f1",
    "chair_s_t1",
    "recall_t1",
)


def summary(journal: Journal, *, config: Config, versions: dict[str, str]) -> JsonDict:
    """The run so far. Rates are fractions in 0..1, times seconds; what was not measured is null."""
    rounds = [
        _round(journal, index=entry["round"], wall_s=entry["wall_s"])
        for entry in sorted(journal.all("round"), key=lambda entry: entry["round"])
    ]
    base_eval = journal.find("eval", version=0)
    base_s = base_eval["seconds"] if base_eval else 0.0
    return {
        "method": config.method,
        "versions": versions,
        "policy": {key: (journal.find("model") or {}).get(key) for key in ("name", "revision")},
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform()},
        "base": {"eval": _eval(base_eval)},
        "rounds": rounds,
        "seconds": base_s + sum(entry["seconds"] for entry in rounds) + sum(_seconds(journal, "start")),
        "start_seconds": sum(_seconds(journal, "start")),
        "finished": any(entry["rounds"] >= config.run.rounds for entry in journal.all("finished")),
    }


def _round(journal: Journal, *, index: int, wall_s: float) -> JsonDict:
    units = journal.all("rollout", round=index)
    pairs = journal.find("pairs", round=index) or {}
    trained = journal.find("train", round=index) or {}
    published = journal.find("publish", version=index + 1) or {}
    evaluated = journal.find("eval", version=index + 1)

    def total(key: str) -> float:
        return sum(unit[key] for unit in units)

    figures: dict[str, float] = {}
    for unit in units:
        for name, value in unit.get("figures", {}).items():
            figures[name] = figures.get(name, 0.0) + value
    stages = {
        "rollout": total("seconds"),
        "pairs": pairs.get("seconds", 0.0),
        "train": trained.get("seconds", 0.0),
        "publish": published.get("seconds", 0.0),
        "eval": evaluated["seconds"] if evaluated else 0.0,
    }
    # A resumed round's wall clock covers only what was left to do: its stages then say more than the clock.
    seconds = max(wall_s, sum(stages.values()))
    return {
        "round": index,
        "policy_version": index + 1,
        "rollout": {
            "prompts": total("prompts"),
            "failed": total("failed"),
            "nodes": total("nodes"),
            "tokens": total("tokens"),
            "seconds": stages["rollout"],
            "prompts_per_s": _ratio(total("prompts"), stages["rollout"]),
            "nodes_per_s": _ratio(total("nodes"), stages["rollout"]),
            "tokens_per_s": _ratio(total("tokens"), stages["rollout"]),
            "groups_redone": figures.get("groups_redone"),
            **engine_ratios(figures),
        },
        "score": {
            "sentences": total("sentences"),
            "seconds": total("scorer_busy_s"),
            "texts_cut": total("texts_cut"),
            "wait_share": _ratio(total("score_wait_s"), total("tree_s")),
            "mean_batch": _ratio(total("scorer_sentences"), total("scorer_batches")),
            "mean_wait_ms": 1e3 * _ratio(figures.get("score_wait_s", 0.0), figures.get("score_requests", 0.0)),
            "queue_depth": _ratio(figures.get("score_queue", 0.0), figures.get("batches", 0.0)),
            "image_encodes": figures.get("scorer_image_encodes"),
            "text_encodes": figures.get("scorer_text_encodes"),
        },
        "pairs": {
            key: pairs.get(key)
            for key in (
                "made",
                "dropped",
                "chosen_sentences",
                "rejected_sentences",
                "chosen_reward",
                "rejected_reward",
            )
        },
        "train": {
            "pairs": trained.get("num_pairs"),
            "steps": trained.get("num_steps"),
            "seconds": trained.get("seconds"),
            "optimizer_seconds": trained.get("optimizer_s"),
            "loss_first": trained.get("loss_first"),
            "loss_last": trained.get("loss_last"),
            "metrics": trained.get("metrics"),
        },
        "publish": {
            "bytes": published.get("bytes"),
            "seconds": published.get("seconds"),
            "max_probe_gap": published.get("max_probe_gap"),
        },
        "eval": _eval(evaluated),
        "stages": {**stages, "other": seconds - sum(stages.values())},
        "seconds": seconds,
    }


def engine_ratios(figures: Mapping[str, float]) -> dict[str, float | None]:
    """What the generators' counters say, as ratios; None where nothing was counted.

    `occupancy` is running requests over the most there may be, mean over engine steps; the hit rates are shares of
    tokens (prefix cache) and of images looked up (processor cache); `continuation_misses` counts continuations that
    had to compute a part of their prefix again.
    """

    def ratio(part: str, whole: str) -> float | None:
        return figures.get(part, 0.0) / figures[whole] if figures.get(whole) else None

    return {
        "occupancy": ratio("engine_running", "engine_slots"),
        "queue_depth": ratio("engine_waiting", "engine_steps"),
        "prefix_hit_rate": ratio("prefix_hits", "prefix_queries"),
        "processor_hit_rate": ratio("processor_hits", "processor_queries"),
        "image_encodes": figures.get("image_encodes"),
        "continuations": figures.get("continuations"),
        "continuation_misses": figures.get("continuation_misses"),
        "preempted": figures.get("engine_preempted"),
    }


def live_figures(figures: Mapping[str, float], *, seconds: float) -> str:
    """One line for the progress view: how full the engine was, and what its caches and the scorer did."""
    ratios = engine_ratios(figures)
    names = {"occupancy": "engine full", "prefix_hit_rate": "prefix hits"}
    parts = [f"{name} {100 * value:.0f} %" for key, name in names.items() if (value := ratios[key]) is not None]
    if figures.get("batches"):
        busy = figures.get("score_s", 0.0) / max(seconds, 1e-9)
        parts.append(f"scorer busy {100 * busy:.0f} %, {figures['sentences'] / figures['batches']:.0f} a batch")
    return ", ".join(parts)


def _eval(entry: JsonDict | None) -> JsonDict | None:
    if entry is None:
        return None
    metrics = dict(entry["metrics"])
    return {**{key: metrics.pop(key, None) for key in _EVAL_KEYS}, **metrics}


def _seconds(journal: Journal, kind: str) -> list[float]:
    return [entry["seconds"] for entry in journal.all(kind)]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
