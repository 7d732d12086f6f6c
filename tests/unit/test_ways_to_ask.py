"""Describe and respond, rescoring and Post-Hoc debias, put together of requests to a scripted engine."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from csr_ray.app.evaluate import said_of, what_is_asked
from csr_ray.config.load import parse_config
from csr_ray.errors import ConfigError
from csr_ray.evaluation.suite import Suite
from csr_ray.evaluation.ways_to_ask import DESCRIBE_REQUEST, answer_question
from csr_ray.methods.base import method_of
from csr_ray.records import (
    REMOVED,
    UNK,
    Ask,
    Calibration,
    Contrast,
    Picture,
    Question,
    Rescoring,
    Sentence,
    WayToAsk,
)
from csr_ray.rollout.contrasting import ContrastingEngine

QUESTION = Question(id="q", image="a.png", text="Is there a star?", choices=("yes", "no"))


@dataclass
class Scripted:
    """Answers by number of the request; first tokens and log-probs by what is shown."""

    texts: Sequence[str] = ("It is.",)
    first: dict[str, list[tuple[str, int, float]]] = field(default_factory=dict)
    hidden_logps: dict[tuple[int, ...], float] = field(default_factory=dict)
    asked: list[tuple[Ask, dict[str, Any]]] = field(default_factory=list)

    async def answer(self, ask: Ask, **how: Any) -> Sentence:
        number = len(self.asked)
        self.asked.append((ask, how))
        return Sentence(text=self.texts[number], token_ids=(number,), logps=(-1.0 - number,), ended=True)

    async def first_tokens(self, ask: Ask, *, num: int) -> list[tuple[str, int, float]]:
        self.asked.append((ask, {"num": num}))
        return self.first[ask.picture.change]

    async def answer_logp(self, ask: Ask, *, answer_ids: Sequence[int]) -> float:
        assert not ask.picture.is_shown
        return self.hidden_logps[tuple(answer_ids)]


def answered(engine: Scripted, question: Question, **how: Any) -> Sentence:
    usual = {"temperature": 0.0, "max_tokens": 8, "seed": 3}
    return asyncio.run(answer_question(question, engine=engine, **{**usual, **how}))  # type: ignore[arg-type]


def asked_so(decoding: Any = None, *, describe_first: bool = False) -> Question:
    return replace(QUESTION, way=WayToAsk(decoding=decoding, describe_first=describe_first))


def test_a_plain_question_is_one_request() -> None:
    engine = Scripted()
    assert answered(engine, QUESTION, temperature=0.7).text == "It is."
    ((ask, how),) = engine.asked
    assert ask == QUESTION.ask
    assert how == {"temperature": 0.7, "max_tokens": 8, "seed": 3, "contrast": None}


def test_described_first_the_question_stands_behind_the_description() -> None:
    engine = Scripted(texts=("A red star.", "Yes."))
    assert answered(engine, asked_so(Contrast(), describe_first=True), temperature=1.0).text == "Yes."
    (first, how), (second, second_how) = engine.asked
    assert (first.text, how["temperature"]) == (DESCRIBE_REQUEST, 0.0)
    assert "contrast" not in how, "the description is the policy's own"
    assert second.text == "Image description:\nA red star.\n\nIs there a star?"
    assert first.picture == second.picture == QUESTION.ask.picture
    assert (second_how["contrast"], second_how["temperature"]) == (Contrast(), 1.0)


def test_of_answers_drawn_the_one_wins_that_needs_the_picture_most() -> None:
    """Scores 2 l - l': -2 + 0.5, -4 + 9 and -6 + 6."""
    engine = Scripted(texts=("a", "b", "c"), hidden_logps={(0,): -0.5, (1,): -9.0, (2,): -6.0})
    assert answered(engine, asked_so(Rescoring(samples=3))).text == "b"
    assert len({how["seed"] for _, how in engine.asked}) == 3
    assert {how["temperature"] for _, how in engine.asked} == {1.0}
    engine = Scripted(texts=("a", "b", "c"), hidden_logps={(0,): -0.5, (1,): -9.0, (2,): -6.0})
    assert answered(engine, asked_so(Rescoring(samples=3, alpha=0.0))).text == "a"


def logs(**shares: float) -> list[tuple[str, int, float]]:
    return [(text, number, math.log(share)) for number, (text, share) in enumerate(shares.items())]


