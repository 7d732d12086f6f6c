"""SIMA: the policy judges two of its own answers against a reference answer (Wang et al. 2024, arXiv 2405.15973).

For each prompt the policy answers greedily and once sampled. Then the same policy is the critic: it sees the picture,
the question, the reference answer and both answers, and writes which one agrees better with the reference, by three
visual criteria. The winner is preferred to the other. The paper asks once, the sampled answer first, so a critic that
likes the first place likes sampled answers; here both orders are asked and have to agree (`sima.orders: fixed` is the
paper's way). docs/sima.md has the parameters, the deviations and the measured result.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, model_validator

from csr_ray.config.schema import Config, Section
from csr_ray.errors import DoesNotFit
from csr_ray.methods.base import About, Dropped
from csr_ray.ports import Engine, Scorer
from csr_ray.records import Ask, Candidate, Example, Phase, Prompt, Rollout, RolloutStats, Sentence
from csr_ray.rollout.whole_answers import (
    candidate_of,
    numbered,
    target_of,
)

ABOUT: Final = About(
    title="self-improvement by a critic that sees the reference answer",
    source="Wang et al. 2024",
    arxiv="2405.15973",
    needs=("truth",),
    rollouts="2 answers, 2 verdicts",
    objective="DPO, the winner against the other answer",
)
EQUAL: Final = "answers_equal"
TIE: Final = "critic_sees_no_difference"
UNPARSED: Final = "verdict_unparsed"
DISAGREE: Final = "orders_disagree"
TOO_LONG: Final = "critic_prompt_too_long"

# Positions of the answers in a rollout; critiques follow.
_GREEDY, _SAMPLED = 0, 1
# Of each order of asking: what stands first.
_ORDERS: Final = {"critic": (_SAMPLED, _GREEDY), "critic_swapped": (_GREEDY, _SAMPLED)}
_NO_DIFFERENCE: Final = 0


class Keys(Section):
    """The section `sima` of a config."""

    orders: Literal["both", "fixed"] = Field(
        "both",
        description="both: the critic is asked in both orders and has to agree with itself; fixed: once, the sampled "
        "answer first (paper)",
    )
    critic: Literal["policy", "objects"] = Field(
        "policy",
        description="policy: the policy itself writes the verdict (paper); objects: a rule, the answer wins that "
        "names fewer of sima.objects that are not in the reference; for policies too small to write a critique",
    )
    objects: tuple[str, ...] = Field(
        (),
        description="names of things, singular; plurals in -s count. critic = objects judges by them; with "
        "critic = policy the rate truth_agrees says how often it judges so, too",
    )
    temperature: float = Field(0.8, gt=0, le=5, description="of the sampled answer")
    top_p: float = Field(0.9, gt=0, le=1, description="nucleus of the sampled answer")
    max_answer_tokens: int = Field(1024, ge=1, description="token limit of an answer")
    max_critique_tokens: int = Field(4096, ge=1, description="token limit of a critique")

    @model_validator(mode="after")
    def _objects_are_named(self) -> Keys:
        if self.critic == "objects" and not self.objects:
            raise ValueError("objects = [] contradicts critic = objects: name the things that answers may name")
        return self


def build(config: Config) -> Sima:
    keys = config.method_keys
    assert isinstance(keys, Keys), keys
    return Sima(keys=keys)


@dataclass(frozen=True, kw_only=True)
class Sima:
    """See `csr_ray.methods.base.Method`."""

    keys: Keys
    name: str = "sima"
    needs_scorer: bool = False

    @property
    def answers_a_prompt(self) -> float:
        if self.keys.critic != "policy":
            return 2.0
        return 4.0 if self.keys.orders == "both" else 3.0

    def phases(self, round_index: int) -> Sequence[Phase]:
        return (Phase(),)

    def refuses(self, prompt: Prompt) -> str | None:
        return None if prompt.truth else "truth is missing; sima's critic compares answers with it"

    async def rollout(
        self, phase: Phase, prompt: Prompt, *, engine: Engine, scorer: Scorer, policy_version: int, seed: int
    ) -> Rollout:
        """Two answers, and what the critic says of them; nothing is asked of it where they are equal."""
        started_s = time.perf_counter()
        keys = self.keys
        said = await asyncio.gather(
            engine.answer(prompt.ask, temperature=0.0, max_tokens=keys.max_answer_tokens, seed=seed),
            engine.answer(
                prompt.ask,
                temperature=keys.temperature,
                top_p=keys.top_p,
                max_tokens=keys.max_answer_tokens,
                seed=seed,
            ),
        )
        critiques: Sequence[Candidate] = ()
        if said[_GREEDY].text != said[_SAMPLED].text:
            roles = list(_ORDERS) if keys.orders == "both" else list(_ORDERS)[:1]
            critiques = await asyncio.gather(*(self._critique(role, prompt, said, engine=engine) for role in roles))
        answers = [
            candidate_of(sentence, role=role, node=node)
            for node, (role, sentence) in enumerate(zip(("greedy", "sampled"), said, strict=True))
        ]
        candidates = tuple([*_rewarded(answers, critiques=critiques), *numbered(critiques, start=len(answers))])
        num_tokens = sum(len(candidate.token_ids) for candidate in candidates)
        stats = RolloutStats(num_tokens=num_tokens, seconds=time.perf_counter() - started_s)
        return Rollout(prompt=prompt, candidates=candidates, policy_version=policy_version, seed=seed, stats=stats)

    async def _critique(self, role: str, prompt: Prompt, said: Sequence[Sentence], *, engine: Engine) -> Candidate:
        first, second = (said[place].text for place in _ORDERS[role])
        if self.keys.critic == "objects":
            return self._counted(role, truth=str(prompt.truth), first=first, second=second)
        asked = critic_prompt(prompt.text, truth=str(prompt.truth), first=first, second=second)
        ask = Ask(picture=prompt.ask.picture, text=asked)
        try:
            critique = await engine.answer(ask, temperature=0.0, max_tokens=self.keys.max_critique_tokens, seed=0)
        except DoesNotFit as error:
            silent = Sentence(text=str(error), token_ids=(), logps=(), ended=False)
            scores = {"verdict": None, TOO_LONG: 1.0}
            return candidate_of(silent, role=role, asked=asked, scores=scores, final=False)
        verdict = parse_verdict(critique.text)
        return candidate_of(critique, role=role, asked=asked, scores={"verdict": verdict}, final=False)

    def _counted(self, role: str, *, truth: str, first: str, second: str) -> Candidate:
        """The rule's verdict: fewer named things that the reference does not name."""
        absent = [self._absent(text, truth=truth) for text in (first, second)]
        counts = [len(things) for things in absent]
        verdict = _NO_DIFFERENCE if counts[0] == counts[1] else 1 if counts[0] < counts[1] else 2
        listed = [", ".join(sorted(things)) or "nothing" for things in absent]
        text = f"Not in the reference: answer 1 {listed[0]}; answer 2 {listed[1]}. Verdict: [[{verdict}]]"
        return Candidate(
            node=0, text=text, token_ids=(), logp=0.0, role=role, scores={"verdict": float(verdict)}, final=False
        )

    def _absent(self, text: str, *, truth: str) -> set[str]:
        """The things that a text names and the reference does not."""
        return named_objects(text, objects=self.keys.objects) - named_objects(truth, objects=self.keys.objects)

    def examples(self, phase: Phase, rollout: Rollout) -> Sequence[Example] | Dropped:
        """The winner against the other answer, or why nobody won."""
        critiques = _critiques(rollout)
        if not critiques:
            return Dropped(EQUAL)
        winners = [_winner(critique) for critique in critiques]
        if None in winners:
            if any(critique.scores.get(TOO_LONG) for critique in critiques):
                return Dropped(TOO_LONG)
            undecided = any(critique.scores["verdict"] is None for critique in critiques)
            return Dropped(UNPARSED if undecided else TIE)
        if len(set(winners)) > 1:
            return Dropped(DISAGREE)
        winner = rollout.candidates[winners[0] or 0]
        loser = rollout.candidates[_SAMPLED if winner.node == _GREEDY else _GREEDY]
        example = Example(
            id=rollout.prompt.id,
            ask=rollout.prompt.ask,
            targets=(target_of(winner, role="chosen"), target_of(loser, role="rejected")),
            policy_version=rollout.policy_version,
            method=self.name,
            seed=rollout.seed,
        )
        return (example,)

    def rates(self, rollout: Rollout) -> Mapping[str, tuple[int, int]]:
        """How far the critic can be trusted: does it answer, does it agree with itself, does it like a place?

        `first_won` far from a half is a liking for the first place; `sampled_won` and `shorter_won` are said of the
        pairs that are trained on. With `sima.objects` a critic that is no rule is held to the rule: `truth_agrees`
        says how often it prefers the answer that names fewer things which the reference does not name, of its
        verdicts on answers that differ in that.
        """
        critiques = _critiques(rollout)
        winners = [winner for critique in critiques if (winner := _winner(critique)) is not None]
        num_parsed = sum(critique.scores["verdict"] is not None for critique in critiques)
        rates = {
            "equal_answers": (int(not critiques), 1),
            "parsed": (num_parsed, len(critiques)),
            "tied": (num_parsed - len(winners), num_parsed),
            "first_won": (sum(critique.scores["verdict"] == 1 for critique in critiques), len(winners)),
        }
        if self.keys.critic != "objects" and self.keys.objects and winners:
            absent = [
                len(self._absent(said.text, truth=str(rollout.prompt.truth))) for said in rollout.candidates[:2]
            ]
            better = _GREEDY if absent[_GREEDY] < absent[_SAMPLED] else _SAMPLED
            differ = absent[_GREEDY] != absent[_SAMPLED]
            rates["truth_agrees"] = (differ * sum(one == better for one in winners), differ * len(winners))
        if self.keys.orders == "both":
            both = len(winners) == len(_ORDERS)
            rates["orders_agree"] = (int(both and len(set(winners)) == 1), int(both))
        examples = self.examples(Phase(), rollout)
        if not isinstance(examples, Dropped):
            (example,) = examples
            shorter = len(example.chosen.token_ids) < len(example.rejected.token_ids)
            rates["sampled_won"] = (int(example.chosen.nodes == (_SAMPLED,)), 1)
            rates["shorter_won"] = (int(shorter), 1)
        return rates


