"""Policies that do not answer as one would like: the tree ends, and there is a pair or a named reason why not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from fakes import tiny_config

from csr_ray.methods.base import Dropped, method_of
from csr_ray.methods.csr import NO_ANSWER, NO_MARGIN, ONE_ANSWER
from csr_ray.records import Ask, Phase, Picture, Prompt, Sentence

PROMPT = Prompt(id="p", image="i.png", text="Describe.")
END = 2

Say = Callable[[int, int], Sentence]  # (child, most tokens) to what is said


class Policy:
    """Says the same at every node."""

    def __init__(self, say: Say) -> None:
        self._say = say

    async def continuations(
        self, ask: Ask, *, prefix_ids: tuple[int, ...], num: int, max_tokens: int, seed: int
    ) -> list[Sentence]:
        return [self._say(child, max_tokens) for child in range(num)]


class Lengths:
    async def score(self, picture: Picture, *, texts: list[str]) -> tuple[list[float], int]:
        return [float(len(text)) for text in texts], 0

    async def nats(self) -> float:
        return 10.0


def says(text: str, *, ids: tuple[int, ...], ended: bool) -> Sentence:
    return Sentence(text=text, token_ids=ids, logps=(-0.5,) * len(ids), ended=ended)


def ends_at_once(child: int, max_tokens: int) -> Sentence:
    return says("", ids=(END,), ended=True)


def never_a_period(child: int, max_tokens: int) -> Sentence:
    return says("la " * (max_tokens + child), ids=(10 + child,) * max_tokens, ended=False)


def one_path(child: int, max_tokens: int) -> Sentence:
    return says("Always this.", ids=(10, END), ended=True)


def no_reward_for_either(child: int, max_tokens: int) -> Sentence:
    return says("ab" if child else "ba", ids=(10 + child, END), ended=True)


def mostly_silent(child: int, max_tokens: int) -> Sentence:
    return says("Something.", ids=(10, END), ended=True) if child == 0 else ends_at_once(child, max_tokens)


@pytest.mark.parametrize(
    ("say", "outcome"),
    [
        (ends_at_once, NO_ANSWER),
        (mostly_silent, ONE_ANSWER),
        (one_path, ONE_ANSWER),
        (no_reward_for_either, NO_MARGIN),
        (never_a_period, None),
    ],
)
def test_odd_policies_end_as_a_pair_or_a_counted_reason(say: Say, outcome: str | None) -> None:
    config = tiny_config(search={"max_sentence_tokens": 5, "max_answer_tokens": 12, "max_sentences": 4})
    method = method_of(config)
    tree = asyncio.run(
        method.rollout(Phase(), PROMPT, engine=Policy(say), scorer=Lengths(), policy_version=0, seed=0)
    )
    assert all(sum(len(node.token_ids) for node in path) <= 12 for path in tree.answers())
    found = method.examples(Phase(), tree)
    assert (found.reason if isinstance(found, Dropped) else None) == outcome
