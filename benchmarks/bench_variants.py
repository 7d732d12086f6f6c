"""What the same settings do on several worlds: whole runs over variants x seeds x cells, and their tables.

A variant is another embedded world (docs/world.md), a seed is the run's (`run.seed`), and a cell is a set of
overrides with a name. Every run has its folder, DIR/CELL/variantV-seedS, and its output in a .log beside it. A
finished run is not run again and an interrupted one goes on, so the same command makes the rest of a table. A run
that fails is told in the table, and does not stop the others.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import yaml
from result_file import add_json_flag, told_in_a_line, write_result
from variant_tables import (
    Outcome,
    by_cell,
    cell_table,
    difference_table,
    figures_of,
    rows_of,
    variant_table,
    verdict_table,
)

from csr_ray.config.load import YAML_ERRORS, differing_keys, is_operational, load_config, to_plain
from csr_ray.errors import EXIT_FAILED, ConfigError
from csr_ray.world.variant import DEVELOPMENT_VARIANTS, UNTOUCHED_VARIANTS

_EXAMPLES = """examples:
  the table that is reported, with nothing but defaults:
    python benchmarks/bench_variants.py --variants untouched --seeds 0,1,2 --json variants.json
  how much the image's reward should count, on the worlds on which defaults may be chosen:
    python benchmarks/bench_variants.py --variants development --dir runs/lambda \\
        --cell 0:reward.weight=0 --cell 0.5:reward.weight=0.5 --cell 0.9:reward.weight=0.9 --cell 1:reward.weight=1
  a judge trained for a tenth of the steps:
    python benchmarks/bench_variants.py --variants 1,3 --seeds 0 --set world.clip_steps=40 --dir runs/weak_judge
  the tables of what is finished so far, starting nothing:
    python benchmarks/bench_variants.py --variants untouched --no-run
"""
_FAMILIES = {"development": DEVELOPMENT_VARIANTS, "untouched": UNTOUCHED_VARIANTS}
# What this command sets itself; an override of these would put another run behind a folder's name.
_OWN_KEYS = {"run.dir": "--dir", "run.seed": "--seeds", "world.variant": "--variants"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_NEXT_OVERRIDE = re.compile(r",(?=[A-Za-z_]\w*(?:\.\w+)*=)")  # a comma inside a value, as in [a, b], is the value's


@dataclass(frozen=True)
class Cell:
    """A name, and the overrides that it stands for."""

    name: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """One run to make: where, and with which overrides of the config."""

    cell: str
    variant: int
    seed: int
    folder: Path
    overrides: tuple[str, ...]

    @property
    def named(self) -> str:
        return f"{self.cell}, variant {self.variant}, seed {self.seed}"

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")


def main() -> None:
    arguments = _arguments()
    cells = tuple(dict.fromkeys(arguments.cell or [Cell("defaults")]))
    plans = plans_of(
        cells,
        variants=arguments.variants,
        seeds=arguments.seeds,
        root=arguments.dir,
        shared=[f"eval.limit={arguments.images}", f"eval.limit_between={arguments.images}", *arguments.set],
    )
    for plan in plans:  # a wrong key is told now, and not after hours
        load_config(arguments.config, overrides=plan.overrides)
    runs = Runs(arguments.config, num_at_once=arguments.parallel)
    if not arguments.no_run:
        runs.make(plans)
    if runs.is_stopped:
        print("stopped; the same command goes on where it was; --no-run prints the tables so far", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    outcomes = [outcome_of(plan, config=arguments.config, fault=runs.faults.get(plan, "")) for plan in plans]
    print_tables(outcomes)
    write_result(
        arguments.json,
        name="variants",
        versions=_versions(plans),
        headline=next((row["name"] for row in rows_of(outcomes)), "chair_s_relative_fall"),
        rows=rows_of(outcomes),
        command=["bench_variants.py", *sys.argv[1:]],
        runs=[
            {
                "cell": outcome.cell,
                "variant": outcome.variant,
                "seed": outcome.seed,
                "fault": outcome.fault,
                **({} if outcome.figures is None else asdict(outcome.figures)),
            }
            for outcome in outcomes
        ],
    )
    if any(outcome.figures is None for outcome in outcomes):
        sys.exit(EXIT_FAILED)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--variants",
        type=_variants,
        default=UNTOUCHED_VARIANTS,
        help="7-12 or 1,3 or untouched (default) or development",
    )
    add(
        "--seeds",
        type=_numbers,
        default=(0, 1, 2),
        help="run seeds (default 0,1,2); the worlds are the same for each",
    )
    add("--images", type=_count, default=300, metavar="N", help="held-out images, after every round (default 300)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override of all runs; may be repeated")
    add(
        "--cell",
        action="append",
        type=_cell,
        metavar="NAME:KEY=VALUE,KEY=VALUE",
        help="runs with these overrides, as a row of its own; may be repeated (default: defaults, without overrides)",
    )
    add(
        "--config",
        default="configs/tiny-world.yaml",
        help="what every run starts from (default configs/tiny-world.yaml)",
    )
    add("--dir", type=Path, default=Path("runs/variants"), help="folder of the runs (default runs/variants)")
    add("--parallel", type=_count, default=1, metavar="N", help="runs side by side (default 1)")
    add("--no-run", action="store_true", help="start nothing; tables of the runs that are finished")
    add_json_flag(parser)
    return parser.parse_args()


def _variants(text: str) -> tuple[int, ...]:
    return _FAMILIES[text] if text in _FAMILIES else _numbers(text)


def _numbers(text: str) -> tuple[int, ...]:
    """`7-12`, `1,3` or both, in order and each once."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < first + 1000:
            raise argparse.ArgumentTypeError(f"{text!r}: expected numbers such as 1,3 or 7-12")
        found += range(first, last + 1)
    return tuple(dict.fromkeys(found))


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of 1 or more")
    return int(text)


