"""summary.json from the journal. A pure function but for the machine's name."""

from __future__ import annotations

import os
import platform

from csr_ray.config import Config
from csr_ray.journal import Journal
from csr_ray.types import JsonDict

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
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform()},
        "base": {"eval": _eval(base_eval)},
        "rounds": rounds,
        "seconds": base_s + sum(entry["seconds"] for entry in rounds) + sum(_seconds(journal, "start")),
        "start_seconds": sum(_seconds(journal, "start")),
        "finished": journal.find("finished") is not None,
    }


def _round(journal: Journal, *, index: int, wall_s: float) -> JsonDict:
    units = journal.all("rollout", round=index)
    pairs = journal.find("pairs", round=index) or {}
    trained = journal.find("train", round=index) or {}
    published = journal.find("publish", version=index + 1) or {}
    evaluated = journal.find("eval", version=index + 1)

    def total(key: str) -> float:
        return sum(unit[key] for unit in units)

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
        },
        "score": {
            "sentences": total("sentences"),
            "seconds": total("scorer_busy_s"),
            "texts_cut": total("texts_cut"),
            "wait_share": _ratio(total("score_wait_s"), total("tree_s")),
            "mean_batch": _ratio(total("scorer_sentences"), total("scorer_batches")),
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


def _eval(entry: JsonDict | None) -> JsonDict | None:
    if entry is None:
        return None
    metrics = dict(entry["metrics"])
    return {**{key: metrics.pop(key, None) for key in _EVAL_KEYS}, **metrics}


def _seconds(journal: Journal, kind: str) -> list[float]:
    return [entry["seconds"] for entry in journal.all(kind)]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
