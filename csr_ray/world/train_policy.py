"""Trains the world's policy on descriptions that follow the prior too far, and on clean yes/no questions.

One training row is one image with several conversations about it: the image's tokens once, then a description and a
few questions, each of which sees the image and itself only. Every conversation is computed exactly as if it stood
alone, and the image, which is most of a yes/no sequence, is paid for once. Descriptions and yes/no answers have losses
of their own, so that the two tokens of a yes/no answer are not drowned by the thirty of a description.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
import torch.nn.functional as F

from csr_ray.world.data import draw, sample_scenes
from csr_ray.world.language import DESCRIBE_PROMPTS, corpus, describe, question, yes_no_pairs
from csr_ray.world.models import NUM_IMAGE_TOKENS, new_policy
from csr_ray.world.scenes import Scene
from csr_ray.world.tokenizer import END_TOKEN, IMAGE_TOKEN, policy_tokenizer
from csr_ray.world.training import (
    OnStep,
    QuadrantHead,
    fixed_numerics,
    learning_rate_share,
    quadrant_labels,
    to_pixels,
)

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

_BATCH_IMAGES: Final = 32
_QUESTIONS: Final = 3
_POOL_IMAGES: Final = 24_576
_LEARNING_RATE: Final = 1.5e-3
_WEIGHT_DECAY: Final = 0.01
_YES_NO_WEIGHT: Final = 1.0
_IGNORED: Final = -100


@dataclass(frozen=True)
class Rows:
    """A batch of rows [prefix | description | question | question ...], segments padded on the right.

    token_ids and labels are int64 [B, L] (labels: the token itself where it is part of an answer, else ignored);
    mask bool [1, 1, L, L] says who sees whom; positions int64 [1, L] restart after the prefix in every segment.
    """

    token_ids: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    description_end: int


def train_policy(
    *, seed: int, num_steps: int, on_step: OnStep
) -> tuple[LlavaForConditionalGeneration, PreTrainedTokenizerFast, dict[str, float]]:
    """Train from scratch on one core; returns the model, its tokenizer and the mean losses of the last tenth."""
    with fixed_numerics(seed) as dtype:
        tokenizer = policy_tokenizer(corpus())
        policy = new_policy(tokenizer).train()
        head = QuadrantHead(policy.config.vision_config.hidden_size)
        parameters = [*policy.parameters(), *head.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_share(step, num_steps=num_steps)
        )
        drawn = draw(sample_scenes(seed, split="policy", num=min(_POOL_IMAGES, num_steps * _BATCH_IMAGES)))
        quadrants = quadrant_labels(drawn.scenes)
        rng = np.random.default_rng([seed, 2])
        writer = RowWriter(tokenizer)
        history: list[tuple[float, float, float]] = []
        for _ in range(num_steps):
            chosen = rng.integers(len(drawn.scenes), size=_BATCH_IMAGES)
            rows = writer.rows([drawn.scenes[index] for index in chosen], rng=rng)
            with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
                patches = patch_features(policy, to_pixels(drawn, chosen))
                located = head(patches, quadrants[chosen])
                described, answered = answer_losses(policy, rows, patches=patches)
            optimizer.zero_grad()
            (described + _YES_NO_WEIGHT * answered + located).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            history.append((described.item(), answered.item(), located.item()))
            on_step(history[-1][0])
    tail = np.array(history[-max(1, num_steps // 10) :]).mean(axis=0)
    names = ("description_loss", "yes_no_loss", "quadrant_loss")
    return policy.eval(), tokenizer, dict(zip(names, tail.tolist(), strict=True))


class RowWriter:
    """Turns scenes into rows of tokens; what it has tokenised once it remembers."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._cache: dict[str, list[int]] = {}
        image = [tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)] * NUM_IMAGE_TOKENS
        self._prefix = [*self._ids("USER: "), *image]
        self._answer_start = self._ids(" ASSISTANT:")

    def rows(self, scenes: Sequence[Scene], *, rng: np.random.Generator) -> Rows:
        """One row a scene: a description and `_QUESTIONS` yes/no questions."""
        segments = [self._segments(scene, rng=rng) for scene in scenes]
        lengths = [max(len(row[place][0]) for row in segments) for place in range(1 + _QUESTIONS)]
        num_prefix = len(self._prefix)
        starts = num_prefix + np.concatenate([[0], np.cumsum(lengths)])
        total = int(starts[-1])
        ids = np.full((len(scenes), total), self._tokenizer.pad_token_id, dtype=np.int64)
        labels = np.full((len(scenes), total), _IGNORED, dtype=np.int64)
        ids[:, :num_prefix] = self._prefix
        for index, row in enumerate(segments):
            for place, (tokens, num_asked) in enumerate(row):
                start, stop = starts[place], starts[place] + len(tokens)
                ids[index, start:stop] = tokens
                labels[index, start + num_asked : stop] = tokens[num_asked:]
        segment = np.repeat(np.arange(1 + len(lengths)), [num_prefix, *lengths])
        positions = np.concatenate([np.arange(num_prefix), *(num_prefix + np.arange(length) for length in lengths)])
        # A pad comes after the real tokens of its segment, so causality alone keeps it out of sight.
        sees = np.tri(total, dtype=bool) & ((segment[:, None] == segment) | (segment == 0))
        return Rows(
            token_ids=torch.from_numpy(ids),
            labels=torch.from_numpy(labels),
            mask=torch.from_numpy(sees)[None, None],
            positions=torch.from_numpy(positions)[None],
            description_end=int(starts[1]),
        )

    def _segments(self, scene: Scene, *, rng: np.random.Generator) -> list[tuple[list[int], int]]:
        """(token ids, how many of them are the question) of each conversation about the scene."""
        prompt = DESCRIBE_PROMPTS[int(rng.integers(len(DESCRIBE_PROMPTS)))]
        segments = [self._conversation(prompt, answer=[f" {text}" for text in describe(scene, rng=rng)])]
        for kind, label in yes_no_pairs(scene, rng=rng, num_pairs=_QUESTIONS):
            segments.append(self._conversation(question(kind), answer=[" Yes" if label == "yes" else " No"]))
        return segments

    def _conversation(self, prompt: str, *, answer: Sequence[str]) -> tuple[list[int], int]:
        asked = [*self._ids("\n"), *self._ids(prompt), *self._answer_start]
        told = [token for text in answer for token in self._ids(text)]
        return [*asked, *told, *self._ids(END_TOKEN)], len(asked)

    def _ids(self, text: str) -> list[int]:
        if text not in self._cache:
            self._cache[text] = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return self._cache[text]


