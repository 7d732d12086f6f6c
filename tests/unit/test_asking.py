"""What the generators do for `csr-ray ask`: one answer, its sentences, and their scores by the run's settings."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from fakes import TableScorer, tiny_config

from csr_ray.evaluation.asking import Asking
from csr_ray.methods.base import Method
from csr_ray.records import Contrast, Phase, Picture, Prompt, Rollout, Sentence, WayToAsk
from csr_ray.rollout.reward import image_factor

PROMPT = Prompt(id="a.png", image="/photos/a.png", text="What is it?")
SCORES = {"A cat sits there.": 30.0, "It is red.": -4.0, "Nothing else": 10.0}


@dataclass
class Saying:
    """An engine that says one thing, and remembers how it was asked."""

    text: str
    logps: tuple[float, ...] = (-0.1, -0.3)
    ended: bool = True
    asked: list[dict[str, Any]] = field(default_factory=list)

    async def answer(self, ask: Any, **how: Any) -> Sentence:
        self.asked.append({"text": ask.text, **how})
        return Sentence(text=self.text, token_ids=(1,) * len(self.logps), logps=self.logps, ended=self.ended)


@dataclass
class Seeing(TableScorer):
    """A scorer that remembers what it saw."""

    saw: list[str] = field(default_factory=list)

    async def score(self, picture: Picture, *, texts: Sequence[str]) -> tuple[list[float], int]:
        self.saw += texts
        return await super().score(picture, texts=texts)


def asking(**changes: Any) -> Asking:
    usual: dict[str, Any] = {"needs_scorer": True, "temperature": 0.0, "max_tokens": 20, "seed": 3}
    reward = tiny_config(reward=changes.pop("reward", {})).reward
    return Asking(reward=reward, **{**usual, **changes})


def said(
    engine: Any, scorer: Any = None, *, by: Asking | None = None, phase: str = "version_000", seed: int = 1
) -> Rollout:
    return asyncio.run(
        (by or asking()).rollout(
            Phase(name=phase),
            PROMPT,
            engine=engine,
            scorer=scorer or TableScorer(SCORES),
            policy_version=2,
            seed=seed,
        )
    )


def test_it_has_the_shape_of_a_method() -> None:
    method: Method = asking()
    assert (list(method.phases(0)), method.refuses(PROMPT), method.needs_scorer) == ([], None, True)


def test_an_answer_comes_first_and_then_its_sentences_each_with_its_score() -> None:
    rollout = said(Saying("A cat sits there. It is red. Nothing else"))
    answer, *sentences = rollout.candidates
    assert [one.text for one in sentences] == ["A cat sits there.", "It is red.", "Nothing else"]
    # reward.floor_image: what fits worse than not at all counts as nothing.
    assert [one.image_score for one in sentences] == [30.0, 0.0, 10.0]
    assert answer.image_score == pytest.approx(40 / 3)
    assert answer.self_score == pytest.approx(100 * 2.718281828 ** (-0.2))
    assert answer.scores["cut"] == 0.0 and rollout.policy_version == 2
    assert (rollout.stats.num_tokens, rollout.stats.num_sentences_scored) == (2, 3)


def test_points_are_in_the_unit_of_the_config_and_the_reward_blends_them() -> None:
    @dataclass
    class Sharp(TableScorer):
        async def nats(self) -> float:
            return 100.0  # OpenAI's CLIP

    in_nats = said(Saying("A cat sits there."), Sharp(SCORES)).candidates
    assert in_nats[1].scores["points"] == pytest.approx(30.0 * image_factor(100.0)) == pytest.approx(300.0)
    in_points = said(
        Saying("A cat sits there."), Sharp(SCORES), by=asking(reward={"image_unit": "points", "weight": 0.9})
    ).candidates
    assert in_points[1].scores["points"] == 30.0
    own = in_points[0].self_score
    assert own is not None and in_points[0].reward == pytest.approx(0.9 * 30.0 + 0.1 * own)


def test_what_the_released_cleaning_drops_has_no_score_nor_what_follows_it() -> None:
    scorer = Seeing({"A welllit room.": 20.0})
    by = asking(reward={"cleaning": "released"})
    _, *sentences = said(Saying("A well-lit room. Hm. It is red."), scorer, by=by).candidates
    assert [one.image_score for one in sentences] == [20.0, None, None]
    assert scorer.saw == ["A welllit room."]


def test_without_a_scorer_nobody_is_asked_for_scores() -> None:
    by = asking(needs_scorer=False)
    answer, sentence = said(Saying("A cat sits there."), object(), by=by).candidates
    assert (answer.image_score, sentence.image_score, sentence.scores["points"], answer.reward) == (None,) * 4


def test_an_empty_answer_is_an_answer_that_is_not_scored() -> None:
    (answer,) = said(Saying("", logps=()), by=asking()).candidates
    assert (answer.text, answer.image_score, answer.self_score) == ("", None, 0.0)


def test_an_answer_that_the_limit_ended_says_so() -> None:
    assert said(Saying("A cat sits there.", ended=False)).candidates[0].scores["cut"] == 1.0


def test_each_policy_is_asked_in_its_way_with_the_same_draws() -> None:
    contrast = Contrast(alpha=0.5)
    by = asking(ways={"version_001": WayToAsk(decoding=contrast)}, temperature=0.7)
    engine = Saying("A cat sits there.")
    for phase, seed in (("version_000", 1), ("version_001", 2)):  # as a run's seeds differ by cycle
        said(engine, by=by, phase=phase, seed=seed)
    before, after = engine.asked
    assert (before["contrast"], after["contrast"]) == (None, contrast)
    assert before["seed"] == after["seed"]
    assert (before["temperature"], before["max_tokens"]) == (0.7, 20)
