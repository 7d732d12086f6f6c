"""ILLUME: the policy imitates those of its own answers that somebody accepts (Brack et al. 2022, arXiv 2208.08241).

For each prompt the policy draws answers at several temperatures. An answer is accepted if it agrees with the
reference answer (ROUGE-L), or if a person has said so in a file. The policy is trained on all that were accepted so
far, beside rows whose short reference answer it is to keep in mind. docs/self_training.md has the parameters, the
deviations and the measured result.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Final

from pydantic import Field

from csr_ray.config.schema import Config, Section
from csr_ray.data.json_lines import records_of
from csr_ray.errors import ConfigError
from csr_ray.evaluation.rouge import rouge_l
from csr_ray.methods.base import About, Dropped
from csr_ray.ports import Engine, Scorer
from csr_ray.records import Candidate, Example, Phase, Prompt, Rollout, RolloutStats
from csr_ray.rollout.search import derive_seed
from csr_ray.rollout.whole_answers import candidate_of, distinct, numbered, sample_answers, target_of

ABOUT: Final = About(
    title="self-training on accepted answers",
    source="Brack et al. 2022",
    arxiv="2208.08241",
    needs=("truth",),
    rollouts="25 answers",
    objective="weighted SFT on accepted answers",
)
NOT_ACCEPTED: Final = "no_answer_accepted"

_SAMPLE, _ANSWER_ONLY = "sample", "answer_only"
_ACCEPTED: Final = "accepted"
_LEAST_CHARS: Final = 3
_WORLD: Final = "${world}"


class Keys(Section):
    """The section `illume` of a config."""

    temperatures: tuple[Annotated[float, Field(ge=0, le=5)], ...] = Field(
        (0.01, 0.1, 0.3, 0.6, 0.9), min_length=1, description="answers are drawn at each of these temperatures"
    )
    num_answers: int = Field(5, ge=1, le=64, description="answers that are drawn at each temperature")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus of these answers")
    max_answer_tokens: int = Field(100, ge=1, description="token limit of an answer")
    min_rouge: float = Field(
        0.7, ge=0, le=1, description="the least ROUGE-L (F-measure, 0 to 1) against the truth of an accepted answer"
    )
    accepted: str | None = Field(
        None,
        description="JSON lines with id (the prompt's) and text: answers that a person has accepted, or, with "
        "accepted: false, refused (csr-ray annotate RUN_DIR --from answers). min_rouge has no say then, and a phase "
        "waits for lines on its answers; the file need not be there before. null: by min_rouge",
    )
    accumulate: bool = Field(
        True, description="a round is trained on what all earlier rounds have accepted, too; false: on its own alone"
    )
    answer_only_words: int = Field(
        0,
        ge=0,
        description="a prompt whose truth has at most so many words is a row of answer only: nothing is drawn, its "
        "truth is imitated, with weight 1; 0: there are none",
    )
    weight: float = Field(
        1.0,
        gt=0,
        description="of an accepted answer, where a row of answer only has 1; the released code has the number of "
        "rows of answer only divided by that of accepted answers, about 10",
    )


def build(config: Config) -> Illume:
    keys = config.method_keys
    assert isinstance(keys, Keys), keys
    # Read once a start: whatever happens to the file meanwhile, all of a phase is decided by the same words.
    return Illume(keys=keys, said=None if keys.accepted is None else read_accepted(keys.accepted))


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a person said of one answer to one prompt.

    Attributes:
        policy_versions: under which it was drawn when they said so; None among them: whichever it was.
    """

    is_accepted: bool
    policy_versions: frozenset[int | None]


