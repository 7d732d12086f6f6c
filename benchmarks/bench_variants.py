"""What the same settings do on several worlds: whole runs over variants x seeds x cells, and their tables.

A variant is another embedded world (docs/world.md), a seed is the run's (`run.seed`), and a cell is a set of
overrides with a name. Every run has its folder, DIR/CELL/variantV-seedS, and its output in a .log beside it. A
finished run is not run again and an interrupted one goes on, so the same command makes the rest of a table. A run
that fails is told in the table, and does not stop the others.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

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
from whole_runs import Runs, WholeRun, in_a_line, read_run

from csr_ray.config.load import YAML_ERRORS, load_config
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


@dataclass(frozen=True, kw_only=True)
class Plan(WholeRun):
    """One run to make: of which cell, on which variant and with which seed."""

    cell: str
    variant: int
    seed: int


def main() -> None:
    arguments = _arguments()
    cells = tuple(dict.fromkeys(arguments.cell or [Cell("defaults")]))
    plans = plans_of(
        cells,
        variants=arguments.variants,
        seeds=arguments.seeds,
        root=arguments.dir,
        config=arguments.config,
        shared=[f"eval.limit={arguments.images}", f"eval.limit_between={arguments.images}", *arguments.set],
    )
    for plan in plans:  # a wrong key is told now, and not after hours
        load_config(plan.config, overrides=plan.overrides)
    runs = Runs(num_at_once=arguments.parallel)
    if not arguments.no_run:
        runs.make(plans)
    if runs.is_stopped:
        print("stopped; the same command goes on where it was; --no-run prints the tables so far", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    outcomes = [outcome_of(plan, fault=runs.faults.get(plan, "")) for plan in plans]
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
    cells: Sequence[Cell],
    *,
    variants: Sequence[int],
    seeds: Sequence[int],
    root: Path,
    config: str,
    shared: Sequence[str],
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
                plans.append(
                    Plan(
                        named=f"{cell.name}, variant {variant}, seed {seed}",
                        config=config,
                        folder=folder,
                        overrides=(*own, *shared, *cell.overrides),
                        cell=cell.name,
                        variant=variant,
                        seed=seed,
                    )
                )
    return plans


def outcome_of(plan: Plan, *, fault: str = "") -> Outcome:
    """What a run's folder says of it.

    Args:
        fault: why the run was not finished, where it was tried.
    """
    try:
        summary, settings = read_run(plan)
        figures = figures_of(summary, batch_size=settings["train"]["batch_size"])
    except FileNotFoundError:
        return Outcome(plan.cell, plan.variant, plan.seed, None, fault or "not run yet")
    except (ValueError, KeyError, TypeError, OSError, *YAML_ERRORS) as error:
        return Outcome(plan.cell, plan.variant, plan.seed, None, fault or f"failed: {in_a_line(str(error))}")
    return Outcome(plan.cell, plan.variant, plan.seed, figures)


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
