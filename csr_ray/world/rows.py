"""Turns scenes into the policy's training rows: one image, a description of it and yes/no questions about it.

The image's tokens come once, then the conversations, each of which sees the image and itself only. Every conversation
is computed exactly as if it stood alone, and the image, which is most of a yes/no sequence, is paid for once. Knows
tokens and scenes; knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from csr_ray.world.language import DESCRIBE_PROMPTS, describe, question, yes_no_pairs
from csr_ray.world.models import NUM_IMAGE_TOKENS
from csr_ray.world.scenes import Scene
from csr_ray.world.tokenizer import END_TOKEN, IMAGE_TOKEN
from csr_ray.world.vocabulary import COLOURS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NOT_TRAINED: Final = -100


@dataclass(frozen=True)
class Rows:
    """A batch of rows [prefix | description | question | question ...], each part padded on the right.

    Attributes:
        token_ids: int64 [B, L].
        labels: int64 [B, L], the token itself where it is part of an answer, else NOT_TRAINED.
        sees: bool [L, L], position of the row sees position of the column.
        positions: int64 [L], restarting after the prefix in every part.
        image_start: column of the first image token.
        description_end: first column of the questions.
        asked_at: int64 [Q, 2], row and column of each question's kind.
        asked_colour: int64 [Q], 1 + index of the colour that kind has in the image, 0 if it is not there.
    """

    token_ids: torch.Tensor
    labels: torch.Tensor
    sees: torch.Tensor
    positions: torch.Tensor
    image_start: int
    description_end: int
    asked_at: torch.Tensor
    asked_colour: torch.Tensor


@dataclass(frozen=True)
class _Conversation:
    """Token ids, and how many of them are the question."""

    token_ids: list[int]
    num_asked: int


class RowWriter:
    """Writes rows; what it has tokenised once it remembers."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, num_questions: int) -> None:
        self._tokenizer = tokenizer
        self._num_questions = num_questions
        self._cache: dict[str, list[int]] = {}
        self._turn = self._ids("USER: ")
        image = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self._prefix = [*self._turn, *([image] * NUM_IMAGE_TOKENS)]

    def rows(self, scenes: Sequence[Scene], *, rng: np.random.Generator) -> Rows:
        """One row a scene."""
        said = [describe(scene, rng=rng) for scene in scenes]
        asked = [yes_no_pairs(scene, rng=rng, num_pairs=self._num_questions) for scene in scenes]
        parts = [
            [self._description(sentences, rng=rng), *(self._question(kind, label=label) for kind, label in pairs)]
            for sentences, pairs in zip(said, asked, strict=True)
        ]
        lengths = [max(len(row[place].token_ids) for row in parts) for place in range(1 + self._num_questions)]
        starts = len(self._prefix) + np.concatenate([[0], np.cumsum(lengths)])
        token_ids, labels = self._filled(parts, starts=starts)
        sees, positions = _layout(len(self._prefix), lengths=lengths)
        asked_at = [
            (row, starts[1 + place] + self._kind_offset(kind))
            for row, pairs in enumerate(asked)
            for place, (kind, _) in enumerate(pairs)
        ]
        colours = [_colour(scene, kind=kind) for scene, pairs in zip(scenes, asked, strict=True) for kind, _ in pairs]
        return Rows(
            token_ids=torch.from_numpy(token_ids),
            labels=torch.from_numpy(labels),
            sees=torch.from_numpy(sees),
            positions=torch.from_numpy(positions),
            image_start=len(self._turn),
            description_end=int(starts[1]),
            asked_at=torch.from_numpy(np.array(asked_at)),
            asked_colour=torch.tensor(colours),
        )

    def _filled(
        self, parts: Sequence[Sequence[_Conversation]], *, starts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        token_ids = np.full((len(parts), int(starts[-1])), self._tokenizer.pad_token_id, dtype=np.int64)
        labels = np.full_like(token_ids, NOT_TRAINED)
        token_ids[:, : len(self._prefix)] = self._prefix
        for row, conversations in enumerate(parts):
            for start, conversation in zip(starts, conversations, strict=False):
                stop, answer = start + len(conversation.token_ids), start + conversation.num_asked
                token_ids[row, start:stop] = conversation.token_ids
                labels[row, answer:stop] = token_ids[row, answer:stop]
        return token_ids, labels

    def _description(self, sentences: Sequence[str], *, rng: np.random.Generator) -> _Conversation:
        prompt = DESCRIBE_PROMPTS[int(rng.integers(len(DESCRIBE_PROMPTS)))]
        return self._conversation(prompt, answer=[f" {sentence}" for sentence in sentences])

    def _question(self, kind: str, *, label: str) -> _Conversation:
        return self._conversation(question(kind), answer=[" Yes" if label == "yes" else " No"])

    def _conversation(self, prompt: str, *, answer: Sequence[str]) -> _Conversation:
        token_ids = [*self._ids("\n"), *self._ids(prompt), *self._ids(" ASSISTANT:")]
        told = [token for sentence in answer for token in self._ids(sentence)]
        return _Conversation(token_ids=[*token_ids, *told, *self._ids(END_TOKEN)], num_asked=len(token_ids))

    def _kind_offset(self, kind: str) -> int:
        """Where in a question about a kind, counted from its "\\n", the kind's one token is."""
        (token,) = self._ids(f" {kind}")
        return 1 + self._ids(question(kind)).index(token)

    def _ids(self, text: str) -> list[int]:
        if text not in self._cache:
            self._cache[text] = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return self._cache[text]


def _layout(num_prefix: int, *, lengths: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Who sees whom, bool [L, L], and positions, int64 [L]."""
    part = np.repeat(np.arange(1 + len(lengths)), [num_prefix, *lengths])
    # A pad comes after the real tokens of its part, so causality alone keeps it out of sight.
    sees = np.tri(len(part), dtype=bool) & ((part[:, None] == part) | (part == 0))
    positions = np.concatenate([np.arange(num_prefix), *(num_prefix + np.arange(length) for length in lengths)])
    return sees, positions


def _colour(scene: Scene, *, kind: str) -> int:
    return next((1 + tuple(COLOURS).index(item.colour) for item in scene.objects if item.kind == kind), 0)