@dataclass(frozen=True, kw_only=True)
class Illume:
    """See `csr_ray.methods.base.Method` and `csr_ray.methods.base.AwaitsPeople`.

    Attributes:
        said: what people have said of answers, by the prompt's id and the text; None: `min_rouge` decides.
    """

    keys: Keys
    said: Mapping[tuple[str, str], Said] | None = field(default=None, repr=False)
    name: str = "illume"
    needs_scorer: bool = False

    @property
    def answers_a_prompt(self) -> float:
        return float(len(self.keys.temperatures) * self.keys.num_answers)

    def phases(self, round_index: int) -> Sequence[Phase]:
        keys = self.keys
        most = len(keys.temperatures) * keys.num_answers
        return (
            Phase(
                objective="weighted_sft",
                num_answers=1,
                max_examples_a_prompt=most,
                accumulates=keys.accumulate,
            ),
        )

    def refuses(self, prompt: Prompt) -> str | None:
        is_of_use = prompt.truth or self.keys.accepted is not None
        return None if is_of_use else "truth is missing; illume accepts answers by it, or by illume.accepted"

    async def rollout(
        self, phase: Phase, prompt: Prompt, *, engine: Engine, scorer: Scorer, policy_version: int, seed: int
    ) -> Rollout:
        """The answers that differ, each with how near it is to the truth, and what follows unless people decide."""
        started_s = time.perf_counter()
        num_tokens = 0
        if self._is_answer_only(prompt):
            text = str(prompt.truth).strip()
            answer_ids = engine.answer_ids(text)
            candidates = [Candidate(node=0, text=text, token_ids=answer_ids, logp=None, role=_ANSWER_ONLY)]
        else:
            drawn = await asyncio.gather(
                *(
                    sample_answers(
                        engine,
                        ask=prompt.ask,
                        num=self.keys.num_answers,
                        temperature=temperature,
                        top_p=self.keys.top_p,
                        max_tokens=self.keys.max_answer_tokens,
                        seed=derive_seed(seed, place),
                    )
                    for place, temperature in enumerate(self.keys.temperatures)
                )
            )
            said = list(itertools.chain.from_iterable(drawn))
            num_tokens = sum(len(sentence.token_ids) for sentence in said)
            answers = distinct([candidate_of(sentence, role=_SAMPLE) for sentence in said])
            candidates = numbered([self._judged(answer, prompt=prompt) for answer in answers])
        stats = RolloutStats(num_tokens=num_tokens, seconds=time.perf_counter() - started_s)
        return Rollout(
            prompt=prompt, candidates=tuple(candidates), policy_version=policy_version, seed=seed, stats=stats
        )

    def _is_answer_only(self, prompt: Prompt) -> bool:
        num_words = len((prompt.truth or "").split())
        return 0 < num_words <= self.keys.answer_only_words

    def _judged(self, answer: Candidate, *, prompt: Prompt) -> Candidate:
        text = answer.text.strip()
        rouge = rouge_l(text, reference=prompt.truth) if prompt.truth else None
        scores: dict[str, float | None] = {"rouge_l": rouge}
        if self.said is None:
            assert rouge is not None, prompt.id
            scores[_ACCEPTED] = float(len(text) >= _LEAST_CHARS and rouge >= self.keys.min_rouge)
        return replace(answer, scores=scores, reward=rouge)

    @property
    def awaits_people(self) -> bool:
        return self.said is not None

    def awaits(self, rollouts: Iterable[Rollout]) -> str | None:
        """A file without one line on an answer of this phase. Answers of earlier rounds may be given again, so a line
        that names a policy version is of the answer that this one gave."""
        if self.said is None:
            return None
        is_drawn = False
        for rollout in rollouts:
            for answer in rollout.candidates:
                if answer.role != _SAMPLE:
                    continue
                is_drawn = True
                said = self.said.get((rollout.prompt.id, answer.text.strip()))
                if said is not None and not said.policy_versions.isdisjoint((None, rollout.policy_version)):
                    return None
        return f"illume.accepted = {self.keys.accepted!r} has no row on an answer of this phase" if is_drawn else None

    def examples(self, phase: Phase, rollout: Rollout) -> Sequence[Example] | Dropped:
        """Every accepted answer, or the short truth of a row of answer only."""
        accepted = self._accepted(rollout)
        return [self._example(rollout, answer) for answer in accepted] if accepted else Dropped(NOT_ACCEPTED)

    def _example(self, rollout: Rollout, answer: Candidate) -> Example:
        return Example(
            id=rollout.prompt.id,
            ask=rollout.prompt.ask,
            targets=(target_of(answer, role="answer"),),
            policy_version=rollout.policy_version,
            method=self.name,
            seed=rollout.seed,
            weight=1.0 if answer.role == _ANSWER_ONLY else self.keys.weight,
        )

    def rates(self, rollout: Rollout) -> Mapping[str, tuple[int, int]]:
        """Of the answers that differ, how many were accepted; and of the prompts, how many have such an answer."""
        num_drawn = sum(candidate.role == _SAMPLE for candidate in rollout.candidates)
        if not num_drawn:
            return {"answer_only": (1, 1)}
        num_accepted = len(self._accepted(rollout))
        rates = {"accepted": (num_accepted, num_drawn), "has_accepted": (int(num_accepted > 0), 1)}
        return rates if not self.keys.answer_only_words else {**rates, "answer_only": (0, 1)}

    def _accepted(self, rollout: Rollout) -> list[Candidate]:
        return [answer for answer in rollout.candidates if self._is_accepted(answer, id=rollout.prompt.id)]

    def _is_accepted(self, answer: Candidate, *, id: str) -> bool:
        if answer.role == _ANSWER_ONLY:
            return True
        if self.said is None:
            return answer.scores.get(_ACCEPTED) == 1
        said = self.said.get((id, answer.text.strip()))
        return said is not None and said.is_accepted


def read_accepted(path: str) -> dict[tuple[str, str], Said]:
    """What people have said, by the prompt's id and the text; of several lines on one answer the last one counts.

    A file of this machine that is not there, or empty, says nothing yet. Lines that are no such record are passed
    over.

    Raises:
        ConfigError: the file cannot be read, or has lines, and no usable one.
    """
    if _WORLD in path or ("://" not in path and _says_nothing(os.path.expanduser(path))):
        return {}
    found: dict[tuple[str, str], Said] = {}
    for row in records_of(path if "://" in path else os.path.expanduser(path), key="illume.accepted"):
        text, accepted, version = row.get("text"), row.get("accepted", True), row.get("policy_version")
        if not isinstance(text, str) or not text.strip() or not isinstance(accepted, bool):
            continue
        if version is not None and type(version) is not int:
            continue
        key = (row["id"], text.strip())
        earlier = found[key].policy_versions if key in found else frozenset[int | None]()
        found[key] = Said(is_accepted=accepted, policy_versions=earlier | {version})
    if not found:
        raise ConfigError(f"illume.accepted = {path!r}: not one line is a JSON object with id and text")
    return found


def _says_nothing(path: str) -> bool:
    return not os.path.lexists(path) or (os.path.isfile(path) and os.path.getsize(path) == 0)
