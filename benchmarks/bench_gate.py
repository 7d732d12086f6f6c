"""Does the gate refuse phases that hurt, and let those pass that do not? Shown on planted faults, in real runs.

Each fault is planted into a run of one round of configs/tiny-world.yaml with gate.enabled=true, on the real engine,
scorer and trainer. A fault counts as missed where the policy was handed over although it is worse by the truth:
recall lost more than 3 points, more than 5 % of the answers repeat, or CHAIR_s rose by more than chance, also at
temperature 1. A fault that does no harm is no harm missed. Healthy runs take the defaults for three rounds; each
phase of theirs that is refused is refused wrongly, and they say what share of a round the gate and the looks at
held-out pairs take.

Faults (--harms):
  rate_epochs, rate_auto   learning rate 50 times the rule's, for one epoch or with the dose that is found
  long_texts               a folder of open_clip whose text tower scores longer texts higher
  longest, longest_epochs  a method of one's own that prefers the longest answer
  shuffled, exchanged      chosen and rejected exchanged in half of the pairs, or in all
  raw_sum                  reward.aggregate=sum, as in the paper
  healthy                  no fault: the defaults

The runs lie below --dir by fault, variant and seed. A finished run is not run again, one that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from gate_outcomes import Outcome, figures_of, outcome_of, rows_of, table_of
from planted_harms import HARMS, keys_of, planted_program
from result_file import add_json_flag, told_in_a_line, write_result

from csr_ray.app.run import world_spec
from csr_ray.config.schema import World
from csr_ray.world.build import cached_world

HEALTHY = "healthy"
_ROOT = Path(__file__).resolve().parents[1]
_NUM_HEALTHY_ROUNDS = 3


def main() -> None:
    arguments = _arguments()
    outcomes = []
    for variant in arguments.variants:
        for seed in arguments.seeds:
            for name in arguments.harms:
                directory = arguments.dir.absolute() / f"{name}-variant{variant}-seed{seed}"
                outcome = run_one(name, variant=variant, seed=seed, directory=directory, more=arguments.overrides)
                print(f"{name}, variant {variant}, seed {seed}: {outcome.result}", flush=True)
                outcomes.append(outcome)
    rows = rows_of(outcomes)
    print()
    print(table_of(outcomes, what={name: harm.what for name, harm in HARMS.items()}))
    print("\nWhat the gate saw, before and after, with the 95 % interval of the change:\n")
    print("\n".join(filter(None, map(figures_of, outcomes))))
    print()
    for row in rows:
        if "/" not in row["name"]:
            of = f" of {row['of']}" if "of" in row else ""
            print(f"{row['name']:<18} {row['value']:.3g} {row['unit']}{of}")
    summary = json.loads((arguments.dir / _last(arguments) / "summary.json").read_text(encoding="utf-8"))
    write_result(arguments.json, name="gate", versions=summary["versions"], headline=rows[0]["name"], rows=rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [HEALTHY, *HARMS]
    parser.add_argument("--variants", type=_numbers, default=[1, 2], help="world.variant of the runs, as in 1,2")
    parser.add_argument("--seeds", type=_numbers, default=[0], help="run.seed and world.seed of the runs, as in 0,1")
    parser.add_argument("--harms", type=_names, default=names, help="which faults, as in rate_auto,healthy; all")
    parser.add_argument("--dir", type=Path, default=Path("runs/gate"), help="folder of the runs")
    add_json_flag(parser)
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="further keys of every run's config")
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name != HEALTHY and name not in HARMS]:
        known = ", ".join([HEALTHY, *HARMS])
        raise argparse.ArgumentTypeError(f"{unknown[0]!r}: no such fault; there are {known}")
    return names


def _last(arguments: argparse.Namespace) -> str:
    return f"{arguments.harms[-1]}-variant{arguments.variants[-1]}-seed{arguments.seeds[-1]}"


def run_one(name: str, *, variant: int, seed: int, directory: Path, more: list[str]) -> Outcome:
    """One run to its end in a process of its own, or what is left of it.

    Raises:
        SystemExit: the run failed.
    """
    summary = directory / "summary.json"
    if not (summary.is_file() and json.loads(summary.read_text(encoding="utf-8"))["finished"]):
        directory.parent.mkdir(parents=True, exist_ok=True)
        _run(name, variant=variant, seed=seed, directory=directory, more=more)
    return outcome_of(
        json.loads(summary.read_text(encoding="utf-8")),
        journal=directory / "journal.jsonl",
        name=name,
        variant=variant,
        seed=seed,
    )


def _run(name: str, *, variant: int, seed: int, directory: Path, more: list[str]) -> None:
    keys = [
        f"run.dir={directory}",
        f"run.seed={seed}",
        f"run.rounds={_NUM_HEALTHY_ROUNDS if name == HEALTHY else 1}",
        f"world.seed={seed}",
        f"world.variant={variant}",
        "eval.limit=200",
        "eval.limit_between=200",
        "gate.enabled=true",
    ]
    program = _ROOT
    if name != HEALTHY:
        harm = HARMS[name]
        world = cached_world(world_spec(World(seed=seed, variant=variant)))
        keys += keys_of(harm, world=world, scorer=directory.parent / f"long_texts_clip-variant{variant}-seed{seed}")
        if harm.method:
            program = planted_program(directory.parent / "program")
    command = [sys.executable, "-m", "csr_ray", "run", str(_ROOT / "configs/tiny-world.yaml"), *keys, *more]
    # Not in the checkout, whose csr_ray would be found before the planted one.
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(program)}, cwd=directory.parent)
    if done.returncode != 0:
        raise SystemExit(f"{name}, variant {variant}, seed {seed}: the run ended with exit code {done.returncode}")


if __name__ == "__main__":
    told_in_a_line(main)
