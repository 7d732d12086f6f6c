"""Lets the program make small rounds for as long as is asked, and looks from outside whether anything of it grows.

The run is the real program on the real tiny world (engine, CLIP, trainer), started by its command with a Ray of its
own. Every ten seconds the memory, open files and threads of each of its processes are read, the object store's use,
and what it has in /dev/shm and in the temporary folder, of which it is given one of its own. At the end a table says
what each was after the warm-up and at the end, and how fast it grew; and a last look says what the program left.

When a run is done (it has a thousand rounds) the next is started. Each has a table of its own, but for those that
were too short to say anything.

Other programs on the machine do not disturb the figures, but for /dev/shm, where a file does not say whose it is:
what others leave there meanwhile is counted, too. To keep it apart, run this in a mount namespace of its own:

    unshare --mount sh -c 'mount -t tmpfs tmpfs /dev/shm && make soak MINUTES=60'
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[3]
CONFIG = ROOT / "configs" / "tiny-world.yaml"
# Rounds of some seconds, in which everything happens that happens in a large one.
OVERRIDES = (
    "run.rounds=1000",
    "run.unit=4",
    "world.quick=true",
    "world.num_train_images=96",
    "world.num_heldout_images=48",
    "data.per_round=16",
    "eval.limit=8",
    "generators.in_flight=8",
    "generators.kv_cache_gib=0.1",
    "train.batch_size=4",
    "train.checkpoint_steps=2",
)
# What the processes of a run are called, by role; the first that fits.
ROLES = {
    "generator": r"^ray::GeneratorActor",
    "engine": r"^VLLM::EngineCore",
    "scorer": r"^ray::ScorerActor",
    "registry": r"^ray::RegistryActor",
    "mailbox": r"^ray::MailboxActor",
    "train worker": r"^ray::RayTrainWorker",
    "train controller": r"^ray::TrainController",
    "raylet": r"/raylet/raylet ",
    "gcs": r"/gcs_server ",
}
# What torch keeps in the temporary folder for later runs on purpose.
KEPT = ("torchinductor_",)
SHARED_MEMORY = Path("/dev/shm")
WARM_UP_ROUNDS = 3
# What grows by less than this in an hour counts as flat: a share of the value, or the number if that is more.
FLAT_SHARE = 0.05
FLAT_BYTES, FLAT_COUNT = 20 * 2**20, 5
# What grows with the number of rounds because it is the run's result, or because the policy is made of it.
MEANT_TO_GROW = {
    "run folder.bytes": "it is the result",
    "run folder.journal_bytes": "it is the result",
    "tmp, own folders.bytes": "a generator keeps every adapter that its policy is merged of",
    "tmp, own folders.entries": "a generator keeps every adapter that its policy is merged of",
}
# The driver remembers the lines of its journal, in which a round of a soak has 8 KiB, as objects of Python, and makes
# its summary of all rounds anew after each. So much more memory for each byte of the journal is not called growth.
_DRIVER_BYTES_A_JOURNAL_BYTE = 12
# Over fewer seconds nothing can be said of an hour.
_SHORTEST_S = 240.0
_SAY_EVERY_S = 60.0
_STOP_S = 60.0
# A round that takes longer than this hangs.
_SILENT_S = 600.0


@dataclass(frozen=True)
class Sample:
    """What was there at one moment. Keys of `values` are `role.what`, such as `driver.own_bytes`."""

    at_s: float
    num_rounds: int
    values: dict[str, float]


@dataclass
class Trend:
    """How one figure went."""

    name: str
    after_warm_up: float
    at_end: float
    per_hour: float
    per_hour_late: float  # of the second half alone: what has only warmed up slowly does not grow any more there
    grows: bool


@dataclass
class Soak:
    """One run, its samples, and what it left."""

    num_rounds: int = 0
    exit_code: int = 0
    samples: list[Sample] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    trends: list[Trend] = field(default_factory=list)
    last_lines: list[str] = field(default_factory=list)


class Watched:
    """The program in a run folder, with a temporary folder of its own, and what can be seen of it from outside."""

    def __init__(self, directory: Path, *, temporary: Path, overrides: Sequence[str]) -> None:
        self.temporary = temporary
        self.run_folder = directory / "run"
        self.output = directory / "output.txt"
        self._shared_before = set(os.listdir(SHARED_MEMORY))
        self._tmp_before = set(os.listdir("/tmp"))
        self._seen: dict[int, psutil.Process] = {}
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        environment |= {"TMPDIR": str(self.temporary), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "csr_ray", "run", str(CONFIG), *OVERRIDES, *overrides]
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [*command, f"run.dir={self.run_folder}"],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._driver = psutil.Process(self.process.pid)
        self._store = _ObjectStore()

    @property
    def num_rounds(self) -> int:
        """Rounds that are done."""
        with contextlib.suppress(OSError):
            return (self.run_folder / "journal.jsonl").read_bytes().count(b'"kind": "round"')
        return 0

    def sample(self, *, at_s: float) -> Sample:
        values: dict[str, float] = defaultdict(float)
        members = self._members()
        for role, process in members:
            with contextlib.suppress(psutil.Error):
                values[f"{role}.rss_bytes"] += process.memory_info().rss
                values[f"{role}.own_bytes"] += _own_bytes(process)
                values[f"{role}.files"] += process.num_fds()
                values[f"{role}.threads"] += process.num_threads()
        values["all.processes"] = len(members)
        shared = self._shared_files({process.pid for _, process in members})
        values["/dev/shm.files"] = len(shared)
        values["/dev/shm.bytes"] = sum(_size(SHARED_MEMORY / name) for name in shared)
        values["tmp.entries"] = len(os.listdir(self.temporary))
        for folder in self.temporary.iterdir():
            kind = "ray" if folder.name == "ray" else "own folders" if folder.name.startswith("csr-ray-") else "other"
            for entry in [folder, *_below(folder)]:
                values[f"tmp, {kind}.entries"] += 1
                values[f"tmp, {kind}.bytes"] += _size(entry)
        values["run folder.journal_bytes"] = _size(self.run_folder / "journal.jsonl")
        values["run folder.bytes"] = sum(_size(entry) for entry in _below(self.run_folder))
        raylet = next((process for role, process in members if role == "raylet"), None)
        if raylet is not None:
            values |= self._store.use(raylet)
        return Sample(at_s=at_s, num_rounds=self.num_rounds, values=dict(values))

    def stop(self) -> int:
        """Tell it to stop as a person would; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def left(self) -> list[str]:
        """What is there of it, now that it has ended: processes, shared memory, temporary files."""
        time.sleep(1.0)
        alive = [process for process in self._seen.values() if process.is_running() and not _is_zombie(process)]
        found = [f"process {process.pid} {_title(process)[:60]}" for process in alive]
        for process in alive:  # not for the next run to have beside it
            with contextlib.suppress(psutil.Error):
                process.kill()
        found += [f"/dev/shm/{name}" for name in sorted(self._shared_files(set()))]
        entries = sorted(entry for entry in self.temporary.iterdir() if not entry.name.startswith(KEPT))
        found += [f"TMPDIR/{entry.name}" for entry in entries if not _is_empty(entry)]
        pids = {str(pid) for pid in self._seen}
        for name in sorted(set(os.listdir("/tmp")) - self._tmp_before):
            if pids & set(re.split(r"\D+", name)):  # named after a process of the run
                found.append(f"/tmp/{name}")
        return found

    def _members(self) -> list[tuple[str, psutil.Process]]:
        """The processes of the run with their roles; those that belong together have the same."""
        try:
            children = self._driver.children(recursive=True)
        except psutil.Error:
            return []
        self._seen |= {process.pid: process for process in children}
        return [("driver", self._driver), *((_role(_title(process)), process) for process in children)]

    def _shared_files(self, ours: set[int]) -> set[str]:
        """What came into /dev/shm since the start and no process of others has mapped."""
        new = {entry.name: entry for entry in _entries(SHARED_MEMORY) if entry.name not in self._shared_before}
        theirs: set[int] = set()
        for process in psutil.process_iter():
            if process.pid not in ours:
                theirs |= set(_mapped_inodes(process.pid))
        return {name for name, entry in new.items() if entry.inode() not in theirs}


