"""Description metrics of the embedded world, counted by hand."""

from __future__ import annotations

import pytest

from csr_ray.evaluation.world import describe_metrics

TRUTH = {
    "a": [
        {"kind": "star", "colour": "red", "place": "top left"},
        {"kind": "ring", "colour": "blue", "place": "top right"},
    ],
    "b": [{"kind": "heart", "colour": "red", "place": "top left"}],
    "c": [{"kind": "moon"}, {"kind": "moon"}],
}


def test_metrics_are_the_hand_counted_ones() -> None:
    answers = {
        # 2 true mentions, 1 hallucinated; 3 sentences
        "a": "There is a red star. There is a red moon. There is a blue ring.",
        # 1 true mention, no hallucination; 1 sentence
        "b": "The image shows a red heart.",
    }
    assert describe_metrics(answers, truth=TRUTH) == {
        "chair_s": 1 / 2,
        "chair_i": 1 / 4,
        "recall": 3 / 3,
        "repeat": 0.0,
        "sentences": 4 / 2,
    }


def test_what_is_not_named_lowers_recall() -> None:
    metrics = describe_metrics({"a": "There is a red star.", "b": ""}, truth=TRUTH)
    assert metrics["recall"] == pytest.approx(1 / 3)
    assert metrics["chair_s"] == metrics["chair_i"] == 0.0


def test_naming_a_kind_more_often_than_it_exists_is_a_repeat() -> None:
    assert describe_metrics({"b": "A red heart is visible. A blue heart is visible."}, truth=TRUTH)["repeat"] == 1.0
    assert describe_metrics({"c": "There is a red moon. There is a blue moon."}, truth=TRUTH)["repeat"] == 0.0


def test_one_hallucinated_mention_is_no_repeat_but_two_are() -> None:
    once = describe_metrics({"b": "There is a red heart. There is a red square."}, truth=TRUTH)
    twice = describe_metrics({"b": "There is a red square. There is a blue square."}, truth=TRUTH)
    assert (once["repeat"], twice["repeat"]) == (0.0, 1.0)
    assert twice["chair_i"] == 1.0


def test_a_sentence_said_twice_is_a_repeat_even_without_a_kind() -> None:
    assert describe_metrics({"b": "It is nice. It is nice."}, truth=TRUTH)["repeat"] == 1.0


def test_case_and_plurals_count_and_parts_of_words_do_not() -> None:
    metrics = describe_metrics({"b": "HEARTS and crosses. The starling arrowed."}, truth=TRUTH)
    assert (metrics["recall"], metrics["chair_i"]) == (1.0, 1 / 2)


def test_no_answers_give_zeros() -> None:
    assert set(describe_metrics({}, truth=TRUTH).values()) == {0.0}


def test_an_answer_without_truth_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'z'"):
        describe_metrics({"z": "There is a star."}, truth=TRUTH)


def test_truth_without_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="kind"):
        describe_metrics({"a": "There is a star."}, truth={"a": [{"name": "star"}]})
