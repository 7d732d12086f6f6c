"""An independent check of a run folder: `csr-ray check RUN_DIR`.

From the files alone it proves that every prompt of a phase is in exactly one of a committed rollout and a quarantine
line, holds every line and file to its digest, and says what a resume would do. It reads the journal with code of its
own and shares none with what wrote it (`csr_ray.store.journal`, `csr_ray.stages`), so that a fault there is seen
here. It reads only, so it may run while the run goes on; what changes meanwhile is looked at again.
"""

from __future__ import annotations

import json
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from csr_ray import __version__
from csr_ray.app.console import result_console
from csr_ray.app.inputs import resolve_world, uses_world
from csr_ray.config.load import YAML_ERRORS, parse_config
from csr_ray.config.schema import Config
from csr_ray.data.files import WEB, scheme_of
from csr_ray.data.prompts import PromptFile
from csr_ray.errors import EXIT_DONE, EXIT_FAILED, ConfigError, UserError
from csr_ray.methods.base import Method, method_of
from csr_ray.store.atomic import write_json

Entry = dict[str, Any]
Key = tuple[int, str]

_SEALED = re.compile(rb'\{.*, "sum": "([0-9a-f]{32})"\}')
_UNFINISHED = re.compile(r"\..+\.[a-z0-9_]{8}")
# "refused" is made here of a line that voids a training and has the verdict on it.
_VOIDED_WITH_A_TRAINING = (
    *("rollout", "examples", "train", "publish", "probe", "verdict", "eval", "round", "finished", "lost"),
    "refused",
)
_NUM_LOOKS = 5
_NUM_THREADS = 8
_SHOWN = 20
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Finding:
    """Something that is not as it was written; `file` is named within the run folder."""

    file: str
    what: str


@dataclass
class PhaseReport:
    """One cycle. `open` counts the prompts that are left to roll out; None if the prompt file cannot be read."""

    round: int
    phase: str
    prompts: int = 0
    rolled_out: int = 0
    set_aside: int = 0
    open: int | None = None
    lost_files: int = 0
    state: str = ""


@dataclass
class CheckReport:
    """What was found; sound if nothing is damaged, except what the journal itself says is lost."""

    run: str
    damage: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    phases: list[PhaseReport] = field(default_factory=list)
    lines: int = 0
    files: int = 0
    bytes: int = 0
    next: str = ""

    @property
    def sound(self) -> bool:
        return not self.damage


def check_run(folder: Path, *, name: str = "") -> CheckReport:
    """Check a run folder.

    Args:
        name: what a person calls it, if it is the copy of one at a URL.

    Raises:
        ConfigError: there is no run in it.
    """
    if not (folder / "journal.jsonl").is_file():
        raise ConfigError(f"run folder {name or folder}: no journal.jsonl; name the run.dir of a run that has begun")
    for _ in range(_NUM_LOOKS):
        size = (folder / "journal.jsonl").stat().st_size
        report = _Check(folder, name=name or str(folder)).report()
        # A run that is going on may have replaced a file and written its line behind the look at it.
        if report.sound or (folder / "journal.jsonl").stat().st_size == size:
            break
    return report


def check_and_print(folder: Path, *, output: Path | None, name: str = "") -> int:
    """Check a run folder and say what was found; returns 0 for a sound folder, 1 for a damaged one.

    Args:
        name: as `check_run` has it.
    """
    report = check_run(folder, name=name)
    print_report(report, console=result_console())
    if output is not None:
        write_json(output, value={**asdict(report), "sound": report.sound})
    return EXIT_DONE if report.sound else EXIT_FAILED


