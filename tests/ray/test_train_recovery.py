"""Deaths of everything in the train group, and of its driver, on real Ray: training goes on to the same adapter.

Each start of a group costs tens of seconds, so one training has all the deaths.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from fakes import preference_pair
from PIL import Image
from safetensors.torch import load_file
from training_examples import write_examples

from actors.train.checkpoints import checkpoints_of, newest_step
from actors.train.group import TrainerGroup
from csr_ray.config.schema import Train
from csr_ray.records import Cycle, Example, TrainOrder, TrainResult

NUM_STEPS, BATCH = 8, 2
NOTICED_S = 30.0  # after train.silent_s, 10, and what a busy machine adds
CONFIG = Train(
    workers=2,
    batch_size=BATCH,
    lora_rank=4,
    learning_rate=1e-2,
    dtype="float32",
    threads=1,
    streaming=True,
    checkpoint_steps=1,
)


class Driver:
    """A driver with its train group: what it is told, and when."""

    def __init__(self, model: Path, *, logs: Path) -> None:
        self.logs = logs
        self.notices: list[tuple[float, str]] = []
        self.trainer = TrainerGroup(CONFIG, model=str(model), adapters=(), logs=logs, notice=self._note)
        self.trainer.start()

    def _note(self, line: str) -> None:
        self.notices.append((time.monotonic(), line))

    def begin(self, output_dir: Path) -> None:
        self.trainer._adapters = ()  # every training here is the first round of the same run
        order = TrainOrder(
            cycle=Cycle(round_index=0),
            output_dir=str(output_dir),
            num_examples_at_most=NUM_STEPS * BATCH,
            is_whole=False,
        )
        self.trainer.begin(order)

    def wait_for_steps(self, num: int) -> None:
        deadline_s = time.monotonic() + 120
        while self.trainer.num_early_steps < num:
            assert time.monotonic() < deadline_s, self.trainer.num_early_steps
            self.trainer.check()
            time.sleep(0.05)

    def mailbox_pid(self) -> int:
        assert self.trainer._attempt is not None
        return ray.get(self.trainer._attempt._mailbox.__ray_call__.remote(lambda _: os.getpid()), timeout=30)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One file a step."""
    directory, rng = tmp_path_factory.mktemp("examples"), random.Random(0)
    pairs: list[Example] = []
    for index in range(NUM_STEPS * BATCH):
        picture = directory / f"{index}.png"
        Image.frombytes("RGB", (48, 48), rng.randbytes(3 * 48 * 48)).save(picture)
        chosen, rejected = (tuple(rng.randrange(20, 300) for _ in range(rng.randrange(2, 9))) for _ in range(2))
        pair = preference_pair(
            id=f"pair-{index}",
            image=str(picture),
            prompt="Describe the image.",
            chosen_ids=chosen,
            rejected_ids=rejected,
            chosen_logp=-30.0,
            rejected_logp=-30.0,
        )
        pairs.append(pair)
    return [
        write_examples(directory / f"unit_{at}.parquet", pairs[at * BATCH : (at + 1) * BATCH])
        for at in range(NUM_STEPS)
    ]


@pytest.fixture(scope="module")
def drivers(ray_session: None, tiny_llava: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Driver]]:
    """Two drivers, of which the second stands for a fresh start of the first's run."""
    made = [Driver(tiny_llava, logs=tmp_path_factory.mktemp("logs")) for _ in range(2)]
    yield made
    for driver in made:
        driver.trainer.close()


@pytest.fixture(scope="module")
def undisturbed(drivers: list[Driver], files: list[str], tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    first, output_dir = drivers[0], tmp_path_factory.mktemp("undisturbed") / "adapter"
    first.begin(output_dir)
    first.trainer.offer(files)
    result = first.trainer.finish(on_step=lambda *_: None)
    assert first.trainer.deaths == []
    assert "resumed_from_step" not in result.metrics
    return result


def _assert_same(result: TrainResult, expected: TrainResult) -> None:
    ours, theirs = (load_file(Path(it.adapter) / "adapter_model.safetensors") for it in (result, expected))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name], tensor, rtol=0.0, atol=1e-5), name
    assert (result.num_steps, result.num_pairs) == (expected.num_steps, expected.num_pairs)
    assert result.loss_first == pytest.approx(expected.loss_first, abs=1e-6)
    assert [probe.id for probe in result.probes] == [probe.id for probe in expected.probes]


