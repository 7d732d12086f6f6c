"""DeepSpeed's stages, offloading, checkpoints, and streams shorter than planned: what the optimizer makes of them."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import preference_pair
from PIL import Image
from safetensors.torch import load_file
from tiny_models import build_tiny_llava
from training_process import start_training_process

from actors.train.stream import OpenStream, UsableSoFar
from csr_ray.records import PreferencePair, TrainResult

NUM_STEPS = 4
STAGES = [(0, False), (1, False), (1, True), (2, True), (3, False), (3, True)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llava(tmp_path_factory.mktemp("llava"), seed=0)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[PreferencePair]:
    directory, rng = tmp_path_factory.mktemp("images"), random.Random(0)
    made = []
    for index in range(2 * NUM_STEPS):
        path = directory / f"{index}.png"
        Image.frombytes("RGB", (48, 48), rng.randbytes(3 * 48 * 48)).save(path)
        chosen, rejected = (tuple(rng.randrange(20, 300) for _ in range(rng.randrange(2, 9))) for _ in range(2))
        made.append(
            preference_pair(
                id=f"pair-{index}",
                image=str(path),
                prompt="Describe the image.",
                chosen_ids=chosen,
                rejected_ids=rejected,
                chosen_logp=-30.0,
                rejected_logp=-30.0,
            )
        )
    return made


@dataclass
class FinishedStream:
    """`actors.train.stream.PairSource` of a stream whose pairs are all there."""

    pairs: list[PreferencePair]
    num_pairs_at_most: int

    def __post_init__(self) -> None:
        self._stream = OpenStream()
        self._stream.offer(self.pairs)
        self._stream.end([pair.id for pair in self.pairs])

    def arrived(self, *, start: int) -> tuple[PreferencePair, ...]:
        return self._stream.arrived(start=start) or ()

    def judge(self, verdicts: Sequence[str | None], *, start: int) -> None:
        self._stream.judge(verdicts, start=start)

    def usable(self, *, start: int, wait: bool) -> UsableSoFar:
        return self._stream.usable(start=start)


def _train(
    model: Path,
    pairs: list[PreferencePair],
    output_dir: Path,
    settings: dict[str, Any],
    dies_at: int | None = None,
    num_planned: int | None = None,
) -> TrainResult:
    from actors.train.round import RoundTrainer
    from csr_ray.config.load import parse_config

    train = {"batch_size": 2, "lora_rank": 4, "dtype": "float32", "threads": 1, "learning_rate": 1e-2, **settings}
    config = parse_config(
        {"data": {"prompts": "-"}, "policy": {"model": str(model)}, "scorer": {"model": "-"}, "train": train}
    )

    def on_step(step: int, num_steps: int, loss: float) -> None:
        if step == dies_at:
            os._exit(1)

    trainer = RoundTrainer(config, model=model)
    trainer.rehearse()
    source = FinishedStream(pairs, num_planned) if num_planned else None
    given = () if source else pairs
    try:
        result = trainer.train(
            given, round_index=0, adapters=(), output_dir=output_dir, on_step=on_step, source=source
        )
    except ValueError:
        trainer.prepare(())
        raise
    trainer.prepare(())  # lets go of the round, so that the next one finds the process free
    return result


def _adapter(result: TrainResult) -> dict[str, torch.Tensor]:
    return load_file(Path(result.adapter) / "adapter_model.safetensors")


def _assert_same(left: TrainResult, right: TrainResult) -> None:
    ours, theirs = _adapter(left), _adapter(right)
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert torch.allclose(ours[name], expected, rtol=1e-3, atol=1e-5), name


@pytest.fixture(scope="module")
def plain(
    training_process: ProcessPoolExecutor,
    model: Path,
    pairs: list[PreferencePair],
    tmp_path_factory: pytest.TempPathFactory,
) -> TrainResult:
    output_dir = tmp_path_factory.mktemp("plain") / "adapter"
    return training_process.submit(_train, model, pairs, output_dir, {"deepspeed_stage": 2}).result(timeout=300)


@pytest.mark.parametrize("stage, offload", STAGES)
def test_stages_and_offloading_give_the_same_adapter(
    training_process: ProcessPoolExecutor,
    plain: TrainResult,
    model: Path,
    pairs: list[PreferencePair],
    tmp_path: Path,
    stage: int,
    offload: bool,
) -> None:
    settings = {"deepspeed_stage": stage, "offload_optimizer": offload}
    result = training_process.submit(_train, model, pairs, tmp_path / "adapter", settings).result(timeout=300)
    assert result.metrics["deepspeed_stage"] == stage
    assert result.num_steps == NUM_STEPS
    _assert_same(result, plain)


@pytest.mark.parametrize("stage", [3])
def test_a_round_goes_on_from_its_checkpoint_in_another_process(
    plain: TrainResult, model: Path, pairs: list[PreferencePair], tmp_path: Path, stage: int
) -> None:
    output_dir, settings = tmp_path / "adapter", {"deepspeed_stage": stage, "checkpoint_steps": 1}
    with start_training_process() as pool, pytest.raises(BrokenProcessPool):
        pool.submit(_train, model, pairs, output_dir, settings, 3).result(timeout=300)
    saved = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert saved == ["checkpoint-2"], "the process died in its third step's report, before that was saved"
    assert not output_dir.exists()
    (tmp_path / "checkpoints" / "checkpoint-3").mkdir()  # as a death while it is written would leave it
    with start_training_process() as pool:
        result = pool.submit(_train, model, pairs, output_dir, settings).result(timeout=300)
    assert (result.num_steps, result.loss_first) == (NUM_STEPS, pytest.approx(plain.loss_first, rel=1e-4))
    _assert_same(result, plain)
    assert not (tmp_path / "checkpoints").exists()


def test_a_stream_shorter_than_planned_makes_whole_steps_in_every_epoch(
    training_process: ProcessPoolExecutor, model: Path, pairs: list[PreferencePair], tmp_path: Path
) -> None:
    """Five pairs of a planned eight: steps of 4 and of the 1 that is left, whose micro-batch stands for both."""
    settings = {"epochs": 2, "batch_size": 4, "micro_batch_size": 2, "schedule": "constant"}
    long = replace(pairs[7], rejected_ids=(5,) * 5000)
    job = training_process.submit(_train, model, [*pairs[:3], long, *pairs[3:5]], tmp_path / "a", settings, None, 8)
    result = job.result(timeout=300)
    assert (result.num_pairs, result.num_steps) == (5, 4)
    assert result.metrics["dropped/too_long"] == 1
    assert len(result.probe_logps) == 3
    assert result.loss_last < result.loss_first


@pytest.mark.parametrize("num_planned", [None, 8], ids=["whole", "streamed"])
def test_a_round_without_a_usable_pair_is_an_error(
    training_process: ProcessPoolExecutor,
    model: Path,
    pairs: list[PreferencePair],
    tmp_path: Path,
    num_planned: int | None,
) -> None:
    long = replace(pairs[7], rejected_ids=(5,) * 5000)
    job = training_process.submit(_train, model, [long], tmp_path / "a", {}, None, num_planned)
    with pytest.raises(ValueError, match=r"no pair can be trained on; dropped: \{'too_long': 1\}"):
        job.result(timeout=300)