def _cell(text: str) -> Cell:
    name, _, rest = text.partition(":")
    overrides = tuple(part.strip() for part in _NEXT_OVERRIDE.split(rest) if part.strip())
    if not _NAME.fullmatch(name) or not all("=" in override for override in overrides):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected NAME:key=value,key=value; the name is a folder's: letters, digits and . _ + -"
        )
    return Cell(name, overrides)


def plans_of(
    cells: Sequence[Cell], *, variants: Sequence[int], seeds: Sequence[int], root: Path, shared: Sequence[str]
) -> list[Plan]:
    """Every run of the table, in the order in which they are made: a whole table of one seed before the next seed.

    Args:
        shared: overrides of all runs; a cell's come after them, so that they count.

    Raises:
        ConfigError: two cells have one name, or an override is of a key that the command sets itself.
    """
    names = [cell.name for cell in cells]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"--cell {name}: two cells of this name with other overrides; name each differently")
    for override in (*shared, *(override for cell in cells for override in cell.overrides)):
        if (flag := _OWN_KEYS.get(override.partition("=")[0].strip())) is not None:
            raise ConfigError(f"{override}: every run has its own; use {flag}")
    plans = []
    for seed in seeds:
        for cell in cells:
            for variant in variants:
                folder = root / cell.name / f"variant{variant}-seed{seed}"
                own = (f"run.dir={folder}", f"world.variant={variant}", f"run.seed={seed}")
                plans.append(Plan(cell.name, variant, seed, folder, (*own, *shared, *cell.overrides)))
    return plans


def outcome_of(plan: Plan, *, config: str, fault: str = "") -> Outcome:
    """What a run's folder says of it.

    Args:
        fault: why the run was not finished, where it was tried.
    """
    try:
        summary = json.loads((plan.folder / "summary.json").read_text(encoding="utf-8"))
        theirs = yaml.safe_load((plan.folder / "config.yaml").read_text(encoding="utf-8"))
        # The figures of other settings under this cell's name would be believed, so they are none.
        wanted = to_plain(load_config(config, overrides=plan.overrides))
        rows = [row for row in differing_keys(theirs, wanted) if not is_operational(row.split(":", 1)[0])]
        if rows:
            raise ValueError(f"{plan.folder} holds a run of other settings ({'; '.join(rows)})")
        figures = figures_of(summary, batch_size=theirs["train"]["batch_size"])
    except FileNotFoundError:
        return Outcome(plan.cell, plan.variant, plan.seed, None, fault or "not run yet")
    except (ValueError, KeyError, TypeError, OSError, *YAML_ERRORS) as error:
        return Outcome(plan.cell, plan.variant, plan.seed, None, fault or f"failed: {_line(str(error))}")
    return Outcome(plan.cell, plan.variant, plan.seed, figures)


def is_finished(folder: Path) -> bool:
    """Whether the run's summary says so."""
    try:
        return json.loads((folder / "summary.json").read_text(encoding="utf-8")).get("finished") is True
    except (OSError, ValueError, AttributeError):
        return False


def last_line(log: Path) -> str:
    """The last line of a run's output that says something."""
    try:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    except OSError as error:
        return _line(str(error))
    return _line(lines[-1]) if lines else "it said nothing"


def _line(text: str) -> str:
    return " ".join(text.split())[:400]


def minutes_left(taken_s: Sequence[float], *, num_left: int, num_at_once: int) -> str:
    """What is said of the time left, by the mean of the runs that were done; nothing where it is not known."""
    if not taken_s or not num_left:
        return ""
    return f"; about {statistics.mean(taken_s) * num_left / min(num_left, num_at_once) / 60:.0f} minutes left"