def _shuffled(files: Sequence[str]) -> list[str]:
    return random.Random(1).sample(files, len(files))


def test_a_driver_that_starts_again_goes_on_in_the_order_that_was_begun(
    drivers: list[Driver], files: list[str], undisturbed: TrainResult, tmp_path: Path
) -> None:
    first, second = drivers
    output_dir = tmp_path / "adapter"
    first.begin(output_dir)
    first.trainer.offer(files[:5])
    first.wait_for_steps(3)
    started_s = time.monotonic()
    first.trainer.close()  # a driver's death leaves as much: Ray kills its job's workers
    assert time.monotonic() - started_s < 5
    begun = newest_step(checkpoints_of(output_dir))
    assert begun is not None and begun >= 2

    second.begin(output_dir)
    second.trainer.offer(list(reversed(files[:5])))  # the committed ones, in another order
    second.trainer.offer(files[5:])
    result = second.trainer.finish(on_step=lambda *_: None)
    assert result.metrics["resumed_from_step"] >= 2
    _assert_same(result, undisturbed)


@pytest.mark.long
def test_any_process_of_the_group_may_die_or_hang(
    drivers: list[Driver], files: list[str], undisturbed: TrainResult, tmp_path: Path
) -> None:
    driver = drivers[1]
    victims: dict[int, tuple[str, int, Any]] = {
        2: ("train worker 1 has said nothing", signal.SIGSTOP, lambda: driver.trainer.worker_pids[1]),
        4: ("the mailbox of the train group died", signal.SIGKILL, driver.mailbox_pid),
        6: ("the mailbox of the train group has not answered", signal.SIGSTOP, driver.mailbox_pid),
    }
    struck: list[tuple[float, str, int]] = []
    steps: list[int] = []

    def strike(step: int, num_steps: int, loss: float, *_: object) -> None:
        steps.append(step)
        if step in victims:
            words, number, find = victims.pop(step)
            pid = find()
            struck.append((time.monotonic(), words, pid))
            os.kill(pid, number)

    driver.notices.clear()
    driver.begin(tmp_path / "adapter")
    driver.trainer.offer(files)
    result = driver.trainer.finish(on_step=strike)
    assert len(struck) == 3 and not victims
    told = [(at_s, line) for at_s, line in driver.notices if "starts again" in line]
    assert len(told) == len(driver.trainer.deaths) == 3
    for number, ((struck_s, words, pid), (told_s, line)) in enumerate(zip(struck, told, strict=True), start=1):
        assert words in line
        assert f"restart {number} of 3 in this cycle" in line and "from step" in line
        print(f"noticed after {told_s - struck_s:.1f} s: {line}")
        assert told_s - struck_s < NOTICED_S, line
        assert not psutil.pid_exists(pid), "one that is stopped keeps its memory"
    assert max(steps) == NUM_STEPS and len(steps) <= NUM_STEPS + 4, f"hardly a step was done twice: {steps}"
    assert result.metrics["resumed_from_step"] >= 5
    _assert_same(result, undisturbed)
    for rank in range(2):
        assert (driver.logs / f"train_worker_{rank}.log").stat().st_size > 0
    events = [json.loads(line) for line in (driver.logs / "pool.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events[-6:]] == ["lost", "serves again"] * 3


@pytest.mark.parametrize("after_s", [0.0, 0.3, 1.0, 2.0, 3.0, 4.5, 6.0])
def test_closing_does_not_wait_for_workers_that_start(
    ray_session: None, tiny_llava: Path, tmp_path: Path, after_s: float
) -> None:
    driver = Driver(tiny_llava, logs=tmp_path)
    time.sleep(after_s)
    started_s = time.monotonic()
    driver.trainer.close()
    took_s = time.monotonic() - started_s
    # A thread that is left in a call of Ray crashes the process when Ray is shut down.
    attempt = driver.trainer._attempt
    assert attempt is None or attempt.is_over
    assert took_s < 5
