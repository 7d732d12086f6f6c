"""An evaluation that is killed goes on where it was, and takes no answer that is not what was written."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from patience import within

from csr_ray.errors import StorageError
from csr_ray.records import Answer, Question
from csr_ray.stages.kept_answers import KeptAnswers

QUESTIONS = [Question(id=f"q{number}", image="i.png", text=f"What is at {number}?") for number in range(10)]
ASKED = {"temperature": 0.0, "max_tokens": 8, "seed": 0}


class Counted:
    """Remembers what it was asked, and can be killed on the way."""

    def __init__(self, *, version: int = 1, killed_after: int | None = None) -> None:
        self.asked: list[str] = []
        self._version, self._killed_after = version, killed_after

    def answer(self, questions, *, temperature, max_tokens, seed) -> Iterator[Answer]:
        for question in questions:
            if len(self.asked) == self._killed_after:
                raise KeyboardInterrupt
            self.asked.append(question.id)
            text = f"{question.text} {temperature}"
            yield Answer(id=question.id, text=text, token_ids=(1,), logp=-0.5, policy_version=self._version)


def ask(path: Path, counted: Counted, *, version: int = 1, **asked) -> list[Answer]:
    kept = KeptAnswers(counted, path=path, version=version)
    return sorted(kept.answer(QUESTIONS, **{**ASKED, **asked}), key=lambda answer: answer.id)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "eval" / "version_001.jsonl"


def test_what_is_answered_is_not_asked_again_and_the_answers_are_the_same(path: Path) -> None:
    whole = ask(path.with_name("other.jsonl"), Counted())
    with pytest.raises(KeyboardInterrupt):
        ask(path, Counted(killed_after=6))
    second = Counted()
    assert ask(path, second) == whole and len(whole) == 10
    assert second.asked == ["q6", "q7", "q8", "q9"]


def test_a_torn_line_costs_itself_and_not_the_next_one(path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        ask(path, Counted(killed_after=6))
    path.write_bytes(path.read_bytes()[:-9])
    ask(path, second := Counted())
    assert second.asked == ["q5", "q6", "q7", "q8", "q9"]
    ask(path, third := Counted())
    assert third.asked == []


def test_another_temperature_version_or_text_is_another_question(path: Path) -> None:
    ask(path, Counted())
    for counted, more in ((Counted(), {"temperature": 1.0}), (Counted(version=2), {"version": 2})):
        assert len(ask(path, counted, **more)) == 10 and len(counted.asked) == 10
    changed = Counted()
    kept = KeptAnswers(changed, path=path, version=1)
    list(kept.answer([Question(id="q0", image="i.png", text="Another?")], **ASKED))
    assert changed.asked == ["q0"]


def test_a_file_cut_at_any_byte_or_with_any_byte_changed_costs_only_the_lines_that_it_hits(path: Path) -> None:
    whole = ask(path, Counted())
    content = path.read_bytes()
    length = len(content.splitlines(keepends=True)[0])
    for at in range(0, len(content), 7):
        for damaged in (content[:at], content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]):
            path.write_bytes(damaged)
            counted = Counted()
            assert ask(path, counted) == whole
            assert len(counted.asked) <= (10 - at // length if damaged == content[:at] else 2), at


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file of this process grows beyond 1000 bytes, which is what a full disk does to a write: it takes a part."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_is_full_is_one_line_and_costs_no_answer_that_was_written(path: Path, full_disk: None) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*version_001\.jsonl: .*; free some space"):
        ask(path, Counted())
    written = path.read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    num_whole = written.count(b"\n")
    assert num_whole and written.endswith(b"\n"), "no half line is left"
    ask(path, second := Counted())
    assert len(second.asked) == 10 - num_whole


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_in_its_place_is_one_line(path: Path, make: Callable[[Path], None]) -> None:
    path.parent.mkdir()
    make(path)
    with pytest.raises(StorageError, match=r"version_001\.jsonl: it is no file; move away what stands in its place"):
        within(lambda: ask(path, Counted()))
