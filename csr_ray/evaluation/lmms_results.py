"""Reads what lmms-eval has written, and puts it into the form of this project's results.

lmms-eval takes a request that failed for an answer with the failure's words, and marks that as a wrong one. Such
figures are refused here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from csr_ray.errors import UserError
from csr_ray.records import JsonDict

SUITE = "lmms-eval"
_NO_ANSWERS = ("[LMMS_EVAL_REQUEST_FAILED", "[LMMS_EVAL_BUDGET_EXCEEDED")
_STDERR = "_stderr"


def results_in(folder: Path) -> list[Path]:
    """The files of results that lmms-eval has written below a folder, the last one last."""
    return sorted(folder.rglob("*_results.json"), key=lambda path: path.stat().st_mtime_ns)


def read_results(file: Path, *, tasks: Sequence[str]) -> JsonDict:
    """What lmms-eval has found, in this project's form.

    Args:
        file: the results that it has written, beside which its samples lie.
        tasks: what was asked for; a group's name stands for the tasks in it.

    Returns:
        {"benchmark": "lmms-eval", "n", "metrics": {"task/metric": value}, "skipped", "metrics_are", "suite",
        "tasks": {task: {"n", "metrics", "stderr", "version"}}}.

    Raises:
        UserError: it is no such file, a task is missing in it, or failed requests were marked in it.
    """
    try:
        written = json.loads(file.read_text(encoding="utf-8"))
        found = {name: _task(name, values, written=written) for name, values in written["results"].items()}
        known = {*found, *written.get("group_subtasks", {})}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: not a result of {SUITE}: {type(error).__name__}: {error}") from error
    if missing := [name for name in tasks if name not in known]:
        raise UserError(f"{file}: {SUITE} has no result of {', '.join(missing)}; its log says why")
    if failed := _failed(file):
        named = ", ".join(f"{name}: {number}" for name, number in failed.items())
        raise UserError(
            f"{file}: {SUITE} marked requests that failed as wrong answers ({named}), so its figures are none; its "
            "log says why they failed; mend that, and start the same command again"
        )
    return {
        "benchmark": SUITE,
        "n": sum(task["n"] for task in found.values()),
        "metrics": {
            f"{name}/{metric}": value for name, task in found.items() for metric, value in task["metrics"].items()
        },
        "skipped": {},
        "metrics_are": f"as {SUITE} defines them, task by task",
        "suite": {"name": SUITE},
        "tasks": found,
    }


def _task(name: str, values: JsonDict, *, written: JsonDict) -> JsonDict:
    """A task's figures; the filter that lmms-eval names behind a comma is left away where it is none."""
    metrics, stderr = {}, {}
    for key, value in values.items():
        metric, _, chosen = key.partition(",")
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        shown = metric if chosen in ("", "none") else f"{metric}:{chosen}"
        if _STDERR in metric:
            stderr[shown.replace(_STDERR, "", 1)] = float(value)
        else:
            metrics[shown] = float(value)
    samples = written.get("n-samples", {}).get(name, {})
    return {
        "n": int(samples.get("effective", 0)),
        "metrics": metrics,
        "stderr": stderr,
        "version": written.get("versions", {}).get(name),
    }


def _failed(results: Path) -> Counter[str]:
    """How many of the answers beside a file of results are failures, by task."""
    stamp = results.name.removesuffix("_results.json")
    failed: Counter[str] = Counter()
    for file in sorted(results.parent.glob(f"{stamp}_samples_*.jsonl")):
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                failed[file.stem.removeprefix(f"{stamp}_samples_")] += _is_failure(line)
    return Counter({name: number for name, number in failed.items() if number})


def _is_failure(line: str) -> bool:
    if not any(mark in line for mark in _NO_ANSWERS):
        return False
    sample = json.loads(line)
    return any(text.startswith(_NO_ANSWERS) for text in _texts([sample.get("resps"), sample.get("filtered_resps")]))


def _texts(value: Any) -> list[str]:
    if isinstance(value, list):
        return [text for part in value for text in _texts(part)]
    return [value] if isinstance(value, str) else []
