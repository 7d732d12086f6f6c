"""The train group on real Ray, TRL, PEFT and DeepSpeed, with a random tiny LLaVA.

Starting a group costs tens of seconds, so the groups start together and each serves several tests.
"""

from __future__ import annotations

import math
import os
import random
import re
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import preference_pair
from PIL import Image
from safetensors.torch import load_file
from train_group import Group
from training_examples import altered, write_examples

from actors.train.group import TrainerGroup
from csr_ray.config.schema import Train
from csr_ray.data.pictures import load_picture
from csr_ray.errors import ActorFailure, ConfigError
from csr_ray.policy.weights import save_merged
from csr_ray.records import Cycle, Example, Picture, TrainOrder, TrainResult
from csr_ray.training.collate import PairCollator
from csr_ray.training.objectives import dpo_loss

BETA = 0.2
BATCH = 4


def _config(**train: Any) -> Train:
    settings = {
        "beta": BETA,
        "batch_size": BATCH,
        "lora_rank": 4,
        "learning_rate": 1e-2,
        "dtype": "float32",
        "threads": 1,
        "max_length": 80,
        **train,
    }
    return Train(**settings)


def _logps(model: Path, pairs: Sequence[Example], *, adapter: Path | None = None) -> list[tuple[float, float]]:
    """(chosen, rejected) summed log-probs by transformers itself, one row after the other."""
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText, AutoProcessor

    policy = AutoModelForImageTextToText.from_pretrained(model)
    if adapter is not None:
        policy = PeftModel.from_pretrained(policy, str(adapter))
    collator = PairCollator(processor=AutoProcessor.from_pretrained(model), load_picture=load_picture)
    sums = []
    for pair in pairs:
        prompt = collator.prompts([pair.ask])
        row = []
        for answer in (pair.chosen.token_ids, pair.rejected.token_ids):
            ids = torch.cat([prompt["input_ids"], torch.tensor([answer])], dim=1)
            with torch.no_grad():
                logits = policy(input_ids=ids, pixel_values=prompt["pixel_values"]).logits[0, -len(answer) - 1 : -1]
            row.append(logits.log_softmax(-1)[range(len(answer)), list(answer)].sum().item())
        sums.append((row[0], row[1]))
    return sums


def _with_reference(pairs: Sequence[Example], logps: Sequence[tuple[float, float]]) -> list[Example]:
    return [
        altered(pair, chosen={"logp": chosen}, rejected={"logp": rejected})
        for pair, (chosen, rejected) in zip(pairs, logps, strict=True)
    ]


@pytest.fixture(scope="module")
def pairs(tiny_llava: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    """Eight pairs of random answers whose reference IS the base policy."""
    directory, rng = tmp_path_factory.mktemp("images"), random.Random(0)
    made = []
    for index in range(8):
        path = directory / f"{index}.png"
        Image.new("RGB", (48, 48), tuple(rng.randrange(256) for _ in range(3))).save(path)
        chosen, rejected = ((*tuple(rng.randrange(4, 300) for _ in range(rng.randrange(3, 12))), 2) for _ in range(2))
        made.append(
            preference_pair(
                id=f"pair-{index}",
                image=str(path),
                prompt="Describe the image.",
                chosen_ids=chosen,
                rejected_ids=rejected,
                chosen_logp=0.0,
                rejected_logp=0.0,
            )
        )
    return _with_reference(made, _logps(tiny_llava, made))


@pytest.fixture(scope="module")
def groups(
    ray_session: None, tiny_llava: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Group]]:
    configs = {
        "one": _config(step="concatenated"),  # TRL's own form, which the other groups are held to
        "two": _config(workers=2, micro_batch_size=1, checkpoint_steps=1, restarts=1),
        "sharded": _config(
            workers=2,
            deepspeed_stage=3,
            step="shared_prefix",
            pack_tokens=256,
            reference="check",
            reference_tolerance=5.0,  # its second round trains pairs of the first's policy again
        ),
        "mistaken": _config(lora_targets=("q_proj", "query")),
        "stale": _config(),
    }
    made = {}
    for name, config in configs.items():
        directory = tmp_path_factory.mktemp(name)
        trainer = TrainerGroup(config, model=str(tiny_llava), adapters=(), logs=directory / "logs")
        trainer.start()
        made[name] = Group(trainer=trainer, directory=directory)
    yield made
    for group in made.values():
        group.trainer.close()


