"""score_answers: matching by id, and every line that is left out is counted by its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from csr_ray.errors import ConfigError, NoDataError
from csr_ray.evaluation.answers import score_answers


def jsonl(path: Path, records: list) -> Path:
    path.write_text("\n".join(item if isinstance(item, str) else json.dumps(item) for item in records) + "\n")
    return path


def score(folder: Path, benchmark: str, *, answers: list, truth: list) -> dict[str, Any]:
    return score_answers(
        benchmark, answers=jsonl(folder / "answers.jsonl", answers), truth=jsonl(folder / "truth.jsonl", truth)
    )


def question(key: object, *, label: str) -> dict:
    return {"question_id": key, "image": "x.jpg", "text": "Is there a dog in the image?", "label": label}


def test_pope_answers_are_matched_by_id_and_not_by_order(tmp_path: Path) -> None:
    # LLaVA's form, in another order than the truth: by order all 4 would be wrong, by id 3 of 4 are right.
    answers = [{"question_id": key, "text": text} for key, text in [(4, "No"), (3, "Yes"), (2, "No"), (1, "No")]]
    truth = [question(key, label=label) for key, label in [(1, "yes"), (2, "no"), (3, "yes"), (4, "no")]]
    result = score(tmp_path, "pope", answers=answers, truth=truth)
    # said yes and is yes: 3; said no but is yes: 1; said no and is no: 2, 4; said yes but is no: none.
    assert {name: result[name] for name in ("benchmark", "n", "metrics", "skipped")} == {
        "benchmark": "pope",
        "n": 4,
        "metrics": pytest.approx(
            {
                "accuracy": 3 / 4,
                "precision": 1.0,  # 1 / 1
                "recall": 1 / 2,
                "f1": 2 / 3,  # 2 * 1 * 0.5 / 1.5
                "yes_ratio": 1 / 4,
            }
        ),
        "skipped": {},
    }


def test_what_cannot_be_marked_is_counted_by_its_reason(tmp_path: Path) -> None:
    answers = [
        {"question_id": 1, "text": "Yes"},  # marked, right
        {"question_id": "2", "text": "No"},  # marked, wrong; an id as text is the same id
        {"question_id": 2, "text": "Yes"},  # second one with this id
        {"question_id": 9, "text": "Yes"},  # no truth
        {"question_id": 3},  # no text, so question 3 has no answer either
        {"text": "Yes"},
        {"question_id": True, "text": "Yes"},
        "{not json",
        "[1]",
        "",
    ]
    truth = [
        question(1, label="yes"),
        question(2, label="Yes"),
        question(3, label="no"),
        question(4, label="no"),
        question(5, label="maybe"),
        question(1, label="no"),
    ]
    result = score(tmp_path, "pope", answers=answers, truth=truth)
    assert (result["n"], result["metrics"]["accuracy"]) == (2, 0.5)
    assert result["skipped"] == {
        "malformed answer line: no question_id": 2,
        "malformed answer line: no text": 1,
        "malformed answer line: not a record": 2,
        "malformed truth line: label is neither yes nor no": 1,
        "no answer to this truth": 2,  # 3 and 4
        "no truth for this answer": 1,  # 9
        "second answer with this id": 1,
        "second truth with this id": 1,
    }


def test_an_empty_pope_answer_is_an_answer(tmp_path: Path) -> None:
    result = score(tmp_path, "pope", answers=[{"question_id": 1, "text": ""}], truth=[question(1, label="yes")])
    assert (result["n"], result["metrics"]["accuracy"]) == (1, 1.0)  # POPE's rule: not no, so yes


@pytest.mark.parametrize("answer_key", ["id", "question_id", "image_id"])
@pytest.mark.parametrize("text_key", ["text", "caption"])
@pytest.mark.parametrize("truth_key", ["id", "image_id"])
def test_chair_reads_every_usual_key(tmp_path: Path, answer_key: str, text_key: str, truth_key: str) -> None:
    answers = [{answer_key: 7, text_key: "A dog and two cats"}]
    result = score(tmp_path, "chair", answers=answers, truth=[{truth_key: "7", "objects": [{"kind": "dog"}, "car"]}])
    # Mentions dog, cat: 1 of 2 wrong; names 1 (dog) of 2 objects (dog, car).
    assert result["metrics"] == {"chair_s": 1.0, "chair_i": 0.5, "recall": 0.5}


def test_an_image_without_objects_counts_and_one_without_a_list_does_not(tmp_path: Path) -> None:
    answers = [{"id": key, "text": "A dog"} for key in "abcd"]
    truth = [
        {"id": "a", "objects": []},
        {"id": "b"},
        {"id": "c", "objects": [{"colour": "red"}]},
        {"id": "d", "objects": ["..."]},
    ]
    result = score(tmp_path, "chair", answers=answers, truth=truth)
    assert (result["n"], result["metrics"]["chair_s"]) == (1, 1.0)
    assert result["skipped"] == {
        "malformed truth line: an object without a name in plain words": 2,
        "malformed truth line: no list of objects": 1,
        "no truth for this answer": 3,
    }


def test_a_json_list_is_read_like_lines(tmp_path: Path) -> None:
    (tmp_path / "answers.json").write_text(json.dumps([{"image_id": 1, "caption": "A dog"}], indent=1))
    truth = jsonl(tmp_path / "truth.jsonl", [{"id": 1, "objects": ["dog"]}])
    assert score_answers("chair", answers=tmp_path / "answers.json", truth=truth)["n"] == 1


def test_world_answers_are_marked_by_the_worlds_own_metrics(tmp_path: Path) -> None:
    truth = [
        {"id": "0", "objects": [{"kind": "star", "colour": "red", "place": "top left"}]},
        {"id": "1", "objects": [{"kind": "moon", "colour": "blue", "place": "top left"}]},
    ]
    answers = [
        {"id": "0", "text": "There is a red star."},
        {"id": "1", "text": "There is a blue moon. There is a red star."},
    ]
    result = score(tmp_path, "world", answers=answers, truth=truth)
    # Answer 1 names a star that is not there: 1 of 2 answers, 1 of 3 mentions; both objects are found.
    assert (result["benchmark"], result["n"], result["skipped"]) == ("world", 2, {})
    values = {name: result["metrics"][name] for name in ("chair_s", "chair_i", "recall")}
    assert values == pytest.approx({"chair_s": 1 / 2, "chair_i": 1 / 3, "recall": 1.0})


def test_nothing_to_mark_is_no_data_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(NoDataError, match="no truth for this answer: 1") as error:
        score(tmp_path, "pope", answers=[{"question_id": 1, "text": "Yes"}], truth=[])
    assert error.value.exit_code == 3
    with pytest.raises(NoDataError, match="both files are empty"):
        score(tmp_path, "chair", answers=[], truth=[])


def test_an_unknown_benchmark_and_a_missing_file_are_config_errors(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", [])
    with pytest.raises(ConfigError, match="'mme': unknown; allowed: chair, pope, world"):
        score_answers("mme", answers=path, truth=path)
    with pytest.raises(ConfigError, match=r"--answers .*none: no such file"):
        score_answers("pope", answers=tmp_path / "none", truth=path)
    with pytest.raises(ConfigError, match=r"--truth .*a folder"):
        score_answers("pope", answers=path, truth=tmp_path)
