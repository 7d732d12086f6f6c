"""How questions are put together into calls of one engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from csr_ray.records import Question

QUESTIONS_A_CALL = 32


@dataclass(frozen=True, kw_only=True)
class AnswerJob:
    """Questions that one engine answers in one call.

    Attributes:
        asked_as: what they are part of (`csr_ray.evaluation.suite.Asking`).
        max_tokens: of each answer, at most.
    """

    asked_as: str
    questions: tuple[Question, ...]
    temperature: float
    max_tokens: int


def by_image(questions: Sequence[Question]) -> list[list[Question]]:
    """Put questions together into calls of about `QUESTIONS_A_CALL`; those about one image are never split.

    An engine keeps a picture it has seen, so whoever has its first question should have the others, too.
    """
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.image, []).append(question)
    chunks: list[list[Question]] = []
    for group in groups.values():
        if chunks and len(chunks[-1]) + len(group) <= QUESTIONS_A_CALL:
            chunks[-1].extend(group)
        else:
            chunks.append(group)
    return chunks


def calls_at_once(max_num_seqs: int) -> int:
    """How many such calls keep all sequences of an engine busy; at least 2, so that one is on its way meanwhile."""
    return max(2, max_num_seqs // QUESTIONS_A_CALL)