class _ObjectStore:
    """Ray's object store as its raylet sees it, asked by the private interface behind `ray memory`."""

    def __init__(self) -> None:
        self._port: int | None = None
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # as a private Ray's; read when Ray is imported

    def use(self, raylet: psutil.Process) -> dict[str, float]:
        """Nothing as long as the raylet does not answer; which of its ports is the right one is tried."""
        from ray._private.internal_api import get_memory_info_reply

        for port in _listening_ports(raylet) if self._port is None else [self._port]:
            with contextlib.suppress(Exception):  # grpc's own, of many kinds; the other figures go on
                stats = get_memory_info_reply(None, "127.0.0.1", port, timeout_seconds=5.0).store_stats
                self._port = port
                return {
                    "object store.bytes": float(stats.object_store_bytes_used),
                    "object store.objects": float(stats.num_local_objects),
                    "object store.spilled_bytes": float(stats.spilled_bytes_total),
                }
        return {}


def _listening_ports(process: psutil.Process) -> list[int]:
    with contextlib.suppress(psutil.Error):
        return [one.laddr.port for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
    return []


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _role(title: str) -> str:
    return next((role for role, pattern in ROLES.items() if re.search(pattern, title)), "rest")


def _is_zombie(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    return True


def _own_bytes(process: psutil.Process) -> int:
    """The memory that it has written to and shares with nobody.

    The usual unique set size has pages of libraries in it as well, as long as no other program uses them, and so it
    changes with what else runs on the machine.
    """
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Private_Dirty:"):
                return 1024 * int(line.split()[1])
    return 0


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        status = path.lstat()
        return 512 * status.st_blocks
    return 0


def _is_empty(path: Path) -> bool:
    """Whether it is a folder without anything in it, such as Ray's own for its sessions."""
    return path.is_dir() and not any(entry.is_file() or entry.is_socket() for entry in path.rglob("*"))


def _below(folder: Path) -> Iterator[Path]:
    """Everything in a folder, at any depth; what vanishes meanwhile is left out."""
    for base, folders, files in os.walk(folder):
        yield from (Path(base, name) for name in (*folders, *files))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)


def _mapped_inodes(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines():
            fields = line.split(maxsplit=5)
            if fields[-1].startswith(f"{SHARED_MEMORY}/"):
                yield int(fields[4])


# ---- what the samples say ----


def theil_sen(points: Sequence[tuple[float, float]]) -> float:
    """The slope of a line through points: the median over all pairs of them, which single outliers do not move."""
    slopes = [(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(points, 2) if x2 != x1]
    return statistics.median(slopes) if slopes else 0.0


def trends_of(samples: Sequence[Sample]) -> list[Trend]:
    """How each figure went after the warm-up; nothing if that was too short a time."""
    warm = [sample for sample in samples if sample.num_rounds >= WARM_UP_ROUNDS]
    if len(warm) < 3 or warm[-1].at_s - warm[0].at_s < _SHORTEST_S:
        return []
    names = sorted({name for sample in warm for name in sample.values})
    points_of = {name: [(one.at_s, one.values[name]) for one in warm if name in one.values] for name in names}
    journal_bytes_per_hour = 3600 * theil_sen(points_of.get("run folder.journal_bytes", []))
    allowed = {
        f"driver.{what}_bytes": _DRIVER_BYTES_A_JOURNAL_BYTE * journal_bytes_per_hour for what in ("own", "rss")
    }
    return [_trend(name, points, allowed_per_hour=allowed.get(name, 0.0)) for name, points in points_of.items()]


def _trend(name: str, points: Sequence[tuple[float, float]], *, allowed_per_hour: float) -> Trend:
    late = points[len(points) // 2 :]
    # Within a round a figure goes up and down, so beginning and end are medians as well.
    edge = max(1, len(points) // 10)
    begin = statistics.median(value for _, value in points[:edge])
    end = statistics.median(value for _, value in points[-edge:])
    per_hour, per_hour_late = 3600 * theil_sen(points), 3600 * theil_sen(late)
    limit = max(FLAT_SHARE * begin, FLAT_BYTES if name.endswith("bytes") else FLAT_COUNT)
    grows = min(per_hour, per_hour_late) > limit + allowed_per_hour
    return Trend(name, begin, end, per_hour, per_hour_late, grows=grows)


def table(trends: Iterable[Trend]) -> str:
    rows = [
        "| what | after warm-up | at the end | an hour more | second half | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for trend in trends:
        unit, scale = ("MiB", 2**20) if trend.name.endswith("bytes") else ("", 1)
        role, _, what = trend.name.rpartition(".")
        numbers = [trend.after_warm_up, trend.at_end, trend.per_hour, trend.per_hour_late]
        begin, end, slope, late = (f"{number / scale:.1f}" for number in numbers)
        verdict = "grows" if trend.grows else "flat"
        if trend.grows and (reason := MEANT_TO_GROW.get(trend.name)):
            verdict = f"grows as it should: {reason}"
        what = f"{what.replace('_bytes', '').replace('bytes', 'size')} {unit}".strip()
        rows.append(f"| {role}, {what} | {begin} | {end} | {slope} | {late} | {verdict} |")
    return "\n".join(rows)


# ---- the soak ----


def soak(*, until_s: float, every_s: float, overrides: Sequence[str]) -> Soak:
    """One run until it is done or time is up."""
    outcome = Soak()
    directory = Path(tempfile.mkdtemp(prefix="csr-soak-"))
    # A short path, because sockets lie below it, whose paths may have 107 bytes.
    temporary = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    watched = Watched(directory, temporary=temporary, overrides=overrides)
    started_s = said_s = heard_s = time.monotonic()
    try:
        while watched.process.poll() is None and time.monotonic() < until_s:
            sample = watched.sample(at_s=time.monotonic() - started_s)
            now_s = time.monotonic()
            if watched.process.poll() is None:
                outcome.samples.append(sample)
            if sample.num_rounds > outcome.num_rounds:
                outcome.num_rounds, heard_s = sample.num_rounds, now_s
            if now_s - heard_s > _SILENT_S:
                print(f"no round for {_SILENT_S:g} s; it is stopped", flush=True)
                break
            if now_s - said_s >= _SAY_EVERY_S:
                said_s = now_s
                _say(sample)
            with contextlib.suppress(subprocess.TimeoutExpired):
                watched.process.wait(timeout=max(0.0, every_s - (time.monotonic() - now_s)))
        was_running = watched.process.poll() is None
        code = watched.stop()
        outcome.exit_code = 0 if was_running and code == 1 else code  # 1: it stopped as it was told
        outcome.left = watched.left()
        outcome.last_lines = watched.output.read_text().splitlines()[-30:]
    finally:
        with contextlib.suppress(ProcessLookupError):
            watched.process.kill()
        for folder in (directory, temporary):
            shutil.rmtree(folder, ignore_errors=True)
    outcome.trends = trends_of(outcome.samples)
    return outcome


def _say(sample: Sample) -> None:
    mib = {name: value / 2**20 for name, value in sample.values.items() if name.endswith(".own_bytes")}
    parts = [f"{name.partition('.')[0]} {value:.0f}" for name, value in sorted(mib.items())]
    print(
        f"{sample.at_s / 60:5.1f} min, {sample.num_rounds} rounds, MiB of {', '.join(parts)}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="further config keys")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=10.0, help="seconds from one look to the next")
    parser.add_argument("--json", type=Path, default=None, help="write every sample and the table here")
    arguments = parser.parse_args()
    until_s = time.monotonic() + 60 * arguments.minutes
    outcomes: list[Soak] = []
    while time.monotonic() < until_s and not (outcomes and outcomes[-1].exit_code):
        outcomes.append(soak(until_s=until_s, every_s=arguments.every, overrides=arguments.overrides))
        last = outcomes[-1]
        print(f"\nRun {len(outcomes)}: {last.num_rounds} rounds in {_minutes(last):.1f} minutes.")
        print(table(last.trends) if last.trends else "Too short to say how anything went.")
        print("Left of it: " + ("nothing." if not last.left else "\n  ".join(["", *last.left])), flush=True)
        if last.exit_code:
            print(f"It ended with {last.exit_code}:\n" + "\n".join(last.last_lines))
        if arguments.json:
            arguments.json.write_text(json.dumps([asdict(one) for one in outcomes], indent=1))
    growing = {trend.name for one in outcomes for trend in one.trends if trend.grows} - set(MEANT_TO_GROW)
    print("\nGrows: " + (", ".join(sorted(growing)) or "nothing") + ".")
    is_flat = any(one.trends for one in outcomes) and not growing
    sys.exit(0 if is_flat and not any(one.left or one.exit_code for one in outcomes) else 1)


def _minutes(outcome: Soak) -> float:
    return outcome.samples[-1].at_s / 60 if outcome.samples else 0.0


if __name__ == "__main__":
    main()
