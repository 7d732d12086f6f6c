"""The shared-prefix step against TRL's unmodified DPOTrainer: losses, log-probs and every LoRA gradient, in fp32.

TRL gets the same token ids in its own concatenated batch and computes its own reference by disabling the adapter.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
import shutil
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from fakes import preference_pair
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import (
    FAMILIES,
    build_tiny_gemma3,
    build_tiny_llava,
)
from torch.utils._python_dispatch import TorchDispatchMode
from training_examples import altered
from training_process import start_training_process

from csr_ray.config.schema import Train
from csr_ray.data.pictures import load_picture
from csr_ray.errors import ConfigError, ReferenceGapError
from csr_ray.records import Example
from csr_ray.training import objectives
from csr_ray.training.collate import PairCollator, SharedPrefixCollator, pair_rows
from csr_ray.training.shared_prefix import CHOSEN, REJECTED, lay_out, visibility

# width, height; LLaVA-NeXT and Qwen-VL make another number of tokens of each
SIZES_PX = ((150, 62), (70, 170), (64, 64), (90, 40))
BETA = 0.2
RELATIVE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Family:
    model: Path
    processor: Any
    pairs: tuple[Example, ...]


def _pairs(directory: Path) -> tuple[Example, ...]:
    rng = random.Random(0)
    pairs = []
    for index, (width, height) in enumerate(SIZES_PX):
        path = directory / f"{index}.png"
        Image.frombytes("RGB", (width, height), rng.randbytes(3 * width * height)).save(path)
        chosen, rejected = (
            tuple(rng.randrange(20, 300) for _ in range(rng.choice((1, 4, 9, 23)) + add)) for add in (0, 1)
        )
        pairs.append(
            preference_pair(
                id=f"pair-{index}",
                image=str(path),
                prompt=("Describe the image.", "Is there a green star? Say where, if so.")[index % 2],
                chosen_ids=chosen,
                rejected_ids=rejected,
                chosen_logp=-40.0 - index,
                rejected_logp=-42.0 + index,
            )
        )
    return tuple(pairs)


def _family(name: str, *, directory: Path) -> Family:
    from transformers import AutoProcessor

    build = {**FAMILIES, "gemma3": build_tiny_gemma3}[name]
    model = build(directory / "model", seed=0)
    return Family(model=model, processor=AutoProcessor.from_pretrained(model), pairs=_pairs(directory))


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return _family(request.param, directory=tmp_path_factory.mktemp(request.param))


def _policy(family: Family) -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(family.model, dtype=torch.float32)


def _lora() -> Any:
    """Not at zero, so that both matrices of every layer have a gradient and the reference is another policy."""
    from peft import LoraConfig

    targets = r".*\blanguage_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    return LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")


def _arguments(directory: Path, **settings: Any) -> Any:
    from trl import DPOConfig

    return DPOConfig(
        output_dir=str(directory),
        beta=BETA,
        per_device_train_batch_size=8,
        max_length=None,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        remove_unused_columns=False,
        report_to=[],
        **settings,
    )


@dataclass(frozen=True, kw_only=True)
class Computed:
    loss: float
    gradients: dict[str, torch.Tensor]
    metrics: dict[str, float]


def _computed(trainer: Any, batch: dict[str, Any]) -> Computed:
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    metrics = {key: value[-1] for key, value in trainer._metrics["train"].items()}
    return Computed(loss=loss.item(), gradients=gradients, metrics=metrics)


def _by_trl(family: Family, *, directory: Path, pairs: Sequence[Example] = (), **settings: Any) -> Computed:
    from datasets import Dataset
    from trl import DPOTrainer

    rows = pair_rows(pairs or family.pairs)
    collator = PairCollator(processor=family.processor, load_picture=load_picture)
    torch.manual_seed(1)
    trainer = DPOTrainer(
        _policy(family),
        args=_arguments(directory, **settings),
        data_collator=collator,
        train_dataset=Dataset.from_list(rows),
        processing_class=family.processor,
        peft_config=_lora(),
    )
    batch = collator(rows)
    for ours in ("pair_index", "ref_chosen_logps", "ref_rejected_logps"):
        del batch[ours]
    return _computed(trainer, batch)


def _trainer(
    family: Family,
    *,
    directory: Path,
    train: Train,
    budget: int | None = None,
    multiple: int = 1,
    **settings: Any,
) -> Any:
    from actors.train.examples import HeldExamples
    from actors.train.pair_trainer import PairTrainer
    from actors.train.shared_step import family_positions

    policy = _policy(family)
    torch.manual_seed(1)
    return PairTrainer(
        policy,
        args=_arguments(directory, **settings),
        train=train,
        examples=HeldExamples(family.pairs),
        collator=SharedPrefixCollator(
            processor=family.processor,
            load_picture=load_picture,
            positions=family_positions(policy),
            budget=budget,
            multiple=multiple,
        ),
        lora=_lora(),
    )


def _assert_same(ours: Computed, theirs: Computed) -> None:
    assert ours.loss == pytest.approx(theirs.loss, rel=RELATIVE)
    assert ours.gradients.keys() == theirs.gradients.keys() and ours.gradients
    for name, expected in theirs.gradients.items():
        scale = expected.abs().max()
        assert scale > 0, name
        assert (ours.gradients[name] - expected).abs().max() <= RELATIVE * scale, name


RECOMPUTE = Train(beta=BETA, reference="recompute", dtype="float32")


@pytest.fixture(scope="module")
def theirs(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Computed:
    return _by_trl(family, directory=tmp_path_factory.mktemp("trl"))


@pytest.mark.parametrize("budget", [None, 100, 4096])
def test_loss_and_every_gradient_are_trls(
    family: Family, theirs: Computed, tmp_path: Path, budget: int | None
) -> None:
    trainer = _trainer(family, directory=tmp_path, train=RECOMPUTE, budget=budget)
    batch = trainer.data_collator(pair_rows(family.pairs))
    num_rows = len(batch["shared"]["input_ids"])
    assert num_rows == {None: 4, 4096: 1}.get(budget, num_rows)
    ours = _computed(trainer, batch)
    _assert_same(ours, theirs)
    assert ours.loss != pytest.approx(0.6931, abs=1e-3), "policy and reference differ"
    for key in theirs.metrics.keys() - {"num_tokens"}:  # the prompt counts once here
        assert ours.metrics[key] == pytest.approx(theirs.metrics[key], rel=RELATIVE, abs=1e-4), (
            key
        )  # differences of sums


@pytest.mark.parametrize("budget", [None, 4096])
def test_padding_to_whole_blocks_changes_nothing(
    family: Family, theirs: Computed, tmp_path: Path, budget: int | None
) -> None:
    """FlexAttention gets its rows so."""
    trainer = _trainer(family, directory=tmp_path, train=RECOMPUTE, budget=budget, multiple=128)
    batch = trainer.data_collator(pair_rows(family.pairs))
    assert batch["shared"]["input_ids"].shape[1] % 128 == 0
    _assert_same(_computed(trainer, batch), theirs)


@pytest.mark.parametrize("budget", [None, 100])
def test_log_prob_of_every_token_is_that_of_two_separate_rows(
    family: Family, tmp_path: Path, budget: int | None
) -> None:
    trainer = _trainer(family, directory=tmp_path, train=RECOMPUTE, budget=budget)
    separate = PairCollator(processor=family.processor, load_picture=load_picture)
    trainer.model_wrapped = trainer.model
    together = trainer.answer_logps(family.pairs, collator=trainer.data_collator)
    apart = trainer.answer_logps(family.pairs, collator=separate)
    answers = [pair.chosen.token_ids for pair in family.pairs] + [pair.rejected.token_ids for pair in family.pairs]
    assert [len(row) for row in together] == [len(answer) for answer in answers]
    for ours, theirs in zip(together, apart, strict=True):
        assert torch.allclose(ours, theirs, rtol=RELATIVE, atol=1e-5)


def test_two_half_batches_average_to_one(family: Family, theirs: Computed, tmp_path: Path) -> None:
    """What data parallelism does with two workers."""
    trainer = _trainer(family, directory=tmp_path, train=RECOMPUTE, budget=4096)
    rows = pair_rows(family.pairs)
    first, second = (_computed(trainer, trainer.data_collator(half)) for half in (rows[:2], rows[2:]))
    mean = Computed(
        loss=(first.loss + second.loss) / 2,
        gradients={name: (first.gradients[name] + second.gradients[name]) / 2 for name in first.gradients},
        metrics={},
    )
    _assert_same(mean, theirs)


def test_gradient_checkpointing_changes_nothing(family: Family, theirs: Computed, tmp_path: Path) -> None:
    trainer = _trainer(family, directory=tmp_path, train=RECOMPUTE, budget=100)
    trainer.model.gradient_checkpointing_enable()
    trainer.model.enable_input_require_grads()
    assert trainer.model.get_base_model().is_gradient_checkpointing
    _assert_same(_computed(trainer, trainer.data_collator(pair_rows(family.pairs))), theirs)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return _family("llava", directory=tmp_path_factory.mktemp("llava_alone"))


@pytest.mark.parametrize(
    "objective, by_trl", [("sigmoid_average", "sigmoid_norm"), ("ipo", "ipo"), ("sft", "sft"), ("sigmoid", "sigmoid")]
)
def test_objectives_that_trl_has_are_trls_and_ours(
    llava: Family, tmp_path: Path, objective: str, by_trl: str
) -> None:
    theirs = _by_trl(llava, directory=tmp_path, loss_type=[by_trl])
    trainer = _trainer(llava, directory=tmp_path, train=RECOMPUTE, budget=100, loss_type=[by_trl])
    batch = trainer.data_collator(pair_rows(llava.pairs))
    _assert_same(_computed(trainer, batch), theirs)
    logps, tokens = _sums(trainer, llava)
    chosen_tokens, rejected_tokens = tokens
    loss = {
        "sigmoid": lambda: objectives.dpo_loss(*logps, beta=BETA),
        "sigmoid_average": lambda: objectives.length_averaged_dpo_loss(
            *logps, chosen_tokens=chosen_tokens, rejected_tokens=rejected_tokens, beta=BETA
        ),
        "ipo": lambda: objectives.ipo_loss(
            *logps, chosen_tokens=chosen_tokens, rejected_tokens=rejected_tokens, beta=BETA
        ),
        "sft": lambda: objectives.sft_loss(logps[0], num_tokens=chosen_tokens),
    }[objective]()
    assert loss.mean().item() == pytest.approx(theirs.loss, rel=RELATIVE)


def _single(pairs: Sequence[Example]) -> list[Example]:
    """The chosen answers alone, to be imitated."""
    return [
        dataclasses.replace(pair, targets=(dataclasses.replace(pair.chosen, role="answer", logp=None),))
        for pair in pairs
    ]


@pytest.mark.parametrize("is_shared", [False, True])
def test_single_answers_give_trls_sft_loss_and_gradients(llava: Family, tmp_path: Path, is_shared: bool) -> None:
    theirs = _by_trl(llava, directory=tmp_path, loss_type=["sft"])
    train = Train(beta=BETA, objective="sft", dtype="float32")
    trainer = _trainer(llava, directory=tmp_path, train=train, budget=100, loss_type=["sft"])
    separate = PairCollator(processor=llava.processor, load_picture=load_picture)
    collate = trainer.data_collator if is_shared else separate
    examples = _single(llava.pairs)
    batch = collate(pair_rows(examples))
    num_tokens = sum(len(example.preferred.token_ids) for example in examples)
    assert batch["completion_mask"].sum() == num_tokens and len(batch["input_ids"]) == len(examples)
    ours = _computed(trainer, batch)
    _assert_same(ours, theirs)
    for name in ("mean_token_accuracy", "logps/chosen"):
        assert ours.metrics[name] == pytest.approx(theirs.metrics[name], rel=RELATIVE)
    trainer.model_wrapped = trainer.model
    logps = trainer.answer_logps(examples, collator=collate)
    assert [len(row) for row in logps] == [len(example.preferred.token_ids) for example in examples]
    chosen, rejected = trainer.sums_of_pairs(examples)
    assert chosen == pytest.approx([float(row.sum()) for row in logps], rel=RELATIVE) and rejected == []


@pytest.mark.parametrize("objective", ["sft", "weighted_sft"])
def test_an_answers_weight_is_its_part_of_the_loss(llava: Family, tmp_path: Path, objective: str) -> None:
    train = Train(beta=BETA, objective=objective, dtype="float32")
    trainer = _trainer(llava, directory=tmp_path, train=train, budget=100, loss_type=["sft"])
    weights = torch.tensor([0.25, 1.0, 2.0, 1.0])
    examples = [
        dataclasses.replace(example, weight=weight)
        for example, weight in zip(_single(llava.pairs), weights.tolist(), strict=True)
    ]
    trainer.model_wrapped = trainer.model
    logp = torch.stack([row.sum() for row in trainer.answer_logps(examples, collator=trainer.data_collator)])
    num_tokens = torch.tensor([len(example.preferred.token_ids) for example in examples])
    loss = {"sft": objectives.sft_loss, "weighted_sft": objectives.weighted_sft_loss}[objective]
    expected = loss(logp, num_tokens=num_tokens, weights=weights).mean().item()
    # The collator may lay them out in another order than they come in.
    assert _computed(trainer, trainer.data_collator(pair_rows(examples))).loss == pytest.approx(expected, rel=1e-3)


def _sums(trainer: Any, family: Family) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """(policy chosen, policy rejected, reference chosen, reference rejected), (chosen tokens, rejected tokens)."""
    trainer.model_wrapped = trainer.model
    separate = PairCollator(processor=family.processor, load_picture=load_picture)
    halves = []
    for is_reference in (False, True):
        if is_reference:
            with trainer.model.disable_adapter():
                rows = trainer.answer_logps(family.pairs, collator=separate)
        else:
            rows = trainer.answer_logps(family.pairs, collator=separate)
        halves += list(torch.stack([row.sum() for row in rows]).chunk(2))
    num_tokens = torch.tensor([len(row) for row in rows])
    return halves, list(num_tokens.chunk(2))


@pytest.mark.parametrize(
    "settings",
    [{"objective": "dpo_positive", "positive_penalty": 5.0}, {"label_smoothing": 0.1}, {"nll_weight": 1 / 1024}],
)
def test_objectives_that_trl_lacks_are_the_pure_functions(
    llava: Family, tmp_path: Path, settings: dict[str, Any]
) -> None:
    train = Train(beta=BETA, reference="recompute", dtype="float32", **settings)
    if "objective" in settings:  # with these weights it is the rejected answers that partly fell below the reference
        exchanged = [
            altered(
                pair, chosen={"token_ids": pair.rejected.token_ids}, rejected={"token_ids": pair.chosen.token_ids}
            )
            for pair in llava.pairs
        ]
        llava = dataclasses.replace(llava, pairs=tuple(exchanged))
    trainer = _trainer(llava, directory=tmp_path, train=train, budget=100)
    computed = _computed(trainer, trainer.data_collator(pair_rows(llava.pairs)))
    logps, _ = _sums(trainer, llava)
    if "objective" in settings:
        expected = objectives.dpo_positive_loss(*logps, beta=BETA, penalty=5.0).mean()
    elif "nll_weight" in settings:
        expected = (objectives.dpo_loss(*logps, beta=BETA) + objectives.nll_loss(logps[0]) / 1024).mean()
    else:
        expected = objectives.dpo_loss(*logps, beta=BETA, label_smoothing=0.1).mean()
    assert computed.loss == pytest.approx(expected.item(), rel=RELATIVE)
    assert computed.loss != pytest.approx(objectives.dpo_loss(*logps, beta=BETA).mean().item(), rel=1e-3)


def test_rollout_reference_is_the_records(llava: Family, tmp_path: Path) -> None:
    trainer = _trainer(llava, directory=tmp_path, train=Train(beta=BETA, dtype="float32"), budget=100)
    computed = _computed(trainer, trainer.data_collator(pair_rows(llava.pairs)))
    (chosen, rejected, _, _), _ = _sums(trainer, llava)
    given = [torch.tensor([pair.target(role).logp for pair in llava.pairs]) for role in ("chosen", "rejected")]
    expected = objectives.dpo_loss(chosen, rejected, *given, beta=BETA).mean().item()
    assert computed.loss == pytest.approx(expected, rel=RELATIVE)


def test_check_measures_the_gap_and_names_the_pair_beyond_it(llava: Family, tmp_path: Path) -> None:
    train = Train(beta=BETA, dtype="float32", reference="check", reference_tolerance=1e-3)
    trainer = _trainer(llava, directory=tmp_path, train=train, budget=100)
    (_, _, chosen, rejected), _ = _sums(trainer, llava)
    true = [
        altered(pair, chosen={"logp": float(chosen[index])}, rejected={"logp": float(rejected[index]) + 1e-4})
        for index, pair in enumerate(llava.pairs)
    ]
    computed = _computed(trainer, trainer.data_collator(pair_rows(true)))
    assert len(trainer.reference_gaps) == 2 * len(true)
    assert 0 < max(trainer.reference_gaps) < 1e-3
    assert torch.isfinite(torch.tensor(computed.loss))
    off = [*true[:2], altered(true[2], rejected={"logp": true[2].rejected.logp - 3.0}), true[3]]
    with pytest.raises(ReferenceGapError, match=r"pair-2 of policy version 0.*train\.reference_tolerance = 0\.001"):
        _computed(trainer, trainer.data_collator(pair_rows(off)))


class _Waits(TorchDispatchMode):
    """Notes where our own files do what makes a CPU wait for a GPU: read a number, or count a mask's elements."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        by_mask = func in (aten.index.Tensor, aten.index_put_.default) and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        waits = (aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default)
        if by_mask or func in waits:
            frames = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename][:-1]
            if "/actors/" in frames[-1].filename or "/csr_ray/" in frames[-1].filename:
                self.found.append(f"{frames[-1].filename}:{frames[-1].lineno}: {func}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("budget", [None, 4096])
def test_no_line_of_ours_waits_for_the_gpu_in_a_micro_batch(
    llava: Family, tmp_path: Path, budget: int | None
) -> None:
    """Counted on the CPU by the operations that wait on a GPU; TRL's own metrics wait some 17 times."""
    trainer = _trainer(llava, directory=tmp_path, train=Train(beta=BETA, dtype="float32"), budget=budget)
    batch = trainer.data_collator(pair_rows(llava.pairs))
    trainer.model.train()
    trainer.accelerator.gradient_state._set_sync_gradients(False)  # not the last micro-batch of its step
    with _Waits() as waits:
        loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))
        loss.backward()
    assert waits.found == []


