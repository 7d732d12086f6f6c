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

from csr_ray.world.language import describe, question, yes_no_pairs
from csr_ray.world.mentions import mentioned_kinds
from csr_ray.world.scenes import Scene
from csr_ray.world.tokenizer import END_TOKEN, IMAGE_TOKEN
from csr_ray.world.variant import Variety

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
        told_at: int64 [S, 2], row and column where a description could go on: before it, and after each sentence.
        untold: float32 [S, kinds], 1 for the kinds in the image that are not told by then.
    """

    token_ids: torch.Tensor
    labels: torch.Tensor
    sees: torch.Tensor
    positions: torch.Tensor
    image_start: int
    description_end: int
    told_at: torch.Tensor
    untold: torch.Tensor


@dataclass(frozen=True)
class _Conversation:
    """Token ids, how many of them are the question, and where the answer's sentences begin and end.

    `breaks` holds the last token before the answer and the last one of each of its sentences.
    """

    token_ids: list[int]
    num_asked: int
    breaks: tuple[int, ...]


class RowWriter:
    """Writes rows; what it has tokenised once it remembers."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, num_questions: int, variety: Variety) -> None:
        self._tokenizer = tokenizer
        self._variety = variety
        self._num_questions = num_questions
        self._cache: dict[str, list[int]] = {}
        self._turn = self._ids("USER: ")
        image = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self._prefix = [*self._turn, *([image] * variety.num_image_tokens)]

    def rows(self, scenes: Sequence[Scene], *, rng: np.random.Generator) -> Rows:
        """One row a scene."""
        said = [describe(scene, rng=rng, variety=self._variety) for scene in scenes]
        asked = [
            yes_no_pairs(scene, rng=rng, num_pairs=self._num_questions, variety=self._variety) for scene in scenes
        ]
        parts = [
            [self._description(sentences, rng=rng), *(self._question(kind, label=label) for kind, label in pairs)]
            for sentences, pairs in zip(said, asked, strict=True)
        ]
        lengths = [max(len(row[place].token_ids) for row in parts) for place in range(1 + self._num_questions)]
        starts = len(self._prefix) + np.concatenate([[0], np.cumsum(lengths)])
        token_ids, labels = self._filled(parts, starts=starts)
        sees, positions = _layout(len(self._prefix), lengths=lengths)
        told_at = [(row, starts[0] + place) for row, told in enumerate(parts) for place in told[0].breaks]
        kinds = self._variety.kinds
        untold = [
            left
            for scene, text in zip(scenes, said, strict=True)
            for left in _untold(scene, sentences=text, kinds=kinds)
        ]
        return Rows(
            token_ids=torch.from_numpy(token_ids),
            labels=torch.from_numpy(labels),
            sees=torch.from_numpy(sees),
            positions=torch.from_numpy(positions),
            image_start=len(self._turn),
            description_end=int(starts[1]),
            told_at=torch.from_numpy(np.array(told_at)),
            untold=torch.tensor(untold, dtype=torch.float32),
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
        prompt = self._variety.prompts[int(rng.integers(len(self._variety.prompts)))]
        return self._conversation(prompt, answer=[f" {sentence}" for sentence in sentences])

    def _question(self, kind: str, *, label: str) -> _Conversation:
        return self._conversation(question(kind), answer=[" Yes" if label == "yes" else " No"])

    def _conversation(self, prompt: str, *, answer: Sequence[str]) -> _Conversation:
        token_ids = [*self._ids("\n"), *self._ids(prompt), *self._ids(" ASSISTANT:")]
        num_asked, breaks = len(token_ids), [len(token_ids) - 1]
        for sentence in answer:
            token_ids += self._ids(sentence)
            breaks.append(len(token_ids) - 1)
        return _Conversation([*token_ids, *self._ids(END_TOKEN)], num_asked=num_asked, breaks=tuple(breaks))

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


def _untold(scene: Scene, *, sentences: Sequence[str], kinds: Sequence[str]) -> list[list[bool]]:
    """For each kind, before the first sentence and after each: is it in the image and not told yet?"""
    left = set(scene.kinds)
    states = [left]
    for text in sentences:
        left = left - set(mentioned_kinds(text, kinds=kinds))
        states.append(left)
    return [[kind in state for kind in kinds] for state in states]