def print_report(report: CheckReport, *, console: Console) -> None:
    """Print the phases as a table, what is damaged, what is worth knowing, and what a resume would do."""
    table = Table(box=None, pad_edge=False)
    for heading in ("phase", "prompts", "rolled out", "set aside", "to do", "state"):
        table.add_column(heading, justify="left" if heading in ("phase", "state") else "right")
    for phase in report.phases:
        numbers = (phase.prompts, phase.rolled_out, phase.set_aside, "?" if phase.open is None else phase.open)
        table.add_row(_name(phase.round, phase.phase), *map(str, numbers), phase.state)
    if report.phases:
        console.print(table)
    for finding in report.damage[:_SHOWN]:
        console.print(f"[red]damaged[/red]  {escape(finding.file)}: {escape(finding.what)}", soft_wrap=True)
    if len(report.damage) > _SHOWN:
        console.print(f"[red]damaged[/red]  and {len(report.damage) - _SHOWN} more (--json OUT has them all)")
    for note in report.notes:
        console.print(f"note     {escape(note)}", soft_wrap=True)
    looked = f"{report.lines} lines of the journal and {report.files} files ({report.bytes / 2**20:,.1f} MiB)"
    console.print(
        f"{'sound' if report.sound else 'DAMAGED'}: {looked} were compared with their digests", soft_wrap=True
    )
    console.print(f"next: {escape(report.next)}", soft_wrap=True)


