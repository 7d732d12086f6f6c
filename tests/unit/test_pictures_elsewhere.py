"""A picture that another node could not read, and the driver can, is set aside as the machine's fault."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from tars import write_tar

from actors.data.judged import do_picture_work, judged
from actors.data.reader import _items, _table
from actors.pool.generators import GeneratorPool
from csr_ray.data.images import fault_elsewhere
from csr_ray.data.prompts import PromptFile
from csr_ray.records import Cycle, Prompt, Rejection
from csr_ray.store.answers import ANSWERS, answer_folder
from csr_ray.store.parts import Work
from csr_ray.store.scores import CAPTIONS

GONE = "image x: no such file"


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path)
    return str(path)


def in_tar(folder: Path, picture: str) -> str:
    """The name of the same picture in a tar."""
    members = [("1.png", Path(picture).read_bytes()), ("1.txt", b"What is there?")]
    path = write_tar(folder / "a.tar", members)
    return next(PromptFile(str(path), images=None, limit=None).take()).image


def test_what_the_driver_can_read_is_the_machines_fault(tmp_path: Path, picture: str) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    for path in (picture, f"file://{picture}", in_tar(tmp_path, picture)):
        reason, fault = fault_elsewhere(path, reason=GONE, fault="input")
        assert fault == "machine" and reason.startswith(f"{GONE}; the driver's node can read it: put it on")
    for path in (str(broken), f"{picture}.away", "https://example.org/a.png", "memory://a.png"):
        assert fault_elsewhere(path, reason=GONE, fault="input") == (GONE, "input")
    assert fault_elsewhere(picture, reason="said nothing", fault="policy") == ("said nothing", "policy")


def test_a_generators_node(picture: str) -> None:
    prompts = [Prompt(id=name, image=image, text="?") for name, image in (("a", picture), ("b", f"{picture}.away"))]

    def answered(asked: Any, **_: Any) -> Iterator[tuple[Prompt, Rejection]]:
        yield from ((prompt, prompt.refused(GONE)) for prompt in asked)

    pool = GeneratorPool.__new__(GeneratorPool)
    pool._supervisor = SimpleNamespace(map=answered)  # type: ignore[assignment]
    pool._config = SimpleNamespace(most_in_flight=1)  # type: ignore[assignment]
    results = list(pool.rollout(prompts, cycle=Cycle(round_index=0)))
    assert [(result.id, result.fault) for result in results if isinstance(result, Rejection)] == [
        ("a", "machine"),
        ("b", "input"),
    ]


def test_a_readers_node(picture: str) -> None:
    prompts = [Prompt(id="a", image=picture, text="?"), Prompt(id="b", image="/away.png", text="?")]
    found = list(_items([_table(prompts, faults=[prompt.refused(GONE) for prompt in prompts])]))
    assert [item.fault for item in found if isinstance(item, Rejection)] == ["machine", "input"]


def test_the_node_of_who_scores_captions(picture: str) -> None:
    said = {"caption": "a dog", "source": "c.jsonl:1"}
    rows = [
        {**said, "id": "a", "image": picture, "reason": GONE, "fault": "input"},
        {**said, "id": "b", "image": "/away.png", "reason": GONE, "fault": "input"},
        {**said, "id": "c", "image": picture, "score": 20.0, "cut": False},
    ]
    found = judged(pa.Table.from_pylist(rows, schema=CAPTIONS))
    assert found["fault"].to_pylist() == ["machine", "input", None]
    assert found["score"].to_pylist() == [None, None, 20.0] and found.schema == CAPTIONS


def test_the_node_of_who_answers(picture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"asked_as": "yes_no", "question": "A dog?"}
    rows = [
        {**said, "id": "q1", "image": picture, "reason": GONE, "fault": "input"},
        {**said, "id": "q2", "image": picture, "reason": "said nothing", "fault": "policy"},
        {**said, "id": "q3", "image": "/away.png", "reason": GONE, "fault": "input"},
        {**said, "id": "q4", "image": picture, "answer": "Yes."},
    ]
    folder = answer_folder(tmp_path)

    def answered(works: Any, **_: Any) -> Iterator[tuple[int, pa.Table]]:
        yield from ((work.position, pa.Table.from_pylist(work.job, schema=ANSWERS)) for work in works)

    monkeypatch.setattr("actors.data.judged.do_work", answered)
    works = [Work(0, 2, rows[:2]), Work(2, 2, rows[2:])]
    for position, table in do_picture_work(works, workers=SimpleNamespace()):  # type: ignore[arg-type]
        folder.write(position, table)
    faults = [table["fault"].to_pylist() for table in folder.columns("fault", positions=(0, 2))]
    assert faults == [["machine", "policy"], ["input", None]]
    assert not folder.is_done(0), "the next start asks it again"
    assert folder.is_done(2)