def critic_prompt(question: str, *, truth: str, first: str, second: str) -> str:
    """What the critic is asked; line breaks within the four texts become spaces."""
    fields = {"question": question, "truth": truth, "first": first, "second": second}
    return _template().format(**{name: " ".join(text.split()) for name, text in fields.items()})


def parse_verdict(critique: str) -> float | None:
    """1 or 2 if that is exactly what stands after the last `[[` and before the next `]]`; None for anything else."""
    _, opened, rest = critique.rpartition("[[")
    verdict, closed, _ = rest.partition("]]")
    return float(verdict) if opened and closed and verdict in ("1", "2") else None


def named_objects(text: str, *, objects: Sequence[str]) -> set[str]:
    """Which of the things a text names, in the singular or the plural; words are whole, case does not count."""
    words = text.lower()
    return {name for name in objects if re.search(rf"\b{re.escape(name.lower())}(?:e?s)?\b", words)}


@cache
def _template() -> str:
    return (Path(__file__).parent / "templates" / "sima_critic.txt").read_text(encoding="utf-8").rstrip("\n")


def _critiques(rollout: Rollout) -> list[Candidate]:
    return [candidate for candidate in rollout.candidates if candidate.role in _ORDERS]


def _winner(critique: Candidate) -> int | None:
    """The answer that a critique prefers, None if it says neither."""
    verdict = critique.scores["verdict"]
    return None if not verdict else _ORDERS[critique.role][int(verdict) - 1]


def _rewarded(answers: Sequence[Candidate], *, critiques: Sequence[Candidate]) -> list[Candidate]:
    """The answers with the share of the verdicts that each has won."""
    winners = [winner for critique in critiques if (winner := _winner(critique)) is not None]
    if not winners:
        return list(answers)
    return [replace(answer, reward=winners.count(answer.node) / len(winners)) for answer in answers]