class _Check:
    """One look at a folder."""

    def __init__(self, folder: Path, *, name: str) -> None:
        self._folder = folder
        self._report = CheckReport(run=name)
        self._config: Config | None = None
        self._method: Method | None = None
        self._has_config = False  # as far as a start needs it, which compares it key by key with the one it is given
        self._is_journal_damaged = False
        self._is_stuck = False
        # What a resume does once more: steps, by kind, round and phase, and how many prompts of a phase.
        self._again: set[tuple[str, object, object]] = set()
        self._num_again: dict[Key, int] = {}

    def report(self) -> CheckReport:
        report = self._report
        entries = self._read_journal()
        self._read_config()
        # Behind the journal: a line that comes meanwhile has its quarantine line already.
        quarantined = self._read_quarantine()
        cycles = _cycles(entries)
        for version, key in enumerate(cycles):
            self._check_cycle(key, entries=_of_cycle(entries, key), version=version, quarantined=quarantined)
        self._check_answers(entries)
        self._check_model(entries)
        self._look_for_rests(entries)
        self._look_for_refusals(entries)
        if not report.lines and len(list(self._folder.glob("round_*/**/[!.]*.parquet"))) > 1:
            self._damaged("journal.jsonl", "has no line that speaks of the files that there are")
            self._is_journal_damaged = True
        mended = self._what_is_mended(entries)
        report.next = mended[0] if self._is_stuck else "; ".join([*mended, self._next(entries)])
        return report

    def _damaged(self, file: str | Path, what: str) -> None:
        name = file if isinstance(file, str) else file.relative_to(self._folder).as_posix()
        self._report.damage.append(Finding(name, what))

    # ---- the journal ----

    def _read_journal(self) -> list[Entry]:
        """All lines that count, up to the first that is damaged."""
        kept: list[Entry] = []
        voiding: list[Entry] = []
        previous = b"csr_ray journal"
        with (self._folder / "journal.jsonl").open("rb") as file:
            for number, line in enumerate(file, 1):
                bare = line.rstrip(b"\n") if line.endswith(b"\n") else line
                match = _SEALED.fullmatch(bare)
                body = bare[: -len(b', "sum": ""}') - 32] + b"}" if match else b""
                if not match or xxhash.xxh3_128(previous + body).hexdigest().encode() != match[1]:
                    if line.endswith(b"\n") or not _is_beginning(bare, previous=previous):
                        what = f"line {number} is not what was written; the lines behind it were not looked at"
                        self._damaged("journal.jsonl", what)
                        self._is_journal_damaged = True
                    else:
                        self._report.notes.append(f"line {number} of the journal is torn: it did not happen")
                    break
                previous = match[1]
                self._report.lines += 1
                entry = json.loads(body)
                entry.pop("counters", None)
                if entry["kind"] == "again":
                    voiding.append(entry)
                    continue
                kept = _void_all(kept, voiding)
                voiding = []
                kept.append(entry)
        return _void_all(kept, voiding)

    # ---- the phases ----

    def _check_cycle(
        self, key: Key, *, entries: Sequence[Entry], version: int, quarantined: Counter[str] | None
    ) -> None:
        phase = PhaseReport(round=key[0], phase=key[1])
        self._report.phases.append(phase)
        units = [entry for entry in entries if entry["kind"] == "rollout"]
        decided = next((entry for entry in entries if entry["kind"] == "examples"), None)
        lost = {name for entry in entries if entry["kind"] == "lost" for name in entry["names"]}
        in_unit: dict[str, str] = {}
        for unit in units:
            rejected = {item["id"] for item in unit["rejected"]}
            phase.set_aside += len(rejected)
            phase.rolled_out += len(unit["ids"]) - len(rejected)
            if not rejected <= set(unit["ids"]) or unit["prompts"] != len(unit["ids"]) - len(rejected):
                self._damaged("journal.jsonl", f"unit {unit['unit']}: its ids, rejections and counts contradict")
            for prompt_id in unit["ids"]:
                other = in_unit.setdefault(prompt_id, unit["unit"])
                if other != unit["unit"] or unit["ids"].count(prompt_id) > 1:
                    self._damaged("journal.jsonl", f"prompt {prompt_id} is in unit {unit['unit']} and in {other}")
            for item in unit["rejected"]:
                line = json.dumps({name: item[name] for name in ("id", "source", "reason", "fault")})
                if quarantined is not None and not quarantined[line]:
                    what = f"no line for prompt {item['id']}, which was set aside; the next start writes it"
                    self._damaged("quarantine.jsonl", what)
        phase.prompts = len(in_unit)
        self._check_files(units, lost=lost, version=version, phase=phase)
        others = [entry for entry in entries if entry["kind"] in ("examples", "train")]
        self._check_files(others, lost=lost, version=None, phase=phase)
        for entry in entries:
            if entry["kind"] in ("train", "publish") and entry["version"] != version + 1:
                self._damaged("journal.jsonl", f"a {entry['kind']} line of {_name(*key)} has another version")
        if decided is not None:
            if decided["prompts"] != len(in_unit):
                what = f"{_name(*key)} was closed with {decided['prompts']} prompts, its units have {len(in_unit)}"
                self._damaged("journal.jsonl", what)
            self._check_pairs(decided, ids=set(in_unit), lost=lost)
        phase.open = self._num_open(key, decided=decided, in_unit=in_unit)
        phase.state = _state(entries)

    def _check_files(
        self, entries: Iterable[Entry], *, lost: set[str], version: int | None, phase: PhaseReport | None = None
    ) -> None:
        """Hold the files of lines to their digests and, with `version`, files of candidates to their lines."""

        def look(entry: Entry) -> list[tuple[str, str | None, int]]:
            found = []
            for name, digest in entry.get("files", {}).items():
                wrong = _damage(self._folder / name, digest=digest)
                if wrong is None and version is not None:
                    wrong = _contradiction(self._folder / name, entry=entry, version=version)
                found.append((name, wrong, digest["bytes"]))
            return found

        remaining = iter(entries)
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            while batch := list(islice(remaining, 1024)):
                for found in pool.map(look, batch):
                    for name, wrong, num_bytes in found:
                        self._report.files += 1
                        self._report.bytes += num_bytes
                        if wrong is None:
                            continue
                        if name in lost:
                            what = f"{name} {wrong}, and the journal says that it is lost: nothing is done for it"
                            self._report.notes.append(what)
                        else:
                            self._damaged(name, wrong)
                        if phase is not None:
                            phase.lost_files += 1

    def _check_pairs(self, decided: Entry, *, ids: set[str], lost: set[str]) -> None:
        for name in decided["files"]:
            path = self._folder / name
            try:
                table = pq.read_table(path, columns=["id"])
            except (OSError, pa.ArrowException):
                continue  # its digest has said so
            if table.num_rows != decided["made"]:
                self._damaged(name, f"has {table.num_rows} examples, its line says {decided['made']}")
            # In a table that somebody else wrote they may be of any type.
            if strangers := {str(prompt_id) for prompt_id in table.column("id").to_pylist()} - ids:
                self._damaged(
                    name, f"has examples of {len(strangers)} prompts that no unit has, {min(strangers)} first"
                )

    # ---- the prompts ----

    def _num_open(self, key: Key, *, decided: Entry | None, in_unit: dict[str, str]) -> int | None:
        """How many prompts of the cycle are left; those of a closed phase that are left are damage or news."""
        expected = self._prompts_of(key[0], decided=decided)
        if expected is None:
            return 0 if decided is not None else None
        ids, is_part, everything = expected
        missing = [prompt_id for prompt_id in ids if prompt_id not in in_unit]
        gone = set(in_unit) - set(ids)
        if gone and is_part:  # it may only be another round's turn by now
            gone -= everything()
        if is_part:
            # Prompts that were rolled out before others came into the file have taken their places.
            missing = missing[: max(0, len(ids) - len(in_unit))]
        if gone:
            self._report.notes.append(f"{_name(*key)}: {_number(len(gone), 'prompt')} in the prompt file no more")
        if decided is None:
            return len(missing)
        if missing and self._is_same_file(decided):
            what = f"{len(missing)} prompts of the prompt file are in no unit of it, {missing[0]} first"
            self._damaged("journal.jsonl", f"{_name(*key)} is closed, and {what}")
        elif missing:
            self._report.notes.append(f"{_name(*key)}: {_number(len(missing), 'prompt')} new in the prompt file")
        return 0

    def _prompts_of(
        self, round_index: int, *, decided: Entry | None
    ) -> tuple[list[str], bool, Callable[[], set[str]]] | None:
        """The ids of the prompts whose turn a round is, whether they are some of all, and all; None: not readable."""
        config, method = self._config, self._method
        source = (decided or {}).get("source")
        path = source["path"] if source else config.data.prompts if config else None
        if config is None or method is None or path is None or "${world}" in path:
            return None
        data = config.data
        if scheme_of(path) in WEB:  # a look at a folder asks nobody on the web
            return None
        try:
            # Rows only: their pictures are not looked for on the web.
            prompts = PromptFile(path, images=data.images, limit=data.limit, refuses=method.refuses, urls=data.urls)
            size = data.per_round
            is_part = size is not None and size < prompts.num
            num = size if size is not None and is_part else prompts.num
            start = round_index * num if is_part else 0
            ids = [prompt.id for prompt in prompts.take(start=start, num=num)]
            return ids, is_part, lambda: {prompt.id for prompt in prompts.take()}
        except (UserError, OSError):
            return None

    def _is_same_file(self, decided: Entry) -> bool:
        """Whether the prompt file is the one that the phase was closed with."""
        source = decided.get("source")
        return source is not None and _damage(Path(source["path"]), digest=source) is None

    # ---- the rest of the folder ----

    def _read_config(self) -> None:
        path = self._folder / "config.yaml"
        try:
            if not path.is_file():
                raise FileNotFoundError(path)
            plain = yaml.safe_load(path.read_text(encoding="utf-8"))
            self._has_config = isinstance(plain, dict)
            config = parse_config(plain)
            if uses_world(config):
                from csr_ray.app.run import world_spec
                from csr_ray.world.build import world_folder

                config = resolve_world(config, folder=world_folder(world_spec(config.world)))
            self._method = method_of(config)
            self._config = config
        except ConfigError as error:
            self._damaged(
                "config.yaml",
                f"csr_ray {__version__} would not write that, another version may: {error} (no look at the prompts)",
            )
        except (OSError, *YAML_ERRORS) as error:
            self._damaged("config.yaml", f"cannot be used ({type(error).__name__}): no look at the prompts")

    def _read_quarantine(self) -> Counter[str]:
        path = self._folder / "quarantine.jsonl"
        lines: Counter[str] = Counter()
        if not path.is_file():
            if path.exists():
                what = "is a folder" if path.is_dir() else "is no file; the next start writes it again"
                self._damaged("quarantine.jsonl", what)
            return lines
        data = path.read_bytes()
        whole, _, torn = data.rpartition(b"\n")
        if torn:
            self._report.notes.append("the last line of quarantine.jsonl is torn: the next start mends it")
        for number, line in enumerate(whole.split(b"\n"), 1):
            if not line:
                continue
            try:
                entry = json.loads(line)
                lines[json.dumps({name: entry[name] for name in ("id", "source", "reason", "fault")})] += 1
            except (ValueError, KeyError, TypeError, RecursionError):
                self._damaged("quarantine.jsonl", f"line {number} cannot be read; the next start writes it again")
        for known, times in lines.items():
            if times > 1:
                self._damaged("quarantine.jsonl", f"{times} lines are {known}")
        return lines

    def _check_answers(self, entries: Sequence[Entry]) -> None:
        known = {item for entry in entries if entry["kind"] == "answers_lost" for item in entry["lost"].items()}
        for entry in entries:
            if entry["kind"] == "eval":
                lost = {name for name, digest in entry.get("files", {}).items() if (name, digest["xxh3"]) in known}
                self._check_files([entry], lost=lost, version=None)

    def _check_model(self, entries: Sequence[Entry]) -> None:
        finished = [entry for entry in entries if entry["kind"] == "finished"]
        # A run that went on with more rounds may be replacing its model.
        if finished and (self._config is None or finished[-1]["rounds"] >= self._config.run.rounds):
            self._check_files(finished[-1:], lost=set(), version=None)

    def _look_for_rests(self, entries: Sequence[Entry]) -> None:
        named = {name for entry in entries for name in entry.get("files", {})}
        rests = [path for path in self._folder.rglob(".*") if _UNFINISHED.fullmatch(path.name)]
        if rests:
            self._report.notes.append(
                f"{len(rests)} unfinished files or folders of interrupted writes, {rests[0].name} first: no line "
                "names them, and the next start removes them"
            )
        units = [
            path
            for path in self._folder.glob("round_*/**/candidates/unit_*.parquet")
            if path.relative_to(self._folder).as_posix() not in named
        ]
        if units:
            self._report.notes.append(f"{len(units)} files of candidates have no line: their prompts are done again")

    def _look_for_refusals(self, entries: Sequence[Entry]) -> None:
        refused = [entry for entry in entries if entry["kind"] == "refused"]
        for key in dict.fromkeys((entry["round"], entry["phase"]) for entry in refused):
            of_phase = _of_cycle(refused, key)
            if not of_phase[-1]["reason"].startswith("refused: "):  # it was never trained
                self._report.notes.append(f"{_name(*key)}: {of_phase[-1]['reason']}")
                continue
            num = f"{len(of_phase)} training{'s were' if len(of_phase) > 1 else ' was'} refused; the last"
            self._report.notes.append(f"{_name(*key)}: {num}: {of_phase[-1]['reason'].removeprefix('refused: ')}")

    # ---- what comes next ----

    def _what_is_mended(self, entries: Sequence[Entry]) -> list[str]:
        """What a resume does about the damage, in its order; the one thing to do first, where it would not start."""
        damaged = {finding.file for finding in self._report.damage}
        if not self._has_config or self._is_journal_damaged:
            self._is_stuck = True
            name = "journal.jsonl" if self._is_journal_damaged else "config.yaml"
            return [f"nothing, until {name} is put back from a copy"]
        if (in_the_way := self._in_the_way({"quarantine.jsonl"})) is not None:
            return in_the_way
        mended: list[str] = []
        cycles = _cycles(entries)
        for number, key in enumerate(cycles):
            of_cycle = _of_cycle(entries, key)
            if files := _files_of(of_cycle, "train") & damaged:
                if number + 1 < len(cycles):
                    self._is_stuck = True
                    return [
                        f"nothing, until {min(files)} is put back from a copy; with --redo {_name(*key)} is trained "
                        "again, and all that came after it is done again"
                    ]
                self._again |= {("train", *key), ("publish", *key), ("round", key[0], None), ("finished", None, None)}
            mended_here = self._what_is_mended_of(key, of_cycle, damaged=damaged)
            if self._is_stuck:
                return mended_here
            mended += mended_here
        if gone := _files_of(entries, "eval") & damaged:
            mended.append(f"say that the answers of {_number(len(gone), 'evaluation')} lost, and keep the figures")
        if _files_of(entries, "finished") & damaged:
            self._again.add(("finished", None, None))
        if "quarantine.jsonl" in damaged:
            mended.append("write quarantine.jsonl again")
        return mended

    def _what_is_mended_of(self, key: Key, entries: Sequence[Entry], *, damaged: set[str]) -> list[str]:
        """The same for one phase; what `_next` says by itself is left to it."""
        units, pairs = _files_of(entries, "rollout") & damaged, _files_of(entries, "examples") & damaged
        kinds = {entry["kind"] for entry in entries}
        is_lost = "lost" in kinds
        is_trained = "train" in kinds and ("train", *key) not in self._again
        if "examples" not in kinds or (pairs and not is_trained and (units or is_lost)):
            if pairs:
                self._again.add(("examples", *key))
            if (in_the_way := self._in_the_way(units | pairs)) is not None:
                return in_the_way
            damaged_units = [entry for entry in entries if _files_of([entry], "rollout") & units]
            self._num_again[key] = sum(len(entry["ids"]) for entry in damaged_units)
            return []
        if pairs and not units and not is_lost:
            return self._in_the_way(pairs) or [f"{_name(*key)}: make the pairs again from the units"]
        if pairs:
            return [f"{_name(*key)}: say that {_number(len(pairs | units), 'file')} lost, and keep what was trained"]
        return [f"{_name(*key)}: say that {_number(len(units), 'unit')} lost, whose pairs are there"] if units else []

    def _in_the_way(self, names: Iterable[str]) -> list[str] | None:
        """What to do first if one of the files cannot be written again; None if all can."""
        for name in sorted(names):
            path = self._folder / name
            above = path.parents[: len(Path(name).parts) - 1]
            wrong = [place for place in above if place.exists() and not place.is_dir()]
            if path.is_dir() and not path.is_symlink():
                wrong.append(path)
            if wrong:
                self._is_stuck = True
                return [f"nothing, until {wrong[0].relative_to(self._folder).as_posix()} is moved away"]
        return None

    def _next(self, entries: Sequence[Entry]) -> str:
        config, method = self._config, self._method
        if config is None or method is None:
            return "unknown, because config.yaml cannot be used"
        if (end := self._end(entries)) is not None:
            is_saved = any(entry["kind"] == "finished" and entry.get("ended") for entry in entries)
            is_saved = is_saved or _is_done(entries, rounds=config.run.rounds)
            version = end["verdict"]["version"] - 1
            of_version = [entry for entry in entries if entry["kind"] == "eval" and entry["version"] == version]
            is_known = any(entry.get("limit") is None for entry in of_version)
            if not is_saved and not is_known and config.eval.benchmarks:
                return f"evaluate policy version {version}, with which the run ended, and save the model"
            if not is_saved or ("finished", None, None) in self._again:
                return "save the model" + " again" * is_saved
            where = _name(end["round"], end["phase"])
            return f"nothing: the run ended early in {where}, with policy version {version}"
        done = {(entry["kind"], entry.get("round"), entry.get("phase")) for entry in entries} - self._again
        for index in range(config.run.rounds):
            for phase in method.phases(index):
                key = (index, phase.name)
                left = [self._step(step, key) for step in ("train", "publish") if (step, *key) not in done]
                num_refused = sum(entry["kind"] == "refused" for entry in _of_cycle(entries, key))
                if num_refused and ("train", *key) not in done:
                    left[0] = f"train again with 1/{2**num_refused} of the dose"
                if ("examples", *key) not in done:
                    num = self._num_to_roll_out(key)
                    first = [f"{'the' if num is None else num} prompts to roll out"] if num != 0 else []
                    examples = "build the examples" + " again" * (("examples", *key) in self._again)
                    return f"{_name(*key)}: {', then '.join([*first, examples, *left])}, then go on"
                if left:
                    return f"{_name(*key)}: {', then '.join(left)}, then go on"
                is_open = ("round", index, None) not in done
                if is_open and config.gate.enabled and ("verdict", *key) not in done:
                    return f"{_name(*key)}: compare the policy with the one before it, then go on"
            if ("round", index, None) not in done:
                return f"round {index + 1}: evaluate and close the round, then go on"
        is_done = _is_done(entries, rounds=config.run.rounds)
        if not is_done or ("finished", None, None) in self._again:
            return "save the model" + " again" * is_done
        return "nothing: the run is finished"

    def _end(self, entries: Sequence[Entry]) -> Entry | None:
        """The refusal that ended the run; None: it has not ended so."""
        if self._config is None:
            return None
        num_refused: Counter[Key] = Counter()
        for entry in entries:
            if entry["kind"] == "refused":
                num_refused[entry["round"], entry["phase"]] += 1
                is_last = num_refused[entry["round"], entry["phase"]] > self._config.gate.retries
                if is_last or entry["verdict"].get("final"):
                    return entry
        return None

    def _step(self, step: str, key: Key) -> str:
        return step + " again" * ((step, *key) in self._again)

    def _num_to_roll_out(self, key: Key) -> int | None:
        for phase in self._report.phases:
            if (phase.round, phase.phase) == key:
                return None if phase.open is None else phase.open + self._num_again.get(key, 0)
        expected = self._prompts_of(key[0], decided=None)
        return None if expected is None else len(expected[0])