def test_logits_of_a_bfloat16_policy_are_in_float32(llava: Family, tmp_path: Path) -> None:
    """Where logits reach 30, log-probs made of bfloat16 ones would be off by up to a sixteenth."""
    trainer = _trainer(llava, directory=tmp_path, train=Train(beta=BETA, dtype="float32"))
    policy = trainer.model.get_base_model()
    with torch.no_grad():
        policy.lm_head.weight.mul_(10.0 / policy.lm_head.weight.std() / policy.lm_head.weight.shape[1] ** 0.5)
    trainer.model.to(torch.bfloat16)
    kept: list[torch.Tensor] = []
    hook = policy.base_model.register_forward_hook(
        lambda module, args, output: kept.append(output.last_hidden_state), always_call=True
    )
    pairs = llava.pairs[:1]
    collator = PairCollator(processor=llava.processor, load_picture=load_picture)
    batch = collator(pair_rows(pairs))
    batch["pixel_values"] = batch["pixel_values"].to(torch.bfloat16)
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    inputs = {key: value for key, value in batch.items() if key in ("input_ids", "attention_mask", "pixel_values")}
    with torch.no_grad():
        logps = policy(**inputs, labels=labels, fused_lm_head=True, use_cache=False).log_probs
        logits = kept[0].float() @ policy.lm_head.weight.float().T
    hook.remove()
    targets = labels[:, 1:]
    expected = logits[:, :-1].log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    is_answer = targets != -100
    assert logits[:, :-1][is_answer].abs().max() > 16
    torch.testing.assert_close(logps[is_answer], expected[is_answer], rtol=1e-5, atol=1e-4)


