"""DeepSpeed's stages, offloading, checkpoints, and streams shorter than planned: what the optimizer makes of them."""

from __future__ import annotations

import os
import pickle
import random
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import preference_pair
from PIL import Image
from safetensors.torch import load_file
from tiny_models import build_tiny_llava
from training_examples import EndedStream, altered, write_examples
from training_process import start_training_process

from csr_ray.config.schema import Train
from csr_ray.errors import PicturesGone, StalePolicyError
from csr_ray.records import Cycle, Example, Picture, TrainOrder, TrainResult

NUM_STEPS = 4
STAGES = [(0, False), (1, False), (1, True), (2, True), (3, False), (3, True)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llava(tmp_path_factory.mktemp("llava"), seed=0)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
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


def _train(
    model: Path,
    pairs: list[Example],
    output_dir: Path,
    settings: dict[str, Any],
    dies_at: int | None = None,
    num_planned: int | None = None,
    rehearses: bool = True,
) -> TrainResult:
    """One cycle on the pairs of one file, or on a stream that was planned for so many; each pair is a file then."""
    from actors.train.cycle import CycleTrainer

    train = {"batch_size": 2, "lora_rank": 4, "dtype": "float32", "threads": 1, "learning_rate": 1e-2, **settings}

    def on_step(step: int, num_steps: int, loss: float, *_: object) -> None:
        if step == dies_at:
            os._exit(1)

    trainer = CycleTrainer(Train(**train), model=model, seed=0)
    if rehearses:
        trainer.rehearse()
    units = [[pair] for pair in pairs] if num_planned else [pairs]
    files = [write_examples(output_dir.parent / f"unit_{at}.parquet", unit) for at, unit in enumerate(units)]
    order = TrainOrder(
        cycle=Cycle(round_index=0),
        output_dir=str(output_dir),
        num_examples_at_most=num_planned or len(pairs),
        is_whole=num_planned is None,
    )
    source = EndedStream(files, order.num_examples_at_most, order.is_whole)
    try:
        return trainer.train(source, order=order, adapters=(), on_step=on_step)
    finally:
        trainer.prepare(())  # lets go of the cycle, so that the next one finds the process free


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
    pairs: list[Example],
    tmp_path_factory: pytest.TempPathFactory,
) -> TrainResult:
    output_dir = tmp_path_factory.mktemp("plain") / "adapter"
    return training_process.submit(_train, model, pairs, output_dir, {"deepspeed_stage": 2}).result(timeout=300)


@pytest.mark.parametrize("stage, offload", STAGES)
def test_stages_and_offloading_give_the_same_adapter(
    training_process: ProcessPoolExecutor,
    plain: TrainResult,
    model: Path,
    pairs: list[Example],
    tmp_path: Path,
    stage: int,
    offload: bool,
) -> None:
    settings = {"deepspeed_stage": stage, "offload_optimizer": offload}
    result = training_process.submit(_train, model, pairs, tmp_path / "adapter", settings).result(timeout=300)
    assert result.metrics["deepspeed_stage"] == stage
    assert result.num_steps == NUM_STEPS
    _assert_same(result, plain)


def test_the_rehearsal_leaves_no_trace_in_the_adapter(
    training_process: ProcessPoolExecutor, model: Path, pairs: list[Example], tmp_path: Path
) -> None:
    adapters = []
    for rehearses in (True, False):
        output_dir = tmp_path / f"{rehearses}" / "adapter"
        output_dir.parent.mkdir()
        settings = {"step": "shared_prefix"}
        job = training_process.submit(_train, model, pairs, output_dir, settings, rehearses=rehearses)
        adapters.append(_adapter(job.result(timeout=300)))
    for name, expected in adapters[1].items():
        assert torch.equal(adapters[0][name], expected), name