# ---- reading the journal ----


def _is_beginning(bare: bytes, *, previous: bytes) -> bool:
    """Whether this can be half of a line that was being written, and is not a whole one with something behind it."""
    start = b'{"kind": "'
    if bare[: len(start)] != start[: len(bare)]:
        return False
    for match in re.finditer(rb', "sum": "([0-9a-f]{32})"\}', bare):
        if xxhash.xxh3_128(previous + bare[: match.start()] + b"}").hexdigest().encode() == match[1]:
            return False
    return True


def _void_all(entries: list[Entry], agains: Sequence[Entry]) -> list[Entry]:
    """The lines that are left when "again" lines that follow each other have voided what they say."""
    # There may be many lines that void units, and the order of those among them does not matter.
    units = {(again["round"], again["phase"], again["unit"]) for again in agains if again["what"] == "unit"}
    if units:
        entries = [
            entry
            for entry in entries
            if entry["kind"] != "rollout" or (entry["round"], entry["phase"], entry["unit"]) not in units
        ]
    for again in agains:
        if again["what"] != "unit":
            entries = _void(entries, again)
    return entries


def _void(entries: list[Entry], again: Entry) -> list[Entry]:
    """The lines that are left when an "again" line has voided what it says."""
    what = again["what"]
    if what == "model":
        return [entry for entry in entries if entry["kind"] != "finished"]
    if what == "eval":
        return [entry for entry in entries if entry["kind"] != "eval" or entry["version"] != again["version"]]
    key = (again["round"], again["phase"])

    def is_of(entry: Entry, *kinds: str) -> bool:
        return entry["kind"] in kinds and (entry["round"], entry["phase"]) == key

    if what == "examples":
        return [entry for entry in entries if not is_of(entry, "examples", "lost")]
    if what == "train":
        # What was refused counts from here on, until an earlier phase is trained again.
        refused = [{**again, "kind": "refused"}] if "verdict" in again else []
        trained = [number for number, entry in enumerate(entries) if is_of(entry, "train")]
        if not trained:
            return [*entries, *refused]
        behind = [entry for entry in entries[trained[-1] :] if entry["kind"] not in _VOIDED_WITH_A_TRAINING]
        return entries[: trained[-1]] + behind + refused
    gone = set(again["ids"])
    left = []
    for entry in entries:
        if is_of(entry, "rollout") and any(item["id"] in gone for item in entry["rejected"]):
            out = {item["id"] for item in entry["rejected"]} & gone
            entry = {
                **entry,
                "ids": [prompt_id for prompt_id in entry["ids"] if prompt_id not in out],
                "rejected": [item for item in entry["rejected"] if item["id"] not in out],
            }
            if not entry["ids"]:
                continue
        left.append(entry)
    return left