def test_loss_of_any_micro_batch_that_is_no_number_is_named_before_the_update(llava: Family, tmp_path: Path) -> None:
    trainer = _trainer(llava, directory=tmp_path, train=Train(beta=BETA, dtype="float32"), budget=100)
    broken = pair_rows([altered(llava.pairs[0], chosen={"logp": float("nan")})])
    state = trainer.accelerator.gradient_state
    state._set_sync_gradients(False)
    _computed(trainer, trainer.data_collator([{**broken[0], "index": 2}]))
    state._set_sync_gradients(True)
    with pytest.raises(FloatingPointError, match=r"step 1: the loss is nan; pairs of the batch: pair-2\."):
        _computed(trainer, trainer.data_collator(pair_rows(llava.pairs)))


def test_loss_that_is_no_number_names_the_pairs(llava: Family, tmp_path: Path) -> None:
    trainer = _trainer(llava, directory=tmp_path, train=Train(beta=BETA, dtype="float32"), budget=100)
    broken = [altered(llava.pairs[1], chosen={"logp": float("nan")})]
    rows = [{**row, "index": 1} for row in pair_rows(broken)]
    with pytest.raises(FloatingPointError, match=r"the loss is nan; pairs of the batch: pair-1\."):
        _computed(trainer, trainer.data_collator(rows))


