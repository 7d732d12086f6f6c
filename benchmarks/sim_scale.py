"""What the driver costs a round, from one generator to 256 and from a thousand prompts to a million.

Real are the loop and its stages, the prompt file, units, journal, store, and the pool with its decisions: routing,
deaths, joins, scaling. Generators only let time pass, by the latencies of a real run stretched to a GPU's, on a clock
that jumps over what nobody waits for, and on which the driver's own CPU seconds are put as they are measured
(`simulated_cluster.py`). Each cell of the table is a process of its own, after a small round in it that pays for
imports and all other first times. docs/scale.md says what is assumed.

    overhead_share_256      of a round with 256 generators, by how much it is longer than with a driver and a routing
                            that take no time: places of generators that stood empty while prompts were left, and what
                            the driver had to do after the last result
    tail_share_256          of that round, from the first generator that has nothing left until the last result
    driver_busy_share_256   of that round, the seconds in which the driver computes; from 1 on the round waits for it
    driver_mib_1m_prompts   largest resident size of the driver's process at a million prompts
    gate_s_SIZE             seconds of the two looks of the gate, which are in none of the others
    us_per_prompt_SIZE      CPU microseconds of the driver for a prompt, Ray's own calls left out
    flatness                the slowest size over the fastest, of us_per_prompt

All of the `_256` are of the largest size of the table. `--measure RUN_DIR` prints the latencies of a run, as
`latency.json` has them; `scale_on_ray.py` plays a round with sleeping actors of real Ray, and compares.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from latency_model import LatencyModel, Weather
from rich.console import Console
from simulated_cluster import Account, Costs, SimulatedCluster, SimulatedGenerators

from actors.process.exporter import RayExporter
from csr_ray import loop
from csr_ray.app.console import ConsoleView
from csr_ray.config.load import parse_config
from csr_ray.config.schema import Config
from csr_ray.counters import Usage
from csr_ray.data.prompts import PromptFile
from csr_ray.evaluation.suite import Suite
from csr_ray.records import TrainOrder, TrainResult
from csr_ray.stages.observe import JournalMetrics, ObservedView
from csr_ray.stages.state import RunState
from csr_ray.store.journal import Journal
from csr_ray.store.run_folder import RunFolder
from csr_ray.store.tables import keep_no_spare_memory
from csr_ray.tracking.tracking import tracked

SIZES = {"1k": 1_000, "10k": 10_000, "100k": 100_000, "1m": 1_000_000}
GENERATORS = (1, 4, 16, 64, 256)
IN_FLIGHT = 64  # the default of generators.max_num_seqs, over four
# What the driver spends on Ray for a prompt, and on asking what came back for each call in flight: printed by
# `scale_on_ray.py`, see docs/scale.md.
RAY = Costs(call_s=650e-6, wait_s=1e-6)
_WARM_UP = 512


class InstantTrainer:
    """Takes the files and looks into none."""

    def begin(self, order: TrainOrder) -> None:
        self._order = order

    def offer(self, files: Any) -> None:
        pass

    def finish(self, *, on_step: Callable[[int, int, float], None]) -> TrainResult:
        Path(self._order.output_dir).mkdir(exist_ok=True)
        return TrainResult(
            adapter=self._order.output_dir,
            version=self._order.cycle.policy_version + 1,
            num_pairs=self._order.num_examples_at_most,
            num_steps=1,
            seconds=0.0,
            optimizer_s=0.0,
            loss_first=0.0,
            loss_last=0.0,
        )

    def check(self) -> None:
        pass

    def withdraw(self, version: int) -> None:
        raise AssertionError(f"version {version} was refused")


class Machinery:
    """What the loop starts in place of `actors.runtime`'s."""

    def __init__(self, generators: Any) -> None:
        self.generators = generators
        self.trainer = InstantTrainer()

    def usage(self) -> list[Usage]:
        return [Usage(role="generator", kind="H100", gpus=1, cpus=1, held_s=1.0, busy_s=1.0)]

    def close(self) -> None:
        pass


def write_prompts(path: Path, *, num: int) -> None:
    """A prompt file of so many rows, two about a picture."""
    with path.open("w") as file:
        for number in range(num):
            image = f"/images/{number // 2:08d}.jpg"
            row = {"id": f"prompt-{number:08d}", "image": image, "prompt": "Describe the image."}
            file.write(json.dumps(row) + "\n")


