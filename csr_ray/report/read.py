"""Reads a run folder for the page: every reward, but the text and image of only the pairs that will be shown.

Parquet files are walked in batches, so a run of any size is read in little memory. What cannot be read (a file cut
short by a crash) is left out and named in `Run.notes`; nothing here writes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from csr_ray.config.load import YAML_ERRORS
from csr_ray.errors import ConfigError
from csr_ray.records import MarkedAnswer
from csr_ray.report.figures import number
from csr_ray.store.marked_answers import read_marked_answers
from csr_ray.store.parquet import open_by_batch

MAX_SHOWN_A_ROUND = 60
MAX_SHOWN_A_RUN = 600
MIN_SHOWN_A_ROUND = 6
BATCH_ROWS = 4096
IMAGE_BATCH_ROWS = 64
PAIR_COLUMNS = (
    "id", "image", "prompt", "chosen", "rejected", "chosen_reward", "rejected_reward",
    "chosen_logp", "rejected_logp", "chosen_nodes", "rejected_nodes",
)  # fmt: skip
# Of a file of single answers, with their names on the page, where they are chosen ones without rejected ones.
ANSWER_COLUMNS = {
    "answer": "chosen", "reward": "chosen_reward", "logp": "chosen_logp", "answer_nodes": "chosen_nodes",
}  # fmt: skip
NODE_COLUMNS = ("id", "node", "text", "token_ids", "logp", "self_score", "image_score", "reward")
FIRST_QUARANTINED = 6
# A number of thousands of digits is a ValueError, and a thousand opening brackets end the recursion.
_JSON_ERRORS = (ValueError, RecursionError)

NodeRows = dict[tuple[str, int], dict[str, Any]]
Rows = TypeVar("Rows", pa.Table, pa.RecordBatch)


@dataclass(frozen=True, kw_only=True)
class RoundData:
    """What one round folder holds.

    Attributes:
        chosen_rewards, rejected_rewards: float64 [num_pairs], NaN where the file has none.
        shown: rows of `pairs.parquet` (as dicts) picked for the gallery, smallest margin first; of a round of single
            answers, of `examples.parquet`, the smallest reward first.
        nodes: rows of `candidates/` for the prompts of `shown`, by (id, node).
    """

    index: int
    num_pairs: int | None
    chosen_rewards: np.ndarray
    rejected_rewards: np.ndarray
    shown: tuple[dict[str, Any], ...]
    nodes: NodeRows
    num_nodes: int


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The answers of one policy version, as the run keeps them."""

    version: int
    answers: tuple[MarkedAnswer, ...]


