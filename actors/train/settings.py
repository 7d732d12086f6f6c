"""The config's `train` section in the words of TRL, transformers and DeepSpeed.

Imports the training stack, so only train workers import it. Knows settings; starts nothing.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from trl import DPOConfig

from csr_ray.config.schema import Train

# TRL's names of the objectives. One that TRL lacks runs as its sigmoid, and `actors.train.pair_trainer` replaces the
# loss.
_LOSSES = {"sigmoid_average": "sigmoid_norm", "ipo": "ipo", "sft": "sft", "weighted_sft": "sft", "two_views": "sft"}
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def training_arguments(
    train: Train,
    *,
    seed: int,
    round_index: int,
    learning_rate: float,
    epochs: int,
    steps_a_pass: int,
    output_dir: Path | None = None,
) -> DPOConfig:
    """TRL's and DeepSpeed's settings for one cycle.

    Args:
        epochs: passes over the examples, at most.
        steps_a_pass: optimizer steps of one of them, as planned.
        output_dir: where transformers is to write checkpoints, if it writes any.
    """
    per_worker = train.batch_size // train.workers
    micro = train.micro_batch_size or per_worker
    use_gpu = train.gpus_per_worker > 0
    return DPOConfig(
        output_dir=str(output_dir or tempfile.gettempdir()),  # without checkpoints nothing is written there
        beta=train.beta,
        loss_type=[_LOSSES.get(train.objective, "sigmoid")],
        learning_rate=learning_rate,
        lr_scheduler_type=_SCHEDULES[train.schedule if train.dose == "epochs" else "constant"],
        # Rounded down: the first of them has learning rate 0.
        warmup_steps=int(train.warmup_ratio * steps_a_pass * (epochs if train.dose == "epochs" else 1)),
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        num_train_epochs=epochs,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=per_worker // micro,
        gradient_checkpointing=train.gradient_checkpointing,
        bf16=train.dtype == "bfloat16",
        # transformers refuses bfloat16 on a CPU unless it is told that the CPU is meant; DeepSpeed has it there.
        use_cpu=not use_gpu,
        max_length=None,  # pairs too long are set aside before; cutting one would cut its image
        optim="adamw_torch",  # DeepSpeed's own CPU Adam would have to be compiled first
        seed=(seed * 1_000_003 + round_index) % 2**31,
        remove_unused_columns=False,
        save_strategy="no",  # `actors.train.pair_trainer.CheckpointClock` says when
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        logging_nan_inf_filter=False,  # it waits for the GPU after every backward pass; the trainer looks by itself
        dataloader_pin_memory=use_gpu,
        accelerator_config={"use_configured_state": True, "non_blocking": use_gpu},
        deepspeed=deepspeed_settings(train, micro_batch_size=micro, use_gpu=use_gpu),
    )


def deepspeed_settings(train: Train, *, micro_batch_size: int, use_gpu: bool) -> dict[str, Any]:
    """The settings of DeepSpeed, as its JSON has them."""
    return {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "train_batch_size": train.batch_size,
        "gradient_accumulation_steps": train.batch_size // train.workers // micro_batch_size,
        "gradient_clipping": train.max_grad_norm,
        "bf16": {"enabled": train.dtype == "bfloat16"},
        "zero_optimization": {
            "stage": train.deepspeed_stage,
            # In elements. The bucket is allocated in full at the start, and a LoRA's gradients are small.
            "reduce_bucket_size": 50_000_000 if use_gpu else 4_000_000,
            **({"offload_optimizer": {"device": "cpu"}} if train.offload_optimizer else {}),
        },
        # DeepSpeed's own CPU Adam would have to be compiled; torch's does as well for a LoRA.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1_000_000_000,
    }