@pytest.fixture(scope="module")
def one(groups: dict[str, Group], pairs: list[Example]) -> Group:
    """The one-worker group after its first round on all pairs."""
    groups["one"].round(pairs)
    return groups["one"]


def _adapter(result: TrainResult) -> dict[str, torch.Tensor]:
    return load_file(Path(result.adapter) / "adapter_model.safetensors")


def _probed(result: TrainResult) -> list[float]:
    return [probe.logp for probe in result.probes]


def test_deepspeed_is_what_steps(one: Group) -> None:
    assert one.results[0].metrics["deepspeed_stage"] == 2


def test_first_loss_is_log_two_where_the_reference_is_the_policy(one: Group) -> None:
    assert one.results[0].loss_first == pytest.approx(math.log(2), abs=1e-5)


def test_every_step_is_reported(one: Group) -> None:
    result = one.results[0]
    assert result.num_steps == len(one.losses[0]) == 2
    assert (result.loss_first, result.loss_last) == (one.losses[0][0], one.losses[0][-1])
    assert result.loss_last != pytest.approx(result.loss_first, abs=1e-4), "the second step saw the first's update"


def test_probes_are_what_transformers_says_of_base_plus_adapter(
    one: Group, pairs: list[Example], tiny_llava: Path
) -> None:
    result = one.results[0]
    expected = [chosen for chosen, _ in _logps(tiny_llava, pairs, adapter=Path(result.adapter))]
    assert [(probe.id, probe.ask, probe.answer_ids) for probe in result.probes] == [
        (pair.id, pair.ask, pair.chosen.token_ids) for pair in pairs
    ]
    assert _probed(result) == pytest.approx(expected, abs=1e-3)
    assert max(abs(new - pair.chosen.logp) for new, pair in zip(expected, pairs, strict=True)) > 0.01


def test_adapter_is_of_the_language_model_alone(one: Group) -> None:
    tensors = _adapter(one.results[0])
    assert len(tensors) == 2 * 2 * 7  # A and B, layers, targets
    assert all(".language_model." in name for name in tensors)
    assert all(tensor.abs().max() > 0 for name, tensor in tensors.items() if "lora_B" in name)


def test_two_workers_with_accumulation_train_as_one(
    one: Group, groups: dict[str, Group], pairs: list[Example]
) -> None:
    result = groups["two"].round(pairs)
    assert result.metrics["deepspeed_stage"] == 2
    assert (result.metrics["shared_prefix"], one.results[0].metrics["shared_prefix"]) == (1, 0)
    assert groups["two"].losses[0] == pytest.approx(one.losses[0], rel=1e-4)
    assert _probed(result) == pytest.approx(_probed(one.results[0]), abs=1e-2)
    expected, trained = _adapter(one.results[0]), _adapter(result)
    assert trained.keys() == expected.keys()
    for name, tensor in trained.items():
        assert torch.allclose(tensor, expected[name], rtol=0.0, atol=1e-4), f"{name}: of two steps of 1e-2 at most"


def test_parameter_sharding_trains_as_one_worker_in_every_round(
    one: Group, groups: dict[str, Group], pairs: list[Example]
) -> None:
    result = groups["sharded"].round(pairs)
    assert result.metrics["deepspeed_stage"] == 3
    assert result.metrics["shared_prefix"] == 1
    assert 0 < result.metrics["reference_gap/mean"] <= result.metrics["reference_gap/max"] < 1e-4
    assert groups["sharded"].losses[0] == pytest.approx(one.losses[0], rel=1e-4)
    assert _probed(result) == pytest.approx(_probed(one.results[0]), abs=1e-2)
    assert {name: tensor.shape for name, tensor in _adapter(result).items()} == {
        name: tensor.shape for name, tensor in _adapter(one.results[0]).items()
    }
    again = groups["sharded"].round(pairs)
    assert again.version == 2
    assert again.metrics["reference_gap/max"] > 0.1, "the check sees that another policy sampled these"


