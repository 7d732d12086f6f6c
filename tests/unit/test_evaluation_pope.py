"""POPE's parsing rule and metrics, against what POPE's own evaluate.py made of 600 answers, and counts by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from csr_ray.evaluation.pope import parse_yes_no, pope_metrics


@pytest.mark.parametrize(
    ("text", "is_yes"),
    [
        ("Yes", True),
        ("No", False),
        ("no", False),
        ("No.", False),
        ("No, there is no dog.", False),
        ("There is not a dog", False),
        (" No", False),
        ("Yes. No", True),  # only the first sentence counts
        ("The dog is there, no doubt", False),  # the rule knows words, not meaning
        ("Nothing there", True),  # a word that only begins with No
        ("NO", True),  # the rule's three spellings, to the letter
        ("No!", True),
        ("No\nI see none", True),  # split at spaces alone: the word is "No\nI"
        ("", True),
        (".No", True),
        ("It is not,", False),  # the comma is dropped
    ],
)
def test_an_answer_is_no_only_by_popes_own_rule(text: str, is_yes: bool) -> None:
    assert parse_yes_no(text) is is_yes


def test_every_answer_and_metric_is_the_official_scripts() -> None:
    """The answers are ours; `yes` and `metrics` are what evaluate.py of RUCAIBox/POPE at 3df3ba1 made of them."""
    official = json.loads((Path(__file__).parents[1] / "data" / "official_pope.json").read_text())
    rows = official["answers"]
    wrong = [row for row in rows if parse_yes_no(row["text"]) is not row["yes"]]
    assert not wrong, wrong[:5]
    assert 100 < sum(row["yes"] for row in rows) < 500
    metrics = pope_metrics([row["text"] for row in rows], labels=[row["label"] for row in rows])
    assert metrics == pytest.approx(official["metrics"], abs=1e-12)


def test_metrics_equal_a_count_by_hand() -> None:
    answers = ["Yes", "Yes", "Yes", "No", "No", "Yes", "No", "No"]
    labels = ["yes", "yes", "no", "yes", "no", "yes", "no", "yes"]
    # said yes and is yes: positions 0, 1, 5 = 3; said yes but is no: position 2 = 1;
    # said no but is yes: positions 3, 7 = 2; said no and is no: positions 4, 6 = 2.
    assert pope_metrics(answers, labels=labels) == pytest.approx(
        {
            "accuracy": 5 / 8,  # (3 + 2) / 8
            "precision": 3 / 4,  # 3 / (3 + 1)
            "recall": 3 / 5,  # 3 / (3 + 2)
            "f1": 2 / 3,  # 2 * 0.75 * 0.6 / 1.35 = 0.9 / 1.35
            "yes_ratio": 4 / 8,  # (3 + 1) / 8
        }
    )


def test_a_policy_that_always_says_no_has_zero_and_not_an_error() -> None:
    # Nothing said yes: precision has 0 below the line; 1 of 2 answers is right.
    metrics = pope_metrics(["No", "No"], labels=["yes", "no"])
    assert metrics == {"accuracy": 0.5, "precision": 0.0, "recall": 0.0, "f1": 0.0, "yes_ratio": 0.0}
    assert set(pope_metrics([], labels=[]).values()) == {0.0}


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="2 answers but 1 labels"):
        pope_metrics(["Yes", "No"], labels=["yes"])
    with pytest.raises(ValueError, match="'maybe'"):
        pope_metrics(["Yes"], labels=["maybe"])