def test_calibrated_a_yes_that_needs_no_picture_counts_less() -> None:
    first = {"": logs(Yes=0.6, No=0.3, Maybe=0.1), REMOVED: logs(Yes=0.9, No=0.05), UNK: logs(No=0.9, Yes=0.05)}
    answer = answered(Scripted(first=first), asked_so(Calibration()))
    assert (answer.text, answer.token_ids, answer.logps) == ("no", (1,), (pytest.approx(math.log(0.3)),))
    # The unknown token leans the other way; together they are even.
    assert answered(Scripted(first=first), asked_so(Calibration(changes=(UNK,)))).text == "yes"
    assert answered(Scripted(first=first), asked_so(Calibration(changes=(REMOVED, UNK)))).text == "yes"


def test_a_question_without_choices_is_answered_plainly() -> None:
    open_question = replace(asked_so(Calibration()), choices=())
    assert answered(Scripted(), open_question).text == "It is."


def test_where_no_choice_is_among_the_first_tokens_the_policy_answers_itself() -> None:
    first = {"": logs(Perhaps=0.9), REMOVED: logs(Yes=0.9)}
    engine = Scripted(first=first, texts=("", "", "Perhaps."))
    assert answered(engine, asked_so(Calibration())).text == "Perhaps."


def test_the_rollouts_engine_contrasts_whole_answers() -> None:
    engine, contrast = Scripted(), Contrast(alpha=0.5)
    contrasting = ContrastingEngine(engine=engine, contrast=contrast)  # type: ignore[arg-type]
    ask = Ask(picture=Picture(path="a.png"), text="?")
    asyncio.run(contrasting.answer(ask, temperature=0.8, top_p=0.9, max_tokens=4, seed=1))
    assert engine.asked[0][1] == {
        "temperature": 0.8, "top_p": 0.9, "max_tokens": 4, "seed": 1, "contrast": contrast
    }  # fmt: skip


def config_with(*, method: str = "csr", **sections: Any) -> Any:
    tree = {"method": method, "data": {"prompts": "p.jsonl"}, "policy": {"model": "m"}, **sections}
    return parse_config(tree if method != "csr" else {**tree, "scorer": {"model": "clip"}})


def test_the_config_says_the_way() -> None:
    assert config_with().way_to_ask == WayToAsk()
    section = {"kind": "vdd", "without": "both", "alpha": 0.5, "cutoff": 0.2}
    way = config_with(decoding=section, eval={"ask": "describe_first"}).way_to_ask
    assert way == WayToAsk(decoding=Contrast(changes=(REMOVED, UNK), alpha=0.5, cutoff=0.2), describe_first=True)
    noise = config_with(decoding={"kind": "rescore", "without": "noise", "noise_step": 999}).way_to_ask.decoding
    assert noise == Rescoring(changes=("noise:999",))
    assert config_with(decoding={"kind": "post_hoc"}).way_to_ask.decoding == Calibration()
    assert said_of(way)["way"]["decoding"]["kind"] == "vdd"
    assert said_of(WayToAsk()) == {}


def test_a_training_free_method_needs_its_decoding() -> None:
    for method, kind in (("vdd", "vdd"), ("vdd", "rescore"), ("post_hoc", "post_hoc")):
        built = method_of(config_with(method=method, decoding={"kind": kind}))
        assert built.phases(0) == () and not built.needs_scorer
    with pytest.raises(ConfigError, match=r"decoding\.kind = 'plain': method vdd .* set decoding\.kind=vdd"):
        method_of(config_with(method="vdd"))
    with pytest.raises(ConfigError, match=r"set decoding\.kind=post_hoc"):
        method_of(config_with(method="post_hoc", decoding={"kind": "vdd"}))


def test_rollouts_are_decoded_by_vdd_alone() -> None:
    with pytest.raises(ConfigError, match="rollouts = true contradicts kind = plain"):
        config_with(method="sima", decoding={"rollouts": True})
    assert config_with(method="sima", decoding={"rollouts": True, "kind": "vdd"}).decoding.rollouts


def test_answers_of_one_way_are_never_taken_for_anothers(tmp_path: Any) -> None:
    (tmp_path / "config.json").write_text("{}")
    suite = Suite(yes_no=(QUESTION,), labels={"q": "yes"})

    def asked(way: WayToAsk) -> str:
        what = what_is_asked(suite.in_way(way), model="m", reference=str(tmp_path), dtype="float32", seed=0)
        json.dumps(what)
        return str(what["questions"])

    ways = [WayToAsk(), WayToAsk(describe_first=True)]
    ways += [WayToAsk(decoding=one) for one in (Contrast(), Contrast(alpha=2.0), Rescoring(), Calibration())]
    assert len({asked(way) for way in ways}) == len(ways)