def test_next_round_starts_from_base_plus_adapter_and_has_the_oracles_loss(
    one: Group, pairs: list[Example], tiny_llava: Path, tmp_path: Path
) -> None:
    batch = _with_reference(pairs[:BATCH], [(-30.0 - index, -33.0 + index) for index in range(BATCH)])
    save_merged(tiny_llava, adapters=[Path(one.results[0].adapter)], output=tmp_path / "policy")
    policy = torch.tensor(_logps(tmp_path / "policy", batch))
    reference = torch.tensor([(pair.chosen.logp, pair.rejected.logp) for pair in batch])
    expected = dpo_loss(policy[:, 0], policy[:, 1], reference[:, 0], reference[:, 1], beta=BETA).mean().item()
    result = one.round(batch)
    assert (result.version, result.num_steps) == (2, 1)
    assert result.loss_first == pytest.approx(expected, rel=1e-4)


def test_fewer_pairs_than_a_batch_and_unusable_ones_train_on_what_is_left(
    one: Group, pairs: list[Example], tmp_path: Path
) -> None:
    gone = altered(pairs[1], id="gone", ask=replace(pairs[1].ask, picture=Picture(path=str(tmp_path / "none.png"))))
    long = altered(pairs[2], id="long", rejected={"token_ids": (5,) * 80})
    result = one.round([pairs[0], gone, long, pairs[3]])
    assert (result.num_pairs, result.num_steps) == (2, 1)
    assert result.metrics["dropped/unreadable_image"] == result.metrics["dropped/too_long"] == 1
    assert [probe.id for probe in result.probes] == ["pair-0", "pair-3"], "the first usable ones, as they came"


def test_one_pair_is_a_round_also_for_two_workers(
    groups: dict[str, Group], pairs: list[Example], tiny_llava: Path, tmp_path: Path
) -> None:
    two = groups["two"]
    save_merged(tiny_llava, adapters=[Path(two.results[0].adapter)], output=tmp_path / "policy")
    policy, reference = (
        torch.tensor(_logps(tmp_path / "policy", pairs[:1])),
        torch.tensor(_logps(tiny_llava, pairs[:1])),
    )
    expected = dpo_loss(policy[:, 0], policy[:, 1], reference[:, 0], reference[:, 1], beta=BETA).mean().item()
    result = two.round(pairs[:1])
    assert (result.num_pairs, result.num_steps, len(result.probes)) == (1, 1, 1)
    assert result.loss_first == pytest.approx(expected, rel=1e-4)


def test_a_streamed_batch_gives_the_adapter_of_a_round_at_once(one: Group, pairs: list[Example]) -> None:
    with one.from_base():
        at_once = one.round(pairs[:BATCH])
    with one.from_base():
        one.begin(num_examples_at_most=BATCH)
        for index in (2, 0, 3, 1):
            one.offer([pairs[index]])
        streamed = one.finish()
    assert (streamed.num_pairs, streamed.num_steps) == (at_once.num_pairs, at_once.num_steps) == (BATCH, 1)
    assert streamed.loss_last == pytest.approx(at_once.loss_last, abs=1e-5)
    assert [probe.id for probe in streamed.probes] == ["pair-2", "pair-0", "pair-3", "pair-1"], "as they came"
    expected = {probe.id: probe.logp for probe in at_once.probes}
    assert {probe.id: probe.logp for probe in streamed.probes} == pytest.approx(expected, abs=1e-3)
    for name, tensor in _adapter(at_once).items():
        assert torch.allclose(_adapter(streamed)[name], tensor, rtol=1e-4, atol=1e-5), name