@dataclass(frozen=True, kw_only=True)
class Quarantine:
    """What was set aside: how many by reason, and the first few lines."""

    by_reason: Mapping[str, int] = field(default_factory=dict)
    first: tuple[Mapping[str, str], ...] = ()

    @property
    def total(self) -> int:
        return sum(self.by_reason.values())


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder, read.

    Attributes:
        self_scores, image_scores, rewards: float32 [num_nodes], of every node of the run that has them all.
        evaluated: by version, those whose answers can be read.
        written: when the newest of the run's records was written, UTC.
        notes: what could not be read, a line each.
    """

    folder: Path
    summary: Mapping[str, Any]
    config: Mapping[str, Any]
    config_text: str
    rounds: tuple[RoundData, ...]
    self_scores: np.ndarray
    image_scores: np.ndarray
    rewards: np.ndarray
    quarantine: Quarantine
    evaluated: tuple[Evaluated, ...]
    written: datetime
    notes: tuple[str, ...]


def read_run(folder: Path) -> Run:
    """Read what exists of a run.

    Raises:
        ConfigError: `folder` is missing or holds nothing of a run.
    """
    if not folder.is_dir():
        raise ConfigError(f"run folder {folder}: no such folder; name the run.dir of a run")
    round_folders = sorted(
        (path for path in folder.glob("round_*") if path.is_dir() and path.name[6:].isdigit()),
        key=lambda path: int(path.name[6:]),
    )
    named = (folder / name for name in ("summary.json", "config.yaml", "journal.jsonl"))
    records = [path for path in named if path.is_file()]
    if not round_folders and not records:
        raise ConfigError(
            f"run folder {folder}: no summary.json, config.yaml or round_000; name the run.dir of a run"
        )
    notes: list[str] = []
    scores: list[np.ndarray] = []
    num_shown = _num_shown_a_round(len(round_folders))
    rounds = tuple(_read_round(path, num_shown=num_shown, scores=scores, notes=notes) for path in round_folders)
    image, self_, reward = np.concatenate(scores, axis=1) if scores else np.zeros((3, 0), dtype=np.float32)
    config_text = _read_text(folder / "config.yaml")
    newest = max(path.stat().st_mtime for path in (*records, *round_folders))
    return Run(
        folder=folder,
        summary=_read_summary(folder / "summary.json", notes=notes),
        config=_parse_config(config_text, notes=notes),
        config_text=config_text,
        rounds=rounds,
        self_scores=self_,
        image_scores=image,
        rewards=reward,
        evaluated=_read_evaluated(folder / "eval", notes=notes),
        quarantine=_read_quarantine(folder / "quarantine.jsonl"),
        written=datetime.fromtimestamp(newest, tz=timezone.utc),
        notes=tuple(notes),
    )


def spread_over_margins(margins: np.ndarray, *, num: int) -> np.ndarray:
    """Positions [<= num] of pairs at even ranks of the margin, smallest first, both ends included. NaN ranks last."""
    order = np.argsort(margins, kind="stable")
    if len(order) <= num:
        return order
    return order[np.linspace(0, len(order) - 1, num).round().astype(int)]


def _read_evaluated(folder: Path, *, notes: list[str]) -> tuple[Evaluated, ...]:
    found = []
    for path in sorted(folder.glob("version_*.parquet"), key=lambda path: (len(path.name), path.name)):
        if not (digits := path.stem.removeprefix("version_")).isdecimal():
            continue
        try:
            answers = tuple(read_marked_answers(path))
        except (OSError, ValueError) as error:
            notes.append(f"eval/{path.name} could not be read: {_one_line(error)}")
            continue
        found.append(Evaluated(version=int(digits), answers=answers))
    return tuple(found)


def _num_shown_a_round(num_rounds: int) -> int:
    # A run of many rounds shows fewer of each, so that the page stays a page.
    return max(MIN_SHOWN_A_ROUND, min(MAX_SHOWN_A_ROUND, MAX_SHOWN_A_RUN // max(1, num_rounds)))


def _read_round(folder: Path, *, num_shown: int, scores: list[np.ndarray], notes: list[str]) -> RoundData:
    num_pairs: int | None = None
    chosen = rejected = np.zeros(0)
    shown: tuple[dict[str, Any], ...] = ()
    path, single = folder / "pairs.parquet", folder / "examples.parquet"
    path = path if path.exists() or not single.exists() else single
    if path.exists():
        try:
            _check_is_file(path)
            chosen, rejected = _read_rewards(path)
            num_pairs = len(chosen)
            order = chosen if path is single else chosen - rejected
            shown = _read_shown(path, positions=spread_over_margins(order, num=num_shown))
        except (pa.ArrowException, OSError) as error:
            notes.append(f"{folder.name}/{path.name} could not be read: {_one_line(error)}")
    nodes, num_nodes = _read_nodes(folder, ids=[str(row.get("id")) for row in shown], scores=scores, notes=notes)
    return RoundData(
        index=int(folder.name[6:]),
        num_pairs=num_pairs,
        chosen_rewards=chosen,
        rejected_rewards=rejected,
        shown=shown,
        nodes=nodes,
        num_nodes=num_nodes,
    )


def _read_rewards(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with pq.ParquetFile(path) as file:
        columns = [name for name in ("reward", "chosen_reward", "rejected_reward") if name in file.schema_arrow.names]
        table = _as_pairs(file.read(columns=columns))
        columns = table.column_names
        num_rows = file.metadata.num_rows
    arrays = [
        _floats(table.column(name)) if name in columns else np.full(num_rows, np.nan)
        for name in ("chosen_reward", "rejected_reward")
    ]
    return arrays[0], arrays[1]


def _read_shown(path: Path, *, positions: np.ndarray) -> tuple[dict[str, Any], ...]:
    rows: dict[int, dict[str, Any]] = {}
    wanted = np.sort(positions)
    with open_by_batch(path) as file:
        start = 0
        # Rows may carry whole images, so only a few are in memory at once.
        columns = _present(file, wanted=(*PAIR_COLUMNS, *ANSWER_COLUMNS))
        for batch in map(_as_pairs, file.iter_batches(batch_size=IMAGE_BATCH_ROWS, columns=columns)):
            here = wanted[(wanted >= start) & (wanted < start + batch.num_rows)]
            taken = batch.take(pa.array(here - start, type=pa.int64())).to_pylist() if len(here) else []
            rows.update(zip(here.tolist(), taken, strict=True))
            start += batch.num_rows
    return tuple(rows[position] for position in positions.tolist())


def _as_pairs(rows: Rows) -> Rows:
    """Rows of single answers under the names that a pair's chosen answer has; others as they are."""
    return rows.rename_columns([ANSWER_COLUMNS.get(name, name) for name in rows.schema.names])


