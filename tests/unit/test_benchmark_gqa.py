"""GQA: the figures of LLaVA's conversion and the official script on made answers, and the traps by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from csr_ray.evaluation.benchmarks.base import SHORT_ANSWER
from csr_ray.evaluation.benchmarks.gqa import prediction_of
from csr_ray.evaluation.benchmarks.marking import mark_file
from csr_ray.evaluation.benchmarks.questions import load_asked

OFFICIAL = json.loads((Path(__file__).parents[1] / "data" / "benchmarks" / "gqa.json").read_text())


@pytest.fixture
def release(tmp_path: Path) -> Path:
    folder = tmp_path / "gqa"
    (folder / "questions1.2").mkdir(parents=True)
    (folder / "images").mkdir()
    (folder / "images" / "n0.jpg").write_bytes(b"")
    questions = {**OFFICIAL["questions"], "bad": {"question": "q?"}}
    (folder / "questions1.2" / "testdev_balanced_questions.json").write_text(json.dumps(questions))
    return folder


def test_the_figures_are_those_of_the_official_script(release: Path, tmp_path: Path) -> None:
    """The answers are ours; `predictions` is what convert_gqa_for_eval.py of haotian-liu/LLaVA at c121f04 made of
    them, and `said` what the official eval.py printed, by LLaVA's advice without the assets that are not released."""
    answers = tmp_path / "answers.jsonl"
    answers.write_text("\n".join(map(json.dumps, OFFICIAL["answers"])))
    found = mark_file("gqa", answers=answers, truth=release)
    for name, value in OFFICIAL["said"].items():
        assert 100 * found["metrics"][name.lower()] == pytest.approx(float(value), abs=0.005)
    assert (found["n"], found["skipped"]) == (300, {"malformed question: no imageId": 1})
    predictions = tmp_path / "predictions.json"
    predictions.write_text(
        json.dumps([{"questionId": k, "prediction": v} for k, v in OFFICIAL["predictions"].items()])
    )
    assert mark_file("gqa", answers=predictions, truth=release)["metrics"] == found["metrics"]


def test_a_prediction_is_lower_case_without_trailing_periods_and_nothing_else_is_forgiven() -> None:
    for row in OFFICIAL["answers"]:
        assert prediction_of(row["text"]) == OFFICIAL["predictions"][row["question_id"]]
    assert prediction_of("The left.") == "the left", "an article is not forgiven"


def test_it_is_asked_with_the_suffix_for_short_answers(release: Path, tmp_path: Path) -> None:
    asked = load_asked("gqa", data=str(release), unpack=tmp_path, limit=1)
    (item,) = asked.items.by_id.values()
    assert (item.text, item.image) == (f"q0?\n{SHORT_ANSWER}", str(release / "questions1.2" / "../images/n0.jpg"))
    assert "not measured" in asked.result({"gqa": {item.id: "yes"}}, skipped={})["notes"][0]
