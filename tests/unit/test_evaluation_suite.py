"""The benchmarks as the loop asks them: which files are read, what is asked, how answers are marked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from csr_ray.config.schema import Eval
from csr_ray.errors import ConfigError
from csr_ray.evaluation.suite import load_suite
from csr_ray.records import Answer, Question


class Says:
    """Generators that say what a table holds."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.texts = texts

    def answer(
        self, questions: Sequence[Question], *, temperature: float, max_tokens: int, seed: int
    ) -> Iterator[Answer]:
        for question in questions:
            yield Answer(id=question.id, text=self.texts[question.id], token_ids=(1,), logp=-1.0, policy_version=0)


def write(path: Path, *, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write(
        tmp_path / "prompts.jsonl",
        rows=[{"id": key, "image": f"{key}.jpg", "prompt": "Describe the image."} for key in ("a", "b")],
    )
    write(
        tmp_path / "truth.jsonl",
        rows=[{"image_id": "a", "objects": ["dog", "car"]}, {"id": "b", "objects": [{"kind": "cat"}]}],
    )
    return tmp_path


def test_chair_describes_photos_and_needs_no_questions(photos: Path) -> None:
    suite = load_suite(Eval(benchmarks=("chair",), data=str(photos), sampled=False))
    assert (suite.num_items, suite.num_answers) == (2, 2)
    metrics = suite.measure(Says({"a": "A dog beside a car.", "b": "A cat and a dog."}), seed=0)  # type: ignore[arg-type]
    # Of two answers one names a dog that is not there; of four mentions one; all three objects are named.
    assert metrics == {"num_images": 2, "chair_s": 0.5, "chair_i": 0.25, "recall": 1.0}


@pytest.mark.parametrize(
    ("name", "line", "says"),
    [
        ("prompts.jsonl", '{"id": "c", "im', "prompts.jsonl:3: "),
        ("prompts.jsonl", '{"id": "c", "image": "c.jpg"}', "prompts.jsonl:3: no 'prompt'"),
        ("prompts.jsonl", '["c"]', "prompts.jsonl:3: not a record"),
        ("prompts.jsonl", "\udcff\udcfe", "prompts.jsonl:3: "),
        ("truth.jsonl", "nothing", "truth.jsonl:3: "),
        ("questions.jsonl", '{"question_id": 2, "image": "a.jpg", "label": "yes"}', "questions.jsonl:2: no 'text'"),
    ],
)
def test_a_line_that_cannot_be_used_is_named_and_nothing_is_left_out(
    photos: Path, name: str, line: str, says: str
) -> None:
    question = {"question_id": 1, "image": "a.jpg", "text": "Is there a dog\u2028in the image?", "label": "yes"}
    (photos / "questions.jsonl").write_text(json.dumps(question, ensure_ascii=False) + "\n", encoding="utf-8")
    config = Eval(benchmarks=("chair", "pope"), data=str(photos))
    assert len(load_suite(config).yes_no) == 1
    with (photos / name).open("a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(line + "\n")
    with pytest.raises(ConfigError, match=says) as caught:
        load_suite(config)
    assert str(caught.value).startswith("eval.data = ") and "put the benchmark's own file back" in str(caught.value)


def test_limit_keeps_the_questions_of_the_images_it_keeps(photos: Path) -> None:
    write(
        photos / "questions.jsonl",
        rows=[
            {"question_id": number, "image": f"{key}.jpg", "text": "Is there a dog in the image?", "label": label}
            for number, (key, label) in enumerate([("a", "yes"), ("b", "no")])
        ],
    )
    suite = load_suite(Eval(benchmarks=("chair", "pope"), data=str(photos), limit=1, sampled=False))
    assert suite.num_answers == 2 and [question.id for question in suite.yes_no] == ["q0"]


def test_an_image_without_truth_and_two_ways_to_mark_are_refused(photos: Path) -> None:
    write(photos / "truth.jsonl", rows=[{"id": "a", "objects": ["dog"]}])
    with pytest.raises(ConfigError, match="no line for image 'b'"):
        load_suite(Eval(benchmarks=("chair",), data=str(photos)))
    with pytest.raises(ValueError, match="world contradicts chair"):
        Eval(benchmarks=("world", "chair"), data=str(photos))


def test_fewer_images_between_the_rounds_keep_their_truth_and_questions(photos: Path) -> None:
    suite = load_suite(Eval(benchmarks=("chair",), data=str(photos), sampled=False)).first(1)
    metrics = suite.measure(Says({"a": "A dog beside a cat."}), seed=0)  # type: ignore[arg-type]
    assert metrics == {"num_images": 1, "chair_s": 1.0, "chair_i": 0.5, "recall": 0.5}


def yes_no(key: object, *, label: object = "yes", image: str = "a.jpg") -> dict:
    return {"question_id": key, "image": image, "text": "Is there a dog in the image?", "label": label}


def test_labels_are_read_as_score_answers_reads_them(photos: Path) -> None:
    write(photos / "questions.jsonl", rows=[yes_no(1, label="Yes"), yes_no(2, label=" NO ")])
    suite = load_suite(Eval(benchmarks=("pope",), data=str(photos)))
    assert suite.labels == {"q1": "yes", "q2": "no"}
    assert suite.yes_no_marks({"yes_no": {"q1": "Yes.", "q2": "No."}})["accuracy"] == 1.0


@pytest.mark.parametrize("label", ["maybe", 1, True, ["yes"]])
def test_a_label_that_is_neither_yes_nor_no_is_refused_before_anybody_answers(photos: Path, label: object) -> None:
    write(photos / "questions.jsonl", rows=[yes_no(1), yes_no(2, label=label)])
    with pytest.raises(ConfigError) as caught:
        load_suite(Eval(benchmarks=("pope",), data=str(photos)))
    assert str(caught.value).startswith(f"eval.data = {str(photos)!r}: questions.jsonl:2: label = {label!r}: ")
    assert "neither yes nor no; put the benchmark's own file back" in str(caught.value)


@pytest.mark.parametrize("second", [1, "1"])
def test_a_question_that_comes_again_is_refused(photos: Path, second: object) -> None:
    write(photos / "questions.jsonl", rows=[yes_no(1), yes_no(2), yes_no(second, label="no", image="b.jpg")])
    with pytest.raises(ConfigError) as caught:
        load_suite(Eval(benchmarks=("pope",), data=str(photos)))
    said = str(caught.value)
    assert said.startswith(f"eval.data = {str(photos)!r}: questions.jsonl:3: question_id = {second!r} is that of ")
    assert "questions.jsonl:1, too; " in said and "a folder of its own" in said


@pytest.mark.parametrize("benchmark", ["chair", "world"])
@pytest.mark.parametrize(
    ("name", "key"), [("prompts.jsonl", "id"), ("truth.jsonl", "id"), ("truth.jsonl", "image_id")]
)
def test_an_image_that_comes_again_is_refused(photos: Path, benchmark: str, name: str, key: str) -> None:
    if benchmark == "world":
        write(photos / "questions.jsonl", rows=[yes_no(1)])
    with (photos / name).open("a") as file:
        again = {key: "a", "image": "b.jpg", "prompt": "Describe the image.", "objects": [{"kind": "dog"}]}
        file.write(json.dumps(again) + "\n")
    with pytest.raises(ConfigError, match=rf"{name}:3: {key} = 'a' is that of {name}:1, too; ") as caught:
        load_suite(Eval(benchmarks=(benchmark,), data=str(photos)))  # type: ignore[arg-type]
    assert str(caught.value).startswith("eval.data = ")


def test_what_is_no_text_where_one_belongs_is_refused(photos: Path) -> None:
    write(photos / "questions.jsonl", rows=[{**yes_no(1), "text": 5}])
    with pytest.raises(ConfigError, match=r"questions\.jsonl:1: text = 5: not a text; put the benchmark's own file"):
        load_suite(Eval(benchmarks=("pope",), data=str(photos)))


def test_a_world_without_kinds_is_refused_before_anybody_answers(photos: Path) -> None:
    write(photos / "questions.jsonl", rows=[yes_no(1)])
    with pytest.raises(ConfigError, match=r"^eval\.data = .*: truth\.jsonl: an object without kind"):
        load_suite(Eval(benchmarks=("world",), data=str(photos)))