def test_a_stream_is_trained_while_more_files_may_come(one: Group, pairs: list[Example]) -> None:
    with one.from_base():
        one.begin(num_examples_at_most=len(pairs) + 4)
        one.offer(pairs[:3])
        one.offer(pairs[3:])
        deadline_s = time.monotonic() + 60
        while not one.trainer.num_early_steps:
            assert time.monotonic() < deadline_s, "no step before the stream has ended"
            one.trainer.check()
        result = one.finish()
    assert (result.num_pairs, result.num_steps, len(one.losses[-1])) == (8, 2, 2), "the view sees early steps, too"
    assert result.metrics["streamed/steps_before_last_example"] == 1


def test_a_training_after_a_version_was_taken_back_starts_from_the_one_before_and_the_next_from_its_own(
    one: Group, pairs: list[Example], tiny_llava: Path, tmp_path: Path
) -> None:
    """The folder is the same, so what has been loaded from it before must not be used."""
    batch = _with_reference(pairs[:BATCH], [(-30.0 - index, -33.0 + index) for index in range(BATCH)])
    reference = torch.tensor([(pair.chosen.logp, pair.rejected.logp) for pair in batch])

    def first_loss(name: str, *adapters: str) -> float:
        save_merged(tiny_llava, adapters=[Path(adapter) for adapter in adapters], output=tmp_path / name)
        policy = torch.tensor(_logps(tmp_path / name, batch))
        losses = dpo_loss(policy[:, 0], policy[:, 1], reference[:, 0], reference[:, 1], beta=BETA)
        return float(losses.mean())

    before = one.trainer._adapters
    refused = one.round(pairs[BATCH:])
    assert refused.version == len(before) + 1
    expected = first_loss("before", *before)
    assert first_loss("refused", *before, refused.adapter) != pytest.approx(expected, rel=1e-3)
    one.withdraw()
    better = one.round(batch)
    assert (better.version, better.adapter) == (refused.version, refused.adapter)
    assert better.loss_first == pytest.approx(expected, rel=1e-4)
    assert one.trainer._adapters == (*before, better.adapter)
    assert one.round(batch).loss_first == pytest.approx(first_loss("better", *before, better.adapter), rel=1e-4)


def test_two_workers_stream_with_a_dropped_pair_and_an_incomplete_last_step(
    groups: dict[str, Group], pairs: list[Example]
) -> None:
    two = groups["two"]
    long = altered(pairs[1], id="long", rejected={"token_ids": (5,) * 80})
    with two.from_base():
        two.begin(num_examples_at_most=8)
        for unit in ([pairs[4]], [pairs[5], long], [long], pairs[2:4], [pairs[0]]):
            two.offer(unit)
        result = two.finish()
    assert (result.num_pairs, result.num_steps) == (5, 2)
    assert result.metrics["dropped/too_long"] == 2
    assert [probe.id for probe in result.probes] == ["pair-4", "pair-5", "pair-2", "pair-3", "pair-0"]
    assert result.loss_last != pytest.approx(result.loss_first, abs=1e-4), "the second step saw the first's update"


def test_closing_ends_workers_that_wait_for_a_streams_files(groups: dict[str, Group], pairs: list[Example]) -> None:
    sharded = groups["sharded"]
    with sharded.from_base():
        sharded.begin(num_examples_at_most=BATCH)
        sharded.offer([altered(pairs[2], rejected={"token_ids": (5,) * 80})])
        sharded.trainer.check()
        started = time.monotonic()
        sharded.trainer.close()
    assert time.monotonic() - started < 20


def test_a_pair_of_another_policy_is_not_trained_and_named(groups: dict[str, Group], pairs: list[Example]) -> None:
    stale = groups["stale"]
    stale.begin(num_examples_at_most=BATCH)
    with pytest.raises(ActorFailure, match=r"worker 0: StalePolicyError: example pair-1 is of policy version 3;"):
        stale.offer([pairs[0]])
        stale.offer([altered(pairs[1], policy_version=3)])
        stale.finish()
    with pytest.raises(ActorFailure, match="pair-1"):
        stale.trainer.check()


