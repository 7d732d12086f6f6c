"""Whole steps of the program's own trainer under DeepSpeed, with and without compiled decoder layers.

`trainer_part` times a step by itself. Here transformers' loop runs as in a round: ZeRO-2, the loader that makes
batches ahead, gradient clipping, logging. The model has random weights, made on the card in bfloat16.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from typing import Any

import torch
from card import row, said, synchronize
from random_llava import as_examples, model_of, pairs_of, picture, processor_of
from sizes import Size
from train_sides import NUM_PROMPT_TOKENS, lora_of
from transformers import TrainerCallback

_WARM_UPS = 3
_STEPS = 12


class _Clock(TrainerCallback):
    """When each step ended, and its loss."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.ends_s: list[float] = []
        self.losses: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.ends_s.append(time.perf_counter())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        synchronize(self._device)
        self.ends_s.append(time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs is not None and "loss" in logs:
            self.losses.append(float(logs["loss"]))


def measure(*, device: str, size: Size, report: Any, model: str, layers: str) -> None:
    """Report `rows` and `cases`.

    Args:
        model: a name in `size.models`.
        layers: `plain` or `compiled`.
    """
    from actors.train.shared_step import compile_layers

    num_pairs = sorted(size.pairs[model])[-2:][0]
    named = f"[{model} ZeRO-2 {layers}, {num_pairs} pairs]"
    num_steps = _WARM_UPS + (_STEPS if device == "cuda" else size.steps)
    trainer, policy, clock = _trainer(size=size, model=model, device=device, num_pairs=num_pairs, num_steps=num_steps)
    frozen = (parameter for parameter in policy.parameters() if not parameter.requires_grad)
    frozen_bytes = sum(parameter.numel() * parameter.element_size() for parameter in frozen)
    if layers == "compiled":
        compile_layers(policy, is_on=True)
    try:
        trainer.train()
    except Exception as error:  # a row that says why is worth more than none
        report(rows=[row(f"pairs_per_s {named}", None, "pairs/s", why=said(error))], cases=[])
        return
    taken_s = [after - before for before, after in zip(clock.ends_s, clock.ends_s[1:], strict=False)]
    step_s = taken_s[_WARM_UPS:]
    rows = [
        row(f"pairs_per_s {named}", num_pairs / statistics.median(step_s), "pairs/s"),
        row(f"first_step_s {named}", taken_s[0], "s, what is compiled at first use included"),
    ]
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() - frozen_bytes
        rows.append(row(f"peak_gib {named}", peak / 2**30, "GiB above the frozen weights"))
    case = {"model": model, "layers": layers, "pairs": num_pairs, "step_s": taken_s, "losses": clock.losses}
    report(rows=rows, cases=[case])


def _trainer(*, size: Size, model: str, device: str, num_pairs: int, num_steps: int) -> tuple[Any, Any, _Clock]:
    from actors.train.worker import prepare_process
    from csr_ray.config.schema import Train

    shape, on_gpu = size.models[model], device == "cuda"
    train = Train(
        batch_size=num_pairs,
        micro_batch_size=num_pairs,
        dtype="bfloat16",
        gpus_per_worker=float(on_gpu),
        lora_rank=size.rank,
        lora_alpha=2 * size.rank,
        learning_rate=1e-5,
        epochs=1,
        schedule="constant",
        warmup_ratio=0.0,
        deepspeed_stage=2,
        gradient_checkpointing=False,
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    prepare_process(train)

    from actors.train.cycle import join_group
    from actors.train.examples import HeldExamples
    from actors.train.pair_trainer import PairTrainer
    from actors.train.settings import training_arguments
    from actors.train.shared_step import FLEX_BLOCK, can_use_flex, family_positions, set_flex
    from csr_ray.training.collate import SharedPrefixCollator

    join_group(use_gpu=on_gpu)
    texts = pairs_of(
        num_pairs * num_steps,
        vocab=shape.vocab,
        num_prompt_tokens=NUM_PROMPT_TOKENS,
        answer_tokens=size.answer_tokens,
    )
    policy, processor = model_of(shape, dtype="bfloat16", device=device), processor_of(shape)
    use_flex = on_gpu and can_use_flex(policy)
    if use_flex:
        set_flex(policy, is_on=True)
    examples = as_examples(texts, images=[str(index) for index in range(len(texts))], tokenizer=processor.tokenizer)
    clock = _Clock(device)
    trainer = PairTrainer(
        policy,
        args=training_arguments(train, seed=0, round_index=0, learning_rate=1e-5, epochs=1, steps_a_pass=num_steps),
        train=train,
        examples=HeldExamples(examples),
        collator=SharedPrefixCollator(
            processor=processor,
            load_picture=lambda named: picture(int(named.path), side_px=shape.image_px),
            positions=family_positions(policy),
            multiple=FLEX_BLOCK if use_flex else 1,
        ),
        lora=lora_of(size.rank),
        use_flex=use_flex,
        loader_threads=2,
    )
    trainer.add_callback(clock)
    return trainer, policy, clock
