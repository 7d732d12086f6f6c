"""Processors of older LLaVA repositories, which lack what they need to count image tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_models import build_tiny_gemma3, build_tiny_llava, build_tiny_llava_next, build_tiny_qwen_vl

from csr_ray.data.chat import prompt_text
from csr_ray.policy.chat_template import templated
from csr_ray.policy.processor import load_processor

KEYS = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")


def _batch(processor: Any) -> Any:
    image = Image.linear_gradient("L").resize((120, 50)).convert("RGB")
    return processor(text="USER: <image>\nWhat is it? ASSISTANT: A star.", images=image, return_tensors="pt")


@pytest.mark.parametrize("build", [build_tiny_llava, build_tiny_llava_next])
@pytest.mark.parametrize("missing", [KEYS, KEYS[:1], KEYS[2:]], ids=["all", "patch_size", "class_token"])
def test_missing_keys_come_from_the_models_config(
    tmp_path: Path, build: Callable[..., Path], missing: Collection[str]
) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = build(tmp_path / "model", seed=0)
    whole = _batch(AutoProcessor.from_pretrained(model))
    path = model / "processor_config.json"
    config = json.loads(path.read_text())
    assert set(KEYS) <= set(config)
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in missing}))
    with pytest.raises((TypeError, AssertionError)):  # without the patch size, or with one token too few
        assert torch.equal(_batch(AutoProcessor.from_pretrained(model))["input_ids"], whole["input_ids"])
    mended = _batch(load_processor(model))
    assert torch.equal(mended["input_ids"], whole["input_ids"])
    policy = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        logits = [policy(**batch).logits for batch in (whole, mended)]
    assert torch.equal(*logits)


def test_a_processor_without_such_keys_is_left_alone(tmp_path: Path) -> None:
    processor = load_processor(build_tiny_gemma3(tmp_path, seed=0))
    assert not hasattr(processor, "patch_size")


@pytest.mark.parametrize(
    "build",
    [build_tiny_llava, build_tiny_llava_next, build_tiny_qwen_vl, build_tiny_gemma3],
    ids=lambda one: one.__name__,
)
def test_what_a_dry_run_shows_of_a_prompt_is_what_the_processor_makes_of_it(
    tmp_path: Path, build: Callable[..., Path]
) -> None:
    model = build(tmp_path / "model", seed=0)
    question = 'What is "it"?'
    assert templated(str(model), question=question) == prompt_text(load_processor(model), question=question)
