"""Trains the world's open_clip scorer: which sentence is true of which image.

The loss is SigLIP's pairwise sigmoid (Zhai et al. 2023, arXiv 2303.15343, equation 1) with the true labels: a batch
holds few distinct sentences, so that "every other text is a negative" would be wrong for many of them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
import torch.nn.functional as F

from csr_ray.world.data import draw, sample_scenes
from csr_ray.world.forward import matrix_patches
from csr_ray.world.language import corpus, sentence
from csr_ray.world.models import CLIP_CONTEXT_LENGTH, new_scorer
from csr_ray.world.optimizer import LayerwiseOptimizer
from csr_ray.world.scenes import Scene
from csr_ray.world.tokenizer import clip_tokenizer
from csr_ray.world.training import (
    OnStep,
    PatchHead,
    fixed_numerics,
    patch_labels,
    to_pixels,
)
from csr_ray.world.variant import Variety

if TYPE_CHECKING:
    from open_clip import CLIP
    from transformers import PreTrainedTokenizerFast

_BATCH_IMAGES: Final = 128
_POOL_IMAGES: Final = 24_576
_LEARNING_RATE: Final = 3e-3
_MATRIX_LEARNING_RATE: Final = 1.2e-2
_WEIGHT_DECAY: Final = 0.05
_FIRST_SCALE: Final = 10.0
_FIRST_BIAS: Final = -6.0


def train_clip(
    *, seed: int, num_steps: int, variety: Variety, on_step: OnStep
) -> tuple[CLIP, PreTrainedTokenizerFast, dict[str, float]]:
    """Train from scratch on one core; returns the model, its tokenizer and the mean losses of the last tenth."""
    with fixed_numerics(seed) as dtype:
        tokenizer = clip_tokenizer(corpus(variety), context_length=CLIP_CONTEXT_LENGTH)
        model = new_scorer(tokenizer, variety=variety)
        model.visual.output_tokens = True
        judge = _Judge(model, variety=variety)
        optimizer = LayerwiseOptimizer(
            [model, judge],
            matrix_learning_rate=_MATRIX_LEARNING_RATE,
            learning_rate=_LEARNING_RATE,
            weight_decay=_WEIGHT_DECAY,
            num_steps=num_steps,
            dtype=dtype,
        )
        num_images = min(_POOL_IMAGES, num_steps * _BATCH_IMAGES)
        drawn = draw(sample_scenes(seed, split="clip", num=num_images, variety=variety), variety=variety)
        truth = torch.from_numpy(_truth_matrix(drawn.scenes, variety=variety))
        contents = patch_labels(drawn.scenes, variety=variety)
        tokens = _sentence_tokens(tokenizer, variety=variety)
        rng = np.random.default_rng([seed, 1])
        history: list[tuple[float, float]] = []
        with matrix_patches(model.visual, name="conv1"):
            for _ in range(num_steps):
                chosen = rng.integers(len(drawn.scenes), size=_BATCH_IMAGES)
                # One wording of each fact a step: the wordings of one fact are equally true.
                wording = torch.from_numpy(rng.integers(len(variety.templates), size=len(tokens)))
                with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
                    pooled, patches = model.visual(to_pixels(drawn, chosen))
                    texts = model.encode_text(tokens[torch.arange(len(tokens)), wording])
                located = judge.head(patches.float(), contents[chosen])
                matched = judge.sentence_loss(pooled.float(), texts.float(), truth=truth[chosen])
                optimizer.step(matched + located)
                history.append((matched.item(), located.item()))
                on_step(history[-1][0])
        model.visual.output_tokens = False
    tail = np.array(history[-max(1, num_steps // 10) :]).mean(axis=0)
    return model.eval(), tokenizer, {"sentence_loss": float(tail[0]), "patch_loss": float(tail[1])}


class _Judge(torch.nn.Module):
    """What turns the model's outputs into losses; of its parameters only the model's own scale is served."""

    def __init__(self, model: CLIP, *, variety: Variety) -> None:
        super().__init__()
        self._scale = [model.logit_scale]
        self.bias = torch.nn.Parameter(torch.tensor(_FIRST_BIAS))
        self.head = PatchHead(model.visual.conv1.out_channels, variety=variety)
        with torch.no_grad():
            model.logit_scale.fill_(math.log(_FIRST_SCALE))

    def sentence_loss(self, images: torch.Tensor, texts: torch.Tensor, *, truth: torch.Tensor) -> torch.Tensor:
        """Of image features [B, width], sentence features [S, width] and which is true of which, [B, S]."""
        cosines = F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
        logits = self._scale[0].exp() * cosines + self.bias
        return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").sum(dim=1).mean()


def _sentence_tokens(tokenizer: PreTrainedTokenizerFast, *, variety: Variety) -> torch.Tensor:
    """Token ids [facts, wordings, context] of every fact (kind and colour) in every wording."""
    words = [
        sentence(kind, colour=colour, template=template)
        for kind in variety.kinds
        for colour in variety.colours
        for template in variety.templates
    ]
    encoded = tokenizer(
        words, padding="max_length", truncation=True, max_length=CLIP_CONTEXT_LENGTH, return_tensors="pt"
    )
    return encoded["input_ids"].reshape(-1, len(variety.templates), CLIP_CONTEXT_LENGTH)


def _truth_matrix(scenes: tuple[Scene, ...], *, variety: Variety) -> np.ndarray:
    """[N, facts] float32: 1 where the fact is true of the scene; facts in the order of `_sentence_tokens`."""
    colours = tuple(variety.colours)
    truth = np.zeros((len(scenes), len(variety.kinds) * len(colours)), dtype=np.float32)
    for row, scene in enumerate(scenes):
        for item in scene.objects:
            truth[row, variety.kinds.index(item.kind) * len(colours) + colours.index(item.colour)] = 1.0
    return truth
