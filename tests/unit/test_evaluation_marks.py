"""Figures follow from marks by answer: what each adds, how sure the sum is, and what changed on the same ones."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from patience import within

from csr_ray.evaluation.chair import chair_metrics, mark_captions
from csr_ray.evaluation.comparison import changes, intervals, shared
from csr_ray.evaluation.marks import quotients
from csr_ray.evaluation.pope import mark_answers, pope_metrics
from csr_ray.evaluation.statistics import mcnemar
from csr_ray.evaluation.suite import DESCRIBED, SAMPLED, YES_NO, Suite
from csr_ray.evaluation.world import describe_metrics, mark_descriptions
from csr_ray.records import Mark, MarkedAnswer, Question
from csr_ray.store.marked_answers import read_marked_answers, write_marked_answers

TRUTH = {
    "a": [{"kind": "circle"}, {"kind": "star"}],
    "b": [{"kind": "heart"}],
    "c": [{"kind": "circle"}],
}
SAID = {"a": "A circle. A moon. A moon.", "b": "A heart.", "c": ""}


def answer(number: int, *, wrong: bool, image: str = "", **fields: object) -> MarkedAnswer:
    usual = MarkedAnswer(
        asked_as="describe",
        id=str(number),
        image=image or f"/somewhere/{number}.png",
        question="What is it?",
        answer="Words.",
        truth="[]",
        mark=Mark(counts={"chair_s": (float(wrong), 1.0)}),
    )
    return replace(usual, **fields)  # type: ignore[arg-type]


def answers(wrong: list[bool]) -> list[MarkedAnswer]:
    return [answer(number, wrong=value) for number, value in enumerate(wrong)]


def test_each_mark_says_what_its_answer_adds_and_their_sums_are_the_figures() -> None:
    marks = mark_descriptions(SAID, truth=TRUTH)
    assert marks["a"].counts == {
        "chair_s": (1.0, 1.0),
        "chair_i": (2.0, 3.0),
        "recall": (1.0, 2.0),
        "repeat": (1.0, 1.0),
        "sentences": (3.0, 1.0),
    }
    assert (marks["a"].absent, marks["a"].missed) == (("moon",), ("star",))
    assert (marks["c"].counts["chair_i"], marks["c"].missed) == ((0.0, 0.0), ("circle",))
    assert quotients(marks.values()) == describe_metrics(SAID, truth=TRUTH)
    assert quotients(marks.values()) == pytest.approx(
        {"chair_s": 1 / 3, "chair_i": 2 / 4, "recall": 2 / 4, "repeat": 1 / 3, "sentences": 4 / 3}
    )


def test_a_caption_s_mark_names_the_words_as_they_stand_there() -> None:
    said, truth = ["Two hot dogs beside a sedan.", "A puppy."], [["hot dog"], ["dog", "cat"]]
    marks = mark_captions(said, truth=truth)
    assert (marks[0].absent, marks[0].missed) == (("sedan",), ())
    assert (marks[1].absent, marks[1].missed) == ((), ("cat",))
    assert quotients(marks) == chair_metrics(said, truth=truth)


def test_marks_keep_the_hyphen_that_stands_between_two_words() -> None:
    (mark,) = mark_captions(["Hot-dogs near a HOT  dog's wine_glass."], truth=[["cat"]])
    assert mark.absent == ("hot-dogs", "hot dog", "wine_glass")


def test_f1_of_marks_is_the_harmonic_mean_of_precision_and_recall() -> None:
    random = np.random.default_rng(0)
    said = ["Yes." if value else "No." for value in random.random(200) < 0.6]
    labels = ["yes" if value else "no" for value in random.random(200) < 0.5]
    found = pope_metrics(said, labels=labels)
    assert found["f1"] == pytest.approx(2 / (1 / found["precision"] + 1 / found["recall"]))
    assert quotients(mark_answers(said, labels=labels)) == found


def test_a_suite_marks_each_answer_and_its_figures_follow_from_them() -> None:
    suite = Suite(
        describe=tuple(Question(id=key, image=f"{key}.png", text="Describe it.") for key in TRUTH),
        truth=TRUTH,
        yes_no=(Question(id="q1", image="a.png", text="Is there a moon?"),),
        labels={"q1": "no"},
        sampled=True,
    )
    said = {DESCRIBED: SAID, SAMPLED: {"b": "A moon."}, YES_NO: {"q1": "Yes."}}
    marked = suite.marked(said)
    assert [(one.asked_as, one.id) for one in marked] == [
        ("describe", "a"), ("describe", "b"), ("describe", "c"), ("describe_t1", "b"), ("yes_no", "q1")
    ]  # fmt: skip
    assert set(marked[3].mark.counts) == {"chair_s_t1", "chair_i_t1", "recall_t1", "repeat_t1", "sentences_t1"}
    assert marked[0].truth == '[{"kind": "circle"}, {"kind": "star"}]' and marked[4].truth == '"no"'
    assert suite.marks(said) == {"num_images": 3, **quotients(one.mark for one in marked)}
    assert (suite.marks(said)["chair_s_t1"], suite.marks(said)["pope_acc"]) == (1.0, 0.0)


# ---- how sure ------------------------------------------------------------------------------------------------------


def test_the_interval_of_each_figure_is_over_images() -> None:
    few = [answer(at, wrong=at // 10 < 3, image=f"{at // 10}.png") for at in range(100)]
    many = answers([at < 30 for at in range(100)])
    narrow, wide = intervals(many, seed=0)["chair_s"], intervals(few, seed=0)["chair_s"]
    assert narrow.value == wide.value == 0.3
    assert wide.high - wide.low > 2.5 * (narrow.high - narrow.low)


def test_a_mean_of_one_image_has_no_interval_to_write_down() -> None:
    alone = [answer(0, wrong=True, mark=Mark(counts={"sentences": (3.0, 1.0), "chair_s": (0.0, 1.0)}))]
    assert set(intervals(alone, seed=0)) == {"chair_s"}
    other = [replace(alone[0], mark=Mark(counts={"sentences": (4.0, 1.0), "chair_s": (0.0, 1.0)}))]
    assert set(changes(shared(alone, after=other), seed=0)) == {"chair_s"}


def test_what_is_true_or_false_of_an_image_is_compared_by_mcnemar() -> None:
    before, after = [True] * 40 + [False] * 60, [True] * 5 + [False] * 95
    found = changes(shared(answers(before), after=answers(after)), seed=0)["chair_s"]
    assert found.test == "mcnemar" and found.difference.p == mcnemar(before, after=after).p
    assert (found.only_before, found.only_after, found.num_images) == (35, 0, 100)
    assert found.difference.mean == pytest.approx(-0.35)
    assert -0.46 < found.difference.low < -0.25 and found.difference.high < -0.24
    assert (found.to_plain()["before"], found.to_plain()["after"]) == (0.4, 0.05)
    assert set(found.to_plain()) == {
        "before", "after", "difference", "low", "high", "p", "test", "only_before", "only_after", "num_images"
    }  # fmt: skip
    assert all(not isinstance(value, float) or math.isfinite(value) for value in found.to_plain().values())


def test_several_questions_about_an_image_are_not_taken_for_independent_ones() -> None:
    def side(num_wrong: int) -> list[MarkedAnswer]:
        return [answer(at, wrong=at // 10 < num_wrong, image=f"{at // 10}.png") for at in range(100)]

    found = changes(shared(side(4), after=side(1)), seed=0)["chair_s"]
    # McNemar of 30 against 0 answers would say 2e-9; it was three images of ten.
    assert (found.test, found.only_before, found.only_after) == ("paired bootstrap", 30, 0)
    assert found.difference.p > 0.01


def test_only_the_same_question_about_the_same_picture_and_truth_is_compared() -> None:
    before = answers([True, True, True, True, True, True])
    after = [
        answer(0, wrong=False, image="/elsewhere/0.png"),
        answer(1, wrong=False, question="What else?"),
        answer(2, wrong=False, truth='["dog"]'),
        answer(3, wrong=False, asked_as="describe_t1"),
        answer(4, wrong=False, image="other.png"),
    ]
    pairs = shared(before, after=after)
    assert [one.id for one in pairs.after] == ["describe/0"]
    assert (pairs.num_only_before, pairs.num_only_after, pairs.are_all) == (5, 4, False)


# ---- the file ------------------------------------------------------------------------------------------------------


def test_marked_answers_come_back_as_they_were(tmp_path: Path) -> None:
    odd = Mark(counts={"chair_i": (0.0, 0.0)}, absent=("a\u2028b", "\U0001f600"), missed=("x",))
    whole = [*answers([True, False]), answer(9, wrong=True, mark=odd, answer="")]
    path = tmp_path / "eval" / "version_000.parquet"
    assert write_marked_answers(path, answers=whole) == write_marked_answers(path, answers=whole)
    assert read_marked_answers(path) == whole


def test_a_damaged_file_is_said_in_one_line_and_nothing_of_it_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "version_000.parquet"
    write_marked_answers(path, answers=answers([True, False] * 50))
    content = path.read_bytes()
    for at in (0, len(content) // 3, len(content) - 20):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        try:
            assert len(read_marked_answers(path)) == 100
        except ValueError as error:
            assert "\n" not in str(error)
    path.write_bytes(content[:-30])
    with pytest.raises(ValueError):
        read_marked_answers(path)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: None])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "version_000.parquet")
    with pytest.raises(OSError, match=r"no file|no such file"):
        within(lambda: read_marked_answers(tmp_path / "version_000.parquet"))
