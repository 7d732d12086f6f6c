"""The journal: one line for each committed piece of work.

The line is written last, so a piece of work either happened or did not: a file without its line is overwritten when
the work is done again, and a torn last line (the machine died while writing it) counts as not written. A line names
the files that it speaks of with their digests, and carries a checksum of its own (`csr_ray.store.lines`).

Nothing is ever taken out of the journal. What has to be done again is voided by a further line, of the kind "again":

    what       voids
    unit       a unit of rollouts (`unit`): all of its prompts are rolled out again
    prompts    rejections that are not final (`ids`): these prompts leave their units and are rolled out again
    examples   the line of a phase's examples
    train      a phase's training, and all lines behind it: what was done with what it made. Where it was refused, the
               line has the `verdict`, which counts until an earlier training is voided; where there was nothing to
               train on there is no training, and the line says only that the run ends there
    eval       the evaluation of a policy version (`version`): it is asked about everything now
    model      that the run is finished, because its merged model is not there any more
"""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from csr_ray.errors import ConfigError, DamageError, UserError
from csr_ray.records import JsonDict, Rejection
from csr_ray.store.atomic import make_folder, storage_errors, sync_folder, write_all
from csr_ray.store.lines import DamagedLine, Tail, bodies, seal
from csr_ray.store.units import CommittedUnits

_log = logging.getLogger(__name__)

What = Literal["unit", "prompts", "examples", "train", "model"]

# What a run makes; the other kinds say how it was started and what was found.
_WORK = ("rollout", "examples", "train", "publish", "probe", "verdict", "eval", "round", "finished", "lost")


