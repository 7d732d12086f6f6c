"""Whole answers to a question, without search: drawn from the policy, and as candidates of a rollout."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from csr_ray.ports import Engine
from csr_ray.records import Ask, Candidate, Sentence, Target
from csr_ray.rollout.search import derive_seed
from csr_ray.rollout.served import sentences_of


async def sample_answers(
    engine: Engine, *, ask: Ask, num: int, temperature: float, top_p: float, max_tokens: int, seed: int
) -> list[Sentence]:
    """`num` answers to one question, each drawn with a seed of its own."""
    return list(
        await asyncio.gather(
            *(
                engine.answer(
                    ask, temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=derive_seed(seed, number)
                )
                for number in range(num)
            )
        )
    )


def candidate_of(
    sentence: Sentence,
    *,
    role: str,
    node: int = 0,
    asked: str | None = None,
    scores: Mapping[str, float | None] | None = None,
    final: bool = True,
) -> Candidate:
    """What the policy said at once, as a candidate."""
    return Candidate(
        node=node,
        text=sentence.text,
        token_ids=sentence.token_ids,
        logp=sum(sentence.logps),
        role=role,
        asked=asked,
        scores=scores or {},
        final=final,
    )


def target_of(answer: Candidate, *, role: str) -> Target:
    """A whole answer as the target of an example."""
    return Target(
        role=role,
        text=answer.text,
        token_ids=answer.token_ids,
        logp=answer.logp,
        reward=answer.reward,
        nodes=(answer.node,),
        num_sentences=num_sentences(answer.text),
    )


def numbered(candidates: Sequence[Candidate], *, start: int = 0) -> list[Candidate]:
    """The candidates with their positions in a rollout, of which the first is `start`."""
    return [replace(candidate, node=start + place) for place, candidate in enumerate(candidates)]


def distinct(answers: Sequence[Candidate]) -> list[Candidate]:
    """The answers that say something else than those before them."""
    seen: dict[str, Candidate] = {}
    for answer in answers:
        seen.setdefault(answer.text, answer)
    return list(seen.values())


def num_sentences(text: str) -> int:
    """Sentences of a whole answer; an end that no full stop marks counts as well."""
    return len(sentences_of(text))