def _is_done(entries: Iterable[Entry], *, rounds: int) -> bool:
    return any(entry["kind"] == "finished" and entry["rounds"] >= rounds for entry in entries)


def _cycles(entries: Iterable[Entry]) -> list[Key]:
    """The cycles in the order in which they began; the place of each is the version that it starts from."""
    kinds = ("rollout", "examples", "train")
    return list(dict.fromkeys((entry["round"], entry["phase"]) for entry in entries if entry["kind"] in kinds))


def _of_cycle(entries: Iterable[Entry], key: Key) -> list[Entry]:
    return [entry for entry in entries if (entry.get("round"), entry.get("phase")) == key]


def _files_of(entries: Iterable[Entry], kind: str) -> set[str]:
    return {name for entry in entries if entry["kind"] == kind for name in entry.get("files", {})}


def _state(entries: Iterable[Entry]) -> str:
    kinds = {entry["kind"] for entry in entries}
    names = {"publish": "published", "train": "trained", "refused": "refused", "examples": "examples decided"}
    return next((name for kind, name in names.items() if kind in kinds), "rolling out")


def _number(num: int, thing: str) -> str:
    """With the verb: "1 unit is", "2 units are"."""
    return f"{num} {thing} is" if num == 1 else f"{num} {thing}s are"


