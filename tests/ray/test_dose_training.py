"""The dose that is found, on real TRL, PEFT and DeepSpeed: when a training ends, with which weights, and again."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator
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
from train_group import Group
from training_examples import EndedStream, write_examples
from training_process import start_training_process

from actors.train.group import TrainerGroup
from csr_ray.config.schema import Train
from csr_ray.records import Cycle, Example, Phase, TrainOrder, TrainResult
from csr_ray.training.dose import is_held_out

NUM_TRAINED = 80
LIKED, DISLIKED = range(20, 40), range(40, 60)
SETTINGS = {"batch_size": 8, "lora_rank": 4, "dtype": "float32", "threads": 1, "learning_rate": 3e-4, "max_epochs": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llava(tmp_path_factory.mktemp("llava"), seed=0)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    """Some words are liked in all of them, so what is learned of some holds for the others."""
    directory, rng = tmp_path_factory.mktemp("images"), random.Random(0)
    image = directory / "one.png"
    Image.frombytes("RGB", (48, 48), rng.randbytes(3 * 48 * 48)).save(image)
    made = [
        preference_pair(
            id=f"pair-{index}",
            image=str(image),
            prompt="Describe the image.",
            chosen_ids=tuple(rng.choices(LIKED, k=5)),
            rejected_ids=tuple(rng.choices(DISLIKED, k=5)),
            chosen_logp=-30.0,
            rejected_logp=-30.0,
        )
        for index in range(100)
    ]
    # Whole batches, because several workers fill one that is not with the first pairs again.
    trained = [pair for pair in made if not is_held_out(pair.id, seed=0, share=0.1)][:NUM_TRAINED]
    return [pair for pair in made if pair in trained or is_held_out(pair.id, seed=0, share=0.1)]


def _swapped(pairs: list[Example]) -> list[Example]:
    """The same pairs, every other one with its answers exchanged: nothing holds for all of them."""
    return [
        pair
        if index % 2
        else preference_pair(
            id=pair.id,
            image=pair.ask.picture.path,
            prompt=pair.ask.text,
            chosen_ids=pair.rejected.token_ids,
            rejected_ids=pair.chosen.token_ids,
            chosen_logp=-30.0,
            rejected_logp=-30.0,
        )
        for index, pair in enumerate(pairs)
    ]


def _train(
    model: Path,
    pairs: list[Example],
    output_dir: Path,
    settings: dict[str, Any],
    dies_at: int | None = None,
    is_whole: bool = True,
    order: dict[str, Any] | None = None,
    num_missing: int = 0,
    phase: Phase = Phase(),  # noqa: B008 # frozen
) -> TrainResult:
    from actors.train.cycle import CycleTrainer

    def on_step(step: int, num_steps: int, loss: float, *_: object) -> None:
        if step == dies_at:
            os._exit(1)

    trainer = CycleTrainer(Train(**{**SETTINGS, **settings}), model=model, seed=0)
    units = [pairs] if is_whole else [pairs[start : start + 16] for start in range(0, len(pairs), 16)]
    files = [write_examples(output_dir.parent / f"unit_{at}.parquet", unit) for at, unit in enumerate(units)]
    asked = TrainOrder(
        cycle=Cycle(round_index=0, phase=phase),
        output_dir=str(output_dir),
        num_examples_at_most=len(pairs) + num_missing,
        is_whole=is_whole,
        **(order or {}),
    )
    source = EndedStream(files, asked.num_examples_at_most, asked.is_whole)
    try:
        return trainer.train(source, order=asked, adapters=(), on_step=on_step)
    finally:
        trainer.prepare(())


def _adapter(result: TrainResult) -> dict[str, torch.Tensor]:
    return load_file(Path(result.adapter) / "adapter_model.safetensors")


def _num_held_out(pairs: list[Example]) -> int:
    return sum(is_held_out(pair.id, seed=0, share=0.1) for pair in pairs)


@pytest.fixture(scope="module")
def plain(
    training_process: ProcessPoolExecutor,
    model: Path,
    pairs: list[Example],
    tmp_path_factory: pytest.TempPathFactory,
) -> TrainResult:
    output_dir = tmp_path_factory.mktemp("plain") / "adapter"
    return training_process.submit(_train, model, pairs, output_dir, {}).result(timeout=300)


def test_it_trains_until_the_held_out_margin_is_reached(plain: TrainResult, pairs: list[Example]) -> None:
    assert plain.dose["reason"].startswith("the held-out margin came to")
    assert plain.num_pairs == NUM_TRAINED
    looks = plain.dose["looks"]
    assert {look["num_pairs"] for look in looks} == {_num_held_out(pairs)}
    assert looks[-1]["margin"] >= 1.25 > max((look["margin"] for look in looks[:-1]), default=0)
    assert looks[-1]["step"] == plain.num_steps == plain.dose["best_step"]
    # The first step has the rate of a warm-up that rounds down to nothing: all have the same.
    assert plain.dose["lr_sum"] == pytest.approx(plain.num_steps * 3e-4)
    assert plain.dose["learning_rate"] == 3e-4
    assert plain.metrics["held_out/margin"] == looks[-1]["margin"]


def test_single_answers_are_trained_until_the_held_out_ones_become_no_likelier(
    training_process: ProcessPoolExecutor, model: Path, pairs: list[Example], tmp_path: Path
) -> None:
    """Several answers to one prompt each count for themselves."""
    answers = [
        replace(pair, targets=(replace(target, role="answer", logp=None, reward=None),))
        for pair in pairs
        for target in (pair.chosen, pair.rejected)
    ]
    phase = Phase(objective="sft", num_answers=1, max_examples_a_prompt=2)
    result = training_process.submit(
        _train, model, answers, tmp_path / "adapter", {"max_epochs": 2}, phase=phase
    ).result(timeout=300)
    assert result.num_pairs == 2 * NUM_TRAINED and math.isfinite(result.loss_last)
    assert result.loss_last < result.loss_first
    looks = result.dose["looks"]
    assert {look["num_pairs"] for look in looks} == {2 * _num_held_out(pairs)}
    assert looks[-1]["chosen"] > 0 and all(look["rejected"] is None for look in looks)
    assert result.dose["learning_rate"] == 3e-4 and "held out" in result.dose["reason"].replace("-", " ")
    assert {probe.answer_ids for probe in result.probes} <= {answer.preferred.token_ids for answer in answers}
    assert not [name for name in result.metrics if "rejected" in name]


def test_the_margin_is_that_of_the_adapter_that_is_handed_over(
    plain: TrainResult, pairs: list[Example], model: Path
) -> None:
    """Computed again by transformers and PEFT, one answer after the other."""
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from csr_ray.data.pictures import load_picture
    from csr_ray.training.collate import PairCollator

    collator = PairCollator(processor=AutoProcessor.from_pretrained(model), load_picture=load_picture)

    def logp(policy: Any, pair: Example, answer: tuple[int, ...]) -> float:
        prompt = collator.prompts([pair.ask])
        ids = torch.cat([prompt["input_ids"], torch.tensor([answer])], dim=1)
        with torch.no_grad():
            logits = policy(input_ids=ids, pixel_values=prompt["pixel_values"]).logits[0, -len(answer) - 1 : -1]
        return float(logits.log_softmax(-1)[range(len(answer)), list(answer)].sum())

    def margin_of(policy: Any, pair: Example) -> float:
        return logp(policy, pair, pair.chosen.token_ids) - logp(policy, pair, pair.rejected.token_ids)

    held = [pair for pair in pairs if is_held_out(pair.id, seed=0, share=0.1)]
    policy = AutoModelForImageTextToText.from_pretrained(model)
    before = [
        logp(policy, pair, pair.chosen.token_ids) - logp(policy, pair, pair.rejected.token_ids) for pair in held
    ]
    tuned = PeftModel.from_pretrained(policy, plain.adapter)
    after = [margin_of(tuned, pair) for pair in held]
    margin = sum(now - then for now, then in zip(after, before, strict=True)) / len(held)
    assert plain.dose["looks"][-1]["margin"] == pytest.approx(margin, abs=1e-3)


def test_a_training_that_was_killed_comes_to_the_same_end(
    plain: TrainResult, model: Path, pairs: list[Example], tmp_path: Path
) -> None:
    output_dir = tmp_path / "adapter"
    killed_at = plain.num_steps - 1
    with start_training_process() as pool, pytest.raises(BrokenProcessPool):
        pool.submit(_train, model, pairs, output_dir, {"checkpoint_steps": 1}, killed_at).result(timeout=300)
    with start_training_process() as pool:
        result = pool.submit(_train, model, pairs, output_dir, {"checkpoint_steps": 1}).result(timeout=300)
    assert result.metrics["resumed_from_step"] == killed_at - 1
    assert result.num_steps == plain.num_steps
    assert result.dose["reason"] == plain.dose["reason"]
    for ours, theirs in zip(result.dose["looks"], plain.dose["looks"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    for name, expected in _adapter(plain).items():
        assert torch.allclose(_adapter(result)[name], expected, rtol=1e-3, atol=1e-5), name


@pytest.mark.long
def test_a_training_that_was_killed_after_its_last_step_comes_to_the_same_end(
    plain: TrainResult, model: Path, pairs: list[Example], tmp_path: Path
) -> None:
    """A checkpoint of the step at which the dose was enough could not be gone on from."""
    output_dir = tmp_path / "adapter"
    with start_training_process() as pool, pytest.raises(BrokenProcessPool):
        pool.submit(_train_and_die, model, pairs, output_dir).result(timeout=300)
    with start_training_process() as pool:
        result = pool.submit(_train, model, pairs, output_dir, {"checkpoint_steps": 1}).result(timeout=300)
    assert result.metrics["resumed_from_step"] == plain.num_steps - 1
    assert (result.num_steps, result.dose["reason"]) == (plain.num_steps, plain.dose["reason"])
    for name, expected in _adapter(plain).items():
        assert torch.allclose(_adapter(result)[name], expected, rtol=1e-3, atol=1e-5), name


def _train_and_die(model: Path, pairs: list[Example], output_dir: Path) -> None:
    """Train to the end, and die before the adapter is written."""
    import actors.train.cycle

    actors.train.cycle.save_adapter = lambda *_, **__: os._exit(1)
    _train(model, pairs, output_dir, {"checkpoint_steps": 1})


def test_which_pairs_are_held_out_does_not_depend_on_how_many_were_built(
    training_process: ProcessPoolExecutor, model: Path, pairs: list[Example], tmp_path: Path
) -> None:
    """Of a hundred prompts 70 gave a pair: a stream is planned by the prompts, a resumed round by the pairs."""
    few, order = pairs[:70], {"num_drawn_from": 100}
    whole = training_process.submit(_train, model, few, tmp_path / "whole", {}, None, True, order).result(timeout=300)
    num_held_out = sum(is_held_out(pair.id, seed=0, share=0.1) for pair in few)
    assert whole.num_pairs == 70 - num_held_out < 70
    assert {look["num_pairs"] for look in whole.dose["looks"]} == {num_held_out}


def test_pairs_that_teach_nothing_leave_the_policy_as_it_was(
    training_process: ProcessPoolExecutor, model: Path, pairs: list[Example], tmp_path: Path
) -> None:
    settings = {"patience": 1, "learning_rate": 3e-3}
    job = training_process.submit(_train, model, _swapped(pairs), tmp_path / "adapter", settings)
    result = job.result(timeout=300)
    best = result.dose["best_step"]
    assert result.dose["reason"] == f"the held-out loss was lowest after step {best}"
    assert best < result.num_steps
    if best == 0:
        assert all(not tensor.any() for name, tensor in _adapter(result).items() if "lora_B" in name)


@pytest.mark.long
def test_the_kept_weights_outlive_the_process(model: Path, pairs: list[Example], tmp_path: Path) -> None:
    """Killed after a look that was worse than the one before: the best are in the checkpoint alone."""
    settings = {"patience": 1, "learning_rate": 3e-3, "checkpoint_steps": 1}
    with start_training_process() as pool:
        whole = pool.submit(_train, model, _swapped(pairs), tmp_path / "whole" / "adapter", settings)
        (tmp_path / "whole").mkdir()
        expected = whole.result(timeout=300)
    assert expected.dose["best_step"] < expected.num_steps - 1
    output_dir = tmp_path / "killed" / "adapter"
    output_dir.parent.mkdir()
    with start_training_process() as pool, pytest.raises(BrokenProcessPool):
        pool.submit(_train, model, _swapped(pairs), output_dir, settings, expected.num_steps).result(timeout=300)
    with start_training_process() as pool:
        result = pool.submit(_train, model, _swapped(pairs), output_dir, settings).result(timeout=300)
    assert result.metrics["resumed_from_step"] > expected.dose["best_step"]
    assert result.dose["best_step"] == expected.dose["best_step"]
    for name, tensor in _adapter(expected).items():
        assert torch.allclose(_adapter(result)[name], tensor, rtol=1e-3, atol=1e-5), name


def test_a_stream_holds_the_same_pairs_out(
    training_process: ProcessPoolExecutor, plain: TrainResult, model: Path, pairs: list[Example], tmp_path: Path
) -> None:
    job = training_process.submit(_train, model, pairs, tmp_path / "adapter", {}, None, False)
    result = job.result(timeout=300)
    assert result.num_pairs == plain.num_pairs, "those that came after the end of the training are counted, too"
    assert result.dose["looks"][-1]["num_pairs"] <= _num_held_out(pairs)
    assert result.dose["reason"].startswith("the held-out margin came to")


def test_a_later_round_takes_the_rate_and_the_length_of_the_first(
    training_process: ProcessPoolExecutor, model: Path, pairs: list[Example], tmp_path: Path
) -> None:
    order = {"learning_rate": 1e-4, "lr_sum": 5e-4}
    job = training_process.submit(_train, model, pairs, tmp_path / "adapter", {}, None, True, order)
    result = job.result(timeout=300)
    assert result.num_steps == 5 and result.dose["lr_sum"] == pytest.approx(5e-4)
    assert result.dose["reason"] == "it was trained as far as an earlier round or attempt allows"


def test_the_first_round_finds_its_rate(
    training_process: ProcessPoolExecutor, model: Path, pairs: list[Example], tmp_path: Path
) -> None:
    job = training_process.submit(_train, model, pairs, tmp_path / "adapter", {"learning_rate": None})
    result = job.result(timeout=300)
    by_rule = 0.0256 / (32 * 2)
    assert result.dose["learning_rate"] / by_rule in {2.0**power for power in range(-4, 5)}
    assert result.dose["reason"].startswith("the held-out margin came to")


def test_too_few_pairs_are_passed_over_once(
    training_process: ProcessPoolExecutor, model: Path, pairs: list[Example], tmp_path: Path
) -> None:
    job = training_process.submit(_train, model, pairs[:79], tmp_path / "adapter", {})
    result = job.result(timeout=300)
    assert (result.num_pairs, result.num_steps, result.dose) == (79, 10, {})


def test_a_phase_of_which_too_few_are_held_out_by_chance_is_passed_over_once(
    training_process: ProcessPoolExecutor, model: Path, pairs: list[Example], tmp_path: Path
) -> None:
    held = [pair for pair in pairs if is_held_out(pair.id, seed=0, share=0.1)]
    few = [pair for pair in pairs if pair not in held[3:]]
    job = training_process.submit(_train, model, few, tmp_path / "adapter", {})
    result = job.result(timeout=300)
    assert (result.num_pairs, result.num_steps) == (NUM_TRAINED + 3, 11), "all are trained on"
    assert result.dose == {}, "a later round must not take its length from a dose that nobody looked at"
    assert any(tensor.any() for name, tensor in _adapter(result).items() if "lora_B" in name)


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_phase_of_which_all_pairs_are_held_out_trains_on_them(
    training_process: ProcessPoolExecutor, model: Path, pairs: list[Example], tmp_path: Path, is_whole: bool
) -> None:
    """Which are held out goes by the number of prompts, of which few may give a pair."""
    held = [pair for pair in pairs if is_held_out(pair.id, seed=0, share=0.1)][: 3 if is_whole else 5]
    order = {"num_drawn_from": 100}
    job = training_process.submit(_train, model, held, tmp_path / "adapter", {}, None, is_whole, order)
    result = job.result(timeout=300)
    assert (result.num_pairs, result.num_steps, result.dose) == (len(held), 1, {})
    assert any(tensor.any() for name, tensor in _adapter(result).items() if "lora_B" in name)


def test_a_stream_whose_margin_is_out_of_reach_says_so(
    training_process: ProcessPoolExecutor, model: Path, pairs: list[Example], tmp_path: Path
) -> None:
    """Its steps are planned by the most pairs that may come, so it ends before the last of them."""
    settings = {"target_margin": 90.0, "max_divergence": 90.0, "max_epochs": 2, "learning_rate": 1e-5, "patience": 9}
    order = {"num_drawn_from": len(pairs) + 40}
    job = training_process.submit(_train, model, pairs, tmp_path / "adapter", settings, None, False, order, 40)
    result = job.result(timeout=300)
    assert result.dose["looks"][-1]["step"] == result.num_steps == 2 * math.ceil(NUM_TRAINED / 8)
    assert result.dose["reason"].startswith("train.max_epochs was reached at a held-out margin of")


def test_a_stream_of_which_too_few_are_held_out_passes_over_its_pairs_once(
    training_process: ProcessPoolExecutor, model: Path, pairs: list[Example], tmp_path: Path
) -> None:
    held = [pair for pair in pairs if is_held_out(pair.id, seed=0, share=0.1)]
    few = [pair for pair in pairs if pair not in held[3:]]
    order = {"num_drawn_from": len(few) + 40}
    job = training_process.submit(_train, model, few, tmp_path / "adapter", {}, None, False, order, 40)
    result = job.result(timeout=300)
    assert (result.num_pairs, result.num_steps, result.dose) == (NUM_TRAINED, math.ceil(NUM_TRAINED / 8), {})


@pytest.fixture(scope="module")
def two_workers(ray_session: None, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    directory = tmp_path_factory.mktemp("two")
    train = Train(**{**SETTINGS, "workers": 2, "deepspeed_stage": 3})
    trainer = TrainerGroup(train, model=str(model), adapters=(), logs=directory / "logs")
    trainer.start()
    yield Group(trainer=trainer, directory=directory)
    trainer.close()


def test_two_workers_with_parameters_in_shards_come_to_the_same_dose(
    two_workers: Group, plain: TrainResult, pairs: list[Example]
) -> None:
    result = two_workers.round(pairs)
    assert (result.num_pairs, result.num_steps) == (plain.num_pairs, plain.num_steps)
    assert result.dose["reason"] == plain.dose["reason"]
    for ours, theirs in zip(result.dose["looks"], plain.dose["looks"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-2, abs=1e-3)


def test_the_reported_loss_is_that_of_the_preferences_alone(
    training_process: ProcessPoolExecutor, model: Path, pairs: list[Example], tmp_path: Path
) -> None:
    settings = {"nll_weight": 0.2, "reference": "recompute", "dose": "epochs", "epochs": 1, "micro_batch_size": 4}
    asked = training_process.submit(_train, model, pairs[:16], tmp_path / "adapter", settings)
    result = asked.result(timeout=200)
    assert result.loss_first == pytest.approx(math.log(2), abs=1e-4)
    # Random answers of five tokens: 0.2 of their NLL is many times the preferences' loss.
    assert result.metrics["loss_nll"] > 1 and result.metrics["loss"] > 1 > result.loss_last
