"""The world's metrics on scenes counted by hand."""

from __future__ import annotations

import pytest

from csr_ray.evaluation.world import describe_metrics

TRUTH = {
    "a": [
        {"kind": "star", "colour": "red", "place": "top left"},
        {"kind": "moon", "colour": "red", "place": "top right"},
    ],
    "b": [{"kind": "ring", "colour": "blue", "place": "top left"}],
    "c": [{"kind": "arrow", "colour": "black", "place": "bottom left"}],
}


def test_metrics_equal_a_hand_count() -> None:
    answers = {
        "a": "There is a star in red. There is a moon in red.",  # both, nothing wrong
        "b": "There is a ring in blue. There is a triangle in blue. There is a ring in blue.",  # wrong, repeat
        "c": "There is a diamond in black.",  # wrong, and the arrow is missed
    }
    metrics = describe_metrics(answers, truth=TRUTH)
    assert metrics["chair_s"] == pytest.approx(2 / 3)  # b and c
    assert metrics["chair_i"] == pytest.approx(
        2 / 6
    )  # triangle, diamond of star, moon, ring, triangle, ring, diamond
    assert metrics["recall"] == pytest.approx(3 / 4)  # star, moon, ring of star, moon, ring, arrow
    assert metrics["repeat"] == pytest.approx(1 / 3)  # b
    assert metrics["sentences"] == pytest.approx(6 / 3)


def test_an_empty_answer_recalls_nothing_and_hallucinates_nothing() -> None:
    metrics = describe_metrics({"b": ""}, truth={"b": TRUTH["b"]})
    assert (metrics["chair_s"], metrics["recall"], metrics["sentences"]) == (0.0, 0.0, 0.0)