def _name(round_index: int, phase: str) -> str:
    return f"round {round_index + 1}" + (f", phase {phase}" if phase != "main" else "")


# ---- files ----


def _damage(path: Path, *, digest: Entry) -> str | None:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "is no file"
        state, num_bytes = xxhash.xxh3_128(), 0
        with path.open("rb") as file:
            for chunk in _chunks(file):
                state.update(chunk)
                num_bytes += len(chunk)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    if num_bytes != digest["bytes"]:
        return f"has {num_bytes} bytes, and was written with {digest['bytes']}"
    return None if state.hexdigest() == digest["xxh3"] else "has other bytes than were written"


def _chunks(file: Any) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk


def _contradiction(path: Path, *, entry: Entry, version: int) -> str | None:
    """What a file of candidates and its line say differently of each other."""
    try:
        table = pq.read_table(path, columns=["id", "policy_version"], use_threads=False)
    except (OSError, pa.ArrowException) as error:
        return f"cannot be read as a table: {type(error).__name__}"
    ids = set(pc.unique(table.column("id")).to_pylist())
    if ids != set(entry["ids"]) - {item["id"] for item in entry["rejected"]}:
        return "has the rollouts of other prompts than its line says"
    versions = set(pc.unique(table.column("policy_version")).to_pylist())
    if versions - {version}:
        return f"has rollouts of policy version {versions}, and its phase starts from version {version}"
    return None
