"""The journal line is written last, and a torn line did not happen."""

from __future__ import annotations

import errno
import json

import pytest
from journals import entries_of

from csr_ray.errors import DamageError, StorageError
from csr_ray.records import Rejection
from csr_ray.store.atomic import new_folder, write_atomically, write_json
from csr_ray.store.journal import Journal
from csr_ray.store.quarantine import Quarantine


def test_committed_lines_are_found_again(tmp_path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.commit("train", round=0, phase="main", num_steps=5)
    journal.commit("round", round=0)
    again = Journal(path)
    assert again.find("train", round=0) == {"kind": "train", "round": 0, "phase": "main", "num_steps": 5}
    assert again.find("train", round=1) is None


def test_lines_are_found_by_kind_and_round_without_reading_the_others(tmp_path) -> None:
    class Watched(dict):
        looks = 0

        def get(self, key, default=None):
            Watched.looks += 1
            return super().get(key, default)

    journal = Journal(tmp_path / "journal.jsonl")
    for number in range(200):
        journal._add(Watched(kind="train", round=number % 100, phase=str(number)))
    Watched.looks = 0
    assert [entry["phase"] for entry in journal.all("train", round=7)] == ["7", "107"]
    assert journal.find("train", round=7, phase="107") and not journal.find("train", round=100)
    assert len(journal.all("train")) == 200
    assert Watched.looks < 10


def test_of_units_their_names_and_sums_and_whose_prompts_are_in_them_are_kept(tmp_path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    for round_index, name, ids in ((0, "one", ["a", "b"]), (1, "other", ["a"]), (0, "two", ["c"])):
        counters = {"engine_steps": 2.0}
        journal.commit(
            "rollout", round=round_index, phase="main", unit=name, ids=ids, tokens=5, seconds=0.5, counters=counters
        )
    for units in (one.units(round=0, phase="main") for one in (journal, Journal(path))):
        assert units.names == ["one", "two"]
        assert (units.total("tokens"), units.total("seconds"), units.counters.engine_steps) == (10, 1.0, 4.0)
        index = units.index()
        assert index.num_ids == 3
        assert [index.unit_with(prompt_id) for prompt_id in "abcd"] == ["one", "one", "two", None]
    assert journal.all("rollout") == [] and journal.units(round=0, phase="second").names == []


def test_listeners_hear_every_line_once_it_is_written_and_cannot_stop_it(tmp_path, caplog) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.commit("round", round=0)
    heard = []

    def listener(entry) -> None:
        assert entries_of(journal.path)[-1]["kind"] == entry["kind"]
        heard.append((entry["kind"], journal.find(entry["kind"]) is not None))
        raise RuntimeError("the listener's own fault")

    journal.listen(listener)
    journal.listen(lambda entry: heard.append(entry["kind"]))
    journal.commit("train", round=0, phase="main")
    journal.again([{"round": 0, "phase": "main", "what": "train", "reason": "a test"}])
    assert heard == [("train", True), "train", ("again", True), "again"]
    assert "the listener's own fault" in caplog.text and "'train'" in caplog.text
    assert journal.num_lines == 3


def test_a_journal_cut_at_any_byte_of_its_last_line_loses_only_that_line(tmp_path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.commit("round", round=0)
    num_first_bytes = path.stat().st_size
    journal.commit("finished", rounds=1, note="x")
    data = path.read_bytes()
    for cut in range(1, len(data) - num_first_bytes + 1):
        path.write_bytes(data[:-cut])
        again = Journal(path)
        lines = ["round", "finished"] if cut == 1 else ["round"]  # a line that only lacks its newline is whole
        assert [entry["kind"] for entry in (*again.all("round"), *again.all("finished"))] == lines
        assert path.read_bytes() == data[:-cut], "reading changes nothing"
        again.commit("model", name="m")
        assert [entry["kind"] for entry in entries_of(path)] == [*lines, "model"]
        assert Journal(path).num_lines == len(lines) + 1


def test_who_watches_a_journal_hears_its_new_lines_when_they_are_whole(tmp_path) -> None:
    path = tmp_path / "journal.jsonl"
    watcher = Journal(path)
    assert watcher.catch_up() == []
    writer = Journal(path)
    writer.commit("train", round=0, phase="main", num_steps=5)
    assert watcher.catch_up() is None, "a file that was not there is another one"
    assert watcher.find("train", round=0) is not None
    before = path.stat().st_size
    writer.commit("round", round=0)
    whole = path.read_bytes()
    for num_bytes in range(before, len(whole) - 1):
        path.write_bytes(whole[:num_bytes])
        assert watcher.catch_up() == []
    path.write_bytes(whole[:-1])
    assert watcher.catch_up() == [{"kind": "round", "round": 0}], "it lacks its newline alone"
    path.write_bytes(whole)
    assert watcher.catch_up() == []
    Journal(path).commit("round", round=1)
    assert watcher.catch_up() == [{"kind": "round", "round": 1}]
    assert [entry["round"] for entry in watcher.all("round")] == [0, 1] and watcher.num_lines == 3


def test_who_watches_a_journal_forgets_what_is_voided_and_a_file_that_was_there(tmp_path) -> None:
    path = tmp_path / "journal.jsonl"
    writer = Journal(path)
    cycle = {"round": 0, "phase": "main"}
    writer.commit("examples", **cycle, made=3)
    watcher = Journal(path)
    writer.again([{**cycle, "what": "examples", "reason": "damaged"}])
    assert watcher.catch_up() is None and watcher.find("examples", **cycle) is None
    path.rename(tmp_path / "earlier.jsonl")
    assert watcher.catch_up() is None and watcher.num_lines == 0
    Journal(path).commit("round", round=7)
    assert watcher.catch_up() is None and watcher.find("round", round=7) is not None
    path.write_bytes(path.read_bytes() + path.read_bytes())
    with pytest.raises(DamageError, match="line 2"):
        watcher.catch_up()


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


def test_a_folder_appears_whole_or_not_at_all(tmp_path) -> None:
    target = tmp_path / "adapter"
    for text in ("old", "new"):
        with new_folder(target) as staging:
            (staging / "weights").write_text(text)
        assert (target / "weights").read_text() == text
    with pytest.raises(KeyboardInterrupt), new_folder(target) as staging:
        (staging / "weights").write_text("half")
        raise KeyboardInterrupt
    assert (target / "weights").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert target.stat().st_mode & 0o777 == 0o755


def test_a_resumed_run_does_not_quarantine_twice(tmp_path) -> None:
    path = tmp_path / "quarantine.jsonl"
    rejection = Rejection(id="7", source="prompts.jsonl:7", reason="no such file")
    quarantine = Quarantine(path)
    quarantine.add([rejection, rejection])
    quarantine.add([rejection])
    Quarantine(path).add([rejection])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"id": "7", "source": "prompts.jsonl:7", "reason": "no such file", "fault": "input"}
    ]