class Runs:
    """Makes the runs, some side by side; each is a `csr-ray run` in a process and a session of its own.

    A stop (Ctrl-C, SIGTERM) is passed on once, and waited for: a run keeps what it has.

    Attributes:
        faults: why a run did not finish, for those that did not.
    """

    def __init__(self, config: str, *, num_at_once: int) -> None:
        self.faults: dict[Plan, str] = {}
        self.is_stopped = False
        self._config, self._num_at_once = config, num_at_once
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    def make(self, plans: Sequence[Plan]) -> None:
        """Make every run that is not finished."""
        left = [plan for plan in plans if not is_finished(plan.folder)]
        if len(left) < len(plans):
            print(f"{len(plans) - len(left)} of {len(plans)} runs are finished already", flush=True)
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with ThreadPoolExecutor(self._num_at_once) as pool:
                self._follow({pool.submit(self._run, plan): plan for plan in left})
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _follow(self, waiting: dict[Future[float], Plan]) -> None:
        taken: list[float] = []
        num = len(waiting)
        while waiting:
            # A limit, so that a signal is heard: Python's handlers run between the waits of the main thread.
            done, _ = wait(waiting, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in done:
                plan, seconds = waiting.pop(future), future.result()
                if self.is_stopped:
                    continue
                if plan not in self.faults:  # one that fails at once would promise that all are quick
                    taken.append(seconds)
                left = minutes_left(taken, num_left=len(waiting), num_at_once=self._num_at_once)
                said = self.faults.get(plan, "done")
                print(f"{num - len(waiting)} of {num} ({plan.named}): {said}, {seconds:.0f} s{left}", flush=True)

    def _run(self, plan: Plan) -> float:
        """One run to its end; returns the seconds it took."""
        if self.is_stopped:
            self.faults[plan] = "not run yet"
            return 0.0
        started_s = time.perf_counter()
        plan.log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "csr_ray", "run", self._config, *plan.overrides]
        print(f"started: {plan.named}", flush=True)
        with plan.log.open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            with self._lock:
                self._processes.add(process)
                if self.is_stopped:
                    _tell_to_stop(process)
            code = process.wait()
            with self._lock:
                self._processes.discard(process)
        if not is_finished(plan.folder):
            self.faults[plan] = "stopped" if self.is_stopped else f"failed: {last_line(plan.log)} (exit code {code})"
        elif code != 0:  # finished under other settings, or its page could not be written
            self.faults[plan] = f"failed: {last_line(plan.log)} (exit code {code})"
        return time.perf_counter() - started_s

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.is_stopped:
            return
        self.is_stopped = True
        print("stopping: the runs at work are told to, and waited for", file=sys.stderr, flush=True)
        # The lock's holders are other threads, and none waits for this one while it holds it.
        with self._lock:
            for process in self._processes:
                _tell_to_stop(process)


def _tell_to_stop(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGTERM)


def print_tables(outcomes: Sequence[Outcome], *, say: Callable[[str], None] = print) -> None:
    """Every table as Markdown: each cell's variants and asked figures, and with several cells how they differ."""
    cells = by_cell(outcomes)
    for name, runs in cells.items():
        done = [outcome.figures for outcome in runs if outcome.figures is not None]
        seeds = ", ".join(map(str, sorted({outcome.seed for outcome in runs})))
        images = " or ".join(f"{num:,}" for num in sorted({figures.num_images for figures in done})) or "no"
        say(f"\n### {name}: {len(done)} of {len(runs)} runs, seeds {seeds}, {images} held-out images\n")
        say(variant_table(runs))
        say(
            "\nMeans over the seeds of a variant; the fall is relative to before, and each run's own. Intervals are "
            "bootstraps over the runs (a variant with a seed each), without one where all runs are alike."
        )
        unfit = sum(figures.chair_before <= 0 or figures.chair_t1_before <= 0 for figures in done)
        if unfit:
            say(f"{unfit} of the runs began with a CHAIR_s of 0 %, which cannot fall; no fall is told of these.")
        say("")
        say(verdict_table(runs))
    if len(cells) > 1:
        say("\n### Cells\n")
        say(cell_table(outcomes))
        say("\nThe second cell less the first, paired over variant and seed (bootstrap); bold: beyond chance.\n")
        say(difference_table(outcomes))


def _versions(plans: Sequence[Plan]) -> dict[str, str | None]:
    for plan in plans:
        with suppress(OSError, ValueError, KeyError):
            found: dict[str, str | None] = json.loads((plan.folder / "summary.json").read_text())["versions"]
            return found
    return {}


if __name__ == "__main__":
    told_in_a_line(main)
