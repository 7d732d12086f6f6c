"""ScienceQA-IMG: every question marked as by LLaVA's eval_science_qa.py, and its traps by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from csr_ray.errors import ConfigError
from csr_ray.evaluation.benchmarks.base import LETTER_ANSWER
from csr_ray.evaluation.benchmarks.marking import mark_file
from csr_ray.evaluation.benchmarks.questions import load_asked
from csr_ray.evaluation.benchmarks.scienceqa import parse_letter

OFFICIAL = json.loads((Path(__file__).parents[1] / "data" / "benchmarks" / "scienceqa.json").read_text())


def write_release(folder: Path, problems: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps({"test": list(problems), "train": []}))
    return folder


def test_every_question_is_right_or_wrong_as_by_llavas_script(tmp_path: Path) -> None:
    """The answers are ours; `img` and `parsed` are what eval_science_qa.py of haotian-liu/LLaVA at c121f04 made of
    them."""
    release = write_release(tmp_path / "sqa", OFFICIAL["problems"])
    answers = tmp_path / "answers.jsonl"
    answers.write_text("\n".join(map(json.dumps, OFFICIAL["answers"])))
    found = mark_file("scienceqa", answers=answers, truth=release)
    right = {key for key, value in found["outcomes"].items() if value == 1}
    assert right == set(OFFICIAL["img"]["correct"])
    assert set(found["outcomes"]) - right == set(OFFICIAL["img"]["incorrect"])
    assert found["metrics"]["img_accuracy"] == pytest.approx(len(right) / found["n"])
    assert found["skipped"] == {"malformed answer line: the question has no image": 400 - found["n"]}
    for row in OFFICIAL["answers"]:
        assert (parse_letter(row["text"]) or "FAILED") == OFFICIAL["parsed"][row["question_id"]]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("B. cells", "B"),
        ("The answer is B.", "B"),
        ("The answer is B", None),  # the pattern wants one more character, whichever
        ("The answer is B, I think", "B"),
        ("The answer is B. The answer is C.", None),
        ("(B)", None),
        ("B.", None),
        ("cells", None),
        ("", None),
    ],
)
def test_an_answer_that_fails_to_parse_is_wrong(text: str, letter: str | None) -> None:
    assert parse_letter(text) == letter


def test_the_drift_of_known_figures_and_the_prompt_are_said_in_the_result(tmp_path: Path) -> None:
    problem = {"question": "q?", "choices": ["a", "b"], "answer": 1, "hint": "h", "image": "image.png"}
    release = write_release(tmp_path / "sqa", {"7": problem, "8": {**problem, "answer": 2}, "9": {"question": "q"}})
    asked = load_asked("scienceqa", data=str(release), unpack=tmp_path, limit=None)
    assert asked.items.by_id["7"].text == f"Context: h\nq?\nA. a\nB. b\n{LETTER_ANSWER}"
    assert asked.items.by_id["7"].image == str(release / "images/test/7/image.png")
    found = asked.result({"scienceqa": {"7": " B\n"}}, skipped={})
    assert found["metrics"] == {"img_accuracy": 1.0, "failed_rate": 0.0}
    assert "63.91 to 69.51" in found["notes"][0] and "llava_test_CQM-A.json" in found["notes"][1]
    assert found["skipped"] == {
        "malformed question: answer is no position among the choices": 1,
        "malformed question: no choices, or more than 5": 1,
    }
    prompts = [
        {"id": "7", "conversations": [{"from": "human", "value": "Context: h\nOwn words\n<image>"}]},
        {"id": 3},
    ]
    (release / "llava_test_CQM-A.json").write_text(json.dumps(prompts))
    asked = load_asked("scienceqa", data=str(release), unpack=tmp_path, limit=None)
    assert asked.items.by_id["7"].text == f"Context: h\nOwn words\n{LETTER_ANSWER}"
    assert len(asked.result({"scienceqa": {"7": "B"}}, skipped={})["notes"]) == 1


def test_a_split_without_an_image_question_is_refused(tmp_path: Path) -> None:
    problem = {"question": "q?", "choices": ["a", "b"], "answer": 1, "image": None}
    with pytest.raises(ConfigError, match="no test question with an image"):
        load_asked("scienceqa", data=str(write_release(tmp_path, {"7": problem})), unpack=tmp_path, limit=None)
