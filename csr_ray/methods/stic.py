"""STIC: the policy learns from pictures alone, then to use its own descriptions (Deng et al. 2024, arXiv 2405.19716).

A round has two phases. In the first a picture needs no label: what the policy says to one long, careful request is
preferred to what it says when it is asked to imagine things, or when the picture is spoilt; both are trained under a
short request that neither was an answer to. In the second the policy describes each picture, and imitates the
reference answer with that description before the question. docs/stic.md has the parameters, the deviations and the
measured result.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final, Literal, TypeVar

from pydantic import Field

from csr_ray.config.schema import Config, Section
from csr_ray.methods.base import About, Dropped
from csr_ray.ports import Engine, Scorer
from csr_ray.records import Ask, Candidate, Example, Phase, Picture, Prompt, Rollout, RolloutStats, Target
from csr_ray.rollout.search import derive_seed
from csr_ray.rollout.whole_answers import candidate_of, target_of

ABOUT: Final = About(
    title="self-training on image comprehension",
    source="Deng et al. 2024",
    arxiv="2405.19716",
    needs=("truth",),
    rollouts="2 answers, 1 description",
    objective="DPO + NLL, then SFT on the truth",
)
EQUAL: Final = "answers_equal"
SILENT: Final = "nothing_described"
NO_TRUTH: Final = "truth_is_missing"

FIRST: Final = Phase(has_reference=False)  # the answers were given to other questions than the one that is trained
SECOND: Final = Phase(name="infused", objective="sft", num_answers=1, needs_truth=True)

_GOOD, _DESCRIPTION, _TRUTH = "good_prompt", "description", "truth"
# How a rejected answer came about.
_BAD, _RESIZED, _JITTERED, _PLAIN = "bad_prompt", "resized", "jittered", "short_prompt"
_CHANGES: Final = {_RESIZED: "resize:20", _JITTERED: "jitter:0.5,0.3"}

_Choice = TypeVar("_Choice")


class Keys(Section):
    """The section `stic` of a config."""

    stages: Literal["both", "first", "second"] = Field(
        "both",
        description="both: preferences between descriptions, then the truth behind a description; first: needs no "
        "truth; second: for a policy that has had the first",
    )
    good_prompt: str | None = Field(
        None, min_length=1, description="the long request for the preferred answers; null: this project's own"
    )
    short_prompts: tuple[str, ...] = Field(
        (),
        description="the requests that pairs are trained under and that descriptions are asked for by, one drawn for "
        "each picture; []: this project's own eight",
    )
    bad_prompts: tuple[str, ...] = Field(
        (), description="the requests to imagine things, one drawn for each picture; []: this project's own eight"
    )
    corrupted_picture: bool = Field(
        True,
        description="rejected answers that no bad prompt led to are said of a spoilt picture; false: of the clean "
        "one to the short request, as the released code does it, which passes no flag on",
    )
    nll_weight: float = Field(
        1 / 1024,
        ge=0,
        description="the paper's alpha: factor of -log p(chosen answer), summed over its tokens, in the first "
        "phase's loss, where train.nll_weight has no say; 0: DPO alone",
    )
    temperature: float = Field(0.2, ge=0, le=5, description="of every answer")
    max_answer_tokens: int = Field(1024, ge=1, description="token limit of an answer and of a description")


def build(config: Config) -> Stic:
    keys = config.method_keys
    assert isinstance(keys, Keys), keys
    return Stic(keys=keys)


@dataclass(frozen=True, kw_only=True)
class Stic:
    """See `csr_ray.methods.base.Method`."""

    keys: Keys
    name: str = "stic"
    needs_scorer: bool = False

    @property
    def answers_a_prompt(self) -> float:
        return {"both": 1.5, "first": 2.0, "second": 1.0}[self.keys.stages]

    def phases(self, round_index: int) -> Sequence[Phase]:
        first = replace(FIRST, nll_weight=self.keys.nll_weight)
        return {"both": (first, SECOND), "first": (first,), "second": (SECOND,)}[self.keys.stages]

    def refuses(self, prompt: Prompt) -> str | None:
        is_of_use = prompt.truth or self.keys.stages != "second"
        return None if is_of_use else "truth is missing; stic's second stage imitates it"

    async def rollout(
        self, phase: Phase, prompt: Prompt, *, engine: Engine, scorer: Scorer, policy_version: int, seed: int
    ) -> Rollout:
        """Two answers, one of which is to be avoided; in the second phase a description, and the truth in tokens."""
        started_s = time.perf_counter()
        if phase.name == SECOND.name:
            candidates = await self._described(prompt, engine=engine, seed=seed)
        else:
            candidates = await self._contrasted(prompt, engine=engine, seed=seed)
        num_tokens = sum(len(candidate.token_ids) for candidate in candidates if candidate.role != _TRUTH)
        stats = RolloutStats(num_tokens=num_tokens, seconds=time.perf_counter() - started_s)
        return Rollout(prompt=prompt, candidates=candidates, policy_version=policy_version, seed=seed, stats=stats)

    async def _contrasted(self, prompt: Prompt, *, engine: Engine, seed: int) -> tuple[Candidate, ...]:
        good = Ask(picture=prompt.ask.picture, text=self.keys.good_prompt or _template("good"))
        role, spoilt = self._spoilt(prompt, seed=seed)
        return tuple(
            await asyncio.gather(
                self._said(engine, good, role=_GOOD, node=0, seed=derive_seed(seed, _GOOD)),
                self._said(engine, spoilt, role=role, node=1, seed=derive_seed(seed, role)),
            )
        )

    async def _described(self, prompt: Prompt, *, engine: Engine, seed: int) -> tuple[Candidate, ...]:
        if not prompt.truth:  # nothing is paid for what nobody can use
            return (Candidate(node=0, text="", token_ids=(), logp=None, role=_TRUTH, final=False),)
        ask = replace(prompt.ask, text=self._short_prompt(seed))
        description = await self._said(engine, ask, role=_DESCRIPTION, node=0, seed=derive_seed(seed, _DESCRIPTION))
        answer_ids = engine.answer_ids(prompt.truth)
        return (
            replace(description, final=False),
            Candidate(node=1, text=prompt.truth, token_ids=answer_ids, logp=None, role=_TRUTH),
        )

    async def _said(self, engine: Engine, ask: Ask, *, role: str, node: int, seed: int) -> Candidate:
        keys = self.keys
        sentence = await engine.answer(
            ask, temperature=keys.temperature, max_tokens=keys.max_answer_tokens, seed=seed
        )
        return candidate_of(sentence, role=role, node=node, asked=ask.text)

    def _short_prompt(self, seed: int) -> str:
        return _drawn(self.keys.short_prompts or _lines("short"), seed=seed, what="short prompt")

    def _spoilt(self, prompt: Prompt, *, seed: int) -> tuple[str, Ask]:
        """How the rejected answer comes about, and what it is an answer to: two coins, thrown with the seed."""
        clean = prompt.ask.picture
        if _drawn((True, False), seed=seed, what="bad prompt or picture"):
            return _BAD, Ask(
                picture=clean, text=_drawn(self.keys.bad_prompts or _lines("bad"), seed=seed, what="bad prompt")
            )
        short = self._short_prompt(seed)
        if not self.keys.corrupted_picture:
            return _PLAIN, Ask(picture=clean, text=short)
        role = _drawn(tuple(_CHANGES), seed=seed, what="change")
        return role, Ask(picture=Picture(path=clean.path, change=_CHANGES[role], seed=seed), text=short)

    def examples(self, phase: Phase, rollout: Rollout) -> Sequence[Example] | Dropped:
        """The careful answer against the spoilt one; in the second phase the truth behind the description."""
        said = {candidate.role: candidate for candidate in rollout.candidates}
        if phase.name == SECOND.name:
            if _DESCRIPTION not in said:
                return Dropped(NO_TRUTH)
            if not said[_DESCRIPTION].text.strip():
                return Dropped(SILENT)
            question = infused(rollout.prompt.text, description=said[_DESCRIPTION].text)
            return self._example(rollout, question=question, targets=[target_of(said[_TRUTH], role="answer")])
        good, spoilt = rollout.candidates
        if not good.text.strip():
            return Dropped(SILENT)
        if good.text == spoilt.text or good.token_ids == spoilt.token_ids:
            return Dropped(EQUAL)
        # What these answers are worth as answers to the short request, nobody has asked yet.
        pair = [replace(target_of(good, role="chosen"), logp=None)]
        pair += [replace(target_of(spoilt, role="rejected"), logp=None)]
        return self._example(rollout, question=self._short_prompt(rollout.seed), targets=pair)

    def _example(self, rollout: Rollout, *, question: str, targets: Sequence[Target]) -> tuple[Example]:
        example = Example(
            id=rollout.prompt.id,
            ask=replace(rollout.prompt.ask, text=question),
            targets=tuple(targets),
            policy_version=rollout.policy_version,
            method=self.name,
            seed=rollout.seed,
        )
        return (example,)

    def rates(self, rollout: Rollout) -> Mapping[str, tuple[int, int]]:
        """How the rejected answers came about, and how often the chosen one is the longer.

        The long request makes long answers, so a policy may learn length from such pairs and nothing else.
        """
        if rollout.candidates[0].role != _GOOD:
            return {}
        good, spoilt = rollout.candidates
        roles = [_BAD, *(_CHANGES if self.keys.corrupted_picture else (_PLAIN,))]
        rates = {role: (int(spoilt.role == role), 1) for role in roles}
        rates["longer_chosen"] = (int(len(good.token_ids) > len(spoilt.token_ids)), 1)
        return rates


def infused(question: str, *, description: str) -> str:
    """The question with the policy's own description of the picture before it."""
    return _template("described").format(description=description.strip(), question=question)


def _drawn(choices: Sequence[_Choice], *, seed: int, what: str) -> _Choice:
    """One of the choices, each as likely; the same for the same seed and the same `what`."""
    return choices[derive_seed(seed, what) % len(choices)]


@cache
def _template(name: str) -> str:
    path = Path(__file__).parent / "templates" / f"stic_{name}.txt"
    return path.read_text(encoding="utf-8").rstrip("\n")


def _lines(name: str) -> tuple[str, ...]:
    return tuple(_template(name).splitlines())
