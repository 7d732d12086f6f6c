"""Trains the world's policy on descriptions that follow the prior too far, and on clean yes/no questions.

Descriptions and yes/no answers have losses of their own, so that the one token of a yes/no answer is not drowned by
the thirty of a description. Two more losses, on what the hidden states know, exist during training only: the words
alone need many times the steps until the model looks at the image and keeps count of what it has told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
import torch.nn.functional as F

from csr_ray.world.data import DrawnScenes, draw, sample_scenes
from csr_ray.world.forward import language_states, matrix_patches
from csr_ray.world.language import corpus
from csr_ray.world.models import new_policy
from csr_ray.world.optimizer import LayerwiseOptimizer
from csr_ray.world.rows import NOT_TRAINED, Rows, RowWriter
from csr_ray.world.tokenizer import policy_tokenizer
from csr_ray.world.training import OnStep, fixed_numerics, patch_labels, patch_loss, to_pixels
from csr_ray.world.variant import Variety

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

_TOWER_SHARE: Final = 0.3
_TOWER_BATCH_IMAGES: Final = 64
_TOWER_LEARNING_RATE: Final = 3e-3
_TOWER_MATRIX_LEARNING_RATE: Final = 1.2e-2
_BATCH_IMAGES: Final = 32
_QUESTIONS: Final = 1
_POOL_IMAGES: Final = 24_576
_LEARNING_RATE: Final = 1.5e-3
_MATRIX_LEARNING_RATE: Final = 5e-3
_WEIGHT_DECAY: Final = 0.01
_MATCHING_STRENGTH: Final = 0.7
_WORD_SHARPNESS: Final = 16.0
_LOSS_NAMES: Final = ("description", "yes_no", "untold")


@dataclass(frozen=True)
class Losses:
    """Means in nats: over description tokens, over yes/no answers, and over the places where a sentence may begin."""

    description: torch.Tensor
    yes_no: torch.Tensor
    untold: torch.Tensor

    @property
    def total(self) -> torch.Tensor:
        """What is minimised."""
        return self.description + self.yes_no + self.untold


def train_policy(
    *, seed: int, num_steps: int, variety: Variety, on_step: OnStep
) -> tuple[LlavaForConditionalGeneration, PreTrainedTokenizerFast, dict[str, float]]:
    """Train from scratch on one core; returns the model, its tokenizer and the mean losses of the last tenth.

    First the tower learns to see, then, frozen, it is looked at by the language model that learns to speak.
    """
    with fixed_numerics(seed) as dtype:
        tokenizer = policy_tokenizer(corpus(variety))
        policy = new_policy(tokenizer, variety=variety).train()
        start_with_matching(policy)
        num_images = min(_POOL_IMAGES, num_steps * _BATCH_IMAGES)
        drawn = draw(sample_scenes(seed, split="policy", num=num_images, variety=variety), variety=variety)
        rng = np.random.default_rng([seed, 2])
        num_tower_steps = max(1, round(_TOWER_SHARE * num_steps))
        probes = Probes(tokenizer, width=policy.config.text_config.hidden_size, variety=variety)
        patch_history = _train_tower(
            policy,
            drawn,
            contents=patch_labels(drawn.scenes, variety=variety),
            probes=probes,
            num_steps=num_tower_steps,
            rng=rng,
            dtype=dtype,
            on_step=on_step,
        )
        history = _train_language(
            policy,
            drawn,
            writer=RowWriter(tokenizer, num_questions=_QUESTIONS, variety=variety),
            probes=probes,
            num_steps=num_steps - num_tower_steps,
            rng=rng,
            dtype=dtype,
            on_step=on_step,
        )
    means = {f"{name}_loss": _last_mean([row[at] for row in history]) for at, name in enumerate(_LOSS_NAMES)}
    return policy.eval(), tokenizer, {"patch_loss": _last_mean(patch_history), **means}


def _train_tower(
    policy: LlavaForConditionalGeneration,
    drawn: DrawnScenes,
    *,
    contents: torch.Tensor,
    probes: Probes,
    num_steps: int,
    rng: np.random.Generator,
    dtype: torch.dtype,
    on_step: OnStep,
) -> list[float]:
    model = policy.model
    optimizer = LayerwiseOptimizer(
        [model.vision_tower, model.multi_modal_projector, model.language_model.embed_tokens, probes],
        matrix_learning_rate=_TOWER_MATRIX_LEARNING_RATE,
        learning_rate=_TOWER_LEARNING_RATE,
        weight_decay=_WEIGHT_DECAY,
        num_steps=num_steps,
        dtype=dtype,
    )
    history: list[float] = []
    with matrix_patches(model.vision_tower.embeddings, name="patch_embedding"):
        for _ in range(num_steps):
            chosen = rng.integers(len(drawn.scenes), size=_TOWER_BATCH_IMAGES)
            image = model.multi_modal_projector(patch_features(policy, to_pixels(drawn, chosen), dtype=dtype))
            words = model.language_model.embed_tokens.weight
            loss = probes.patch_loss(image, embeddings=words, contents=contents[chosen])
            optimizer.step(loss)
            history.append(loss.item())
            on_step(history[-1])
    return history


def _train_language(
    policy: LlavaForConditionalGeneration,
    drawn: DrawnScenes,
    *,
    writer: RowWriter,
    probes: Probes,
    num_steps: int,
    rng: np.random.Generator,
    dtype: torch.dtype,
    on_step: OnStep,
) -> list[list[float]]:
    model = policy.model
    optimizer = LayerwiseOptimizer(
        [model.multi_modal_projector, model.language_model, policy.lm_head, probes],
        matrix_learning_rate=_MATRIX_LEARNING_RATE,
        learning_rate=_LEARNING_RATE,
        weight_decay=_WEIGHT_DECAY,
        num_steps=num_steps,
        dtype=dtype,
    )
    with torch.no_grad():
        everything = np.array_split(np.arange(len(drawn.scenes)), max(1, len(drawn.scenes) // 256))
        seen = torch.cat([patch_features(policy, to_pixels(drawn, part), dtype=dtype) for part in everything])
    history: list[list[float]] = []
    for _ in range(num_steps):
        chosen = rng.integers(len(drawn.scenes), size=_BATCH_IMAGES)
        rows = writer.rows([drawn.scenes[index] for index in chosen], rng=rng)
        image = model.multi_modal_projector(seen[chosen])
        losses = batch_losses(policy, rows, probes=probes, image=image, dtype=dtype)
        optimizer.step(losses.total)
        history.append([getattr(losses, name).item() for name in _LOSS_NAMES])
        on_step(history[-1][0])
    return history


def _last_mean(values: Sequence[float]) -> float:
    return float(np.mean(values[-max(1, len(values) // 10) :]))


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
    meets "star" in the image as what it knows from the question and has to say in the answer. Where a description
    could go on, the hidden state must tell which kinds of the image are still untold: the text alone teaches that
    slowly, because made-up sentences look like any other.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, width: int, variety: Variety) -> None:
        super().__init__()
        self._words = [_word_ids(tokenizer, words=words) for words in (variety.kinds, tuple(variety.colours))]
        self.nothing = torch.nn.Parameter(torch.randn(len(self._words), width))
        self.untold = torch.nn.Linear(width, len(variety.kinds))

    def patch_loss(self, image: torch.Tensor, *, embeddings: torch.Tensor, contents: torch.Tensor) -> torch.Tensor:
        """Of image tokens [B, P, width], word embeddings [vocabulary, width] and `patch_labels` [B, P, 2]."""
        direction = _WORD_SHARPNESS * F.normalize(image, dim=-1)
        total = torch.zeros(())
        for place, ids in enumerate(self._words):
            known = F.normalize(torch.cat([self.nothing[place : place + 1], embeddings[ids]]), dim=-1)
            total = total + patch_loss(direction @ known.T, contents[..., place])
        return total

    def untold_loss(self, hidden: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Of hidden states [B, L, width]; the kinds of one place are summed."""
        logits = self.untold(hidden[rows.told_at[:, 0], rows.told_at[:, 1]])
        return F.binary_cross_entropy_with_logits(logits, rows.untold, reduction="none").sum(dim=1).mean()


def patch_features(
    policy: LlavaForConditionalGeneration, pixels: torch.Tensor, *, dtype: torch.dtype
) -> torch.Tensor:
    """What LLaVA reads of the tower for pixels [B, 3, H, W]: float32 [B, P, tower width]."""
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        states = policy.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    return states[policy.config.vision_feature_layer][:, 1:].float()


def batch_losses(
    policy: LlavaForConditionalGeneration,
    rows: Rows,
    *,
    probes: Probes,
    image: torch.Tensor,
    dtype: torch.dtype,
) -> Losses:
    """All losses of a batch, given its image tokens [B, P, width]."""
    embedded = policy.model.language_model.embed_tokens(rows.token_ids)
    first, after = rows.image_start, rows.image_start + image.shape[1]
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
        yes_no=2 * said[~describing].mean(),
        untold=probes.untold_loss(hidden, rows),
    )


def _word_ids(tokenizer: PreTrainedTokenizerFast, *, words: Sequence[str]) -> torch.Tensor:
    ids = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words]
    assert all(len(tokens) == 1 for tokens in ids), "every word of the vocabulary is one token"
    return torch.tensor(ids).flatten()
