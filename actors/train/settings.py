"""The config's `train` section in the words of TRL, transformers and DeepSpeed.

Imports the training stack, so only train workers import it. Knows settings; starts nothing.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import DPOConfig

from csr_ray.config.schema import Train

# TRL's names of the objectives. One that TRL lacks runs as its sigmoid, and `actors.train.pair_trainer` replaces the
# loss.
_LOSSES = {"sigmoid_average": "sigmoid_norm", "ipo": "ipo", "sft": "sft"}
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def training_arguments(
    train: Train, *, seed: int, round_index: int, num_steps: int, checkpoints: Path | None = None
) -> DPOConfig:
    """TRL's and DeepSpeed's settings for one cycle.

    Args:
        num_steps: optimizer steps that are planned.
        checkpoints: folder for the optimizer state; None: it is not saved.
    """
    saving = {"save_strategy": "steps", "save_steps": train.checkpoint_steps, "save_total_limit": 1}
    per_worker = train.batch_size // train.workers
    micro = train.micro_batch_size or per_worker
    use_gpu = train.gpus_per_worker > 0
    return DPOConfig(
        output_dir=str(checkpoints or tempfile.gettempdir()),  # without checkpoints nothing is written there
        beta=train.beta,
        loss_type=[_LOSSES.get(train.objective, "sigmoid")],
        learning_rate=train.learning_rate,
        lr_scheduler_type=_SCHEDULES[train.schedule],
        warmup_steps=int(train.warmup_ratio * num_steps),  # rounded down: the first of them has learning rate 0
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        num_train_epochs=train.epochs,
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
        **(saving if checkpoints else {"save_strategy": "no"}),
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        logging_nan_inf_filter=False,  # it waits for the GPU after every backward pass; the trainer looks by itself
        dataloader_pin_memory=use_gpu,
        accelerator_config={"use_configured_state": True, "non_blocking": use_gpu},
        deepspeed=deepspeed_settings(train, micro_batch_size=micro, use_gpu=use_gpu),
    )


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint: one that has the trainer's own state, which transformers writes last."""
    whole = [path.parent for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}")]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


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
