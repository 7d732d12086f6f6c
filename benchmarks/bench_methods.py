"""Every method on the embedded world, on one budget of generated tokens: one table, and a plot of it.

A row is a config of `configs/methods`, or one of CSR's variations; each is run once a seed (`run.seed` and
`world.seed`), and the base model is a row, too. The budget is in tokens that the policy generates in all rollouts of
a run: before its first run, a row that generates any is tried with a few prompts, which tells its tokens a prompt,
and `data.per_round` is set so that the budget is kept. A method that needs few tokens has as many prompts a round as
the world has, and may stay below it.

Every run has its folder, DIR/ROW/seedN, and its output in a .log beside it. A finished run is not run again and an
interrupted one goes on, so the same command makes the rest, and `--only` makes the table one method at a time. With
`--kept FILE` what is finished goes on on another machine, too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kept_runs import keep, restore
from method_tables import BASE, MethodRun, figures_of, judge_table, method_table, plot, rows_of
from result_file import add_json_flag, told_in_a_line, versions_of, write_result
from whole_runs import Runs, WholeRun, in_a_line, read_run

from csr_ray.config.load import YAML_ERRORS, load_config
from csr_ray.errors import EXIT_FAILED, ConfigError
from csr_ray.methods.base import answers_a_prompt, method_of

_CONFIGS = Path("configs/methods")
_TRIED_PROMPTS = 16
# CSR's weight of the image, besides that of csr.yaml (0.5) and of self-rewarding.yaml (0, the policy's own opinion).
_LAMBDAS = ("0.1", "0.9", "1")
_EXAMPLES = """examples:
  the whole table, hours on two cores, and its plot:
    python benchmarks/bench_methods.py --kept benchmarks/baselines/methods.jsonl --plot docs/methods.svg
  one method, or two, with one seed:
    python benchmarks/bench_methods.py --only csr,sima --seeds 0
  the table of what is finished so far, starting nothing:
    python benchmarks/bench_methods.py --no-run
