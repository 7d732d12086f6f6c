"""Reads a run folder for the page: once for a file, or again and again while a run goes on, then what is new alone.

What cannot be read (a file cut short by a crash) is left out and named in `Run.notes`; nothing here writes, and no
lock is taken. Texts of pairs and trees are read when they are shown (`csr_ray.report.pairs`, `csr_ray.report.trees`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow.parquet as pq
import yaml

from csr_ray.config.load import YAML_ERRORS
from csr_ray.errors import ConfigError, UserError
from csr_ray.records import Cycle, JsonDict, MarkedAnswer, Phase
from csr_ray.report.figures import number, section
from csr_ray.report.pairs import READ_ERRORS, Pairs, PairTable
from csr_ray.report.scores import Scores
from csr_ray.report.trees import Trees
from csr_ray.stages.refusals import is_finished
from csr_ray.stages.summary import round_entry
from csr_ray.store.journal import Journal
from csr_ray.store.marked_answers import read_marked_answers
from csr_ray.store.places import Place, places_in
from csr_ray.store.pool_events import PoolEvents
from csr_ray.store.run_folder import RunFolder

FIRST_QUARANTINED: Final = 6
# A number of thousands of digits is a ValueError, and a thousand opening brackets end the recursion.
_JSON_ERRORS: Final = (ValueError, RecursionError)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RoundData:
    """What the folder of a round holds of its first phase.

    Attributes:
        num_pairs: None: they are not decided, or cannot be read.
        chosen_rewards, rejected_rewards: float64 [num_pairs], NaN where the file has none.
    """

    index: int
    num_pairs: int | None
    chosen_rewards: np.ndarray
    rejected_rewards: np.ndarray
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
        open_rounds: entries as in the summary's `rounds`, of those that are not over, as far as the journal has them.
        self_scores, image_scores, rewards: float32 [num_nodes], of the sentences that have them all.
        num_units, num_sampled_units: how many units of rollouts there are, and of how many these scores are.
        evaluated: by version, those whose answers can be read.
        events: of actors, oldest first (`csr_ray.store.pool_events`).
        progress: what the driver says that it is doing (`csr_ray.stages.progress`); None: it has not said.
        is_finished: the journal says that the model is saved.
        written: when the newest of the run's records was written, UTC.
        notes: what could not be read, a line each.
    """

    folder: Path
    name: str
    summary: Mapping[str, Any]
    open_rounds: tuple[JsonDict, ...]
    config: Mapping[str, Any]
    config_text: str
    rounds: tuple[RoundData, ...]
    pairs: Pairs
    trees: Trees
    self_scores: np.ndarray
    image_scores: np.ndarray
    rewards: np.ndarray
    num_units: int
    num_sampled_units: int
    quarantine: Quarantine
    evaluated: tuple[Evaluated, ...]
    events: tuple[JsonDict, ...]
    progress: Mapping[str, Any] | None
    is_finished: bool
    written: datetime
    notes: tuple[str, ...]


def read_run(folder: RunFolder) -> Run:
    """Read what exists of a run, once.

    Raises:
        ConfigError: `folder` is missing or holds nothing of a run.
    """
    return RunReader(folder).read()


