"""A trainer's step at real shapes: csr_ray's shared-prefix step, or that of TRL's own trainer.

The model has random weights, made on the card in bfloat16. Batches are collated beforehand and lie in main memory: a
step is the copy to the card, forward, backward, clipping and update. Memory is what torch has allocated at most,
above the frozen weights: the LoRA, its optimizer, and what a step keeps. Precisions:

    adapter   the LoRA in bfloat16, AdamW on float32 copies of it: what DeepSpeed makes of a run's bf16
    autocast  the LoRA in float32 under autocast: what `bf16=True` is in TRL's trainer, and so TRL's own
"""

from __future__ import annotations

import contextlib
import gc
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from card import matrix_rate, row, said, synchronize
from random_llava import model_of, pairs_of, processor_of
from sizes import Size
from train_sides import NUM_PROMPT_TOKENS, Side, lora_of, our_side, settings_of, trl_side

from csr_ray.machine.model_shape import ModelShape, shape_of_config

_WARM_UPS = 2
_LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_KERNELS_LISTED = 15
# Kernels of matrix products, by the names that cuBLAS, CUTLASS and their likes give them.
_PRODUCT = re.compile(r"gemm|nvjet|cutlass|xmma|splitk", re.IGNORECASE)


class MasterAdamW:
    """AdamW on float32 copies of parameters in a smaller dtype, as DeepSpeed has it for bfloat16."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter], *, learning_rate: float) -> None:
        self._parameters = list(parameters)
        self._copies = [parameter.detach().float().clone() for parameter in self._parameters]
        self._adam = torch.optim.AdamW(self._copies, lr=learning_rate, fused=self._copies[0].is_cuda)

    @torch.no_grad()
    def step(self) -> None:
        for copy, parameter in zip(self._copies, self._parameters, strict=True):
            assert parameter.grad is not None
            copy.grad = parameter.grad.float()
        self._adam.step()
        torch._foreach_copy_(self._parameters, self._copies)

    def zero_grad(self) -> None:
        for tensor in (*self._parameters, *self._copies):
            tensor.grad = None


def measure(*, device: str, size: Size, report: Any, model: str, side: str) -> None:
    """Report `rows` and `cases`, after every case.

    Args:
        model: a name in `size.models`.
        side: `ours` or `trl`.
    """
    ceiling = matrix_rate(device, side=size.matrix_side)
    shape = size.models[model]
    most = max(size.pairs[model])
    texts = pairs_of(most, vocab=shape.vocab, num_prompt_tokens=NUM_PROMPT_TOKENS, answer_tokens=size.answer_tokens)
    policy = model_of(shape, dtype="bfloat16", device=device)
    counts = shape_of_config(policy.config.to_dict())
    assert counts is not None
    made = {"ours": our_trainer, "trl": trl_trainer}[side]
    trained = made(policy, shape=shape, texts=texts, size=size, device=device, num_pairs=most)
    found = _Found(model=model, side=side, size=size, device=device, counts=counts, ceiling=ceiling, report=report)
    if side == "trl":
        _run_trl(trained, found=found)
    else:
        _run_ours(trained, found=found, policy=policy)


def pair_flops(
    shape: ModelShape, *, rank: int, num_prefix: int, num_chosen: int, num_rejected: int, is_shared: bool
) -> float:
    """Operations that training on one pair asks for, without what padding and hidden scores add.

    A frozen weight costs two for a token forward and two backward, one of the LoRA two and four; the frozen tower and
    the reference's pass two. The head sees answers' tokens only. Attention costs 4 x hidden for a token and one that
    it sees forward, and twice that backward.

    Args:
        num_prefix, num_chosen, num_rejected: tokens of the prompt with its picture, and of the answers.
        is_shared: one sequence without a reference's pass; otherwise two with one, as TRL's trainer has it.
    """
    weights = shape.layers * (
        2 * shape.hidden * (shape.hidden + shape.kv_width) + 3 * shape.hidden * shape.intermediate
    )
    lora = shape.num_lora_weights(rank=rank, targets=_LORA_TARGETS)
    head = shape.vocab * shape.hidden * (num_chosen + num_rejected)
    tower = 2.0 * (shape.num_weights - shape.num_text_weights) * shape.tower_tokens
    seen = [num * num_prefix + num * (num + 1) / 2 for num in (num_chosen, num_rejected)]
    own = num_prefix * (num_prefix + 1) / 2
    if is_shared:
        tokens = num_prefix + num_chosen - 1 + num_rejected - 1
        attention = 12.0 * shape.hidden * shape.layers * (own + sum(seen))
        return tokens * (4.0 * weights + 6.0 * lora) + 4.0 * head + tower + attention
    tokens = 2 * num_prefix + num_chosen + num_rejected
    attention = (12.0 + 4.0) * shape.hidden * shape.layers * (2 * own + sum(seen))
    return tokens * ((4.0 + 2.0) * weights + 6.0 * lora) + (4.0 + 2.0) * head + 4 * tower + attention


class _Found:
    """What was measured so far, and how a case is measured."""

    def __init__(
        self, *, model: str, side: str, size: Size, device: str, counts: ModelShape, ceiling: float, report: Any
    ) -> None:
        self._model, self._side, self._size, self._device = model, side, size, device
        self._counts, self._ceiling, self._report = counts, ceiling, report
        self._rows = [
            row(f"matrix_tflops [{model} {side}]", ceiling / 1e12, "TFLOP/s of a large product in bfloat16")
        ]
        self._cases: list[dict[str, Any]] = []
        self._profile: dict[str, Any] = {}

    @property
    def device(self) -> str:
        return self._device

    @property
    def sizes(self) -> Sequence[int]:
        return self._size.pairs[self._model]

    def case(self, stepper: Stepper, *, side: Side, num_pairs: int, kind: str) -> bool:
        """Measure steps of so many pairs; whether they ran. Where they did not, a row says why."""
        named = f"[{self._model} {self._side} {kind}, {num_pairs} pairs]"
        reason = ""
        try:
            step_s, peak, first = stepper.timed(side.batch(num_pairs), steps=self._size.steps)
        except Exception as error:  # one case is not to take the others along
            reason = "out of memory" if isinstance(error, torch.cuda.OutOfMemoryError) else said(error)
        if reason:
            stepper.forget()
            self._rows.append(row(f"pairs_per_s {named}", None, "pairs/s", why=reason))
            self._report(rows=self._rows, cases=self._cases, profile=self._profile)
            return False
        flops = {
            is_shared: sum(self._flops(*answer, is_shared=is_shared) for answer in side.answer_tokens[:num_pairs])
            for is_shared in (True, False)
        }
        seconds = statistics.median(step_s)
        own = flops[self._side == "ours"]
        case = {
            "model": self._model,
            "side": self._side,
            "kind": kind,
            "pairs": num_pairs,
            "step_s": step_s,
            "pairs_per_s": num_pairs / seconds,
            "peak_above_weights_bytes": peak,
            "share_of_matrix_rate": own / seconds / self._ceiling,
            "flop_ratio": flops[False] / flops[True],
            "chosen_logp": first,
        }
        self._cases.append(case)
        self._rows += [
            row(f"pairs_per_s {named}", case["pairs_per_s"], "pairs/s"),
            row(f"share_of_matrix_rate {named}", case["share_of_matrix_rate"], "of the card's measured rate"),
        ]
        if peak is not None:
            self._rows.append(row(f"peak_gib {named}", peak / 2**30, "GiB above the frozen weights"))
        self._report(rows=self._rows, cases=self._cases, profile=self._profile)
        return True

    def add(self, name: str, value: float, unit: str) -> None:
        self._rows.append(row(f"{name} [{self._model} {self._side}]", value, unit))
        self._report(rows=self._rows, cases=self._cases, profile=self._profile)

    def profile(self, stepper: Stepper, *, side: Side, num_pairs: int) -> None:
        """Say where the time of one step goes."""
        try:
            self._profile = stepper.profiled(side.batch(num_pairs))
            for key in ("busy_ms", "matrix_products_ms") if self._profile else ():
                share = self._profile[key] / self._profile["step_ms"]
                self._rows.append(
                    row(f"share_of_step [{self._model} {self._side}, {key[:-3]}]", share, "of its time")
                )
        except Exception as error:  # a profiler that breaks is not to take the figures along
            self._profile = {"why": said(error)}
        self._report(rows=self._rows, cases=self._cases, profile=self._profile)

    def _flops(self, num_chosen: int, num_rejected: int, *, is_shared: bool) -> float:
        return pair_flops(
            self._counts,
            rank=self._size.rank,
            num_prefix=self._counts.image_tokens + NUM_PROMPT_TOKENS,
            num_chosen=num_chosen,
            num_rejected=num_rejected,
            is_shared=is_shared,
        )


class Stepper:
    """Whole steps of a trainer; see the module for `precision`."""

    def __init__(self, trainer: Any, *, precision: str, device: str) -> None:
        self._trainer, self._device = trainer, device
        trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
        if precision == "adapter":
            # Where accelerate has put autocast around the model, it is taken off again.
            trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
            for parameter in trained:
                parameter.data = parameter.data.to(torch.bfloat16)
            self._optimizer: Any = MasterAdamW(trained, learning_rate=1e-5)
        else:
            trainer.accelerator.prepare_model(trainer.model)
            self._optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=device == "cuda")
        self._trained = trained
        frozen = (parameter for parameter in trainer.model.parameters() if not parameter.requires_grad)
        self._frozen_bytes = sum(parameter.numel() * parameter.element_size() for parameter in frozen)
        trainer.model.train()

    def step(self, batch: dict[str, Any]) -> None:
        trainer = self._trainer
        inputs = trainer._prepare_inputs(dict(batch))
        with getattr(trainer, "compute_loss_context_manager", contextlib.nullcontext)():
            loss = trainer.compute_loss(trainer.model, inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def chosen_logp(self, batch: dict[str, Any]) -> float:
        """The mean log-prob of the chosen answers as the policy is now; nothing is updated."""
        logged = self._trainer._metrics["train"]["logps/chosen"]
        self._trainer.compute_loss(self._trainer.model, self._trainer._prepare_inputs(dict(batch))).backward()
        self.forget()
        return float(logged[-1])

    def timed(self, batch: dict[str, Any], *, steps: int) -> tuple[list[float], int | None, float]:
        """Seconds of each step, the peak above the frozen weights, the first step's log-prob of chosen answers."""
        self.forget()
        logged = self._trainer._metrics["train"]["logps/chosen"]
        before = len(logged)
        step_s = []
        for number in range(_WARM_UPS + steps):
            if number == _WARM_UPS and self._device == "cuda":
                torch.cuda.reset_peak_memory_stats()  # what compiling tried out is not a step's
            synchronize(self._device)
            started_s = time.perf_counter()
            self.step(batch)
            synchronize(self._device)
            if number >= _WARM_UPS:
                step_s.append(time.perf_counter() - started_s)
        peak = torch.cuda.max_memory_allocated() - self._frozen_bytes if self._device == "cuda" else None
        return step_s, peak, float(logged[before])

    def profiled(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Which kernels one step's time goes to; empty without a GPU."""
        if self._device != "cuda":
            return {}
        from torch.profiler import ProfilerActivity, profile

        synchronize(self._device)
        with profile(activities=[ProfilerActivity.CUDA]) as recorded:
            started_s = time.perf_counter()
            self.step(batch)
            synchronize(self._device)
            step_s = time.perf_counter() - started_s
        kernels = sorted(
            ((event.self_device_time_total / 1e3, event.count, event.key) for event in recorded.key_averages()),
            reverse=True,
        )
        busy_ms = sum(ms for ms, _, _ in kernels)
        products_ms = sum(ms for ms, _, name in kernels if _PRODUCT.search(name))
        return {
            "step_ms": step_s * 1e3,
            "busy_ms": busy_ms,
            "matrix_products_ms": products_ms,
            "kernels": [
                {"ms": ms, "calls": calls, "name": name[:100]} for ms, calls, name in kernels[:_KERNELS_LISTED]
            ],
        }

    def forget(self) -> None:
        """Free what the last step, whole or not, has left."""
        self._optimizer.zero_grad()
        gc.collect()
        if self._device == "cuda":
            torch.cuda.empty_cache()


def our_trainer(policy: Any, *, shape: Any, texts: Any, size: Size, device: str, num_pairs: int) -> Side:
    from actors.train.shared_step import can_use_flex

    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # as a run's train worker has it for bfloat16
    return our_side(
        policy,
        processor=processor_of(shape),
        texts=texts,
        side_px=shape.image_px,
        settings=settings_of(num_pairs, on_gpu=device == "cuda"),
        lora=lora_of(size.rank),
        dtype="bfloat16",
        use_flex=device == "cuda" and can_use_flex(policy),
    )


def trl_trainer(policy: Any, *, shape: Any, texts: Any, size: Size, device: str, num_pairs: int) -> Side:
    return trl_side(
        policy,
        processor=processor_of(shape),
        texts=texts,
        side_px=shape.image_px,
        settings=settings_of(num_pairs, on_gpu=device == "cuda", autocast=True),
        lora=lora_of(size.rank),
    )


def _run_ours(side: Side, *, found: _Found, policy: Any) -> None:
    from actors.train.shared_step import compile_layers, set_flex

    stepper = Stepper(side.trainer, precision="adapter", device=found.device)
    collator = side.trainer.data_collator
    first, *more = found.sizes
    kind = "dense"
    if side.trainer.use_flex:
        if found.case(stepper, side=side, num_pairs=first, kind="flex"):
            kind = "flex"
            found.profile(stepper, side=side, num_pairs=first)
        set_flex(policy, is_on=False)
        side.trainer.use_flex, side.trainer.data_collator = False, replace(collator, multiple=1)
    found.case(stepper, side=side, num_pairs=first, kind="dense")
    if kind == "flex":
        set_flex(policy, is_on=True)
        side.trainer.use_flex, side.trainer.data_collator = True, collator
    if found.device == "cuda":
        batch = side.batch(first)
        compile_layers(policy, is_on=True)
        if found.case(stepper, side=side, num_pairs=first, kind="compiled"):
            kind = "compiled"
            found.profile(stepper, side=side, num_pairs=first)
            compiled = stepper.chosen_logp(batch)
            compile_layers(policy, is_on=False)
            found.add("compiled_logp_gap", abs(compiled / stepper.chosen_logp(batch) - 1), "relative")
            compile_layers(policy, is_on=True)
        else:
            compile_layers(policy, is_on=False)
    for num_pairs in more:
        if not found.case(stepper, side=side, num_pairs=num_pairs, kind=kind):
            break


def _run_trl(side: Side, *, found: _Found) -> None:
    stepper = Stepper(side.trainer, precision="autocast", device=found.device)
    fitting = []
    for num_pairs in found.sizes:
        if not found.case(stepper, side=side, num_pairs=num_pairs, kind="autocast"):
            break
        fitting.append(num_pairs)
    stepper.forget()
    stepper = Stepper(side.trainer, precision="adapter", device=found.device)
    for num_pairs in fitting[:2]:
        found.case(stepper, side=side, num_pairs=num_pairs, kind="adapter")
