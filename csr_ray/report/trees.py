"""Every committed rollout of a run by its number, in the order in which they were committed; the newest comes last.

Holds names and counts of units. The nodes of a tree are read when somebody asks for it, and the units that were read
last stay in memory.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from csr_ray.records import JsonDict
from csr_ray.report.pairs import READ_ERRORS, check_is_file
from csr_ray.store.journal import Journal
from csr_ray.store.places import Place
from csr_ray.store.units import UnitIndex

_UNITS_KEPT: Final = 32
_NODE_COLUMNS: Final = (
    "id", "node", "parent", "depth", "role", "asked", "text", "token_ids", "logp", "self_score", "image_score",
    "scores", "reward", "final", "kept", "policy_version", "image", "prompt",
)  # fmt: skip

NodeRow = dict[str, Any]
"""A row of `candidates/`, with `tokens` in place of the token ids: how many there are. Keys may be missing."""


@dataclass(frozen=True)
class TreeUnit:
    """A committed unit.

    Attributes:
        name: empty: the journal does not know it.
        num: of the trees in it.
    """

    place: Place
    name: str
    path: Path
    num: int


class Trees:
    """See the module.

    Args:
        need: called with a file before it is read, so that whoever has only a copy of the run can fetch it.
    """

    def __init__(self, *, need: Callable[[Path], None] = lambda path: None) -> None:
        self._need = need
        self._read = lru_cache(_UNITS_KEPT)(self._read_unit)
        self.units: list[TreeUnit] = []
        self.unread: dict[Path, str] = {}  # files that the journal says nothing of and that cannot be read, and why
        self._starts: list[int] = []
        self._places_of: dict[Path, int] = {}  # by file, where its unit stands; one that was done again as it is now
        self._num = 0
        self._journal: Journal | None = None
        self._indices: dict[tuple[int, str], tuple[int, UnitIndex]] = {}
        self._scanned: dict[Place, dict[str, Path]] = {}

    @property
    def num(self) -> int:
        return self._num

    def follow(self, journal: Journal | None, *, new: Sequence[JsonDict] | None, places: Sequence[Place]) -> None:
        """Take in what was committed.

        Args:
            journal: None: it cannot be read; then the files of candidates are taken as they are.
            new: its lines since the last call; None: all of it was read anew.
            places: of the run as it is now.
        """
        by_cycle = {(place.round_index, place.phase): place for place in places}
        if new is None or journal is not self._journal:
            self._journal = journal
            self.units, self._starts, self._num = [], [], 0
            self._places_of.clear()
            self._indices.clear()
            self._scanned.clear()
            self.unread.clear()
            self._read.cache_clear()
            for line in journal.unit_lines() if journal is not None else ():
                self._add_line(line, by_cycle=by_cycle)
        else:
            for line in new:
                if line["kind"] == "rollout":
                    self._add_line(line, by_cycle=by_cycle)
        known = {(unit.place.round_index, unit.place.phase) for unit in self.units if unit.name}
        for place in places:
            if (place.round_index, place.phase) not in known and place not in self._scanned:
                self._scan(place)

    def at(self, number: int) -> tuple[TreeUnit, int]:
        """The unit of a tree, and the tree's position there."""
        unit = bisect_right(self._starts, number) - 1
        return self.units[unit], number - self._starts[unit]

    def tree(self, number: int) -> tuple[Place, list[NodeRow]] | None:
        """The nodes of a tree in their order; None if there is none of this number, or it cannot be read."""
        if not 0 <= number < self._num:
            return None
        unit, position = self.at(number)
        try:
            table, ids = self._read(unit.path)
        except READ_ERRORS:
            return None
        if position >= len(ids):
            return None
        return unit.place, _nodes(table, id=ids[position])

    def nodes(self, place: Place, *, id: str) -> list[NodeRow]:
        """The nodes of a prompt's tree; none if it has none, or it cannot be read."""
        path = self._path(place, id=id)
        if path is None:
            return []
        try:
            table, _ = self._read(path)
        except READ_ERRORS:
            return []
        return _nodes(table, id=id)

    def number_of(self, place: Place, *, id: str) -> int | None:
        """The number of a prompt's tree; None if it has none."""
        path = self._path(place, id=id)
        at = None if path is None else self._places_of.get(path)
        if path is None or at is None:
            return None
        try:
            _, ids = self._read(path)
        except READ_ERRORS:
            return None
        return self._starts[at] + ids.index(id) if id in ids else None

    def _add_line(self, line: JsonDict, *, by_cycle: dict[tuple[int, str], Place]) -> None:
        place = by_cycle.get((line["round"], line["phase"]))
        num = line.get("prompts", 0)
        if place is not None and num:
            self._add(TreeUnit(place, line["unit"], place.unit(line["unit"]), num))

    def _add(self, unit: TreeUnit) -> None:
        self._places_of[unit.path] = len(self.units)
        self.units.append(unit)
        self._starts.append(self._num)
        self._num += unit.num

    def _scan(self, place: Place) -> None:
        """Take the files of a phase that the journal says nothing of, as of a run of another version."""
        found: dict[str, Path] = {}
        for path in sorted((place.folder / "candidates").glob("*.parquet")):
            try:
                _, ids = self._read(path)
            except READ_ERRORS as error:
                self.unread[path] = " ".join(str(error).split()) or type(error).__name__
                continue
            self._add(TreeUnit(place, "", path, len(ids)))
            found |= dict.fromkeys(ids, path)
        if found:
            self._scanned[place] = found

    def _path(self, place: Place, *, id: str) -> Path | None:
        if place in self._scanned:
            return self._scanned[place].get(id)
        if self._journal is None:
            return None
        cycle = (place.round_index, place.phase)
        if cycle not in self._journal.cycles():
            return None
        units = self._journal.units(round=place.round_index, phase=place.phase)
        num, index = self._indices.get(cycle, (-1, None))
        if index is None or num != len(units.names):
            index = units.index()
            self._indices[cycle] = (len(units.names), index)
        name = index.unit_with(id)
        return None if name is None else place.unit(name)

    def _read_unit(self, path: Path) -> tuple[pa.Table, list[str]]:
        """The rows of a unit, and the ids in it in the order of their first rows.

        Raises:
            OSError, ArrowException: it cannot be read.
        """
        self._need(path)
        check_is_file(path)
        with pq.ParquetFile(path) as file:
            names = [name for name in _NODE_COLUMNS if name in file.schema_arrow.names]
            table = file.read(columns=names, use_threads=False)
        if "token_ids" in names:
            lengths = pc.list_value_length(table.column("token_ids"))
            table = table.drop_columns(["token_ids"]).append_column("tokens", lengths)
        table = table.set_column(names.index("id"), "id", pc.cast(table.column("id"), pa.string()))
        return table, pc.unique(table.column("id")).to_pylist()


def _nodes(table: pa.Table, *, id: str) -> list[NodeRow]:
    rows: list[NodeRow] = table.filter(pc.equal(table.column("id"), id)).to_pylist()
    return sorted((row for row in rows if row.get("node") is not None), key=lambda row: int(row["node"]))