def _answers_see_each_other(pair: torch.Tensor, branch: torch.Tensor) -> torch.Tensor:
    return visibility(pair, torch.zeros_like(branch))


def _rejected_sees_the_last_chosen_token(pair: torch.Tensor, branch: torch.Tensor) -> torch.Tensor:
    is_last = (branch == CHOSEN) & (branch.roll(-1, dims=1) != CHOSEN)
    leak = (branch == REJECTED)[:, :, None] & is_last[:, None, :] & (pair[:, :, None] == pair[:, None, :])
    return visibility(pair, branch) | leak[:, None]


def _positions_go_on(rows: Any, **settings: Any) -> Any:
    layout = lay_out(rows, **settings)
    num_chosen = (layout.branch == CHOSEN).sum(dim=1, keepdim=True)  # with one pair a row
    moved = layout.positions + torch.where(layout.branch == REJECTED, num_chosen, 0)
    return dataclasses.replace(layout, positions=moved)


WRONG = {
    "answers see each other": ("actors.train.shared_step.visibility", _answers_see_each_other),
    "rejected sees one token": ("actors.train.shared_step.visibility", _rejected_sees_the_last_chosen_token),
    "positions go on": ("csr_ray.training.collate.lay_out", _positions_go_on),
}


def _rehearsed(model: Path, step: str, settings: dict[str, Any] | None = None, wrong: str | None = None) -> bool:
    from actors.train.cycle import CycleTrainer

    train = {"step": step, "batch_size": 2, "lora_rank": 4, "dtype": "float32", "threads": 1, **(settings or {})}
    trainer = CycleTrainer(Train(**train), model=model, seed=0)
    try:
        with mock.patch(*WRONG[wrong]) if wrong else contextlib.nullcontext():
            trainer.rehearse()
        num_steps = trainer._finished.model_wrapped.global_steps  # type: ignore[union-attr]
        assert num_steps == (2 if trainer.shares_prefix else 1), "the settled form was trained, too"
    finally:
        trainer.prepare(())  # lets go of the process's DeepSpeed, so that the next family finds it free
    return trainer.shares_prefix


