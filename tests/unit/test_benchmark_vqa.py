"""VQA's soft accuracy, TextVQA and VizWiz: LLaVA's evaluator's own figures on made answers, and the traps by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from csr_ray.errors import ConfigError
from csr_ray.evaluation.benchmarks.base import SHORT_ANSWER
from csr_ray.evaluation.benchmarks.marking import mark_file
from csr_ray.evaluation.benchmarks.questions import load_asked
from csr_ray.evaluation.benchmarks.vqa import normalised, soft_accuracy

OFFICIAL = json.loads((Path(__file__).parents[1] / "data" / "benchmarks" / "vqa.json").read_text())
PEOPLE = ["red"] * 4 + ["blue"] * 3 + ["green", "grey", "unanswerable"]


def test_every_text_is_normalised_as_by_llavas_evaluator() -> None:
    """The texts are ours; `normalised` is what m4c_evaluator.py of haotian-liu/LLaVA at c121f04 made of them."""
    wrong = [row for row in OFFICIAL["texts"] if normalised(row["text"]) != row["normalised"]]
    assert not wrong, wrong[:3]
    assert len(OFFICIAL["texts"]) == 800


def test_every_answer_is_as_right_as_llavas_evaluator_says() -> None:
    found = [soft_accuracy(row["answer"], people=row["people"]) for row in OFFICIAL["marks"]]
    assert found == pytest.approx([row["accuracy"] for row in OFFICIAL["marks"]], abs=1e-12)
    assert len({round(value, 6) for value in found}) > 4, "not only 0 and 1"


def test_the_accuracy_is_the_mean_over_ten_sets_of_nine_and_not_matches_by_three() -> None:
    # Three of ten say blue: seven sets of nine have all three (1), three sets have two (2/3).
    assert soft_accuracy("Blue.", people=PEOPLE) == pytest.approx((7 * 1 + 3 * 2 / 3) / 10)
    assert soft_accuracy("green", people=PEOPLE) == pytest.approx((9 / 3 + 0) / 10)
    assert soft_accuracy("the red", people=PEOPLE) == 1.0
    assert soft_accuracy("pink", people=PEOPLE) == 0.0
    with pytest.raises(ValueError, match="9 answers of people, not 10"):
        soft_accuracy("red", people=PEOPLE[:9])


def textvqa(folder: Path, *, num_people: int = 10) -> Path:
    folder.mkdir(exist_ok=True)
    questions = [
        {"question_id": 1, "image_id": "ab12", "question": "what is the brand?", "answers": ["dakota"] * 10},
        {"question_id": 2, "image_id": "ab12", "question": "what color is it?", "answers": PEOPLE},
        {"question_id": 3, "image_id": "cd34", "question": "what?", "answers": PEOPLE[:num_people]},
    ]
    (folder / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": questions}))
    (folder / "train_images").mkdir(exist_ok=True)
    (folder / "train_images" / "ab12.jpg").write_bytes(b"")
    return folder


def answers_of(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def test_llavas_answers_are_told_apart_by_image_and_question(tmp_path: Path) -> None:
    """In LLaVA's TextVQA answers question_id is the image, which several questions have."""
    data = textvqa(tmp_path / "textvqa", num_people=9)
    records = [
        {
            "question_id": "ab12",
            "prompt": f"What color is it?\nReference OCR token: A, B\n{SHORT_ANSWER}",
            "text": "Blue",
        },
        {"question_id": "ab12", "prompt": f"What is the brand?\n{SHORT_ANSWER}", "text": "Dakota"},
        {"question_id": "ab12", "prompt": "What else?", "text": "no"},
    ]
    found = mark_file("textvqa", answers=answers_of(tmp_path / "a.jsonl", records), truth=data)
    assert found["outcomes"] == {"1": 1.0, "2": pytest.approx(0.9)}
    assert found["metrics"] == {"accuracy": pytest.approx(0.95)}
    assert found["skipped"] == {"malformed question: no 10 answers of people": 1, "no truth for this answer": 1}
    assert "not seen in a file of answers" in found["notes"][0]


def test_the_prompt_includes_the_reference_ocr_tokens_and_a_result_without_them_says_so(tmp_path: Path) -> None:
    data = textvqa(tmp_path / "textvqa")

    def asked() -> Any:
        return load_asked("textvqa", data=str(data), unpack=tmp_path, limit=None)

    plain = asked()
    first = plain.items.by_id["1"]
    assert first.text == f"What is the brand?\n{SHORT_ANSWER}"
    assert first.image == str(data / "train_images" / "ab12.jpg")
    found = plain.result({"textvqa": {"1": " Dakota "}}, skipped={})
    assert found["metrics"]["accuracy"] == 1.0, "blanks around what a model says do not count"
    assert "without the reference OCR tokens" in found["notes"][0]

    ocr = {"data": [{"image_id": "ab12", "ocr_tokens": ["DAKOTA", "7"]}, {"image_id": "cd34"}]}
    (data / "TextVQA_Rosetta_OCR_v0.2_val.json").write_text(json.dumps(ocr))
    with_tokens = asked()
    assert with_tokens.items.by_id["1"].text == f"What is the brand?\nReference OCR token: DAKOTA, 7\n{SHORT_ANSWER}"
    assert with_tokens.items.by_id["3"].text == f"What?\n{SHORT_ANSWER}"
    assert with_tokens.result({"textvqa": {"1": "x"}}, skipped={})["notes"] == []

    llavas = f"What is the brand?\nReference OCR token: D\n{SHORT_ANSWER}"
    rows = [{"question_id": "ab12", "image": "ab12.jpg", "text": llavas}]
    answers_of(data / "llava_textvqa_val_v051_ocr.jsonl", rows)
    assert asked().items.by_id["1"].text == llavas, "LLaVA's own file comes first"


def vizwiz(folder: Path, *, with_answers: bool = True) -> Path:
    folder.mkdir(exist_ok=True)
    answers = {"answers": [{"answer": one, "answer_confidence": "yes"} for one in PEOPLE]} if with_answers else {}
    records: list[Any] = [
        {"image": f"VizWiz_val_{i}.jpg", "question": "What is this?", **answers, "answerable": 1} for i in range(3)
    ]
    (folder / "val.json").write_text(json.dumps([*records, {"image": "x.jpg"}, 3] if with_answers else records))
    return folder


def test_vizwiz_asks_for_unanswerable_and_marks_the_split_that_has_answers(tmp_path: Path) -> None:
    data = vizwiz(tmp_path / "vizwiz")
    records = [
        {"question_id": "VizWiz_val_0.jpg", "text": "Unanswerable"},
        {"image": "VizWiz_val_1.jpg", "answer": "red"},
    ]
    found = mark_file("vizwiz", answers=answers_of(tmp_path / "a.jsonl", records), truth=data)
    assert found["metrics"] == {"accuracy": pytest.approx((0.3 + 1) / 2), "unanswerable_rate": 0.5}
    assert found["skipped"] == {
        "malformed question: no question": 1,
        "malformed question: not a record": 1,
        "no answer to this truth": 1,
    }
    assert "test split" in found["notes"][0]
    item = load_asked("vizwiz", data=str(data), unpack=tmp_path, limit=1).items.by_id["VizWiz_val_0.jpg"]
    assert item.text == (
        "What is this?\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n" + SHORT_ANSWER
    )


def test_the_test_split_of_vizwiz_needs_its_server(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only the benchmark's server can mark"):
        load_asked("vizwiz", data=str(vizwiz(tmp_path / "v", with_answers=False)), unpack=tmp_path, limit=None)