def play(
    num_prompts: int,
    *,
    num_generators: int,
    folder: Path,
    num_nodes: int,
    weather: Weather | None = None,
    costs: Costs = RAY,
    in_flight: int = IN_FLIGHT,
    seed: int = 0,
    kills: Sequence[tuple[float, int]] = (),
    has_gate: bool = True,
) -> tuple[Account, Sequence[float]]:
    """One round, in this process; returns what it cost, and when each result was handed on."""
    cluster = SimulatedCluster(
        num_generators=num_generators,
        in_flight=in_flight,
        latency=LatencyModel.measured(),
        weather=weather or Weather(),
        costs=costs,
        num_nodes=num_nodes,
        seed=seed,
        kills=kills,
    )
    config = config_of(
        folder, num_prompts=num_prompts, num_generators=num_generators, in_flight=in_flight, has_gate=has_gate
    )
    generators = SimulatedGenerators(cluster, config=config.generators)
    run_round(config, generators=generators, on_start=cluster.driver_begins)
    return cluster.end(), generators.results_s


def config_of(
    folder: Path, *, num_prompts: int, num_generators: int, in_flight: int, has_gate: bool = True
) -> Config:
    """The config of a round over prompts that are written now, in a folder that is made."""
    folder.mkdir()
    write_prompts(folder / "prompts.jsonl", num=num_prompts)
    return parse_config(
        {
            "run": {"dir": str(folder / "run"), "rounds": 1},
            "data": {"prompts": str(folder / "prompts.jsonl")},
            "policy": {"model": "none"},
            "scorer": {"model": "none"},
            "generators": {"min": num_generators, "max": num_generators, "in_flight": in_flight},
            "gate": {"enabled": has_gate},
        }
    )


def run_round(config: Config, *, generators: Any, on_start: Callable[[], None]) -> None:
    """The real loop over real files, with these generators and a trainer that only takes files.

    Raises:
        AssertionError: a prompt has no pair at the end, or more than one.
    """
    run_folder = RunFolder(Path(config.run.dir))
    run_folder.root.mkdir()
    machinery = Machinery(generators)
    keep_no_spare_memory()  # as a run does
    with open(os.devnull, "w") as nowhere, _no_weights():
        view = ConsoleView(num_rounds=1, console=Console(file=nowhere))
        on_start()
        journal = Journal(run_folder.journal)
        state = RunState(config=config, folder=run_folder, journal=journal, model="none", versions={})
        prompts = PromptFile(config.data.prompts, images=None, limit=None)
        # Whoever watches a run costs the driver something, too.
        exporter = RayExporter(run="sim_scale", role="driver")
        JournalMetrics(journal, exporter=exporter, cluster=config.cluster)
        observed = ObservedView(view, exporter=exporter)
        with tracked(state, say=print) as state:
            summary = loop.run(
                state, prompts=prompts, suite=Suite(), start_machinery=lambda adapters: machinery, view=observed
            )
        exporter.close()
    assert summary["ended"] is None, summary["ended"]
    pairs = summary["rounds"][0]["pairs"]
    assert pairs["made"] == prompts.num and not pairs["dropped"], pairs


class _no_weights:
    """There are no weights to merge, and the module that would merge them imports torch."""

    _NAME = "csr_ray.policy.weights"

    def __enter__(self) -> None:
        self._real = sys.modules.get(self._NAME)
        sys.modules[self._NAME] = SimpleNamespace(
            save_merged=lambda *_, output, **__: output.mkdir() or SimpleNamespace(swallowed=0.0, kept=1.0),
            combined_tensors=None,
            save_combined=None,
        )  # type: ignore[assignment]

    def __exit__(self, *_: object) -> None:
        del sys.modules[self._NAME]
        if self._real is not None:
            sys.modules[self._NAME] = self._real


def row_of(account: Account, *, num_prompts: int) -> dict[str, float]:
    """The figures of a cell of the table."""
    driver_s = sum(account.driver_s.values())
    return {
        "round_s": account.end_s,
        "overhead_share": account.overhead_share,
        "tail_share": account.tail_share,
        "driver_busy_share": account.busy_share,
        "us_per_prompt": 1e6 * account.own_s / num_prompts,
        "watch_us_per_s": 1e6 * account.driver_s["watch"] / account.end_s,
        "us_with_ray": 1e6 * driver_s / num_prompts,
        "gate_s": account.gate_s,
        "gate_driver_s": account.gate_driver_s,
        "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        **{name: account.num[name] for name in ("deaths", "joins")},
    }