"""


@dataclass(frozen=True)
class Row:
    """A row of the table: a name, a config, and what is set besides.

    Attributes:
        costs_as: the row by whose trial its tokens a prompt are known; empty: its own.
    """

    name: str
    config: str
    overrides: tuple[str, ...] = ()
    costs_as: str = ""


def main() -> None:
    arguments = _arguments()
    rows = chosen_rows(all_rows(), only=arguments.only)
    shared = [f"eval.limit={arguments.images}", "eval.limit_between=1", *arguments.set]
    for row in rows:  # a wrong key is told now, and not after hours
        load_config(row.config, overrides=[*shared, *row.overrides])
    if arguments.kept is not None and (num_kept := restore(arguments.kept, root=arguments.dir)):
        print(f"{num_kept} finished runs out of {arguments.kept}", flush=True)
    runs = Runs(num_at_once=arguments.at_once)
    by_name = {row.name: row for row in all_rows()}
    tried = {
        row.name: trial_of(by_name[row.costs_as or row.name], root=arguments.dir, shared=shared)
        for row in rows
        if generates(row)
    }
    if not arguments.no_run:
        trials = Runs(num_at_once=2)  # nothing of them is timed
        trials.make(list(dict.fromkeys(tried.values())))
        runs.faults |= trials.faults
        runs.is_stopped = trials.is_stopped
    plans: dict[tuple[str, int], WholeRun] = {}
    faults: dict[tuple[str, int], str] = {}
    for seed in arguments.seeds:
        for row in rows:
            own: list[str] = []
            try:
                if row.name in tried:
                    num_prompts = prompts_a_round(row, trial=tried[row.name], budget=arguments.budget)
                    own = [f"data.per_round={num_prompts}"]
            except FileNotFoundError:
                faults[row.name, seed] = runs.faults.get(tried[row.name], "not run yet")
                continue
            except (ValueError, KeyError, TypeError, OSError, *YAML_ERRORS) as error:
                faults[row.name, seed] = in_a_line(str(error))
                continue
            plans[row.name, seed] = plan_of(row, seed=seed, root=arguments.dir, shared=[*shared, *own])
    if not arguments.no_run and not runs.is_stopped:
        runs.make(list(plans.values()))
    if arguments.kept is not None:
        keep(arguments.kept, runs=[*dict.fromkeys(tried.values()), *plans.values()], root=arguments.dir)
    if runs.is_stopped:
        print("stopped; the same command goes on where it was; --no-run prints the table so far", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    told = outcomes(rows, seeds=arguments.seeds, plans=plans, faults=faults, failed=runs.faults)
    print(f"\nbudget {arguments.budget:,} generated tokens, {arguments.images:,} held-out images\n")
    print(method_table(told))
    print("\nMeans over the seeds, each with its own world; in brackets 95 % intervals (Student).")
    print(f"\nWhat the methods say of their judges, all rounds and seeds:\n\n{judge_table(told)}")
    if arguments.plot is not None:
        arguments.plot.write_text(plot(told), encoding="utf-8")
    write_result(
        arguments.json,
        name="methods",
        versions=versions_of("vllm", "torch", "transformers", "trl", "peft", "open_clip_torch", "deepspeed", "ray"),
        headline="csr/chair_s",
        rows=rows_of(told),
        budget_tokens=arguments.budget,
        seeds=list(arguments.seeds),
        command=["bench_methods.py", *sys.argv[1:]],
    )
    if any(run.figures is None for run in told):
        sys.exit(EXIT_FAILED)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", default="", metavar="NAME,NAME", help="these rows alone (default: all)")
    add("--seeds", type=_seeds, default=(0, 1, 2), help="of runs and worlds (default 0,1,2)")
    add("--budget", type=int, default=250_000, metavar="TOKENS", help="that a run is to generate (default 250,000)")
    add("--images", type=int, default=300, metavar="N", help="held-out images (default 300)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override of all runs; may be repeated")
    add(
        "--at-once",
        type=int,
        default=1,
        metavar="N",
        help="runs side by side: sooner done, but their seconds are of a shared machine (default 1)",
    )
    add("--dir", type=Path, default=Path("runs/methods"), help="folder of the runs (default runs/methods)")
    add("--kept", type=Path, metavar="FILE.jsonl", help="finished runs are kept there, and not run again elsewhere")
    add("--plot", type=Path, metavar="FILE.svg", help="write CHAIR_s against recall as a picture")
    add("--no-run", action="store_true", help="start nothing; the table of the runs that are finished")
    add_json_flag(parser)
    return parser.parse_args()


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers such as 0,1,2") from None


def all_rows(configs: Path = _CONFIGS) -> list[Row]:
    """Every config of the folder under its own name, and CSR by the weight of the image."""
    found = [Row(path.stem, str(path)) for path in sorted(configs.glob("*.yaml"), key=lambda path: path.stem)]
    csr = str(configs / "csr.yaml")
    lambdas = (Row(f"csr-lambda-{value}", csr, (f"reward.weight={value}",), costs_as="csr") for value in _LAMBDAS)
    # What the paper's sum of rewards does if nobody stops it.
    paper = str(configs / "csr-paper.yaml")
    ungated = Row("csr-paper-ungated", paper, ("gate.enabled=false",), costs_as="csr-paper")
    # VDD as what rolls out, and as what the trained policy is asked by.
    contrasted = ("decoding.kind=vdd", "decoding.rollouts=true")
    return [*found, *lambdas, ungated, Row("clip-filter-vdd", str(configs / "clip-filter.yaml"), contrasted)]


def chosen_rows(rows: Sequence[Row], *, only: str) -> list[Row]:
    """The rows of these names, in the table's order; all if none is named.

    Raises:
        ConfigError: there is no row of a name.
    """
    names = [name.strip() for name in only.split(",") if name.strip()]
    known = [row.name for row in rows]
    for name in names:
        if name not in known:
            raise ConfigError(f"--only {name}: no such row; there are {', '.join(known)}")
    return [row for row in rows if not names or row.name in names]


def generates(row: Row) -> bool:
    """Whether the policy generates anything in the row's rollouts: one that decodes in another way has none."""
    config = load_config(row.config, overrides=row.overrides)
    methods = [method_of(one) for one in config.of_each_method]
    return any(bool(method.phases(0)) and answers_a_prompt(method) != 0 for method in methods)


