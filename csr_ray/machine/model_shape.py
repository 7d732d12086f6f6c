"""The shape of a vision-language model, from its config.json alone: what its memory and its arithmetic follow from.

Imports no torch and no transformers, so a plan can ask it. Families: LLaVA (a Llama behind a CLIP) and Qwen2.5-VL.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from csr_ray.machine.memory import count_weights

# The config.json of a family leaves out what is the default of its class in transformers.
_LLAMA = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
_CLIP = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "image_size": 336, "patch_size": 14}
_QWEN_VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "out_hidden_size": 3584,
    "patch_size": 14,
}
# Released models by hub id, for plans on a machine that has not fetched them: what their config.json says.
_RELEASED: Mapping[str, Mapping[str, Any]] = {
    "llava-hf/llava-1.5-7b-hf": {"model_type": "llava", "text_config": {"vocab_size": 32064}, "vision_config": _CLIP},
    "llava-hf/llava-1.5-13b-hf": {
        "model_type": "llava",
        "text_config": {
            "hidden_size": 5120,
            "intermediate_size": 13824,
            "num_hidden_layers": 40,
            "num_attention_heads": 40,
            "vocab_size": 32064,
        },
        "vision_config": _CLIP,
    },
    "Qwen/Qwen2.5-VL-7B-Instruct": {
        "model_type": "qwen2_5_vl",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "vision_config": _QWEN_VISION,
    },
}
# Of the photos of COCO, on which a family with tokens for every size of picture is reckoned.
_PICTURE = (640, 480)


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A vision-language model in numbers.

    Attributes:
        hidden, intermediate, layers, heads, kv_heads, vocab: of its language model.
        num_text_weights: of the language model, its embedding and its output head.
        num_weights: of all of it, the vision tower included.
        image_tokens: of a picture, as the language model sees it.
        tower_tokens: the same before any are merged (`policy.visual_tokens`), which the tower's work is counted by.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    num_text_weights: int
    num_weights: int
    image_tokens: int
    tower_tokens: int

    @property
    def kv_width(self) -> int:
        """Numbers that a layer keeps of a token as its key, and as many as its value."""
        return self.kv_heads * (self.hidden // self.heads)

    def cache_bytes_a_token(self, *, bytes_a_number: int) -> int:
        """What an engine's cache holds of one token: a key and a value in each layer."""
        return 2 * self.layers * self.kv_width * bytes_a_number

    def num_lora_weights(self, *, rank: int, targets: Sequence[str]) -> int:
        """rank x (in + out) of each layer of the language model that bears a target's name."""
        sizes = {
            "q_proj": (self.hidden, self.hidden),
            "k_proj": (self.hidden, self.kv_width),
            "v_proj": (self.hidden, self.kv_width),
            "o_proj": (self.hidden, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }
        return rank * self.layers * sum(sum(sizes[target]) for target in targets if target in sizes)


def shape_of_model(model: str, *, visual_tokens: int | None = None) -> ModelShape | None:
    """The shape of a Hugging Face folder, or of a released model by its hub id; None if it is not known here.

    Args:
        visual_tokens: `policy.visual_tokens`; None: what the folder says, and otherwise all.
    """
    file = Path(os.path.expanduser(model)) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else _RELEASED.get(model)
        shape = shape_of_config(config) if config is not None else None
        kept = visual_tokens or (config or {}).get("visual_tokens")
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None
    if shape is not None and kept:
        shape = replace(shape, image_tokens=min(kept, shape.image_tokens))
    counted = count_weights(file.parent) if shape is not None and file.is_file() else 0
    return _counted(shape, num_weights=counted) if shape is not None and counted else shape


def released_models() -> list[str]:
    """Hub ids of the models whose shape is known on a machine that has not fetched them."""
    return list(_RELEASED)


def shape_of_config(config: Mapping[str, Any]) -> ModelShape | None:
    """The shape that a config.json says; None of another family.

    Raises:
        KeyError, TypeError: the family is known, and a value of it is missing or no number.
    """
    family = config["model_type"]
    if family == "llava":
        return _llava(config)
    if family == "qwen2_5_vl":
        return _qwen(config)
    return None


def _counted(shape: ModelShape, *, num_weights: int) -> ModelShape:
    vision = shape.num_weights - shape.num_text_weights
    values = {**vars(shape), "num_weights": num_weights, "num_text_weights": max(0, num_weights - vision)}
    return ModelShape(**values)


def _llava(config: Mapping[str, Any]) -> ModelShape:
    """Per block of CLIP: four projections and two of the MLP with biases, two norms (Radford et al. 2021)."""
    vision = {**_CLIP, **config.get("vision_config", {})}
    text = {**_LLAMA, **config.get("text_config", {})}
    wide, deep = vision["hidden_size"], vision["intermediate_size"]
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    block = 4 * (wide * wide + wide) + 2 * wide * deep + deep + wide + 4 * wide
    tower = 3 * vision["patch_size"] ** 2 * wide + (patches + 2) * wide + 4 * wide
    tower += vision["num_hidden_layers"] * block
    projector = wide * text["hidden_size"] + text["hidden_size"] * (text["hidden_size"] + 2)
    return _shape(text, num_vision=tower + projector, image_tokens=patches, has_bias=False)


def _qwen(config: Mapping[str, Any]) -> ModelShape:
    """The tower sees two frames of a patch; 2 x 2 patches become one token (Qwen2.5-VL's technical report)."""
    vision = {**_QWEN_VISION, **config.get("vision_config", {})}
    text = {**config, **config.get("text_config", {})}
    wide, deep, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    block = 4 * (wide * wide + wide) + 3 * wide * deep + 2 * deep + wide + 2 * wide
    merger = wide + 4 * wide * (4 * wide + 1) + vision["out_hidden_size"] * (4 * wide + 1)
    tower = 3 * 2 * patch * patch * wide + vision["depth"] * block + merger
    width, height = _PICTURE
    tokens = round(width / (2 * patch)) * round(height / (2 * patch))
    return _shape(text, num_vision=tower, image_tokens=tokens, has_bias=True)


def _shape(text: Mapping[str, Any], *, num_vision: int, image_tokens: int, has_bias: bool) -> ModelShape:
    hidden, intermediate = text["hidden_size"], text["intermediate_size"]
    heads, layers, vocab = text["num_attention_heads"], text["num_hidden_layers"], text["vocab_size"]
    kv_heads = text.get("num_key_value_heads") or heads
    kv_width = kv_heads * (hidden // heads)
    block = 2 * hidden * hidden + 2 * hidden * kv_width + 3 * hidden * intermediate + 2 * hidden
    block += hidden + 2 * kv_width if has_bias else 0
    tables = 1 if text.get("tie_word_embeddings", False) else 2
    num_text = layers * block + tables * vocab * hidden + hidden
    return ModelShape(
        hidden=hidden,
        intermediate=intermediate,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        vocab=vocab,
        num_text_weights=num_text,
        num_weights=num_text + num_vision,
        image_tokens=image_tokens,
        tower_tokens=image_tokens,
    )
