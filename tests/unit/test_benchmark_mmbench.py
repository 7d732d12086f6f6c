"""MMBench: letters and circles as VLMEvalKit has them on made answers, and the traps by name."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from csr_ray.data.images import load_image
from csr_ray.errors import ConfigError, NoDataError
from csr_ray.evaluation.benchmarks.base import LETTER_ANSWER
from csr_ray.evaluation.benchmarks.letters import inferred_letter
from csr_ray.evaluation.benchmarks.marking import mark_file
from csr_ray.evaluation.benchmarks.questions import load_asked

OFFICIAL = json.loads((Path(__file__).parents[1] / "data" / "benchmarks" / "mmbench.json").read_text())
OPTIONS = {"A": "a cat", "B": "a dog", "C": "a bird"}


def picture(colour: str) -> str:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def write_tsv(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    with (folder / "mmbench_dev_20230712.tsv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return folder


def circle(index: int, *, answer: int, image: str, **more: Any) -> list[dict[str, Any]]:
    """A question with three options in three rotations."""
    rows = []
    for turn in range(3):
        options = [*list(OPTIONS.values())[turn:], *list(OPTIONS.values())[:turn]]
        row = {"index": index + turn * 1_000_000, "question": "What is it?", "hint": "nan", "image": image}
        row |= dict(zip("ABC", options, strict=True)) | {"D": "", "answer": "ABC"[(answer - turn) % 3]}
        rows.append(row | more)
    return rows


def answers_of(path: Path, texts: dict[int, str]) -> Path:
    path.write_text("\n".join(json.dumps({"question_id": key, "text": text}) for key, text in texts.items()))
    return path


def test_every_letter_is_inferred_as_by_vlmevalkit() -> None:
    """The answers are ours; `letter` is what can_infer of open-compass/VLMEvalKit at e8e78f0 made of them."""
    wrong = [
        row for row in OFFICIAL["infer"] if inferred_letter(row["text"], options=row["options"]) != row["letter"]
    ]
    assert not wrong, wrong[:3]
    assert sum(row["letter"] is None for row in OFFICIAL["infer"]) > 50


def test_every_circle_and_category_is_that_of_vlmevalkit(tmp_path: Path) -> None:
    """`hits`, `said` and `single` are what its mcq_circular_eval, report_acc and eval_vanilla made of the answers,
    without a language model."""
    data = write_tsv(tmp_path / "mmbench", OFFICIAL["rows"])
    answers = tmp_path / "answers.jsonl"
    answers.write_text("\n".join(map(json.dumps, OFFICIAL["answers"])))
    found = mark_file("mmbench", answers=answers, truth=data)
    assert found["outcomes"] == {key: float(hit) for key, hit in OFFICIAL["hits"].items()}
    said = {"accuracy" if name == "Overall" else name: value for name, value in OFFICIAL["said"].items()}
    assert {name: found["metrics"][name] for name in said} == pytest.approx(said)
    assert found["metrics"]["accuracy_single"] == pytest.approx(OFFICIAL["single"])
    assert 0 < found["metrics"]["accuracy"] < found["metrics"]["accuracy_single"]
    assert found["skipped"] == {}


def test_rotations_share_the_row_number_mod_a_million_and_all_have_to_be_right(tmp_path: Path) -> None:
    data = write_tsv(tmp_path / "m", [*circle(5, answer=0, image="x"), *circle(6, answer=1, image="x")])
    texts = {5: "A", 1_000_005: "C", 2_000_005: "B", 6: "B", 1_000_006: "A", 2_000_006: "A"}
    found = mark_file("mmbench", answers=answers_of(tmp_path / "a.jsonl", texts), truth=data)
    assert found["outcomes"] == {"5": 1.0, "6": 0.0}
    assert (found["metrics"]["accuracy"], found["metrics"]["accuracy_single"]) == (0.5, 1.0)


def test_without_a_language_model_an_unread_answer_is_wrong_and_no_option_is_drawn_at_random(tmp_path: Path) -> None:
    data = write_tsv(tmp_path / "m", circle(5, answer=0, image="x"))
    texts = {5: "I cannot say", 1_000_005: "C", 2_000_005: "B"}
    found = [mark_file("mmbench", answers=answers_of(tmp_path / "a.jsonl", texts), truth=data) for _ in range(3)]
    assert found[0] == found[1] == found[2]
    assert found[0]["metrics"]["accuracy"] == 0.0
    assert found[0]["metrics"]["unread_rate"] == pytest.approx(1 / 3)
    assert "random option after three failures" in found[0]["notes"][0]


def test_a_question_that_lacks_the_answer_to_a_rotation_is_left_out_and_counted(tmp_path: Path) -> None:
    rows = [*circle(5, answer=0, image="x"), *circle(6, answer=0, image="x"), *circle(7, answer=0, image="x")[1:]]
    data = write_tsv(tmp_path / "m", rows)
    texts = {5: "A", 1_000_005: "C", 2_000_005: "B", 6: "A", 1_000_007: "C"}
    found = mark_file("mmbench", answers=answers_of(tmp_path / "a.jsonl", texts), truth=data)
    assert (found["n"], found["outcomes"]) == (1, {"5": 1.0})
    assert found["skipped"] == {
        "a rotation of a question that is not there": 1,
        "a rotation of this question has no answer": 1,
        "no answer to this truth": 3,
    }


def test_a_figure_that_rests_on_no_answer_is_left_out_and_none_at_all_is_an_error(tmp_path: Path) -> None:
    data = write_tsv(tmp_path / "m", circle(5, answer=0, image="x", category="animals"))
    found = mark_file("mmbench", answers=answers_of(tmp_path / "a.jsonl", {5: "A"}), truth=data)  # as LLaVA asks
    assert found["metrics"] == {"accuracy_single": 1.0, "unread_rate": 0.0}
    assert "accuracy is left out" in found["notes"][-1]
    assert set(found["intervals"]) == {"accuracy_single", "unread_rate"}
    with pytest.raises(NoDataError, match=r"no answer counts \(a rotation of this question has no answer: 1\)"):
        mark_file("mmbench", answers=answers_of(tmp_path / "a.jsonl", {1_000_005: "C"}), truth=data)


def test_the_test_split_whose_answers_are_on_a_server_is_refused(tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "answer"} for row in circle(5, answer=0, image="x")]
    with pytest.raises(ConfigError, match="no column answer, as in the test split"):
        load_asked("mmbench", data=str(write_tsv(tmp_path, rows)), unpack=tmp_path, limit=None)


def test_pictures_in_base64_are_unpacked_once_and_a_number_names_another_rows(tmp_path: Path) -> None:
    rows = circle(5, answer=0, image=picture("red"), hint="A hint.")
    rows[1]["image"] = "5"
    rows += circle(6, answer=0, image="*not base64*")
    data = write_tsv(tmp_path / "m", rows)
    asked = load_asked("mmbench", data=str(data), unpack=tmp_path / "images", limit=None)
    (place,) = {item.image for item in asked.items.by_id.values()}
    assert load_image(place).getpixel((0, 0)) == (255, 0, 0)
    assert len(list((tmp_path / "images").iterdir())) == 1
    assert asked.items.skipped == {"malformed question: image is not in base64": 3}
    item = asked.items.by_id["1000005"]
    assert item.text == f"A hint.\nWhat is it?\nA. a dog\nB. a bird\nC. a cat\n{LETTER_ANSWER}"


def test_rows_that_are_no_questions_are_counted_by_reason(tmp_path: Path) -> None:
    rows = circle(5, answer=0, image=picture("red"))
    rows += [{**rows[0], "index": "x"}, {**rows[0], "index": 9, "answer": "D"}, rows[0]]
    asked = load_asked("mmbench", data=str(write_tsv(tmp_path / "m", rows)), unpack=tmp_path / "i", limit=None)
    assert asked.items.skipped == {
        "malformed question: answer is no letter of an option": 1,
        "malformed question: index is no number": 1,
        "second question with this id": 1,
    }
    bad = tmp_path / "bad.tsv"
    bad.write_bytes(b"index\tquestion\tA\tanswer\n\xff\xfe\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_asked("mmbench", data=str(bad), unpack=tmp_path / "i", limit=None)
