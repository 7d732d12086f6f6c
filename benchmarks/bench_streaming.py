"""What does it change to train a round's pairs while its rollouts still run?

One round of CSR on the embedded world, from the base policy, again and again: off, on, off, on. Every turn has its
own sampling seed, so the spread within a side is the noise against which the gap between the sides has to be seen.
Rollout is timed until its last unit of trees is committed, training from then on until the adapter is there. The loss
is the mean over the second half of a round's steps, each step on pairs that it has not seen.

    streaming_wall_ratio     seconds of rollout and training, on over off
    streaming_loss_gap       mean loss of the second half, on minus off, in spreads (standard deviation of a side)
    early_steps_share        share of the optimizer steps that were done before the last tree was finished

On one machine's shared cores both sides have the same work to do and no idle hardware to put it on; streaming pays
where generators and trainer have hardware of their own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])

from result_file import add_json_flag, told_in_a_line, versions_of, write_result

from actors.runtime import Runtime
from actors.train.group import TrainerGroup
from csr_ray.app.console import ConsoleView
from csr_ray.app.run import world_spec
from csr_ray.config.load import load_config
from csr_ray.config.schema import Config
from csr_ray.data.prompts import PromptFile
from csr_ray.methods.base import method_of
from csr_ray.ports import OnStep, Trainer
from csr_ray.records import Cycle, TrainOrder, TrainResult, Unit
from csr_ray.stages.build import build
from csr_ray.stages.roll_out import roll_out
from csr_ray.stages.state import RunState
from csr_ray.stages.train import train
from csr_ray.stages.turn import Turn
from csr_ray.store.journal import Journal
from csr_ray.store.run_folder import RunFolder
from csr_ray.world.build import cached_world


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, default=None, help="folder of `csr-ray world build`; default: seed 0's")
    parser.add_argument("--prompts", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=4, help="turns of each side")
    add_json_flag(parser)
    given = parser.parse_args()
    config = ROOT / "configs/tiny-world.yaml"
    world = given.world or cached_world(world_spec(load_config(config, overrides=()).world))
    with tempfile.TemporaryDirectory() as directory:
        turns = measure(given, world=world.absolute(), directory=Path(directory))
    rows = rows_of(turns)
    for row in rows:
        print(f"{row['name']:<24} {row['value']:>9.4f} {row['unit']}")
    write_result(
        given.json,
        name="streaming",
        versions=versions_of("torch", "ray", "trl", "deepspeed"),
        headline="streaming_wall_ratio",
        rows=rows,
        turns=turns,
    )


def measure(given: argparse.Namespace, *, world: Path, directory: Path) -> list[dict[str, Any]]:
    configs = {side: config_of(world, directory / side, is_on=side == "on") for side in ("off", "on")}
    prompts = PromptFile(configs["off"].data.prompts, images=None, limit=given.prompts)
    view = ConsoleView(num_rounds=1)
    runtime = Runtime.start(
        configs["off"],
        method=method_of(configs["off"]),
        model=str(world / "policy"),
        adapters=[],
        logs=directory / "logs",
        view=view,
        on_ray_lost=print,
    )
    turns = []
    try:
        # The first turn waits for the train group to start, and is not counted.
        for number in range(1 + 2 * given.repeats):
            side = ("on", "off")[number % 2]
            state = RunState(
                config=configs[side],
                folder=RunFolder(directory / side),
                journal=Journal(RunFolder(directory / side).journal),
                model=str(world / "policy"),
                versions={},
            )
            # Every turn starts from the base policy, which the generators still serve.
            cycle = Cycle(round_index=number, policy_version=0)
            assert isinstance(runtime.trainer, TrainerGroup)
            runtime.trainer._adapters = ()
            trainer = Overheard(runtime.trainer)
            started_s = time.perf_counter()
            turn = Turn(state, prompts, cycle=cycle)
            units = Timed(roll_out(state, turn, generators=runtime.generators, view=view))
            files = build(state, cycle, units, view=view)
            trained = train(state, turn, files, trainer=trainer, view=view)
            assert trained is not None, "the base had something to train on"
            losses = trainer.losses
            turns.append(
                {
                    "side": side,
                    "rollout_s": units.ended_s - started_s,
                    "train_s": time.perf_counter() - units.ended_s,
                    "loss": statistics.mean(losses[len(losses) // 2 :]),
                    "steps": len(losses),
                    "early_steps": trained.metrics.get("streamed/steps_before_last_example", 0.0),
                }
            )
            print(f"{side}: " + ", ".join(f"{name} {value:.4g}" for name, value in list(turns[-1].items())[1:]))
    finally:
        runtime.close()
    return turns[1:]


class Timed:
    """Units as they come, and when the last one had."""

    def __init__(self, units: Iterator[Unit]) -> None:
        self._units = units
        self.ended_s = 0.0

    def __iter__(self) -> Iterator[Unit]:
        yield from self._units
        self.ended_s = time.perf_counter()


@dataclass
class Overheard:
    """A trainer, and the losses that it reports."""

    trainer: Trainer
    losses: list[float] = field(default_factory=list)

    def begin(self, order: TrainOrder) -> None:
        self.trainer.begin(order)

    def offer(self, files: Sequence[str]) -> None:
        self.trainer.offer(files)

    def finish(self, *, on_step: OnStep) -> TrainResult:
        def heard(step: int, num_steps: int, loss: float, *_: object) -> None:
            self.losses.append(loss)
            on_step(step, num_steps, loss)

        return self.trainer.finish(on_step=heard)

    def check(self) -> None:
        self.trainer.check()

    def withdraw(self, version: int) -> None:
        self.trainer.withdraw(version)


def config_of(world: Path, folder: Path, *, is_on: bool) -> Config:
    folder.mkdir(parents=True)
    return load_config(
        ROOT / "configs/tiny-world.yaml",
        overrides=[
            f"run.dir={folder}",
            "run.rounds=1",
            "world.enabled=false",
            f"data.prompts={world / 'train/prompts.jsonl'}",
            "data.per_round=null",
            f"policy.model={world / 'policy'}",
            f"scorer.model={world / 'clip'}",
            "eval.benchmarks=[]",
            "eval.data=null",
            f"train.streaming={str(is_on).lower()}",
        ],
    )


def rows_of(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    sides = {side: [turn for turn in turns if turn["side"] == side] for side in ("off", "on")}
    ratios = [
        (on["rollout_s"] + on["train_s"]) / (off["rollout_s"] + off["train_s"])
        for off, on in zip(sides["off"], sides["on"], strict=True)
    ]
    losses = {side: [turn["loss"] for turn in those] for side, those in sides.items()}
    means = {side: statistics.mean(those) for side, those in losses.items()}
    spread = statistics.mean(statistics.stdev(those) for those in losses.values()) if len(ratios) > 1 else 0.0
    rows = [
        {"name": "streaming_wall_ratio", "value": statistics.median(ratios), "unit": "x", "ratios": ratios},
        {
            "name": "streaming_loss_gap",
            "value": (means["on"] - means["off"]) / spread if spread else 0.0,
            "unit": f"spreads of {spread:.4f}",
        },
        {
            "name": "early_steps_share",
            "value": statistics.mean(turn["early_steps"] / turn["steps"] for turn in sides["on"]),
            "unit": "share",
        },
    ]
    for side in ("off", "on"):
        rows.append({"name": f"loss_{side}", "value": means[side], "unit": "nats", "values": losses[side]})
        for part in ("rollout_s", "train_s"):
            values = [turn[part] for turn in sides[side]]
            rows.append({"name": f"{part}_{side}", "value": statistics.median(values), "unit": "s", "values": values})
    return rows


if __name__ == "__main__":
    told_in_a_line(main)
