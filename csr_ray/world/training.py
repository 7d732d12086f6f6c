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
from csr_ray.world.models import PIXEL_MEAN, PIXEL_STD
from csr_ray.world.scenes import Scene
from csr_ray.world.variant import Variety
from csr_ray.world.vocabulary import PLACES

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
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.backends.cuda.enable_flash_sdp(False)
    torch.use_deterministic_algorithms(True)
    # Filling memory that is overwritten at once costs a tenth of a step and changes nothing here.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(seed)
    try:
        yield torch.bfloat16 if has_fast_bfloat16() else torch.float32
    finally:
        torch.set_num_threads(threads)
        torch.backends.cuda.enable_flash_sdp(flash)
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


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


class PatchHead(torch.nn.Module):
    """Reads off every patch which kind and colour its quadrant holds, during training only.

    Naming what is where teaches a tower in a minute what captions alone teach it in many: the sentences say neither
    where an object is nor which of the words belongs to which patch.
    """

    def __init__(self, width: int, *, variety: Variety) -> None:
        super().__init__()
        self.kind = torch.nn.Linear(width, len(variety.kinds) + 1)
        self.colour = torch.nn.Linear(width, len(variety.colours) + 1)

    def forward(self, patches: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of patches [B, P, width] against `patch_labels` [B, P, 2]."""
        return patch_loss(self.kind(patches), labels[..., 0]) + patch_loss(self.colour(patches), labels[..., 1])


def patch_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of logits [B, P, classes] against labels [B, P]."""
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())


def patch_labels(scenes: Sequence[Scene], *, variety: Variety) -> torch.Tensor:
    """Int64 [N, P, 2]: kind and colour in the quadrant of each patch; 0 where it is empty, else 1 + index."""
    side = math.isqrt(variety.num_image_tokens)
    labels = torch.zeros(len(scenes), 2, 2, 2, dtype=torch.int64)
    colours = tuple(variety.colours)
    for index, scene in enumerate(scenes):
        for item in scene.objects:
            row, column = divmod(PLACES.index(item.place), 2)
            labels[index, row, column, 0] = 1 + variety.kinds.index(item.kind)
            labels[index, row, column, 1] = 1 + colours.index(item.colour)
    return labels.repeat_interleave(side // 2, dim=1).repeat_interleave(side // 2, dim=2).flatten(1, 2)