class RunReader:
    """Reads one run folder; each `read` takes what is new since the last.

    Args:
        need: called with a file of candidates before it is read, so that whoever has a copy of the run can fetch it.
        most_units: of how many units the scores are read.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        need: Callable[[Path], None] = lambda path: None,
        most_units: int | None = None,
    ) -> None:
        self._folder = folder
        self._journal: Journal | None = None
        self._trees = Trees(need=need)
        self._scores = Scores(need=need) if most_units is None else Scores(need=need, most_units=most_units)
        self._num_known_units = 0
        self._events = PoolEvents(folder.pool_events)
        self._quarantine = _QuarantineFile(folder.quarantine)
        self._kept: dict[Path, tuple[tuple[int, int, int], Any]] = {}  # by file: its stamp, and what was made of it
        self._pairs = Pairs(())

    def load_scores(self, *, go_on: Callable[[], bool]) -> int:
        """Read scores of units that are known, as long as `go_on` says so before each file; returns how many units
        are left. The next `read` has them."""
        self._scores.load(go_on=go_on)
        return self._scores.num_left

    def read(self, *, loads_scores: bool = True) -> Run:
        """What exists of the run now.

        Args:
            loads_scores: all of them; else those that `load_scores` has read.

        Raises:
            ConfigError: the folder is missing or holds nothing of a run.
        """
        folder, root = self._folder, self._folder.root
        if not root.is_dir():
            raise ConfigError(f"run folder {folder.shown}: no such folder; name the run.dir of a run")
        notes: list[str] = []
        new = self._read_journal(notes)
        journal = self._journal
        places = places_in(root, first_phases=_first_phases(journal))
        named = (folder.summary, folder.config, folder.journal, folder.progress)
        records = [path for path in named if path.is_file()]
        if not places and not records:
            raise ConfigError(
                f"run folder {folder.shown}: no summary.json, config.yaml or round_000; name the run.dir of a run"
            )
        self._trees.follow(journal, new=new, places=places)
        self._follow_scores(new)
        if loads_scores:
            self._scores.load()
        sample = self._scores.sample()
        unread = {**self._trees.unread, **sample.unread}
        notes += [f"{_shown(path, root=root)} could not be read: {why}" for path, why in unread.items()]
        tables = self._read_pairs(places, notes=notes)
        config_text = _read_text(folder.config)
        config = _parse_config(config_text, notes=notes)
        newest = max(
            path.stat().st_mtime for path in (*records, *(place.folder for place in places)) if path.exists()
        )
        try:
            self._events.read()
        except OSError as error:
            notes.append(f"logs/{folder.pool_events.name} could not be read: {one_line(error)}")
        return Run(
            folder=root,
            name=folder.title,
            summary=self._read_summary(notes),
            open_rounds=_open_rounds(journal),
            config=config,
            config_text=config_text,
            rounds=self._rounds(places, tables=tables),
            pairs=self._pairs,
            trees=self._trees,
            self_scores=sample.self_,
            image_scores=sample.image,
            rewards=sample.reward,
            num_units=sample.num_units,
            num_sampled_units=sample.num_read,
            evaluated=self._read_evaluated(notes),
            quarantine=self._quarantine.read(),
            events=tuple(self._events.events),
            progress=self._read_progress(),
            is_finished=journal is not None and _is_finished(journal, config=config),
            written=datetime.fromtimestamp(newest, tz=timezone.utc),
            notes=tuple(notes),
        )

    # ---- the journal, and what follows from it ----

    def _read_journal(self, notes: list[str]) -> list[JsonDict] | None:
        """Take in the new lines of the journal and return them; None: everything is new."""
        try:
            if self._journal is None:
                self._journal = Journal(self._folder.journal)
                return None
            return self._journal.catch_up()
        except UserError as error:
            self._journal = None
            notes.append(f"{self._folder.journal.name} could not be read: {one_line(error)}")
            return None

    def _follow_scores(self, new: list[JsonDict] | None) -> None:
        if new is None:
            self._scores.restart()
            self._num_known_units = 0
        units = self._trees.units
        self._scores.add(unit.path for unit in units[self._num_known_units :])
        self._num_known_units = len(units)

    def _read_summary(self, notes: list[str]) -> Mapping[str, Any]:
        path = self._folder.summary
        text = _read_text(path)
        if not text:
            # It comes with the first finished round; until then the base model's figures are in the journal.
            return _of_journal(path.with_name("journal.jsonl"))
        try:
            summary = json.loads(text)
        except _JSON_ERRORS as error:
            notes.append(f"summary.json could not be read: {one_line(error)}")
            return {}
        return summary if isinstance(summary, dict) else {}

    def _read_progress(self) -> Mapping[str, Any] | None:
        try:
            found = json.loads(_read_text(self._folder.progress) or "null")
        except _JSON_ERRORS:
            return None
        return found if isinstance(found, dict) else None

    # ---- tables ----

    def _read_pairs(self, places: list[Place], *, notes: list[str]) -> list[PairTable]:
        tables = []
        for place in places:
            path = place.examples
            if not path.exists():
                continue
            try:
                tables.append(self._of_file(path, partial(_pair_table, place)))
            except READ_ERRORS as error:
                notes.append(f"{_shown(path, root=self._folder.root)} could not be read: {one_line(error)}")
        if tables != list(self._pairs.tables):
            self._pairs = Pairs(tables)
        return tables

    def _rounds(self, places: list[Place], *, tables: list[PairTable]) -> tuple[RoundData, ...]:
        by_folder = {table.place.folder: table for table in tables}
        nothing = np.zeros(0)
        found = []
        for place in places:
            if place.folder.parent != self._folder.root:
                continue
            table = by_folder.get(place.folder)
            found.append(
                RoundData(
                    index=place.round_index,
                    num_pairs=None if table is None else table.num,
                    chosen_rewards=nothing if table is None else table.chosen,
                    rejected_rewards=nothing if table is None else table.rejected,
                    num_nodes=self._num_nodes(place),
                )
            )
        return tuple(found)

    def _num_nodes(self, place: Place) -> int:
        cycle = {"round": place.round_index, "phase": place.phase}
        if self._journal is not None and (cycle["round"], cycle["phase"]) in self._journal.cycles():
            return int(self._journal.units(round=place.round_index, phase=place.phase).total("nodes"))
        paths = [unit.path for unit in self._trees.units if unit.place == place]
        return sum(self._of_file(path, lambda path: pq.read_metadata(path).num_rows) for path in paths)

    def _read_evaluated(self, notes: list[str]) -> tuple[Evaluated, ...]:
        found = []
        paths = (self._folder.root / "eval").glob("version_*.parquet")
        for path in sorted(paths, key=lambda path: (len(path.name), path.name)):
            if not (digits := path.stem.removeprefix("version_")).isdecimal():
                continue
            try:
                answers = self._of_file(path, lambda path: tuple(read_marked_answers(path)))
            except (OSError, ValueError) as error:
                notes.append(f"eval/{path.name} could not be read: {one_line(error)}")
                continue
            found.append(Evaluated(version=int(digits), answers=answers))
        return tuple(found)

    def _of_file(self, path: Path, make: Callable[[Path], T]) -> T:
        """What `make` makes of a file, made again only where the file has changed."""
        status = path.stat()
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
        known = self._kept.get(path)
        if known is None or known[0] != stamp:
            known = self._kept[path] = (stamp, make(path))
        made: T = known[1]
        return made


class _QuarantineFile:
    """Counts the lines of quarantine.jsonl as they come. The file may be as long as there are prompts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._restart(None)

    def _restart(self, identity: tuple[int, int] | None) -> None:
        self._identity = identity
        self._num_bytes = 0
        self._counts: Counter[str] = Counter()
        self._first: list[Mapping[str, str]] = []

    def read(self) -> Quarantine:
        if not self._path.is_file():
            self._restart(None)
            return Quarantine()
        with self._path.open("rb") as file:
            status = self._path.stat()
            identity = (status.st_dev, status.st_ino)
            if identity != self._identity or status.st_size < self._num_bytes:
                self._restart(identity)
            file.seek(self._num_bytes)
            for line in file:
                if not line.endswith(b"\n") and not _is_object(line):
                    break  # it is being written
                self._num_bytes += len(line)
                self._count(line)
        return Quarantine(by_reason=dict(self._counts.most_common()), first=tuple(self._first))

    def _count(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            entry = json.loads(line.decode("utf-8", "replace"))
        except _JSON_ERRORS:
            entry = None
        row: dict[str, str] = {}
        if isinstance(entry, dict):
            row = {key: short(entry.get(key)) for key in ("id", "source", "reason")}
        self._counts[row.get("reason") or "(no reason given)"] += 1
        if len(self._first) < FIRST_QUARANTINED:
            self._first.append(row)


def _pair_table(place: Place, path: Path) -> PairTable:
    return PairTable(place, path=path)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except _JSON_ERRORS:
        return False


def _first_phases(journal: Journal | None) -> dict[int, str]:
    first: dict[int, str] = {}
    for round_index, phase in journal.cycles() if journal is not None else ():
        first.setdefault(round_index, phase)
    return first


def _is_finished(journal: Journal, *, config: Mapping[str, Any]) -> bool:
    rounds = number(section(config, key="run").get("rounds"))
    retries = number(section(config, key="gate").get("retries"))
    return is_finished(journal, rounds=int(rounds or 0), retries=int(retries or 0))


def _open_rounds(journal: Journal | None) -> tuple[JsonDict, ...]:
    """Of the rounds that are not over, what the journal has of them."""
    if journal is None:
        return ()
    over = {entry["round"] for entry in journal.all("round")}
    found: dict[int, list[Cycle]] = {}
    for version, (round_index, phase) in enumerate(journal.cycles()):
        of_round = found.setdefault(round_index, [])
        of_round.append(
            Cycle(round_index=round_index, phase=Phase(name=phase), position=len(of_round), policy_version=version)
        )
    entries = []
    for index, cycles in sorted(found.items()):
        if index not in over:
            entries.append({"round": index, **round_entry(journal, cycles=cycles, wall_s=0.0)})
    return tuple(entries)


def _of_journal(journal: Path) -> Mapping[str, Any]:
    """What a summary would say of the base model, of a journal that need not be sound."""
    base: dict[str, Any] = {}
    policy: dict[str, Any] = {}
    for line in _read_text(journal).splitlines():
        if '"kind": "eval"' not in line[:40] and '"kind": "model"' not in line[:40]:
            continue
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
        notes.append(f"config.yaml could not be read: {one_line(error)}")
        return {}
    return config if isinstance(config, dict) else {}


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _shown(path: Path, *, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def short(value: object) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= 300 else text[:299] + "…"


def one_line(error: Exception) -> str:
    return short(" ".join(str(error).split()) or type(error).__name__)


def mean_or_none(values: np.ndarray) -> float | None:
    """Mean of the finite entries of [n], None if there are none."""
    finite = values[np.isfinite(values)]
    return number(float(finite.mean())) if len(finite) else None
