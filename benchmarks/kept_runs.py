"""Finished runs of a benchmark in one file of JSON lines, so that a table can go on on another machine.

A line has a run's folder, the settings that it ran under, and what the table reads of its summary.json. `restore`
makes of it a folder that counts as a finished run; models, answers and pages are not kept. The settings are those of
the run's own config.yaml, so that a run of other settings than a config has today is not believed under its name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import yaml
from whole_runs import WholeRun, is_finished, read_run

from csr_ray.records import JsonDict

_RATES: Final = ("made", "dropped", "rates")


def restore(file: Path, *, root: Path) -> int:
    """Write the folders of the kept runs that are not there; returns their number."""
    if not file.is_file():
        return 0
    num = 0
    for line in file.read_text(encoding="utf-8").splitlines():
        kept = json.loads(line)
        folder = root / kept["folder"]
        if folder.exists():
            continue
        folder.mkdir(parents=True)
        plain = {**kept["settings"], "run": {**kept["settings"]["run"], "dir": str(folder)}}
        (folder / "config.yaml").write_text(yaml.safe_dump(plain), encoding="utf-8")
        (folder / "summary.json").write_text(json.dumps(kept["summary"]), encoding="utf-8")
        num += 1
    return num


def keep(file: Path, *, runs: Sequence[WholeRun], root: Path) -> None:
    """Write the finished ones of these runs, and leave the file's other lines; lines are sorted by folder.

    A folder that holds a run of other settings is passed over: the table says what is wrong with it.
    """
    lines: dict[str, JsonDict] = {}
    if file.is_file():
        lines = {(line := json.loads(text))["folder"]: line for text in file.read_text("utf-8").splitlines()}
    for run in runs:
        if not is_finished(run.folder):
            continue
        with suppress(ValueError):
            summary, settings = read_run(run)
            name = run.folder.relative_to(root).as_posix()
            settings["run"].pop("dir")
            lines[name] = {"folder": name, "settings": settings, "summary": _told(summary)}
    text = "".join(json.dumps(lines[name], sort_keys=True) + "\n" for name in sorted(lines))
    file.write_text(text, encoding="utf-8")


def _told(summary: JsonDict) -> JsonDict:
    """Of a summary what tables read: evaluations, tokens, rates of the judge, seconds of training, costs."""
    return {
        **_of(summary, ("finished", "method", "machine", "versions", "cost", "eval_seconds")),
        "ended": _ending(summary.get("ended")),
        "base": {"eval": _plain(summary["base"]["eval"])},
        "rounds": [
            {
                **_of(entry, ("round", "method", "policy_version", "wall_s")),
                "rollout": _of(entry["rollout"] or {}, ("prompts", "tokens", "nodes", "seconds")),
                "pairs": _of(entry["pairs"] or {}, _RATES),
                "train": _of(entry["train"] or {}, ("pairs", "steps", "seconds")),
                "eval": _plain(entry["eval"]),
            }
            for entry in summary["rounds"]
        ],
    }


def _of(entry: JsonDict, names: Iterable[str]) -> dict[str, Any]:
    return {name: entry[name] for name in names if name in entry}


def _ending(ended: JsonDict | None) -> JsonDict | None:
    if ended is None:
        return None
    return {**_of(ended, ("round", "phase", "version", "reason")), "eval": _plain(ended.get("eval"))}


def _plain(evaluated: JsonDict | None) -> JsonDict | None:
    """The figures of an evaluation without its intervals and tables."""
    if evaluated is None:
        return None
    return {name: value for name, value in evaluated.items() if isinstance(value, int | float | str | None)}
