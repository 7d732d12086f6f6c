"""The journal line is written last, and a torn line did not happen."""

from __future__ import annotations

import errno
import json

import pytest

from csr_ray.errors import StorageError
from csr_ray.records import Rejection
from csr_ray.store.journal import Journal, Quarantine, write_atomically, write_json


def test_committed_lines_are_found_again(tmp_path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.commit("rollout", round=0, unit=1, tokens=5)
    journal.commit("pairs", round=0)
    again = Journal(path)
    assert again.find("rollout", round=0, unit=1) == {"kind": "rollout", "round": 0, "unit": 1, "tokens": 5}
    assert again.find("rollout", round=1) is None


def test_lines_are_found_by_kind_and_round_without_reading_the_others(tmp_path) -> None:
    class Watched(dict):
        looks = 0

        def get(self, key, default=None):
            Watched.looks += 1
            return super().get(key, default)

    journal = Journal(tmp_path / "journal.jsonl")
    for number in range(200):
        journal._add(Watched(kind="rollout", round=number % 100, unit=str(number)))
    Watched.looks = 0
    assert [entry["unit"] for entry in journal.all("rollout", round=7)] == ["7", "107"]
    assert journal.find("rollout", round=7, unit="107") and not journal.find("rollout", round=100)
    assert len(journal.all("rollout")) == 200
    assert Watched.looks < 10


@pytest.mark.parametrize("cut", range(1, 34))
def test_a_journal_cut_at_any_byte_of_its_last_line_loses_only_that_line(tmp_path, cut: int) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.commit("pairs", round=0)
    journal.commit("train", round=0, num_steps=3)
    data = path.read_bytes()
    path.write_bytes(data[:-cut])
    again = Journal(path)
    assert [entry["kind"] for entry in again.entries] == ["pairs"]
    again.commit("train", round=0, num_steps=4)
    assert [json.loads(line)["kind"] for line in path.read_text().splitlines()] == ["pairs", "train"]


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, value={"a": 1})

    def full(temporary) -> None:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageError, match="No space left"):
        write_atomically(path, write=full)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_a_resumed_run_does_not_quarantine_twice(tmp_path) -> None:
    path = tmp_path / "quarantine.jsonl"
    rejection = Rejection(id="7", source="prompts.jsonl:7", reason="no such file")
    quarantine = Quarantine(path)
    quarantine.add([rejection, rejection])
    quarantine.add([rejection])
    Quarantine(path).add([rejection])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"id": "7", "source": "prompts.jsonl:7", "reason": "no such file"}
    ]
