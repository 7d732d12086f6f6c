"""CLIP-filtered self-training and ILLUME: which of its own answers the policy imitates. Engine, scorer: fakes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from fakes import TableScorer, sentence, tiny_config

from csr_ray.config.load import parse_config, to_plain
from csr_ray.errors import ConfigError
from csr_ray.methods.base import AwaitsPeople, Dropped, Method, method_of
from csr_ray.records import Ask, Example, Phase, Prompt, Rollout, Sentence
from csr_ray.store.tables import read_rollouts, write_rollouts

TRUTH = "There is a star in red. There is a moon in blue."
PROMPT = Prompt(id="p", image="i.png", text="Describe.", truth=TRUTH)
STAR, MOON, SQUARE = "There is a star in red.", "There is a moon in blue.", "There is a square in green."


@dataclass
class Sampler:
    """Says its texts in turn, whatever it is asked, each with ids of its own; remembers temperatures and seeds."""

    texts: Sequence[str]
    asked: list[tuple[float, int]] = field(default_factory=list)

    async def answer(
        self, ask: Ask, *, temperature: float, max_tokens: int, seed: int, top_p: float = 1.0
    ) -> Sentence:
        self.asked.append((temperature, seed))
        number = (len(self.asked) - 1) % len(self.texts)
        text = self.texts[number]
        return sentence(text, ids=(*(20 + self.texts.index(text) for _ in text.split()), 2), ended=True)

    def answer_ids(self, text: str) -> tuple[int, ...]:
        return (*(9 for _ in text.split()), 2)


def method(name: str, **keys: object) -> Method:
    return method_of(tiny_config(method=name, **{name: keys}))


def rolled(
    one: Method, texts: Sequence[str], *, scores: Mapping[str, float] = {}, prompt: Prompt = PROMPT
) -> Rollout:
    (phase,) = one.phases(0)
    scorer = TableScorer(dict(scores))
    return asyncio.run(
        one.rollout(phase, prompt, engine=Sampler(texts), scorer=scorer, policy_version=2, seed=11)  # type: ignore
    )


def made(one: Method, rollout: Rollout) -> Sequence[Example] | str:
    (phase,) = one.phases(0)
    found = one.examples(phase, rollout)
    return found.reason if isinstance(found, Dropped) else found


# ---- CLIP filter ----

SCORES = {STAR: 30.0, MOON: 26.0, SQUARE: 10.0}
BOTH = f"{STAR} {MOON}"


def test_the_answer_with_the_best_mean_over_its_sentences_is_imitated(tmp_path: Path) -> None:
    one = method("clip_filter", num_answers=3)
    rollout = rolled(one, [f"{STAR} {SQUARE}", BOTH, SQUARE], scores=SCORES)
    assert [candidate.image_score for candidate in rollout.candidates] == [20.0, 28.0, 10.0]
    assert (rollout.stats.num_sentences_scored, rollout.stats.num_tokens) == (3, 13 + 13 + 7)
    write_rollouts(tmp_path / "unit.parquet", rollouts=[rollout])
    (kept,) = read_rollouts(tmp_path / "unit.parquet")
    (example,) = made(one, kept)
    assert isinstance(example, Example)
    (answer,) = example.targets
    assert (answer.role, answer.text, answer.reward, answer.nodes) == ("answer", BOTH, 28.0, (1,))
    assert answer.logp == rollout.candidates[1].logp, "the policy has said it"
    assert (example.policy_version, example.weight, example.ask) == (2, 1.0, PROMPT.ask)
    assert one.rates(rollout) == {"distinct": (3, 3), "shorter_kept": (0, 1)}


@pytest.mark.parametrize(
    ("keys", "texts", "reason"),
    [
        ({}, [STAR, STAR], "answers_equal"),
        ({}, ["", ""], "answers_empty"),
        ({"min_gain": 3.0}, [STAR, MOON], "best_hardly_above_mean"),
        ({"min_gain": 2.0}, [STAR, MOON], None),
        ({"min_score": 31.0}, [STAR, MOON], "score_too_low"),
        ({"min_score": 30.0}, [STAR, MOON], None),
        ({}, ["", STAR], "best_hardly_above_mean"),
    ],
)
def test_what_is_not_clearly_better_than_the_others_is_dropped(
    keys: dict[str, float], texts: list[str], reason: str | None
) -> None:
    one = method("clip_filter", num_answers=2, **keys)
    found = made(one, rolled(one, texts, scores=SCORES))
    assert found == reason if reason else not isinstance(found, str)


def test_answers_of_one_prompt_have_seeds_of_their_own_and_each_text_is_scored_once() -> None:
    one, engine, scorer = method("clip_filter", num_answers=4), Sampler([STAR, MOON]), TableScorer(dict(SCORES))
    asyncio.run(
        one.rollout(Phase(), PROMPT, engine=engine, scorer=scorer, policy_version=0, seed=1)  # type: ignore
    )
    assert len({seed for _, seed in engine.asked}) == 4 and {heat for heat, _ in engine.asked} == {0.8}
    assert scorer.calls == 1


def test_without_a_scorer_there_is_no_filter() -> None:
    tree = to_plain(tiny_config(method="clip_filter"))
    with pytest.raises(ConfigError, match=r"scorer\.model: missing; method = clip_filter"):
        method_of(parse_config({**tree, "scorer": None}))


# ---- ILLUME ----


def test_answers_are_drawn_at_every_temperature_and_those_near_the_truth_accepted(tmp_path: Path) -> None:
    one = method("illume", temperatures=[0.01, 0.9], num_answers=2, weight=10.0)
    engine = Sampler([BOTH, STAR, STAR, f"{STAR} {SQUARE}"])
    (phase,) = one.phases(0)
    rollout = asyncio.run(
        one.rollout(phase, PROMPT, engine=engine, scorer=None, policy_version=2, seed=11)  # type: ignore
    )
    assert [heat for heat, _ in engine.asked] == [0.01, 0.01, 0.9, 0.9]
    assert len({seed for _, seed in engine.asked}) == 4
    assert [candidate.text for candidate in rollout.candidates] == [BOTH, STAR, f"{STAR} {SQUARE}"], "each once"
    assert rollout.stats.num_tokens == 13 + 7 + 7 + 13, "and all of them paid for"
    # 6 of 6 and 12 words; 10 of 12 and 12.
    rouges = [candidate.scores["rouge_l"] for candidate in rollout.candidates]
    assert rouges == [1.0, pytest.approx(12 / 18), pytest.approx(20 / 24)]
    write_rollouts(tmp_path / "unit.parquet", rollouts=[rollout])
    (kept,) = read_rollouts(tmp_path / "unit.parquet")
    found = made(one, kept)
    assert [(example.preferred.text, example.weight) for example in found] == [  # type: ignore
        (BOTH, 10.0),
        (f"{STAR} {SQUARE}", 10.0),
    ]
    assert one.rates(kept) == {"accepted": (2, 3), "has_accepted": (1, 1)}


def test_the_phase_accumulates_and_knows_how_many_answers_there_may_be() -> None:
    (phase,) = method("illume").phases(0)
    assert (phase.objective, phase.num_answers, phase.accumulates) == ("weighted_sft", 1, True)
    assert phase.max_examples_a_prompt == 25
    (phase,) = method("illume", accumulate=False).phases(0)
    assert not phase.accumulates


def test_what_nobody_accepts_is_counted() -> None:
    one = method("illume")
    rollout = rolled(one, [SQUARE, "No", ""])
    assert made(one, rollout) == "no_answer_accepted"
    assert one.rates(rollout) == {"accepted": (0, 3), "has_accepted": (0, 1)}
    short = rolled(one, ["ab"], prompt=replace(PROMPT, truth="ab"))
    assert made(one, short) == "no_answer_accepted", "an answer has three characters at least"


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_person_accepts_by_a_file_after_the_answers_are_drawn_and_rouge_has_no_say(tmp_path: Path) -> None:
    path = tmp_path / "accepted.jsonl"
    prompt = replace(PROMPT, truth=None)
    before = method("illume", accepted=str(path))
    assert before.refuses(prompt) is None, "the file may come later than the answers"
    rollout = rolled(before, [BOTH, SQUARE], prompt=prompt)
    assert [candidate.reward for candidate in rollout.candidates] == [None, None]
    assert made(before, rollout) == "no_answer_accepted"
    lines(path, {"id": "p", "text": f" {SQUARE} "}, {"id": "q", "text": BOTH}, {"id": "p"}, ["p", STAR])
    path.write_text(path.read_text() + "no json")
    write_rollouts(tmp_path / "unit.parquet", rollouts=[rollout])
    (stored,) = read_rollouts(tmp_path / "unit.parquet")
    one = method("illume", accepted=str(path))
    (example,) = made(one, stored)
    assert isinstance(example, Example) and example.preferred.text == SQUARE
    assert one.rates(stored) == {"accepted": (1, 2), "has_accepted": (1, 1)}
    lines(path, {"id": "p", "text": BOTH})
    assert made(one, stored) == [example], "a start keeps to the file as it was then"


def test_a_person_may_refuse_too_and_the_last_word_on_an_answer_counts(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "accepted.jsonl",
        {"id": "p", "text": BOTH, "accepted": True},
        {"id": "p", "text": SQUARE, "accepted": False},
        {"id": "p", "text": BOTH, "accepted": False},
        {"id": "p", "text": STAR, "accepted": "no"},
        {"id": "p", "text": MOON, "policy_version": "2"},
    )
    one = method("illume", accepted=str(path))
    assert made(one, rolled(one, [BOTH, SQUARE, STAR, MOON])) == "no_answer_accepted"


def test_a_file_of_accepted_answers_that_is_none_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"wrong.jsonl': not one line is a JSON object with id and text"):
        method("illume", accepted=str(lines(tmp_path / "wrong.jsonl", {"id": 1})))
    with pytest.raises(ConfigError, match=r"illume.accepted = '.*': cannot be read: a folder"):
        method("illume", accepted=str(tmp_path))
    (tmp_path / "empty.jsonl").touch()
    rollout = rolled(method("illume"), [BOTH])
    assert made(method("illume", accepted=str(tmp_path / "empty.jsonl")), rollout) == "no_answer_accepted"


def test_a_phase_waits_until_somebody_has_judged_one_of_its_answers(tmp_path: Path) -> None:
    path = tmp_path / "accepted.jsonl"
    rollouts = [rolled(method("illume"), [BOTH, SQUARE])]
    assert rollouts[0].policy_version == 2

    def waits(*rows: object) -> str | None:
        one = method("illume", accepted=str(lines(path, *rows)))
        assert isinstance(one, AwaitsPeople)
        return one.awaits(rollouts)

    row = {"id": "p", "text": BOTH}
    assert waits() == f"illume.accepted = {str(path)!r} has no row on an answer of this phase"
    assert waits({"id": "p", "text": MOON}) is not None and waits({"id": "q", "text": BOTH}) is not None
    assert waits({**row, "policy_version": 1}) is not None, "an answer of an earlier round that is given again"
    assert waits({**row, "policy_version": 1}, {**row, "policy_version": 2, "accepted": False}) is None
    assert waits(row) is None
    assert method("illume").awaits(rollouts) is None, "nobody is asked"  # type: ignore[attr-defined]
    short = rolled(method("illume", answer_only_words=2), [], prompt=replace(PROMPT, truth="Yes"))
    one = method("illume", accepted=str(path), answer_only_words=2)
    assert one.awaits([short]) is None, "nothing was drawn"  # type: ignore[attr-defined]


def test_without_a_truth_and_a_person_a_prompt_is_refused() -> None:
    assert "truth is missing" in str(method("illume").refuses(replace(PROMPT, truth=None)))


def test_a_row_of_answer_only_costs_nothing_and_weighs_one() -> None:
    one = method("illume", answer_only_words=2, weight=10.0)
    row = replace(PROMPT, text="Is there a star?", truth="Yes")
    rollout = rolled(one, [STAR], prompt=row)
    assert rollout.stats.num_tokens == 0
    (example,) = made(one, rollout)
    assert isinstance(example, Example)
    assert (example.preferred.text, example.preferred.token_ids, example.weight) == ("Yes", (9, 2), 1.0)
    assert example.preferred.logp is None
    assert one.rates(rollout) == {"answer_only": (1, 1)}
    assert one.rates(rolled(one, [BOTH]))["answer_only"] == (0, 1)