class Journal:
    """The lines of one run, in memory and on disk.

    Reading changes nothing on disk; a torn last line is cut off by the first `commit`. Lines are looked up by kind
    and round without reading all of them. There are many lines with a `unit`, a hundred thousand in a large round,
    so of these only names, digests, sums and hashes of ids stay in memory (`CommittedUnits`). Voided lines are not
    there.

    Raises:
        ConfigError: it is the journal of an earlier version, whose lines have no checksums.
        DamageError: a line is not what was written.

    Example line: {"kind": "rollout", "round": 0, "phase": "main", "unit": "3f2c...", "ids": [...], "prompts": 16}
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.before_commit: Callable[[], None] = lambda: None  # may raise, and then nothing is written
        # Told of lines that are written, with their bytes; must not take long.
        self.after_commit: Callable[[Sequence[JsonDict], bytes], None] = lambda entries, data: None
        self._listeners: list[Callable[[JsonDict], None]] = []
        self._tail = Tail()
        self._identity: tuple[int, int] | None = None  # of the file that was read
        self._may_have_rest = False  # whether half a line may stand behind those that are known
        self._index: dict[tuple[str, int | None], list[JsonDict]] = {}  # by kind and round, and by kind alone (None)
        self._units: dict[tuple[int, str], CommittedUnits] = {}
        self._load()

    @property
    def num_lines(self) -> int:
        """Lines in the file, the voided ones included."""
        return self._tail.num_lines

    def listen(self, listener: Callable[[JsonDict], None]) -> None:
        """Call `listener` with every further line, after it is on disk and in memory, in the thread that commits.

        It must not take long and must not change the line. What it raises is logged, and stops nothing.
        """
        self._listeners.append(listener)

    def find(self, kind: str, **keys: int | str) -> JsonDict | None:
        """The first line of this kind with these keys, or None."""
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

    def rejections(self) -> Iterator[tuple[JsonDict, Rejection]]:
        """Each rejection of a rollout with the line that names it; the file is read once more for that."""
        if any(units.total("failed") for units in self._units.values()):  # else it need not be read
            for entry in self._unit_lines():
                yield from ((entry, Rejection(**rejected)) for rejected in entry.get("rejected", ()))

    def cycles(self) -> list[tuple[int, str]]:
        """Round and phase of every cycle that has committed units, in the order of their first ones."""
        return [cycle for cycle, units in self._units.items() if units.names]

    def unit_lines(self, **cycle: int | str) -> Iterator[JsonDict]:
        """The lines of committed units, oldest first, of one cycle (`round` and `phase`) or, without these, of all.

        The file is read once more for that.
        """
        return (entry for entry in self._unit_lines() if all(entry[key] == value for key, value in cycle.items()))

    def commit(self, kind: str, **fields: object) -> JsonDict:
        """Append a line, make it durable and return it. Whatever it speaks of must be on disk already."""
        assert kind != "again", "`again` makes these lines, because what they void has to be forgotten"
        self.before_commit()
        entry: JsonDict = {"kind": kind, **fields}
        self._append(entry)
        self._add(entry)
        self._tell([entry])
        return entry

    def catch_up(self) -> list[JsonDict] | None:
        """Take in what another process has written since this one has read the file; for those who only watch a run.

        Half a line that is being written counts as not there; it is read when it is whole.

        Returns:
            The lines that are new, oldest first. None: all of the file was read anew, because a line voids earlier
            ones, or because it is another file by now, or none.

        Raises:
            DamageError: a line is not what was written.
        """
        identity, num_bytes = _identity(self.path)
        known = self._tail
        if identity != self._identity or num_bytes < known.num_bytes:
            self._load()
            return None
        if num_bytes == known.num_bytes:
            return []
        new: list[JsonDict] = []
        try:
            with self.path.open("rb") as file:
                file.seek(known.num_bytes)
                if known.lacks_newline:
                    file.seek(1, os.SEEK_CUR)
                    known = Tail(known.num_bytes + 1, known.checksum, known.num_lines)
                for body, tail in bodies(file, after=known):
                    new.append(json.loads(body))
                    known = tail
        except DamagedLine as damage:
            raise self._error(damage) from None
        except OSError as error:
            raise DamageError(f"{self.path} cannot be read: {error.strerror or error}") from error
        if any(entry["kind"] == "again" for entry in new):
            self._load()
            return None
        self._tail = known
        for entry in new:
            self._add(entry)
        return new

    def again(self, lines: Iterable[JsonDict]) -> None:
        """Void earlier work, so that it is done again: a line each (see the table at the top of this module)."""
        entries: list[JsonDict] = [{"kind": "again", **line} for line in lines]
        if entries:
            self.before_commit()
            self._append(*entries)
            self._load()
            self._tell(entries)

    def _tell(self, entries: Sequence[JsonDict]) -> None:
        for listener in self._listeners:
            for entry in entries:
                try:
                    listener(entry)
                except Exception:  # who only watches must not stop the run
                    _log.exception("%s: a listener failed with a line of the kind %r", self.path, entry["kind"])

    # ---- memory ----

    def _add(self, entry: JsonDict) -> None:
        if entry["kind"] == "rollout":
            self.units(round=entry["round"], phase=entry["phase"]).add(entry)
            return
        for round_index in {None, entry.get("round")}:
            self._index.setdefault((entry["kind"], round_index), []).append(entry)

    def _load(self) -> None:
        """Read the file, a second time if a line voids others, because it stands behind them."""
        self._index, self._units = {}, {}
        self._tail = Tail()
        self._identity, _ = _identity(self.path)
        voided = _Voided()
        for number, (entry, tail) in enumerate(self._lines()):
            self._tail = tail
            voided.look(number, entry)
            if not voided:
                self._add(entry)
        if voided:
            self._index, self._units = {}, {}
            for kept in self._entries(voided):
                self._add(kept)
        self._may_have_rest = self.path.exists() and self.path.stat().st_size > self._tail.num_bytes

    def _unit_lines(self) -> Iterator[JsonDict]:
        voided = _Voided()
        for number, (entry, _) in enumerate(self._lines()):
            voided.look(number, entry)
        return (entry for entry in self._entries(voided) if entry["kind"] == "rollout")

    def _entries(self, voided: _Voided) -> Iterator[JsonDict]:
        """All lines that count, without what was voided of them."""
        for number, (entry, _) in enumerate(self._lines()):
            if (kept := voided.left_of(number, entry)) is not None:
                yield kept

    def _lines(self) -> Iterator[tuple[JsonDict, Tail]]:
        """Every whole line, and how the file would end with it."""
        if not self.path.exists():
            return
        if not self.path.is_file():
            raise DamageError(f"{self.path} is no file; put the journal back from a copy, or --fresh to begin anew")
        try:
            with self.path.open("rb") as file:
                for body, tail in bodies(file):
                    yield json.loads(body), tail
        except DamagedLine as damage:
            raise self._error(damage) from None
        except OSError as error:
            raise DamageError(f"{self.path} cannot be read: {error.strerror or error}") from error

    def _error(self, damage: DamagedLine) -> UserError:
        run = str(self.path.parent)
        if damage.number == 1 and damage.is_unsealed:
            return ConfigError(
                f"run.dir = {run!r} holds a run of an earlier version, whose journal knows no checksums; finish it "
                "with that version, name another run.dir, or --fresh to move that run aside"
            )
        num_sound = damage.number - 1
        if not num_sound:
            return DamageError(
                f"{self.path}, line 1: it {damage.reason}. Put the file back from a copy, or --fresh to begin anew"
            )
        path = shlex.quote(str(self.path))
        cut = f"head -n {num_sound} {path} > {path}.cut && mv {path}.cut {path}"
        return DamageError(
            f"{self.path}, line {damage.number}: it {damage.reason}; the {num_sound} lines before it are sound. Put "
            f"the file back from a copy, or keep only these ({cut}) and have the work behind them done again, or "
            "--fresh to begin anew"
        )

    # ---- disk ----

    def _append(self, *entries: JsonDict) -> None:
        checksum, lines = self._tail.checksum, []
        for entry in entries:
            line, checksum = seal(entry, previous=checksum)
            lines.append(line)
        data = b"".join(lines)
        with storage_errors(self.path):
            is_new = not self.path.exists()
            if is_new:
                make_folder(self.path.parent)
            with self.path.open("ab", buffering=0) as file:
                self._mend(file.fileno())
                try:
                    write_all(file.write, data)
                    os.fsync(file.fileno())
                    if is_new:
                        sync_folder(self.path.parent)
                except BaseException:
                    # Half a line, or one that nobody was told of, must not stand before the next one. Where this
                    # fails, too, the next commit or the next start finds what is left.
                    self._may_have_rest = True
                    os.ftruncate(file.fileno(), self._tail.num_bytes)
                    raise
        self._tail = Tail(self._tail.num_bytes + len(data), checksum, self._tail.num_lines + len(lines))
        self.after_commit(entries, data)

    def _mend(self, handle: int) -> None:
        """Cut off what is behind the last whole line, and give that line its newline, before anything is appended."""
        tail, num_bytes = self._tail, os.fstat(handle).st_size
        if num_bytes < tail.num_bytes or (num_bytes > tail.num_bytes and not self._may_have_rest):
            raise DamageError(
                f"{self.path} has {num_bytes} bytes, and this run has read and written {tail.num_bytes}: something "
                "else writes to it, or has cut it; stop that, then start the same command again"
            )
        if num_bytes > tail.num_bytes:
            os.ftruncate(handle, tail.num_bytes)
        if tail.lacks_newline:
            os.write(handle, b"\n")
            self._tail = Tail(tail.num_bytes + 1, tail.checksum, tail.num_lines)
        self._may_have_rest = False


def _identity(path: Path) -> tuple[tuple[int, int] | None, int]:
    """What tells a file from another one in its place, and its size; None: there is none."""
    try:
        status = path.stat()
    except OSError:
        return None, 0
    return (status.st_dev, status.st_ino), status.st_size


class _Voided:
    """What the "again" lines of a journal void: the earlier lines of a kind and name, and stretches of lines."""

    def __init__(self) -> None:
        self._before: dict[tuple[object, ...], int] = {}  # by what is voided: the number of the last line that does
        self._stretches: list[tuple[int, int]] = []
        self._trained: dict[tuple[int, str], int] = {}  # where each cycle's last training stands

    def __bool__(self) -> bool:
        return bool(self._before or self._stretches)

    def look(self, number: int, entry: JsonDict) -> None:
        if entry["kind"] == "train":
            self._trained[entry["round"], entry["phase"]] = number
        if entry["kind"] != "again":
            return
        if entry["what"] == "model":
            self._before[("finished",)] = number
            return
        if entry["what"] == "eval":
            self._before[("eval", entry["version"])] = number
            return
        cycle = (entry["round"], entry["phase"])
        if entry["what"] == "train" and cycle in self._trained:
            self._stretches.append((self._trained[cycle], number))
        elif entry["what"] == "examples":
            self._before[("examples", *cycle)] = number
        elif entry["what"] == "unit":
            self._before[("unit", *cycle, entry["unit"])] = number
        elif entry["what"] == "prompts":
            self._before.update({("prompt", *cycle, prompt_id): number for prompt_id in entry["ids"]})

    def left_of(self, number: int, entry: JsonDict) -> JsonDict | None:
        """The entry without what was voided of it; None if nothing is left."""
        if not self:
            return entry
        if entry["kind"] in _WORK and any(first <= number <= last for first, last in self._stretches):
            return None
        if entry["kind"] == "again" and "verdict" in entry and self._is_within(number):
            return None
        if entry["kind"] == "finished" and number < self._before.get(("finished",), 0):
            return None
        if entry["kind"] == "eval" and number < self._before.get(("eval", entry["version"]), 0):
            return None
        if entry["kind"] not in ("examples", "rollout", "lost"):
            return entry
        cycle = (entry["round"], entry["phase"])
        if entry["kind"] != "rollout":
            return None if number < self._before.get(("examples", *cycle), 0) else entry
        if number < self._before.get(("unit", *cycle, entry["unit"]), 0):
            return None
        return self._without_prompts(number, entry, cycle=cycle)

    def _is_within(self, number: int) -> bool:
        """Whether a line stands in what another one voids; a refusal ends the stretch that it voids itself."""
        return any(first <= number < last for first, last in self._stretches)

    def _without_prompts(self, number: int, entry: JsonDict, *, cycle: tuple[int, str]) -> JsonDict | None:
        gone = {
            rejected["id"]
            for rejected in entry.get("rejected", ())
            if number < self._before.get(("prompt", *cycle, rejected["id"]), 0)
        }
        if not gone:
            return entry
        ids = [prompt_id for prompt_id in entry["ids"] if prompt_id not in gone]
        rejected = [rejection for rejection in entry["rejected"] if rejection["id"] not in gone]
        return {**entry, "ids": ids, "rejected": rejected, "failed": len(rejected)} if ids else None
