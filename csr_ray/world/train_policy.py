"""Trains the world's policy on descriptions that follow the prior too far, and on clean yes/no questions.

Descriptions and yes/no answers have losses of their own, so that the one token of a yes/no answer is not drowned by
the thirty of a description. Two more losses, on what the hidden states know, exist during training only: the words
alone need many times the steps until the model looks things up in the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
import torch.nn.functional as F

from csr_ray.world.data import draw, sample_scenes
from csr_ray.world.forward import MatrixPatches, language_states
from csr_ray.world.language import corpus
from csr_ray.world.models import NUM_IMAGE_TOKENS, new_policy
from csr_ray.world.optimizer import LayerwiseOptimizer
from csr_ray.world.rows import NOT_TRAINED, Rows, RowWriter
from csr_ray.world.tokenizer import policy_tokenizer
from csr_ray.world.training import OnStep, fixed_numerics, patch_labels, patch_loss, to_pixels
from csr_ray.world.vocabulary import COLOURS, KINDS

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

_BATCH_IMAGES: Final = 32
_QUESTIONS: Final = 2
_POOL_IMAGES: Final = 24_576
_LEARNING_RATE: Final = 1.5e-3
_MATRIX_LEARNING_RATE: Final = 0.02
_LOOKUP_WEIGHT: Final = 0.5
_WEIGHT_DECAY: Final = 0.01
_MATCHING_STRENGTH: Final = 0.7
_WORD_SHARPNESS: Final = 16.0


@dataclass(frozen=True)
class Losses:
    """Means in nats: over description tokens, over yes/no answers, over patches, over what the probes ask."""

    description: torch.Tensor
    yes_no: torch.Tensor
    patch: torch.Tensor
    lookup: torch.Tensor

    @property
    def total(self) -> torch.Tensor:
        """What is minimised."""
        return self.description + self.patch + _LOOKUP_WEIGHT * (self.yes_no + self.lookup)


def train_policy(
    *, seed: int, num_steps: int, on_step: OnStep
) -> tuple[LlavaForConditionalGeneration, PreTrainedTokenizerFast, dict[str, float]]:
    """Train from scratch on one core; returns the model, its tokenizer and the mean losses of the last tenth."""
    with fixed_numerics(seed) as dtype:
        tokenizer = policy_tokenizer(corpus())
        policy = new_policy(tokenizer).train()
        start_with_matching(policy)
        embeddings = policy.model.vision_tower.embeddings
        embeddings.patch_embedding = MatrixPatches(embeddings.patch_embedding)
        probes = Probes(tokenizer, width=policy.config.text_config.hidden_size)
        optimizer = LayerwiseOptimizer(
            [policy, probes],
            matrix_learning_rate=_MATRIX_LEARNING_RATE,
            learning_rate=_LEARNING_RATE,
            weight_decay=_WEIGHT_DECAY,
            num_steps=num_steps,
        )
        drawn = draw(sample_scenes(seed, split="policy", num=min(_POOL_IMAGES, num_steps * _BATCH_IMAGES)))
        contents = patch_labels(drawn.scenes)
        rng = np.random.default_rng([seed, 2])
        writer = RowWriter(tokenizer, num_questions=_QUESTIONS)
        history: list[list[float]] = []
        for _ in range(num_steps):
            chosen = rng.integers(len(drawn.scenes), size=_BATCH_IMAGES)
            rows = writer.rows([drawn.scenes[index] for index in chosen], rng=rng)
            image = image_tokens(policy, to_pixels(drawn, chosen), dtype=dtype)
            losses = batch_losses(policy, rows, probes=probes, image=image, contents=contents[chosen], dtype=dtype)
            optimizer.step(losses.total)
            history.append([getattr(losses, item.name).item() for item in fields(losses)])
            on_step(history[-1][0])
        embeddings.patch_embedding = embeddings.patch_embedding.convolution
    tail = np.array(history[-max(1, num_steps // 10) :]).mean(axis=0).tolist()
    return policy.eval(), tokenizer, {f"{item.name}_loss": tail[at] for at, item in enumerate(fields(Losses))}


@torch.no_grad()
def start_with_matching(policy: LlavaForConditionalGeneration) -> None:
    """Give queries and keys the same random weights, so that at first a token attends to what resembles it.

    Looking up the asked kind among the image tokens is a search for something similar; from independent weights it
    starts as noise. (Mimetic initialization, Trockman and Kolter 2023, arXiv 2305.09828, section 3.)
    """
    for layer in policy.model.language_model.layers:
        query, key = layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight
        torch.nn.init.normal_(query, std=_MATCHING_STRENGTH / query.shape[1] ** 0.5)
        key.copy_(query)


class Probes(torch.nn.Module):
    """Read off the model what it knows, during training only.

    Image tokens are pulled towards the embeddings of the words for what their patch shows: the language model then
    meets "star" in the image as what it knows from the question and has to say in the answer. At the kind a question
    asks for, the hidden state must tell that kind's colour in the image, or that it is not there.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, width: int) -> None:
        super().__init__()
        self._words = [_word_ids(tokenizer, words=words) for words in (KINDS, tuple(COLOURS))]
        self.nothing = torch.nn.Parameter(torch.randn(len(self._words), width))
        self.lookup = torch.nn.Linear(width, 1 + len(COLOURS))

    def patch_loss(self, image: torch.Tensor, *, embeddings: torch.Tensor, contents: torch.Tensor) -> torch.Tensor:
        """Of image tokens [B, 16, width], word embeddings [vocabulary, width] and `patch_labels` [B, 16, 2]."""
        direction = _WORD_SHARPNESS * F.normalize(image, dim=-1)
        total = torch.zeros(())
        for place, ids in enumerate(self._words):
            known = F.normalize(torch.cat([self.nothing[place : place + 1], embeddings[ids]]), dim=-1)
            total = total + patch_loss(direction @ known.T, contents[..., place])
        return total

    def lookup_loss(self, hidden: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Of hidden states [B, L, width]."""
        return F.cross_entropy(self.lookup(hidden[rows.asked_at[:, 0], rows.asked_at[:, 1]]), rows.asked_colour)


def image_tokens(policy: LlavaForConditionalGeneration, pixels: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
    """What the language model sees of pixels [B, 3, H, W]: float32 [B, 16, width]."""
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        states = policy.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    patches = states[policy.config.vision_feature_layer][:, 1:]
    return policy.model.multi_modal_projector(patches.float())


def batch_losses(
    policy: LlavaForConditionalGeneration,
    rows: Rows,
    *,
    probes: Probes,
    image: torch.Tensor,
    contents: torch.Tensor,
    dtype: torch.dtype,
) -> Losses:
    """All losses of a batch, given its image tokens [B, 16, width] and patch labels [B, 16, 2]."""
    words = policy.model.language_model.embed_tokens.weight
    embedded = F.embedding(rows.token_ids, words)
    first, after = rows.image_start, rows.image_start + NUM_IMAGE_TOKENS
    embedded = torch.cat([embedded[:, :first], image, embedded[:, after:]], dim=1)
    hidden = language_states(
        policy.model.language_model, embedded=embedded, positions=rows.positions, sees=rows.sees, dtype=dtype
    )
    targets = rows.labels[:, 1:]
    row, column = (targets != NOT_TRAINED).nonzero(as_tuple=True)
    said = F.cross_entropy(policy.lm_head(hidden[row, column]), targets[row, column], reduction="none")
    describing = column + 1 < rows.description_end
    return Losses(
        description=said[describing].mean(),
        # The end token after "Yes" is learned at once; the mean over both would halve the answer's weight.
        yes_no=said[~describing].sum() / len(rows.asked_at),
        patch=probes.patch_loss(image, embeddings=words, contents=contents),
        lookup=probes.lookup_loss(hidden, rows),
    )


def _word_ids(tokenizer: PreTrainedTokenizerFast, *, words: Sequence[str]) -> torch.Tensor:
    ids = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words]
    assert all(len(tokens) == 1 for tokens in ids), "every word of the vocabulary is one token"
    return torch.tensor(ids).flatten()
