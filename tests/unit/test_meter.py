"""What was used of the cluster, as the journal has it: each second once, and also of work that is done again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes import FakeMachinery
from journals import entries_of
from test_loop import Driver, merged_model  # noqa: F401 - a fixture

from csr_ray.counters import Usage
from csr_ray.errors import ActorFailure
from csr_ray.stages import meter
from csr_ray.stages.meter import Meter, used
from csr_ray.store.journal import Journal


def usage(held_s: float, *, role: str = "generator") -> Usage:
    return Usage(role=role, kind="H100", gpus=1, cpus=1, held_s=held_s, busy_s=held_s / 2)


def test_what_is_read_is_written_once_and_a_later_start_goes_on_from_it(tmp_path: Path) -> None:
    readings = [[usage(10.0)], [], [usage(5.0), usage(1.0, role="scorer")]]
    journal = Journal(tmp_path / "journal.jsonl")
    first = Meter(journal)
    first.begin(lambda: readings.pop(0))
    first.read(round_index=None)
    first.read(round_index=0)  # nothing new: no line
    first.read(round_index=0)
    assert journal.num_lines == 2 and first.total == [usage(15.0), usage(1.0, role="scorer")]
    again = Meter(Journal(tmp_path / "journal.jsonl"))
    again.begin(list)
    again.read(round_index=1)
    assert again.total == first.total
    assert (
        used(journal, round_index=0) == [usage(5.0), usage(1.0, role="scorer")] and used(journal, round_index=1) == []
    )


def test_without_a_source_nothing_is_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    Meter(journal).read(round_index=0)
    assert journal.num_lines == 0


def test_it_is_not_read_at_every_tick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock_s = iter((100.0, 100.0, 110.0, 129.0, 131.0, 131.0, 140.0, 162.0, 162.0))
    monkeypatch.setattr(meter, "time", SimpleNamespace(monotonic=lambda: next(clock_s)))
    journal = Journal(tmp_path / "journal.jsonl")
    ours = Meter(journal)
    ours.begin(lambda: [usage(1.0)])
    told = [ours.tick(round_index=0) for _ in range(5)]
    assert told == [False, False, True, False, True] and journal.num_lines == 2


def test_what_was_spent_on_a_training_that_is_done_again_stays_counted(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    ours = Meter(journal)
    ours.begin(lambda: [usage(60.0)])
    journal.commit("train", round=0, phase="main", version=1)
    ours.read(round_index=0)
    journal.again([{"what": "train", "round": 0, "phase": "main"}])
    assert journal.find("train", round=0) is None and used(journal) == [usage(60.0)]


def test_what_is_used_is_told_while_a_training_and_an_evaluation_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter, "_EVERY_S", 0.0)
    driver = Driver(tmp_path)
    driver.run()
    kinds = [entry["kind"] for entry in entries_of(driver.folder.journal)]
    assert kinds[kinds.index("train") - 1] == "usage" and kinds[kinds.index("eval", 1) - 1] == "usage"


def test_a_pool_that_cannot_be_asked_ends_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "_EVERY_S", 0.0)
    driver = Driver(tmp_path)

    def broken(_: FakeMachinery) -> list[Usage]:
        raise ActorFailure("the pool of generators is closed")

    monkeypatch.setattr(FakeMachinery, "usage", broken)
    assert driver.run()["finished"] and not used(Journal(driver.folder.journal))
