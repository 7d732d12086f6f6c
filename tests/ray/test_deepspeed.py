"""DeepSpeed's stages, offloading and checkpoints: the adapter must not depend on them."""

from __future__ import annotations

import os
import random
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_models import build_tiny_llava
from training_process import start_training_process

from csr_ray.types import PreferencePair, TrainResult

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
            PreferencePair(
                id=f"pair-{index}",
                image=str(path),
                prompt="Describe the image.",
                chosen="-",
                rejected="-",
                chosen_ids=chosen,
                rejected_ids=rejected,
                chosen_logp=-30.0,
                rejected_logp=-30.0,
                chosen_reward=1.0,
                rejected_reward=0.0,
                chosen_nodes=(0,),
                rejected_nodes=(1,),
                policy_version=0,
                method="csr",
                seed=0,
            )
        )
    return made


def _train(
    model: Path, pairs: list[PreferencePair], output_dir: Path, settings: dict[str, Any], dies_at: int | None = None
) -> TrainResult:
    from actors.dpo import RoundTrainer
    from csr_ray.config_file import parse_config

    train = {"batch_size": 2, "lora_rank": 4, "dtype": "float32", "threads": 1, "learning_rate": 1e-2, **settings}
    config = parse_config(
        {"data": {"prompts": "-"}, "policy": {"model": str(model)}, "scorer": {"model": "-"}, "train": train}
    )

    def on_step(step: int, num_steps: int, loss: float) -> None:
        if step == dies_at:
            os._exit(1)

    trainer = RoundTrainer(config, model=model)
    trainer.rehearse()
    result = trainer.train(pairs, round_index=0, adapters=(), output_dir=output_dir, on_step=on_step)
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
