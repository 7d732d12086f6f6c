"""What the two trainings share: fixed numerics, the learning-rate curve, and supervision of the vision tower.

Knows torch and scenes; knows nothing of either model's folder.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F

from csr_ray.world.data import DrawnScenes
from csr_ray.world.models import NUM_IMAGE_TOKENS, PIXEL_MEAN, PIXEL_STD
from csr_ray.world.scenes import Scene
from csr_ray.world.vocabulary import COLOURS, KINDS, PLACES

OnStep = Callable[[float], None]
"""Called after each optimizer step with its loss."""

_WARM_UP_STEPS: Final = 40
_LAST_SHARE: Final = 0.02


@contextmanager
def fixed_numerics(seed: int) -> Iterator[torch.dtype]:
    """One thread, deterministic kernels, seeded generator; yields the dtype to autocast to, and restores all of it.

    The flash kernel of torch's CPU attention is off: its backward takes most of the step for many tiny heads.
    """
    threads, flash = torch.get_num_threads(), torch.backends.cuda.flash_sdp_enabled()
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.backends.cuda.enable_flash_sdp(False)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    try:
        yield torch.bfloat16 if has_fast_bfloat16() else torch.float32
    finally:
        torch.set_num_threads(threads)
        torch.backends.cuda.enable_flash_sdp(flash)
        torch.use_deterministic_algorithms(deterministic)


def has_fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware; without it autocasting is slower than float32."""
    if not os.path.exists("/proc/cpuinfo"):
        return False
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return any("avx512_bf16" in line or "amx_bf16" in line for line in file if line.startswith("flags"))


def learning_rate_share(step: int, *, num_steps: int) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then a cosine down to 2 %."""
    if step < _WARM_UP_STEPS:
        return (step + 1) / _WARM_UP_STEPS
    progress = min((step - _WARM_UP_STEPS) / max(1, num_steps - _WARM_UP_STEPS), 1.0)
    return _LAST_SHARE + (1 - _LAST_SHARE) * 0.5 * (1 + math.cos(math.pi * progress))


def to_pixels(drawn: DrawnScenes, chosen: np.ndarray) -> torch.Tensor:
    """Float pixels [B, 3, H, W], normalised as both models' image processors do."""
    return (torch.from_numpy(drawn.pixels[chosen]).float() / 255.0 - PIXEL_MEAN) / PIXEL_STD


class QuadrantHead(torch.nn.Module):
    """Reads each quadrant's kind and colour off the patch features, during training only.

    Naming what is where teaches a tower in a minute what captions alone teach it in many: the sentences say neither
    where an object is nor which of the words belongs to which patch.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kind = torch.nn.Linear(width, len(KINDS) + 1)
        self.colour = torch.nn.Linear(width, len(COLOURS) + 1)

    def forward(self, patches: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of patches [B, 16, width] against `quadrant_labels` [B, 4, 2]."""
        side = math.isqrt(NUM_IMAGE_TOKENS) // 2
        grid = patches.reshape(len(patches), 2, side, 2, side, patches.shape[-1]).mean(dim=(2, 4)).flatten(1, 2)
        kind = F.cross_entropy(self.kind(grid).float().flatten(0, 1), labels[..., 0].flatten())
        colour = F.cross_entropy(self.colour(grid).float().flatten(0, 1), labels[..., 1].flatten())
        return kind + colour


def quadrant_labels(scenes: Sequence[Scene]) -> torch.Tensor:
    """Int64 [N, 4, 2]: kind and colour of each quadrant in the order of PLACES; 0 where it is empty."""
    labels = torch.zeros(len(scenes), len(PLACES), 2, dtype=torch.int64)
    colours = tuple(COLOURS)
    for row, scene in enumerate(scenes):
        for item in scene.objects:
            place = PLACES.index(item.place)
            labels[row, place, 0] = 1 + KINDS.index(item.kind)
            labels[row, place, 1] = 1 + colours.index(item.colour)
    return labels
