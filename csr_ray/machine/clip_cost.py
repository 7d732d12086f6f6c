"""What a CLIP costs to run, from its open_clip config alone. Imports no torch, so a plan can ask it.

A floating-point operation is an addition or a multiplication, as torch's FlopCounterMode counts them: the product of
matrices [n, k] and [k, m] has 2 n k m.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Billions of float32 operations a second on one thread: an assumption for estimates, not a measurement of the machine
# at hand. On one thread of a server CPU open_clip's ViT-B/32 towers reached 53, a large product of matrices 93.
GFLOPS_A_THREAD = 50.0


@dataclass(frozen=True, kw_only=True)
class ClipCost:
    """Floating-point operations of one picture, and of one sentence."""

    picture: float
    sentence: float

    def seconds(self, *, num_pictures: int, num_sentences: int, gflops: float) -> float:
        """How long they take at a rate of `gflops` (1e9 operations a second)."""
        return (num_pictures * self.picture + num_sentences * self.sentence) / (gflops * 1e9)


def open_clip_config(model: str) -> Mapping[str, Any] | None:
    """The config of a folder, or of NAME or NAME/PRETRAINED as open_clip lists them; None if there is none here."""
    folder = Path(os.path.expanduser(model))
    if (folder / "open_clip_config.json").is_file():
        return dict(json.loads((folder / "open_clip_config.json").read_text())["model_cfg"])
    spec = importlib.util.find_spec("open_clip")
    places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    files = [place / "model_configs" / f"{model.partition('/')[0]}.json" for place in places]
    return next((dict(json.loads(file.read_text())) for file in files if file.is_file()), None)


def clip_cost(config: Mapping[str, Any], *, sentence_tokens: int | None = None) -> ClipCost | None:
    """The cost of a CLIP with plain transformer towers; None for one with others (ResNet, timm, Hugging Face).

    Args:
        config: open_clip's, with `vision_cfg` and `text_cfg`.
        sentence_tokens: tokens of a sentence as it goes through the text tower, with its two marks; None: the whole
            context (77), to which open_clip's own tokenizers pad.
    """
    vision, text = config["vision_cfg"], config["text_cfg"]
    plain = isinstance(vision.get("layers", 12), int) and "timm_model_name" not in vision
    if not plain or "hf_model_name" in text:
        return None
    height, width = _two(vision.get("image_size", 224))
    patch_height, patch_width = _two(vision.get("patch_size", 16))
    num_patches = (height // patch_height) * (width // patch_width)
    hidden = vision.get("width", 768)
    picture = 2.0 * num_patches * 3 * patch_height * patch_width * hidden + _tower(
        num_tokens=num_patches + 1,
        width=hidden,
        layers=vision.get("layers", 12),
        mlp_ratio=vision.get("mlp_ratio", 4.0),
    )
    context = text.get("context_length", 77)
    sentence = _tower(
        num_tokens=min(context, sentence_tokens or context),
        width=text.get("width", 512),
        layers=text.get("layers", 12),
        mlp_ratio=text.get("mlp_ratio", 4.0),
    )
    embed = config["embed_dim"]
    return ClipCost(picture=picture + 2.0 * hidden * embed, sentence=sentence + 2.0 * text.get("width", 512) * embed)


def _tower(*, num_tokens: int, width: int, layers: int, mlp_ratio: float) -> float:
    projections = 2.0 * num_tokens * width * width * (4 + 2 * mlp_ratio)
    attention = 4.0 * num_tokens * num_tokens * width
    return layers * (projections + attention)


def _two(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