def _sharpened(model: Path, *, directory: Path) -> Path:
    """A copy whose attention and answers are far from uniform, as those of a trained model are."""
    shutil.copytree(model, directory)
    tensors = load_file(directory / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("lm_head.weight"):
            tensor *= 4
        elif "language_model" in name and name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor *= 1.5
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.long)])
def test_the_rehearsal_takes_the_right_form_and_no_wrong_one(
    training_process: ProcessPoolExecutor, tmp_path: Path, dtype: str
) -> None:
    for name, build in FAMILIES.items():
        plain = build(tmp_path / name, seed=0)
        for model in (plain, _sharpened(plain, directory=tmp_path / f"{name}_sharp")):
            for wrong in (None, *WRONG):
                job = training_process.submit(_rehearsed, model, "auto", {"dtype": dtype}, wrong)
                assert job.result(timeout=120) is (wrong is None), (model.name, wrong)
    gemma = build_tiny_gemma3(tmp_path / "gemma", seed=0)
    assert training_process.submit(_rehearsed, gemma, "auto", {"dtype": dtype}).result(timeout=120) is False


def _rehearsed_with_any_gap(model: Path, dtype: str) -> bool:
    with mock.patch("actors.train.cycle._SAME_FORM", math.inf):
        return _rehearsed(model, "auto", {"dtype": dtype})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tokens_that_see_what_is_behind_them_are_found_where_rounding_hides_it(
    training_process: ProcessPoolExecutor, tmp_path: Path, dtype: str
) -> None:
    """On a GPU in bfloat16, rounding moved a tiny Gemma 3 by more than the mask that it does not have."""

    def rehearsed(build: Callable[..., Path]) -> bool:
        model = build(tmp_path / build.__name__, seed=0)
        return training_process.submit(_rehearsed_with_any_gap, model, dtype).result(timeout=120)

    assert [rehearsed(build) for build in FAMILIES.values()] == [True] * len(FAMILIES)
    assert rehearsed(build_tiny_gemma3) is False