def _read_nodes(
    folder: Path, *, ids: Sequence[str], scores: list[np.ndarray], notes: list[str]
) -> tuple[NodeRows, int]:
    nodes: NodeRows = {}
    num_nodes = 0
    wanted = pa.array(sorted(set(ids)), type=pa.string())
    for path in sorted((folder / "candidates").glob("*.parquet")):
        try:
            _check_is_file(path)
            for batch in _node_batches(path):
                num_nodes += batch.num_rows
                names = batch.schema.names
                if {"image_score", "self_score", "reward"} <= set(names):
                    found = np.stack([_floats(batch.column(n)) for n in ("image_score", "self_score", "reward")])
                    scores.append(found[:, np.isfinite(found).all(axis=0)].astype(np.float32))
                if len(wanted) and {"id", "node"} <= set(names):
                    kept = batch.filter(pc.is_in(pc.cast(batch.column("id"), pa.string()), value_set=wanted))
                    nodes.update({(str(row["id"]), int(row["node"])): row for row in kept.to_pylist()})
        except (pa.ArrowException, OSError) as error:
            notes.append(f"{folder.name}/candidates/{path.name} could not be read: {_one_line(error)}")
    return nodes, num_nodes


def _check_is_file(path: Path) -> None:
    """Raises OSError for what is no file: a pipe would be waited for without end."""
    if path.exists() and not path.is_file():
        raise OSError("it is no file")


def _node_batches(path: Path) -> Iterator[pa.RecordBatch]:
    with open_by_batch(path) as file:
        yield from file.iter_batches(batch_size=BATCH_ROWS, columns=_present(file, wanted=NODE_COLUMNS))


def _present(file: pq.ParquetFile, *, wanted: Sequence[str]) -> list[str]:
    names = set(file.schema_arrow.names)
    return [name for name in wanted if name in names]


def _floats(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.fill_null(pc.cast(column, pa.float64()), float("nan")))


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _read_summary(path: Path, *, notes: list[str]) -> Mapping[str, Any]:
    text = _read_text(path)
    if not text:
        # summary.json comes with the first finished round; until then the base model's figures are in the journal.
        return _of_journal(path.with_name("journal.jsonl"))
    try:
        summary = json.loads(text)
    except _JSON_ERRORS as error:
        notes.append(f"summary.json could not be read: {_one_line(error)}")
        return {}
    return summary if isinstance(summary, dict) else {}


def _of_journal(journal: Path) -> Mapping[str, Any]:
    """What a summary would say of the base model."""
    base: dict[str, Any] = {}
    policy: dict[str, Any] = {}
    for line in _read_text(journal).splitlines():
        try:
            entry = json.loads(line)
        except _JSON_ERRORS:
            continue  # a line that is being written
        if not isinstance(entry, dict):
            continue
        if entry.get("kind") == "eval" and entry.get("version") == 0 and not base:
            base = {"eval": entry.get("metrics"), "eval_intervals": entry.get("intervals")}
        if entry.get("kind") == "model":
            policy = {"name": entry.get("name")}
    return {"base": base, "policy": policy}


def _parse_config(text: str, *, notes: list[str]) -> Mapping[str, Any]:
    try:
        config = yaml.safe_load(text) if text else {}
    except YAML_ERRORS as error:
        notes.append(f"config.yaml could not be read: {_one_line(error)}")
        return {}
    return config if isinstance(config, dict) else {}


def _read_quarantine(path: Path) -> Quarantine:
    if not path.is_file():
        return Quarantine()
    counts: Counter[str] = Counter()
    first: list[Mapping[str, str]] = []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except _JSON_ERRORS:
                entry = None
            row: dict[str, str] = {}
            if isinstance(entry, dict):
                row = {key: _short(entry.get(key)) for key in ("id", "source", "reason")}
            counts[row.get("reason") or "(no reason given)"] += 1
            if len(first) < FIRST_QUARANTINED:
                first.append(row)
    return Quarantine(by_reason=dict(counts.most_common()), first=tuple(first))


def _short(value: object) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= 300 else text[:299] + "…"


def _one_line(error: Exception) -> str:
    return _short(" ".join(str(error).split()) or type(error).__name__)


def mean_or_none(values: np.ndarray) -> float | None:
    """Mean of the finite entries of [n], None if there are none."""
    finite = values[np.isfinite(values)]
    return number(float(finite.mean())) if len(finite) else None