@pytest.mark.parametrize("num_planned", [None, 2 * NUM_STEPS], ids=["whole", "streamed"])
def test_batches_made_ahead_give_the_same_adapter(
    training_process: ProcessPoolExecutor, model: Path, pairs: list[Example], tmp_path: Path, num_planned: int | None
) -> None:
    adapters = []
    for threads in (0, 3):
        output_dir = tmp_path / f"{threads}" / "adapter"
        output_dir.parent.mkdir()
        settings = {"loader_threads": threads, "epochs": 2, "micro_batch_size": 1}
        job = training_process.submit(_train, model, pairs, output_dir, settings, None, num_planned)
        result = job.result(timeout=300)
        assert (result.num_pairs, result.num_steps) == (2 * NUM_STEPS, 2 * NUM_STEPS)
        assert result.optimizer_s > 0
        adapters.append(_adapter(result))
    for name, expected in adapters[0].items():
        assert torch.equal(adapters[1][name], expected), name


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_bfloat16_trains_on_a_cpu_and_finds_nearly_the_adapter_of_float32(
    training_process: ProcessPoolExecutor,
    plain: TrainResult,
    model: Path,
    pairs: list[Example],
    tmp_path: Path,
    stage: int,
) -> None:
    settings = {"dtype": "bfloat16", "deepspeed_stage": stage}
    result = training_process.submit(_train, model, pairs, tmp_path / "adapter", settings).result(timeout=300)
    assert result.metrics["deepspeed_stage"] == stage
    assert result.loss_first == pytest.approx(plain.loss_first, rel=0.02)
    ours, theirs = _adapter(result), _adapter(plain)
    assert {tensor.dtype for tensor in ours.values()} == {torch.bfloat16}
    for name, expected in theirs.items():
        if "lora_B" in name:  # it starts at zero, so all of it was learned
            alike = torch.nn.functional.cosine_similarity(ours[name].float().flatten(), expected.flatten(), dim=0)
            assert alike > 0.9, (name, alike)


def test_bfloat16_does_not_swallow_steps_below_its_spacing(
    training_process: ProcessPoolExecutor, model: Path, pairs: list[Example], tmp_path: Path
) -> None:
    """Between 2^-5 and 2^-4 bfloat16 numbers are 2.4e-4 apart, so a step of 6e-5 alone rounds to nothing. Where three
    steps go the same way, they do not: the optimizer adds them up in float32.
    """

    def trained(learning_rate: float) -> torch.Tensor:
        settings = {"dtype": "bfloat16", "learning_rate": learning_rate, "schedule": "constant", "warmup_ratio": 0}
        output_dir = tmp_path / f"{learning_rate}" / "adapter"
        result = training_process.submit(_train, model, pairs, output_dir, settings).result(timeout=300)
        return torch.cat([tensor.flatten() for name, tensor in _adapter(result).items() if "lora_A" in name])

    unmoved, moved = trained(1e-12), trained(6e-5)
    is_far_apart = (unmoved.abs() >= 2**-5) & (unmoved.abs() < 2**-4)
    assert (unmoved != moved)[is_far_apart].float().mean() > 0.05


@pytest.mark.parametrize("stage", [3])
def test_a_round_goes_on_from_its_checkpoint_in_another_process(
    plain: TrainResult, model: Path, pairs: list[Example], tmp_path: Path, stage: int
) -> None:
    output_dir, settings = tmp_path / "adapter", {"deepspeed_stage": stage, "checkpoint_steps": 1}
    with start_training_process() as pool, pytest.raises(BrokenProcessPool):
        pool.submit(_train, model, pairs, output_dir, settings, 3).result(timeout=300)
    saved = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert saved == {"checkpoint-1", "checkpoint-2"}, "the process died in its third step's report, before it saved"
    assert not output_dir.exists()
    (tmp_path / "checkpoints" / ".staging" / "checkpoint-3").mkdir(parents=True)  # as a death while it is written
    newest = next((tmp_path / "checkpoints" / "checkpoint-2").rglob("*optim_states.pt"))
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    newest.write_bytes(damaged)
    with start_training_process() as pool:
        result = pool.submit(_train, model, pairs, output_dir, settings).result(timeout=300)
    assert result.metrics["resumed_from_step"] == 1, "the newest has one flipped bit"
    assert (result.num_steps, result.loss_first) == (NUM_STEPS, pytest.approx(plain.loss_first, rel=1e-4))
    _assert_same(result, plain)


def _read_what_runs_code(path: Path) -> str:
    """Read a file that would make a folder, as a checkpoint of DeepSpeed's; returns what came of it."""
    from actors.train.shards import PlainCheckpointEngine

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(path.with_suffix(".made")),)

    torch.save({"optimizer_state_dict": Evil()}, path)
    try:
        PlainCheckpointEngine().load(str(path))
    except pickle.UnpicklingError as error:
        return str(error)
    return "was read"