def test_bad_lora_target_is_the_users_error_and_lists_what_there_is(
    groups: dict[str, Group], pairs: list[Example]
) -> None:
    with pytest.raises(ConfigError, match=r"train\.lora_targets.* called query; there are down_proj, .*v_proj"):
        groups["mistaken"].round(pairs)


def test_loss_that_is_no_number_names_step_and_pairs_at_once(one: Group, pairs: list[Example]) -> None:
    broken = [altered(pairs[0], id="broken", chosen={"logp": math.nan})]
    started = time.monotonic()
    with pytest.raises(ActorFailure, match=r"worker 0: FloatingPointError: step 1: the loss is nan; .*: broken\."):
        one.round(broken)
    assert time.monotonic() - started < 10
    with pytest.raises(ActorFailure, match="broken"):
        one.trainer.check()


def test_a_killed_worker_comes_back_and_the_round_goes_on_from_its_checkpoint(
    groups: dict[str, Group], pairs: list[Example], tmp_path: Path
) -> None:
    trainer, first = groups["two"].trainer, groups["two"].trainer.worker_pids.copy()
    base = trainer._adapters
    four_steps = [
        replace(pair, id=pair.id + again, policy_version=len(base)) for again in ("", "-again") for pair in pairs
    ]
    file = write_examples(tmp_path / "examples.parquet", four_steps)

    def train(name: str, *, kill_at: int | None) -> tuple[TrainResult, list[int]]:
        steps: list[int] = []

        def note(step: int, num_steps: int, loss: float, *_: object) -> None:
            steps.append(step)
            if len(steps) == kill_at:
                os.kill(first[1], signal.SIGKILL)  # while the step's checkpoint is being written

        trainer._adapters = base  # both are the same round of the same run
        order = TrainOrder(
            cycle=Cycle(round_index=1, policy_version=len(base)),
            output_dir=str(tmp_path / name / "adapter"),
            num_examples_at_most=len(four_steps),
        )
        trainer.begin(order)
        trainer.offer([file])
        return trainer.finish(on_step=note), steps

    undisturbed, steps = train("undisturbed", kill_at=None)
    assert steps == [1, 2, 3, 4]
    disturbed, steps = train("disturbed", kill_at=2)
    assert [str(death)[:19] for death in trainer.deaths] == ["train worker 1 died"]
    assert steps in ([1, 2, 2, 3, 4], [1, 2, 3, 4]), "the second checkpoint was whole, or the first was used"
    assert not set(trainer.worker_pids.values()) & set(first.values()), "no worker is an old one"
    assert disturbed.loss_first == pytest.approx(undisturbed.loss_first, abs=1e-6)
    expected = _adapter(undisturbed)
    for name, tensor in _adapter(disturbed).items():
        assert torch.allclose(tensor, expected[name], rtol=0.0, atol=1e-5), name
    assert _probed(disturbed) == pytest.approx(_probed(undisturbed), abs=1e-4)


def test_a_death_that_may_not_be_mended_names_the_worker_its_log_and_what_is_kept(
    groups: dict[str, Group], pairs: list[Example]
) -> None:
    two = groups["two"]
    two.trainer._restarts.most = 0
    pids = two.trainer.worker_pids
    assert len(pids) == 2
    killed_at: list[float] = []

    def kill() -> None:
        if not killed_at:
            os.kill(pids[1], signal.SIGKILL)
            killed_at.append(time.monotonic())

    with pytest.raises(ActorFailure) as raised:
        two.round(pairs, on_step=kill)
    assert time.monotonic() - killed_at[0] < 15
    message = str(raised.value)
    assert message.startswith("train worker 1 died: "), "the cause, not the error of the worker that it left alone"
    assert re.search(r"train\.restarts is 0\. .* the same command goes on from (step 1|the cycle's begin)", message)
    log = two.directory / "logs" / "train_worker_1.log"
    assert f"The end of {log}:\n" in message
    assert message.endswith(log.read_text().splitlines()[-1])