def patch_features(policy: LlavaForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """The tower's patch features [B, 16, width] at the layer that LLaVA reads, without the class token."""
    states = policy.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    return states[policy.config.vision_feature_layer][:, 1:]


def answer_losses(
    policy: LlavaForConditionalGeneration, rows: Rows, *, patches: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy over the tokens of descriptions, and over the tokens of yes/no answers."""
    embedded = policy.model.language_model.embed_tokens(rows.token_ids)
    image = policy.model.multi_modal_projector(patches)
    first = int((rows.token_ids[0] == policy.config.image_token_index).nonzero()[0])
    after = first + NUM_IMAGE_TOKENS
    embedded = torch.cat([embedded[:, :first], image.to(embedded.dtype), embedded[:, after:]], dim=1)
    hidden = policy.model.language_model(
        inputs_embeds=embedded, attention_mask=rows.mask, position_ids=rows.positions, use_cache=False
    ).last_hidden_state
    targets = rows.labels[:, 1:]
    rows_at, columns_at = (targets != _IGNORED).nonzero(as_tuple=True)
    logits = policy.lm_head(hidden[rows_at, columns_at]).float()
    losses = F.cross_entropy(logits, targets[rows_at, columns_at], reduction="none")
    describing = columns_at + 1 < rows.description_end
    return losses[describing].mean(), losses[~describing].mean()
