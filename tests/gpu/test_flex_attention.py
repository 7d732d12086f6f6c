"""FlexAttention, which only a GPU has, against the dense mask that the CPU tests hold to TRL."""

from __future__ import annotations

from pathlib import Path

import torch
from fakes import preference_pair
from PIL import Image
from tiny_models import build_tiny_llava


def test_flex_attention_gives_the_log_probs_of_the_dense_mask(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl.trainer import add_fused_lm_head

    from actors.train.shared_step import (
        FLEX_BLOCK,
        SharedPrefixForward,
        can_use_flex,
        family_positions,
        keep_only_sources,
        set_flex,
    )
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
    keep_only_sources(policy)
    add_fused_lm_head(policy)  # as TRL's trainer does
    processor = AutoProcessor.from_pretrained(model)
    collator = SharedPrefixCollator(
        processor=processor,
        load_picture=load_picture,
        positions=family_positions(policy),
        budget=4096,
        multiple=FLEX_BLOCK,
    )
    batch = collator(pair_rows(pairs))
    del batch["pair_index"], batch["ref_chosen_logps"], batch["ref_rejected_logps"]
    batch = {key: _to_gpu(value) for key, value in batch.items()}
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    weight = policy.get_parameter("model.language_model.layers.0.self_attn.q_proj.weight")
    rows, gradients = [], []
    for use_flex in (True, False):
        set_flex(policy, is_on=use_flex)
        forward = SharedPrefixForward(policy, shared=batch["shared"], use_flex=use_flex)
        logps = forward(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            labels=labels,
            fused_lm_head=True,
            use_cache=False,
        ).log_probs
        gradients += torch.autograd.grad(logps.sum(), [weight])
        rows.append(logps.detach())
    assert torch.allclose(rows[0], rows[1], rtol=1e-4, atol=1e-4)
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-3, atol=1e-3 * float(gradients[1].abs().max()))


def test_the_mask_and_the_batch_are_made_without_waiting_for_the_gpu() -> None:
    """With the mode on, torch raises where Python would wait for the GPU. Tensors are copied from pinned memory."""
    from actors.train.shared_step import FLEX_BLOCK, block_mask
    from csr_ray.training.shared_prefix import PairTokens, lay_out, spread

    pair = PairTokens(
        prefix=torch.arange(300), positions=torch.arange(300)[None], kinds={}, chosen=(1,) * 90, rejected=(2,) * 70
    )
    layout = lay_out([[pair], [pair]], pad_token_id=0, multiple=FLEX_BLOCK)
    on_gpu = [
        tensor.pin_memory().to("cuda", non_blocking=True)
        for tensor in (layout.pair, layout.branch, layout.is_answer, torch.rand(len(layout.sources)))
    ]
    values = on_gpu[3].requires_grad_()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        block_mask(on_gpu[0], on_gpu[1], num_pairs=2)
        spread(values, is_answer=on_gpu[2]).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(values.grad.cpu(), torch.ones(len(layout.sources)))


def _to_gpu(value: object) -> object:
    if isinstance(value, dict):
        return {key: _to_gpu(one) for key, one in value.items()}
    return value.to("cuda") if isinstance(value, torch.Tensor) else value
