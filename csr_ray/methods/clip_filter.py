"""CLIP-filtered self-training: the policy imitates those of its own answers that CLIP likes best for the picture.

Generate, score by CLIP, keep the best, train, and repeat: that is the skeleton of the refinement in prompt-based
unpaired captioning (Zhu et al. 2022, arXiv 2205.13125) and an ancestor of CSR's image reward. It has no rejected
answers and no search. docs/self_training.md has the parameters, the deviations and the measured result.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pydantic import Field

from csr_ray.config.schema import Config, Section
from csr_ray.errors import ConfigError
from csr_ray.methods.base import About, Dropped
from csr_ray.ports import Engine, Scorer
from csr_ray.records import Candidate, Example, Phase, Picture, Prompt, Rollout, RolloutStats, Sentence
from csr_ray.rollout.served import sentences_of
from csr_ray.rollout.whole_answers import candidate_of, distinct, numbered, sample_answers, target_of

ABOUT: Final = About(
    title="CLIP-filtered self-training",
    source="Zhu et al. 2022",
    arxiv="2205.13125",
    needs=("scorer",),
    rollouts="8 answers",
    objective="SFT on CLIP's favourite",
)
EQUAL: Final = "answers_equal"
SILENT: Final = "answers_empty"
LOW: Final = "score_too_low"
NO_GAIN: Final = "best_hardly_above_mean"

_SAMPLE: Final = "sample"


class Keys(Section):
    """The section `clip_filter` of a config."""

    num_answers: int = Field(8, ge=2, le=64, description="answers that are drawn to each prompt")
    temperature: float = Field(0.8, gt=0, le=5, description="of these answers")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus of these answers")
    max_answer_tokens: int = Field(1024, ge=1, description="token limit of an answer")
    min_gain: float = Field(
        0.0,
        ge=0,
        description="by so much the best answer's score (100 cos, the mean over its sentences) has to be above the "
        "mean of the prompt's answers; 0: by anything",
    )
    min_score: float | None = Field(
        None,
        ge=-100,
        le=100,
        description="the least score of an answer to imitate, whatever the others have; null: none",
    )


def build(config: Config) -> ClipFilter:
    keys = config.method_keys
    assert isinstance(keys, Keys), keys
    if config.scorer is None:
        raise ConfigError("scorer.model: missing; method = clip_filter keeps answers by CLIP; give it in the config")
    return ClipFilter(keys=keys)


@dataclass(frozen=True, kw_only=True)
class ClipFilter:
    """See `csr_ray.methods.base.Method`."""

    keys: Keys
    name: str = "clip_filter"
    needs_scorer: bool = True

    @property
    def answers_a_prompt(self) -> float:
        return float(self.keys.num_answers)

    def phases(self, round_index: int) -> Sequence[Phase]:
        return (Phase(objective="sft", num_answers=1),)

    def refuses(self, prompt: Prompt) -> str | None:
        return None

    async def rollout(
        self, phase: Phase, prompt: Prompt, *, engine: Engine, scorer: Scorer, policy_version: int, seed: int
    ) -> Rollout:
        """The answers, each with the mean of its sentences' scores under `image`, which is its reward, too."""
        started_s = time.perf_counter()
        keys = self.keys
        said = await sample_answers(
            engine,
            ask=prompt.ask,
            num=keys.num_answers,
            temperature=keys.temperature,
            top_p=keys.top_p,
            max_tokens=keys.max_answer_tokens,
            seed=seed,
        )
        asked_s = time.perf_counter()
        scores, num_scored, num_cut = await _scores(said, picture=prompt.ask.picture, scorer=scorer)
        candidates = numbered([_scored(sentence, score=scores[sentence.text]) for sentence in said])
        stats = RolloutStats(
            num_tokens=sum(len(sentence.token_ids) for sentence in said),
            num_sentences_scored=num_scored,
            num_texts_cut=num_cut,
            seconds=time.perf_counter() - started_s,
            score_wait_s=time.perf_counter() - asked_s,
        )
        return Rollout(
            prompt=prompt, candidates=tuple(candidates), policy_version=policy_version, seed=seed, stats=stats
        )

    def examples(self, phase: Phase, rollout: Rollout) -> Sequence[Example] | Dropped:
        """The best of the answers; of equally good ones the first."""
        # The mean is over what was drawn, so an answer that was drawn twice counts twice.
        scores = [answer.reward for answer in rollout.candidates if answer.reward is not None]
        if not scores:
            return Dropped(SILENT)
        if len(distinct(rollout.candidates)) < 2:
            return Dropped(EQUAL)
        best = max(rollout.candidates, key=lambda answer: -101.0 if answer.reward is None else answer.reward)
        assert best.reward is not None
        if self.keys.min_score is not None and best.reward < self.keys.min_score:
            return Dropped(LOW)
        gain = best.reward - sum(scores) / len(scores)
        if gain <= 0 or gain < self.keys.min_gain:
            return Dropped(NO_GAIN)
        example = Example(
            id=rollout.prompt.id,
            ask=rollout.prompt.ask,
            targets=(target_of(best, role="answer"),),
            policy_version=rollout.policy_version,
            method=self.name,
            seed=rollout.seed,
        )
        return (example,)

    def rates(self, rollout: Rollout) -> Mapping[str, tuple[int, int]]:
        """How different the answers are, and whether CLIP likes short ones: that is how a filter is hacked."""
        rates = {"distinct": (len(distinct(rollout.candidates)), len(rollout.candidates))}
        examples = self.examples(Phase(), rollout)
        if not isinstance(examples, Dropped):
            (example,) = examples
            others = [len(answer.token_ids) for answer in rollout.candidates]
            is_shorter = len(example.preferred.token_ids) < sum(others) / len(others)
            rates["shorter_kept"] = (int(is_shorter), 1)
        return rates


async def _scores(
    said: Sequence[Sentence], *, picture: Picture, scorer: Scorer
) -> tuple[Mapping[str, float | None], int, int]:
    """By an answer's text its score, None where it has no words; how many sentences were scored, and how many cut."""
    sentences = {sentence.text: sentences_of(sentence.text) for sentence in said}
    texts = list(dict.fromkeys(text for some in sentences.values() for text in some))
    if not texts:
        return dict.fromkeys(sentences), 0, 0
    cosines, num_cut = await scorer.score(picture, texts=texts)
    by_text = dict(zip(texts, cosines, strict=True))
    means = {
        answer: sum(by_text[text] for text in some) / len(some) if some else None
        for answer, some in sentences.items()
    }
    return means, len(texts), num_cut


def _scored(sentence: Sentence, *, score: float | None) -> Candidate:
    return replace(candidate_of(sentence, role=_SAMPLE, scores={"image": score}), reward=score)
