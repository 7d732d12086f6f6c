"""FlexAttention, which only a GPU has, against the dense mask that the CPU tests hold to TRL."""

from __future__ import annotations

from pathlib import Path

import torch
from fakes import preference_pair
from PIL import Image
from tiny_models import build_tiny_llava


def test_flex_attention_gives_the_log_probs_of_the_dense_mask(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from actors.train.shared_step import SharedPrefixForward, can_use_flex, family_positions, set_flex
    from csr_ray.data.pictures import load_picture
    from csr_ray.training.collate import SharedPrefixCollator, pair_rows

    model = build_tiny_llava(tmp_path / "model", seed=0)
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "image.png")
    pairs = [
        preference_pair(
            id=str(number),
            image=str(tmp_path / "image.png"),
            prompt="Describe.",
            chosen_ids=tuple(range(20, 24 + number)),
            rejected_ids=tuple(range(40, 49 - number)),
        )
        for number in range(3)
    ]
    policy = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).to("cuda")
    assert can_use_flex(policy)
    processor = AutoProcessor.from_pretrained(model)
    collator = SharedPrefixCollator(
        processor=processor, load_picture=load_picture, positions=family_positions(policy), budget=4096
    )
    batch = collator(pair_rows(pairs))
    del batch["pair_index"], batch["ref_chosen_logps"], batch["ref_rejected_logps"]
    batch = {key: _to_gpu(value) for key, value in batch.items()}
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    rows = []
    for use_flex in (True, False):
        set_flex(policy, is_on=use_flex)
        forward = SharedPrefixForward(policy, shared=batch["shared"], use_flex=use_flex)
        with torch.no_grad():
            rows.append(
                forward(
                    input_ids=batch["input_ids"],
                    attention_mask=batch["attention_mask"],
                    labels=labels,
                    fused_lm_head=True,
                    use_cache=False,
                ).log_probs
            )
    assert torch.allclose(rows[0], rows[1], rtol=1e-4, atol=1e-4)


def _to_gpu(value: object) -> object:
    if isinstance(value, dict):
        return {key: _to_gpu(one) for key, one in value.items()}
    return value.to("cuda") if isinstance(value, torch.Tensor) else value