def trial_of(row: Row, *, root: Path, shared: Sequence[str]) -> WholeRun:
    """The run that tells how many tokens a prompt costs: a round of few prompts of each method, trained over once."""
    folder = root / row.name / "trial"
    turns = [one.method for one in load_config(row.config, overrides=row.overrides).of_each_method]
    several = ["method=[" + ", ".join(f"{{{name}: 1}}" for name in turns) + "]"] if len(turns) > 1 else []
    short = (
        *several,
        f"run.rounds={len(turns)}",
        f"data.per_round={_TRIED_PROMPTS}",
        "train.epochs=1",
        "gate.enabled=false",
    )
    return WholeRun(
        named=f"{row.name}, tokens a prompt",
        config=row.config,
        folder=folder,
        overrides=(f"run.dir={folder}", *shared, *row.overrides, *short, "eval.benchmarks=[]"),
    )


def prompts_a_round(row: Row, *, trial: WholeRun, budget: int) -> int:
    """How many prompts a round has if all rounds together generate about `budget` tokens; at most the world's.

    Raises:
        FileNotFoundError: the trial was not made.
        ValueError: it is not finished, or generated nothing.
    """
    summary, _ = read_run(trial)
    config = load_config(row.config, overrides=row.overrides)
    if not summary.get("finished") or not summary["rounds"]:
        raise ValueError(f"{trial.folder}: the trial is not finished")
    rollouts = [entry["rollout"] for entry in summary["rounds"]]
    if not all(rollout.get("prompts") for rollout in rollouts):
        raise ValueError(f"{trial.folder}: no prompt of the trial was rolled out")
    # A round's prompts are counted once in each of its phases, so they are taken from what was asked for.
    names = [one.method for one in config.of_each_method]
    of_method = {
        name: (rollout.get("tokens") or 0) / _TRIED_PROMPTS for name, rollout in zip(names, rollouts, strict=True)
    }
    tokens = sum(of_method[config.method_of_round(index)] for index in range(config.run.rounds))
    num_most = config.world.num_train_images
    return max(1, min(num_most, round(budget / tokens))) if tokens else num_most


def plan_of(row: Row, *, seed: int, root: Path, shared: Sequence[str]) -> WholeRun:
    """The run of a row with one seed."""
    folder = root / row.name / f"seed{seed}"
    own = (f"run.dir={folder}", f"run.seed={seed}", f"world.seed={seed}")
    return WholeRun(
        named=f"{row.name}, seed {seed}", config=row.config, folder=folder, overrides=(*own, *shared, *row.overrides)
    )


def outcomes(
    rows: Sequence[Row],
    *,
    seeds: Sequence[int],
    plans: dict[tuple[str, int], WholeRun],
    faults: dict[tuple[str, int], str],
    failed: dict[WholeRun, str],
) -> list[MethodRun]:
    """What every run came to; before them the base model, once a seed, from whichever run has it."""
    base: dict[int, MethodRun] = {}
    found: list[MethodRun] = []
    for row in rows:
        for seed in seeds:
            fault, figures = faults.get((row.name, seed), ""), None
            if not fault:
                plan = plans[row.name, seed]
                try:
                    before, figures = figures_of(read_run(plan)[0])
                    base.setdefault(seed, MethodRun(row=BASE, seed=seed, figures=before))
                except FileNotFoundError:
                    fault = failed.get(plan, "not run yet")
                except (ValueError, KeyError, TypeError, OSError, *YAML_ERRORS) as error:
                    fault = failed.get(plan, f"failed: {in_a_line(str(error))}")
            found.append(MethodRun(row=row.name, seed=seed, figures=figures, fault=fault))
    return [*(base[seed] for seed in seeds if seed in base), *found]


if __name__ == "__main__":
    told_in_a_line(main)