class _CompilerError(Exception):
    """As Triton's and torch.compile's, some of which are no RuntimeError."""


def _rehearsed_with(model: Path, error: BaseException) -> bool:
    with mock.patch("actors.train.pair_trainer.PairTrainer.try_backward", side_effect=error):
        return _rehearsed(model, "auto")


def test_a_form_without_a_backward_pass_is_left_out_and_an_interrupt_is_not_swallowed(
    training_process: ProcessPoolExecutor, tmp_path: Path
) -> None:
    model = build_tiny_llava(tmp_path / "model", seed=0)
    for error in (_CompilerError("no kernel"), torch.OutOfMemoryError("2 GiB"), NotImplementedError("backward")):
        assert training_process.submit(_rehearsed_with, model, error).result(timeout=120) is False
    with start_training_process() as pool, pytest.raises(KeyboardInterrupt):
        pool.submit(_rehearsed_with, model, KeyboardInterrupt()).result(timeout=120)


def _rehearsed_in_shards(model: Path) -> str:
    from csr_ray.errors import ConfigError

    with mock.patch("actors.train.pair_trainer.PairTrainer.step", side_effect=RuntimeError("no kernel")):
        try:
            _rehearsed(model, "auto", {"deepspeed_stage": 3})
        except ConfigError as error:
            return str(error)
    return "it went through"