def _cell(asked: dict[str, Any], *, folder: Path) -> dict[str, float]:
    num_prompts, num_generators = asked["prompts"], asked["generators"]
    options: dict[str, Any] = {
        "num_nodes": asked["nodes"],
        "weather": Weather(**asked["weather"]),
        "costs": replace(RAY, call_s=asked["call_s"]),
    }
    play(_WARM_UP, num_generators=2, folder=folder / "warm-up", **options)
    account, _ = play(
        num_prompts, num_generators=num_generators, folder=folder / "round", seed=asked["seed"], **options
    )
    return row_of(account, num_prompts=num_prompts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES), help="prompts of a round")
    parser.add_argument("--generators", nargs="+", type=int, default=list(GENERATORS), help="of them")
    parser.add_argument("--most-each", type=int, default=25_000, help="leave out cells of more prompts a generator")
    parser.add_argument("--nodes", type=int, help="candidates of a rollout; as many as were measured if not given")
    parser.add_argument("--rate", type=float, default=Weather().rate_per_s, help="prompts a second and generator")
    parser.add_argument(
        "--call-us", type=float, default=1e6 * RAY.call_s, help="CPU time of Ray for a prompt's call and its result"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the run folders lie meanwhile (/dev/shm: no disk's time)")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--measure", type=Path, metavar="RUN_DIR", help="print the latencies of a run, and end")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(LatencyModel.measure(arguments.measure).plain(), end="")
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as directory:
        if arguments.one is not None:
            print(json.dumps(_cell(json.loads(arguments.one), folder=Path(directory))))
            return
        cells = _table(arguments, folder=directory)
    rows = _rows(cells)
    for row in rows:
        print(f"{row['name']:<28}{row['value']:>12,.3f} {row['unit']}")
    if arguments.json:
        report = {
            "name": "sim_scale",
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "versions": {"python": platform.python_version()},
            "headline": rows[0]["name"],
            "rows": rows,
            "cells": [{"generators": num, "prompts": size, **found} for (num, size), found in cells.items()],
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def _table(arguments: argparse.Namespace, *, folder: str) -> dict[tuple[int, str], dict[str, float]]:
    nodes = arguments.nodes or round(LatencyModel.measured().nodes)
    weather = asdict(Weather(rate_per_s=arguments.rate))
    print(f"{nodes} candidates a rollout, {weather}, Ray: {asdict(replace(RAY, call_s=arguments.call_us / 1e6))}")
    heads = ("generators", "prompts", "round s", "overhead", "tail", "busy", "us/prompt", "with Ray", "MiB")
    print("".join(f"{head:>11}" for head in (*heads, "deaths", "joins")))
    cells = {}
    for size in arguments.sizes:
        for num in arguments.generators:
            if SIZES[size] > arguments.most_each * num:
                continue
            asked = {
                "prompts": SIZES[size],
                "generators": num,
                "nodes": nodes,
                "seed": arguments.seed,
                "weather": weather,
                "call_s": arguments.call_us / 1e6,
            }
            command = [sys.executable, __file__, "--one", json.dumps(asked), "--folder", folder]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr)
            found = cells[num, size] = json.loads(done.stdout.splitlines()[-1])
            shares = [f"{100 * found[name]:.1f} %" for name in ("overhead_share", "tail_share", "driver_busy_share")]
            costs = [f"{found[name]:,.0f}" for name in ("us_per_prompt", "us_with_ray", "mib", "deaths", "joins")]
            print(
                "".join(f"{cell:>11}" for cell in (num, size, f"{found['round_s']:,.0f}", *shares, *costs)),
                flush=True,
            )
    return cells


def _rows(cells: dict[tuple[int, str], dict[str, float]]) -> list[dict[str, Any]]:
    most, largest = max(cells, key=lambda cell: (SIZES[cell[1]], cell[0]))
    found = cells[most, largest]
    rows = [
        {"name": f"{name}_{most}", "value": found[name], "unit": "ratio"}
        for name in ("overhead_share", "tail_share", "driver_busy_share")
    ]
    of_most = {size: one for (num, size), one in cells.items() if num == most}
    for size, one in of_most.items():
        memory = "driver_mib_1m_prompts" if size == "1m" else f"driver_mib_{size}"
        rows.append({"name": f"us_per_prompt_{size}", "value": one["us_per_prompt"], "unit": "us"})
        rows.append({"name": memory, "value": one["mib"], "unit": "MiB"})
        rows.append({"name": f"gate_s_{size}", "value": one["gate_s"], "unit": "s"})
    times = [one["us_per_prompt"] for one in of_most.values()]
    rows.append({"name": "flatness", "value": max(times) / min(times), "unit": "ratio"})
    return rows


if __name__ == "__main__":
    main()
