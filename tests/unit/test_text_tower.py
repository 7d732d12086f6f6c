"""Sentences without their padding: the same embeddings, and only where that is certain."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from open_clip import CLIP, CoCa, CustomTextCLIP

from actors.score.text_tower import TextTower

WIDTH, CONTEXT, NUM_TOKENS = 32, 40, 100
END = NUM_TOKENS - 1  # the highest id, as in CLIP's tokenizers
VISION = {"image_size": 16, "patch_size": 8, "width": WIDTH, "layers": 1, "head_width": 8}
LENGTHS = (3, 11, 7, 23)


def model_of(kind: type = CLIP, **text: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    config = {"context_length": CONTEXT, "vocab_size": NUM_TOKENS, "width": WIDTH, "heads": 4, "layers": 3, **text}
    more = {"multimodal_cfg": {"width": WIDTH, "heads": 4, "layers": 1}} if kind is CoCa else {}
    return kind(embed_dim=WIDTH, vision_cfg=VISION, text_cfg=config, **more).eval().requires_grad_(False)


def tokens_of(lengths: tuple[int, ...]) -> torch.Tensor:
    """Texts of these lengths with their end token, padded with 0."""
    tokens = torch.zeros(len(lengths), CONTEXT, dtype=torch.long)
    random = torch.Generator().manual_seed(1)
    for row, length in zip(tokens, lengths, strict=True):
        row[: length - 1] = torch.randint(1, END, (length - 1,), generator=random)
        row[length - 1] = END
    return tokens


@pytest.mark.parametrize(
    "model",
    [
        model_of(),
        model_of(CustomTextCLIP),
        model_of(pool_type="eos", eos_id=END),
        model_of(CustomTextCLIP, pool_type="eos", eos_id=END),
        model_of(CustomTextCLIP, qk_norm=True, scale_attn=True, ls_init_value=0.5),
    ],
    ids=["argmax", "argmax of a tower of its own", "eos", "eos of a tower of its own", "other blocks"],
)
def test_a_causal_tower_that_is_read_at_the_end_token_takes_no_padding(model: torch.nn.Module) -> None:
    tower, tokens = TextTower(model), tokens_of(LENGTHS)
    assert tower.num_needed(tokens) == max(LENGTHS)
    with torch.inference_mode():
        whole, cut = model.encode_text(tokens), tower.encode(tokens[:, : max(LENGTHS)])
        full = tokens_of((CONTEXT, 5))
        assert tower.num_needed(full) == CONTEXT
        assert torch.equal(tower.encode(full), model.encode_text(full)), "what it was lent is given back"
    unit = torch.nn.functional.normalize
    assert (unit(whole.double(), dim=-1) - unit(cut.double(), dim=-1)).abs().max() < 1e-6
    # Each sees the texts: their embeddings differ by far more than that.
    assert torch.cdist(whole, whole)[~torch.eye(len(LENGTHS), dtype=torch.bool)].min() > 1e-2


@pytest.mark.parametrize(
    "model",
    [
        model_of(no_causal_mask=True),
        model_of(CustomTextCLIP, no_causal_mask=True),
        model_of(CustomTextCLIP, pool_type="last"),
        model_of(CustomTextCLIP, pool_type="first"),
        model_of(CustomTextCLIP, embed_cls=True),
        model_of(CoCa, embed_cls=True, output_tokens=True),
    ],
    ids=["sees ahead", "tower of its own sees ahead", "read at the last", "read at the first", "class token", "CoCa"],
)
def test_any_other_tower_gets_the_whole_context(model: torch.nn.Module) -> None:
    tower, tokens = TextTower(model), tokens_of(LENGTHS)
    assert tower.num_needed(tokens) == CONTEXT
    with torch.inference_mode():
        assert torch.equal(tower.encode(tokens), model.encode_text(tokens))
