"""How large everything is that the kit measures: as on a GPU of 80 GB, and tiny, for its test on a CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from random_llava import LLAVA_7B, LLAVA_13B, Shape


@dataclass(frozen=True, kw_only=True)
class Size:
    """Sizes of all parts.

    Attributes:
        copy_bytes, matrix_side: of what the card's own rates are measured with.
        models: of the trainer step, by name.
        pairs: how many pairs a step has, by model; what does not fit the card is left out, and said.
        answer_tokens: of an answer, at least and at most.
        steps: that are timed, after two that are not.
        heads, head_size: of the attention.
        clip: open_clip's name of the architecture, or its config.
        images, sentences: that are embedded together.
        merged_layers: decoder layers of the first model that are merged and digested.
    """

    copy_bytes: int
    matrix_side: int
    models: Mapping[str, Shape]
    pairs: Mapping[str, Sequence[int]]
    rank: int
    answer_tokens: tuple[int, int]
    steps: int
    heads: int
    head_size: int
    clip: str | dict[str, Any]
    images: int
    sentences: int
    merged_layers: int
    repeats: int


REAL = Size(
    copy_bytes=2 * 2**30,
    matrix_side=8192,
    models={"7b": LLAVA_7B, "13b": LLAVA_13B},
    pairs={"7b": (4, 8, 16), "13b": (2, 4, 8)},
    rank=128,
    answer_tokens=(80, 160),
    steps=5,
    heads=32,
    head_size=128,
    clip="ViT-L-14-336-quickgelu",
    images=64,
    sentences=1024,
    merged_layers=4,
    repeats=20,
)
_TINY_LLAVA = Shape(
    hidden=128, layers=2, heads=2, intermediate=256, vocab=512, tower_hidden=64, tower_layers=2, image_px=56
)
TINY = Size(
    copy_bytes=2**20,
    matrix_side=128,
    models={"7b": _TINY_LLAVA, "13b": _TINY_LLAVA},
    pairs={"7b": (2,), "13b": (2,)},
    rank=8,
    answer_tokens=(8, 16),
    steps=1,
    heads=2,
    head_size=16,
    clip={
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16, "head_width": 32},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
    },
    images=2,
    sentences=8,
    merged_layers=1,
    repeats=2,
)
