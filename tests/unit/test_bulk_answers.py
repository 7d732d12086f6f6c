"""Evaluating without any actor: what is left to ask, what is kept, and what is said of those without an answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from csr_ray.app.console import ConsoleView
from csr_ray.app.evaluate import Evaluation, evaluate, what_is_asked, works_of
from csr_ray.errors import ConfigError, NoDataError
from csr_ray.evaluation.suite import Suite, mark_photos
from csr_ray.records import Question
from csr_ray.store.answers import ANSWERS, answer_folder
from csr_ray.store.parts import Work

NUM = 40


def suite_of(num: int = NUM) -> Suite:
    """Photos of a dog each, and a question about each of them whose right answer is yes."""
    images = [f"/photos/{number}.jpg" for number in range(num)]
    return Suite(
        describe=tuple(Question(id=str(at), image=image, text="Describe.") for at, image in enumerate(images)),
        truth={str(number): ["dog"] for number in range(num)},
        mark=mark_photos,
        yes_no=tuple(Question(id=f"q{at}", image=image, text="A dog?") for at, image in enumerate(images)),
        labels={f"q{number}": "yes" for number in range(num)},
    )


class Answering:
    """A folder of answers, and somebody who says that there is a dog."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder = answer_folder(tmp_path / "answers")
        self.suite = suite_of()
        self.asked: list[int] = []
        self.faults: dict[str, str] = {}
        self.stop_after: int | None = None
        self.what = {"model": "m"}

    def run(self, benchmark: str = "world") -> Evaluation:
        self.asked = []
        return evaluate(
            self.suite,
            benchmark=benchmark,
            what=self.what,
            folder=self.folder,
            quarantine=self.folder.quarantine,
            answer_jobs=self._jobs,
            view=ConsoleView(num_rounds=0, console=Console(quiet=True)),
        )

    def _jobs(self, works: Sequence[Work]) -> Iterator[tuple[int, pa.Table]]:
        for work in reversed(works):  # as they are done, not as they were asked for
            if self.stop_after is not None and len(self.asked) >= self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(work.position)
            rows = []
            for question in work.job.questions:
                row = {"id": question.id, "asked_as": work.job.asked_as, "image": question.image}
                row["source"] = question.image
                if fault := self.faults.get(question.image):
                    row |= {"reason": f"image {question.image}: no such file", "fault": fault}
                else:
                    row |= {"answer": "Yes, a dog.", "token_ids": [1, 2], "logp": -1.0}
                rows.append(row)
            yield work.position, pa.Table.from_pylist(rows, schema=ANSWERS)


@pytest.fixture
def answering(tmp_path: Path) -> Answering:
    return Answering(tmp_path)


def test_all_is_asked_once_and_the_same_questions_make_the_same_pieces(answering: Answering) -> None:
    works = list(works_of(answering.suite))
    assert [(work.position, work.num) for work in works] == [(0, 32), (32, 8), (40, 32), (72, 8)]
    assert [work.job.max_tokens for work in works] == [256, 256, 8, 8]
    assert works == list(works_of(suite_of()))
    found = answering.run()
    assert (found.n, found.skipped) == (NUM, {})
    assert found.metrics["recall"] == found.metrics["pope_acc"] == 1.0
    assert not answering.folder.quarantine.exists()


def test_metrics_have_the_names_that_the_contract_gives_them(answering: Answering) -> None:
    answering.suite = replace(suite_of(), describe=())
    found = answering.run("pope").to_plain()
    assert list(found)[:4] == ["benchmark", "n", "metrics", "skipped"]
    assert list(found["intervals"]) == list(found["metrics"]) and len(found["items"]) == found["n"]
    assert found["metrics"] == {"accuracy": 1.0, "precision": 1.0, "recall": 1.0, "f1": 1.0, "yes_ratio": 1.0}
    answering.folder = answer_folder(answering.folder.root / "photos")
    answering.suite = replace(suite_of(), yes_no=())
    assert answering.run("chair").metrics == {"chair_s": 0.0, "chair_i": 0.0, "recall": 1.0}


def test_a_stopped_evaluation_goes_on_where_it_was(answering: Answering) -> None:
    answering.stop_after = 3
    with pytest.raises(KeyboardInterrupt):
        answering.run()
    answering.stop_after = None
    assert answering.run().n == NUM
    assert answering.asked == [0]
    answering.run()
    assert answering.asked == []
    answering.what = {"model": "another"}
    with pytest.raises(ConfigError, match=r"^--out = .*holds the answers of something else \(model differ\)"):
        answering.run()


def test_a_picture_that_cannot_be_read_is_set_aside_and_counted(answering: Answering) -> None:
    answering.faults = {"/photos/3.jpg": "input", "/photos/35.jpg": "machine"}
    found = answering.run()
    assert (found.n, found.skipped) == (NUM - 2, {"image: no such file": 4})
    assert found.metrics["recall"] == 1.0
    lines = [json.loads(line) for line in answering.folder.quarantine.read_text().splitlines()]
    assert {line["id"] for line in lines} == {"3", "35", "q3", "q35"}
    answering.faults = {}
    assert answering.run().n == NUM - 1
    assert answering.asked == [72, 32], "what the machine failed at is tried again, what is bad is not"


def test_questions_of_which_none_has_an_answer_are_no_data(answering: Answering) -> None:
    answering.faults = {f"/photos/{number}.jpg": "input" for number in range(NUM)}
    with pytest.raises(NoDataError, match=r"world: not one .*first reason: image /photos/0.jpg: .*quarantine\.jsonl"):
        answering.run()


def test_a_model_whose_files_changed_is_another_one(tmp_path: Path) -> None:
    def what() -> dict:
        return what_is_asked(suite_of(), model=str(tmp_path), reference=str(tmp_path), dtype="float32", seed=0)

    (tmp_path / "model.safetensors").write_bytes(b"1")
    before = what()
    assert before == what()
    (tmp_path / "model.safetensors").write_bytes(b"22")
    changed = what()
    assert [key for key in before if before[key] != changed[key]] == ["model_files"]
    asked = what_is_asked(suite_of(5), model=str(tmp_path), reference=str(tmp_path), dtype="float32", seed=0)
    assert asked["questions"] != before["questions"]