def test_a_step_that_fails_for_all_workers_together_names_the_form_that_trains(tmp_path: Path) -> None:
    """At stage 3 a form's backward pass is not tried apart, so there is no next form to fall back to."""
    model = build_tiny_llava(tmp_path / "model", seed=0)
    with start_training_process() as pool:  # of its own, because a failed rehearsal leaves DeepSpeed's marks
        message = pool.submit(_rehearsed_in_shards, model).result(timeout=120)
    assert message.startswith("train.step = 'auto': ") and message.endswith("set train.step=concatenated")
    assert "RuntimeError: no kernel" in message


def test_each_family_is_probed_and_one_that_cannot_share_falls_back(
    training_process: ProcessPoolExecutor, tmp_path: Path
) -> None:
    """Gemma 3 lets image tokens see each other in both directions, which this mask would take away."""

    def rehearsed(name: str, *, step: str) -> bool:
        model = tmp_path / name
        if not model.exists():
            {**FAMILIES, "gemma3": build_tiny_gemma3}[name](model, seed=0)
        return training_process.submit(_rehearsed, model, step, {"pack_tokens": 4096}).result(timeout=120)

    assert [rehearsed(name, step="auto") for name in FAMILIES] == [True] * len(FAMILIES)
    assert rehearsed("gemma3", step="auto") is False
    with pytest.raises(ConfigError, match=r"train\.step = 'shared_prefix': Gemma3.* set train\.step to auto"):
        rehearsed("gemma3", step="shared_prefix")
