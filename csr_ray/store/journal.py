"""The journal: one line for each committed piece of work.

The line is written last, so a piece of work either happened or did not: a file without its line is overwritten when
the work is done again, and a torn last line (the machine died while writing it) counts as not written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path

from csr_ray.errors import ConfigError
from csr_ray.records import JsonDict, Rejection
from csr_ray.store.atomic import storage_errors
from csr_ray.store.units import CommittedUnits, short_hash


class Journal:
    """The lines of one run, in memory and on disk.

    Lines are looked up by kind and round without reading all of them. There are many lines with a `unit`, a hundred
    thousand in a large round, so of these only names, sums and hashes of ids stay in memory (`CommittedUnits`).

    Raises:
        ConfigError: it is the journal of an earlier version, which knew no phases.

    Example line: {"kind": "rollout", "round": 0, "phase": "main", "unit": "3f2c...", "ids": [...], "prompts": 16}
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.before_commit: Callable[[], None] = lambda: None  # may raise, and then nothing is written
        self.num_lines = 0
        self._index: dict[tuple[str, int | None], list[JsonDict]] = {}  # by kind and round, and by kind alone (None)
        self._units: dict[tuple[int, str], CommittedUnits] = {}
        if path.exists():
            self._load()

    def find(self, kind: str, **keys: int | str) -> JsonDict | None:
        """The line of this kind with these keys, or None."""
        return next(iter(self.all(kind, **keys)), None)

    def all(self, kind: str, **keys: int | str) -> list[JsonDict]:
        """Every line of this kind with these keys, oldest first. Lines of units are not among them."""
        round_index = keys.get("round")
        assert round_index is None or isinstance(round_index, int)
        found = self._index.get((kind, round_index), [])
        return [entry for entry in found if all(entry.get(key) == value for key, value in keys.items())]

    def units(self, *, round: int, phase: str) -> CommittedUnits:
        """The committed units of one cycle's rollouts. The object takes in every further line of that cycle."""
        return self._units.setdefault((round, phase), CommittedUnits())

    def commit(self, kind: str, **fields: object) -> JsonDict:
        """Append a line, make it durable and return it. Whatever it speaks of must be on disk already."""
        self.before_commit()
        entry: JsonDict = {"kind": kind, **fields}
        line = json.dumps(entry, allow_nan=False).encode() + b"\n"
        with storage_errors(self._path), self._path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._add(entry)
        return entry

    def _add(self, entry: JsonDict) -> None:
        self.num_lines += 1
        if "unit" in entry:
            self.units(round=entry["round"], phase=entry["phase"]).add(entry)
            return
        for round_index in {None, entry.get("round")}:
            self._index.setdefault((entry["kind"], round_index), []).append(entry)

    def _load(self) -> None:
        """Read the file line by line, and cut off a torn last line, because the next one would be appended to it."""
        num_whole_bytes = 0
        with self._path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                num_whole_bytes += len(line)
                if line.strip():
                    self._add(self._of_this_version(json.loads(line)))
        if num_whole_bytes < self._path.stat().st_size:
            os.truncate(self._path, num_whole_bytes)

    def _of_this_version(self, entry: JsonDict) -> JsonDict:
        if entry["kind"] in ("rollout", "pairs", "train") and "phase" not in entry:
            raise ConfigError(
                f"run.dir = {str(self._path.parent)!r} holds a run of an earlier version, whose journal knows no "
                "phases; finish it with that version, name another run.dir, or --fresh to move that run aside"
            )
        return entry


class Quarantine:
    """quarantine.jsonl: one line for each input that was set aside, even if a resumed run meets the input again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: set[int] | None = None  # hashes of the lines: there may be as many as prompts

    def add(self, rejections: Iterable[Rejection]) -> int:
        """Append the rejections that are not in the file yet; it is read once. Returns how many were given."""
        given = iter(rejections)
        first = next(given, None)
        if first is None:
            return 0
        num = 0
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._known is None:
                self._known = self._read()
            with self.path.open("a") as file:
                for item in chain([first], given):
                    num += 1
                    row = json.dumps({"id": item.id, "source": item.source, "reason": item.reason})
                    if (key := short_hash(row)) not in self._known:
                        self._known.add(key)
                        file.write(row + "\n")
        return num

    def _read(self) -> set[int]:
        if not self.path.exists():
            return set()
        with self.path.open() as file:
            return {short_hash(line.rstrip("\n")) for line in file}
