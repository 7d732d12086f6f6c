"""A trainer on a tiny model, in either form of the step, and what plain forward passes say of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from csr_ray.config.schema import Train
from csr_ray.data.pictures import load_picture
from csr_ray.records import Example
from csr_ray.training.collate import PairCollator, SharedPrefixCollator


def small_trainer(
    model: Path,
    *,
    examples: list[Example],
    directory: Path,
    train: Train,
    form: str = "shared_prefix",
    loss_type: str = "sigmoid",
    seed: int = 0,
) -> Any:
    """A `PairTrainer` whose LoRA is not at zero: every layer of it has a gradient, and the reference differs."""
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import DPOConfig

    from actors.train.examples import HeldExamples
    from actors.train.pair_trainer import PairTrainer
    from actors.train.shared_step import family_positions

    policy = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(model)
    collator = PairCollator(processor=processor, load_picture=load_picture)
    if form == "shared_prefix":
        collator = SharedPrefixCollator(
            processor=processor, load_picture=load_picture, positions=family_positions(policy), budget=4096
        )
    torch.manual_seed(1)
    return PairTrainer(
        policy,
        args=DPOConfig(
            output_dir=str(directory),
            beta=train.beta,
            seed=seed,
            loss_type=[loss_type],
            per_device_train_batch_size=8,
            max_length=None,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            remove_unused_columns=False,
            report_to=[],
        ),
        train=train,
        examples=HeldExamples(examples),
        collator=collator,
        lora=small_lora(),
    )


def small_lora() -> Any:
    """Not at zero, so that the reference is another policy."""
    from peft import LoraConfig

    targets = r".*\blanguage_model\..*\.(q_proj|v_proj|o_proj|down_proj)"
    return LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")


def plain_logps(trainer: Any, example: Example, *, answer: Sequence[int], image: Image.Image) -> torch.Tensor:
    """[A, V] log-probs at the places of an answer, by a sequence of its own and the trainer's model."""
    processor = trainer.processing_class
    content = [{"type": "image"}, {"type": "text", "text": example.ask.text}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=text, images=image, return_tensors="pt")
    ids = torch.tensor([list(answer)])
    num_asked = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
    for key in ("attention_mask", "mm_token_type_ids"):
        if key in inputs:
            fill = torch.ones_like(ids) if key == "attention_mask" else torch.zeros_like(ids)
            inputs[key] = torch.cat([inputs[key], fill.to(inputs[key].dtype)], dim=1)
    return trainer.model(**inputs).logits[0, num_asked - 1 : -1].float().log_softmax(dim=-1)


def computed(trainer: Any, batch: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of a batch and the LoRA's gradients."""
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))
    loss.backward()
    return loss.item(), gradients(trainer)


def gradients(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: one.grad.clone() for name, one in trainer.model.named_parameters() if one.requires_grad}


def assert_same_gradients(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys() and ours
    for name, gradient in theirs.items():
        scale = gradient.abs().max()
        assert scale > 0, name
        assert (ours[name] - gradient).abs().max() <= 1e-3 * scale, name