def test_a_checkpoint_runs_no_code(training_process: ProcessPoolExecutor, tmp_path: Path) -> None:
    answer = training_process.submit(_read_what_runs_code, tmp_path / "optimizer.pt").result(timeout=120)
    assert "mkdir" in answer and "Weights only load failed" in answer
    assert not (tmp_path / "optimizer.made").exists()


def _read_what_early_python_wrote(path: Path) -> object:
    """A file of DeepSpeed's stage, written as Python 3.11.2 writes the member of an enumeration."""
    from deepspeed.runtime.zero.config import ZeroStageEnum

    from actors.train.shards import PlainCheckpointEngine

    ZeroStageEnum.__reduce_ex__ = lambda self, _: (getattr, (type(self), self.name))  # type: ignore[method-assign]
    engine = PlainCheckpointEngine()
    engine.save({"zero_stage": ZeroStageEnum(3), "values": torch.ones(2)}, str(path))
    return engine.load(str(path))["zero_stage"]


def test_a_checkpoint_is_read_whatever_python_makes_of_an_enumeration(tmp_path: Path) -> None:
    """A process of its own: another Python's way of writing stays with it."""
    with start_training_process() as pool:
        found = pool.submit(_read_what_early_python_wrote, tmp_path / "stage.pt").result(timeout=120)
    assert found == 3


def test_a_stream_shorter_than_planned_makes_whole_steps_in_every_epoch(
    training_process: ProcessPoolExecutor, model: Path, pairs: list[Example], tmp_path: Path
) -> None:
    """Five pairs of a planned eight: steps of 4 and of the 1 that is left, whose micro-batch stands for both."""
    settings = {"epochs": 2, "batch_size": 4, "micro_batch_size": 2, "schedule": "constant"}
    long = altered(pairs[7], rejected={"token_ids": (5,) * 5000})
    job = training_process.submit(_train, model, [*pairs[:3], long, *pairs[3:5]], tmp_path / "a", settings, None, 8)
    result = job.result(timeout=300)
    assert (result.num_pairs, result.num_steps) == (5, 4)
    assert result.metrics["dropped/too_long"] == 1
    assert [probe.id for probe in result.probes] == [f"pair-{index}" for index in range(5)], "the usable ones"
    assert result.loss_last < result.loss_first


@pytest.mark.parametrize("num_planned", [None, 8], ids=["whole", "streamed"])
def test_a_round_without_a_usable_pair_is_an_error(
    training_process: ProcessPoolExecutor,
    model: Path,
    pairs: list[Example],
    tmp_path: Path,
    num_planned: int | None,
) -> None:
    long = altered(pairs[7], rejected={"token_ids": (5,) * 5000})
    for given, dropped in (([long], r"\{'too_long': 1\}"), ([], r"\{\}")):
        job = training_process.submit(_train, model, given, tmp_path / "a", {}, None, num_planned)
        with pytest.raises(ValueError, match=rf"round 1: no example can be trained on; dropped: {dropped}"):
            job.result(timeout=300)


def test_a_round_whose_pictures_are_all_away_drops_none_of_its_pairs(
    training_process: ProcessPoolExecutor, model: Path, pairs: list[Example], tmp_path: Path
) -> None:
    away = [replace(pair, ask=replace(pair.ask, picture=Picture(path="/away/one.png"))) for pair in pairs[:3]]
    job = training_process.submit(_train, model, away, tmp_path / "a", {}, None, None)
    with pytest.raises(PicturesGone, match=r"3 of round 1 are needed to train"):
        job.result(timeout=300)


@pytest.mark.parametrize("num_planned", [None, 8], ids=["whole", "streamed"])
def test_a_pair_of_another_policy_version_is_an_error(
    training_process: ProcessPoolExecutor, model: Path, pairs: list[Example], tmp_path: Path, num_planned: int | None
) -> None:
    given = [*pairs[:2], altered(pairs[2], policy_version=1)]
    job = training_process.submit(_train, model, given, tmp_path / "a", {}, None, num_planned)
    with pytest.raises(StalePolicyError, match="pair-2 is of policy version 1; the version in training, 0, "):
        job.result(timeout=300)
