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
from csr_ray.world.forward import MatrixPatches
from csr_ray.world.language import TEMPLATES, corpus, sentence
from csr_ray.world.models import CLIP_CONTEXT_LENGTH, new_scorer
from csr_ray.world.scenes import Scene
from csr_ray.world.tokenizer import clip_tokenizer
from csr_ray.world.training import (
    OnStep,
    PatchHead,
    fixed_numerics,
    learning_rate_share,
    patch_labels,
    to_pixels,
)
from csr_ray.world.vocabulary import COLOURS, KINDS

if TYPE_CHECKING:
    from open_clip import CLIP
    from transformers import PreTrainedTokenizerFast

_BATCH_IMAGES: Final = 128
_POOL_IMAGES: Final = 24_576
_LEARNING_RATE: Final = 1.5e-3
_WEIGHT_DECAY: Final = 0.05
_FIRST_SCALE: Final = 10.0
_FIRST_BIAS: Final = -6.0


def train_clip(
    *, seed: int, num_steps: int, on_step: OnStep
) -> tuple[CLIP, PreTrainedTokenizerFast, dict[str, float]]:
    """Train from scratch on one core; returns the model, its tokenizer and the mean losses of the last tenth."""
    with fixed_numerics(seed) as dtype:
        tokenizer = clip_tokenizer(corpus(), context_length=CLIP_CONTEXT_LENGTH)
        model = new_scorer(tokenizer)
        model.visual.output_tokens = True
        model.visual.conv1 = MatrixPatches(model.visual.conv1)
        bias = torch.nn.Parameter(torch.tensor(_FIRST_BIAS))
        with torch.no_grad():
            model.logit_scale.fill_(math.log(_FIRST_SCALE))
        head = PatchHead(model.visual.conv1.convolution.out_channels)
        parameters = [*model.parameters(), *head.parameters(), bias]
        optimizer = torch.optim.AdamW(parameters, lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_share(step, num_steps=num_steps)
        )
        drawn = draw(sample_scenes(seed, split="clip", num=min(_POOL_IMAGES, num_steps * _BATCH_IMAGES)))
        truth = torch.from_numpy(_truth_matrix(drawn.scenes))
        contents = patch_labels(drawn.scenes)
        tokens = _sentence_tokens(tokenizer)
        rng = np.random.default_rng([seed, 1])
        history: list[tuple[float, float]] = []
        for _ in range(num_steps):
            chosen = rng.integers(len(drawn.scenes), size=_BATCH_IMAGES)
            # One wording of each fact a step: the wordings of one fact are equally true.
            wording = torch.from_numpy(rng.integers(len(TEMPLATES), size=len(tokens)))
            with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
                pooled, patches = model.visual(to_pixels(drawn, chosen))
                texts = model.encode_text(tokens[torch.arange(len(tokens)), wording])
                located = head(patches, contents[chosen])
            cosines = F.normalize(pooled.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T
            logits = model.logit_scale.exp() * cosines + bias
            matched = F.binary_cross_entropy_with_logits(logits, truth[chosen], reduction="none").sum(dim=1).mean()
            optimizer.zero_grad()
            (matched + located).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            history.append((matched.item(), located.item()))
            on_step(history[-1][0])
        model.visual.output_tokens = False
        model.visual.conv1 = model.visual.conv1.convolution
    tail = np.array(history[-max(1, num_steps // 10) :]).mean(axis=0)
    return model.eval(), tokenizer, {"sentence_loss": float(tail[0]), "patch_loss": float(tail[1])}


def _sentence_tokens(tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """Token ids [facts, wordings, context] of every fact (kind and colour) in every wording."""
    words = [
        sentence(kind, colour=colour, template=template)
        for kind in KINDS
        for colour in COLOURS
        for template in TEMPLATES
    ]
    encoded = tokenizer(
        words, padding="max_length", truncation=True, max_length=CLIP_CONTEXT_LENGTH, return_tensors="pt"
    )
    ids = encoded["input_ids"].reshape(len(KINDS) * len(COLOURS), len(TEMPLATES), CLIP_CONTEXT_LENGTH)

    return ids


def _truth_matrix(scenes: tuple[Scene, ...]) -> np.ndarray:
    """[N, facts] float32: 1 where the fact is true of the scene; facts in the order of `_sentence_tokens`."""
    colours = tuple(COLOURS)
    truth = np.zeros((len(scenes), len(KINDS) * len(colours)), dtype=np.float32)
    for row, scene in enumerate(scenes):
        for item in scene.objects:
            truth[row, KINDS.index(item.kind) * len(colours) + colours.index(item.colour)] = 1.0
    return truth
