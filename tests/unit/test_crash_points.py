"""A run may die at any write and be cut at any byte: it goes on, loses nothing, doubles nothing, and checks sound."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from checked_runs import CheckedDriver
from forgetful_disk import ForgetfulDisk
from journals import entries_of
from test_loop import cycle, merged_model  # noqa: F401 - a fixture

from csr_ray.store.journal import Journal

IS_LONG = bool(os.environ.get("CSR_RAY_LONG_TESTS"))
SIZE = {"num_prompts": 9, "rounds": 2} if IS_LONG else {"num_prompts": 3, "rounds": 1}


def pairs(run: CheckedDriver) -> list[list[dict]]:
    folders = sorted(run.folder.root.glob("round_*"))
    return [pq.read_table(run.folder.pairs(cycle(index))).to_pylist() for index in range(len(folders))]


def figures(summary: dict) -> list[tuple]:
    """What of a summary does not hang on the clock."""
    return [
        (entry["policy_version"], entry["pairs"], entry["rollout"]["prompts"], entry["rollout"]["tokens"])
        for entry in summary["rounds"]
    ]


def test_a_journal_cut_at_any_byte_goes_on_to_the_same_end(tmp_path) -> None:
    whole = CheckedDriver(tmp_path / "whole", **SIZE)
    expected = figures(whole.run())
    data = whole.folder.journal.read_bytes()
    ends = [position + 1 for position, byte in enumerate(data) if byte == ord("\n")]
    # What a reader makes of a cut is looked at for every byte, a whole resume where the kind of cut changes.
    cuts = range(len(data)) if IS_LONG else sorted({0, *(end + by for end in ends for by in (-40, -1, 0, 7))})
    path = tmp_path / "journal.jsonl"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert Journal(path).num_lines == sum(end <= length + 1 for end in ends)
    for length in cuts:
        shutil.rmtree(tmp_path / "cut", ignore_errors=True)
        shutil.copytree(whole.folder.root, tmp_path / "cut")
        run = whole.at(tmp_path / "cut")
        run.folder.journal.write_bytes(data[:length])
        assert figures(run.run()) == expected, length
        assert pairs(run) == pairs(whole), length
        report = run.check()
        assert (report.damage, report.next) == ([], "nothing: the run is finished"), length


class Power:
    """The disk of a machine that dies at the `last`th write, before or after it; from then on nothing happens.

    Args:
        disk: is told what was synced.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *, last: int, is_done: bool, disk: ForgetfulDisk | None = None
    ) -> None:
        self.num = 0
        self._disk = disk
        self._last = last
        self._is_done = is_done
        for name in ("fsync", "replace", "rename", "ftruncate"):
            monkeypatch.setattr(os, name, self._counted(getattr(os, name)))
        monkeypatch.setattr("csr_ray.store.journal.write_all", self._torn)
        # Nobody tidies up after a power cut.
        monkeypatch.setattr(Path, "unlink", self._if_on(Path.unlink))
        monkeypatch.setattr(shutil, "rmtree", self._if_on(shutil.rmtree))

    @property
    def is_off(self) -> bool:
        return self.num >= self._last

    def _counted(self, call: Callable) -> Callable:
        def counted(*arguments, **keywords):
            if self.is_off:
                raise SystemExit("no power")
            self.num += 1
            if self.is_off and not self._is_done:
                raise SystemExit("no power")
            result = call(*arguments, **keywords)
            if self._disk is not None and call.__name__ == "fsync":
                self._disk.synced(*arguments)
            if self.is_off:
                raise SystemExit("no power")
            return result

        return counted

    def _torn(self, write, data: bytes) -> None:
        """A line of the journal: one that the machine dies in is there by half."""
        if not self.is_off:
            self.num += 1
            write(memoryview(data) if not self.is_off or self._is_done else memoryview(data)[: len(data) // 2])
        if self.is_off:
            raise SystemExit("no power")

    def _if_on(self, call: Callable) -> Callable:
        return lambda *arguments, **keywords: None if self.is_off else call(*arguments, **keywords)


@pytest.mark.parametrize("forgets", [False, True], ids=["keeps", "forgets"])
@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
def test_a_crash_at_any_write_loses_nothing_and_doubles_nothing(tmp_path, is_done: bool, forgets: bool) -> None:
    """Whether the disk keeps everything that was written, or only what was synced."""
    whole = CheckedDriver(tmp_path / "whole", **SIZE)
    with pytest.MonkeyPatch.context() as patch:
        power = Power(patch, last=10**9, is_done=is_done)
        expected = figures(whole.run(fail_ids=frozenset({"p1"})))
        num_writes = power.num
    assert num_writes > 25
    for last in range(1, num_writes + 1):
        run = CheckedDriver(tmp_path / f"run{last}", **SIZE)
        with pytest.MonkeyPatch.context() as patch:
            disk = ForgetfulDisk(run.folder.root) if forgets else None
            Power(patch, last=last, is_done=is_done, disk=disk)
            with pytest.raises(SystemExit):
                run.run(fail_ids=frozenset({"p1"}))
        num_written = len(entries_of_whole_lines(run.folder.journal))
        if disk is not None:
            disk.forget()
        before = entries_of_whole_lines(run.folder.journal)
        assert len(before) >= num_written - 1, "only of the last line it may not be known that it is there"
        assert not run.folder.journal.exists() or not [f for f in run.check().damage if f.file != "quarantine.jsonl"]
        assert figures(run.run(fail_ids=frozenset({"p1"}))) == expected, last
        committed = {(e["round"], id) for e in before if e["kind"] == "rollout" for id in e["ids"]}
        assert not committed & set(run.generators.grown), "only what was open is done again"
        assert {e["version"] for e in before if e["kind"] == "train"}.isdisjoint(
            version + 1 for version in run.trainer.trained
        )
        assert pairs(run) == pairs(whole), last
        report = run.check()
        assert (report.damage, report.notes, report.next) == ([], [], "nothing: the run is finished"), last
        entries = [
            (e["kind"], e.get("round"), e.get("unit"), e.get("version")) for e in entries_of(run.folder.journal)
        ]
        entries = [entry for entry in entries if entry[0] != "usage"]
        assert len(entries) == len(set(entries)), "no line is there twice"
        shutil.rmtree(run.folder.root)


@pytest.mark.parametrize("damaged", ["unit", "pairs", "adapter"])
def test_a_crash_while_damage_is_mended_is_mended_too(tmp_path, damaged: str) -> None:
    whole = CheckedDriver(tmp_path / "whole", **SIZE)
    expected = figures(whole.run())
    broken = CheckedDriver(tmp_path / "broken", **SIZE)
    with pytest.raises(KeyboardInterrupt):
        broken.run(**{"stop_after": 2} if damaged == "unit" else {"die_at_publish": 0})
    unit = next(entry for entry in entries_of(broken.folder.journal) if entry["kind"] == "rollout")["unit"]
    path = {
        "unit": broken.folder.candidates(cycle(0), unit=unit),
        "pairs": broken.folder.pairs(cycle(0)),
        "adapter": broken.folder.adapter(cycle(0)) / "adapter_model.safetensors",
    }[damaged]
    path.unlink()
    for last in range(1, 12):
        run = broken.at(tmp_path / f"run{last}")
        shutil.copytree(broken.folder.root, run.folder.root)
        with pytest.MonkeyPatch.context() as patch:
            Power(patch, last=last, is_done=False)
            with pytest.raises(SystemExit):
                run.run()
        assert figures(run.run()) == expected, last
        assert pairs(run) == pairs(whole), last
        report = run.check()
        assert (report.damage, report.next) == ([], "nothing: the run is finished"), last


def entries_of_whole_lines(path: Path) -> list[dict]:
    copy = path.with_name("copy.jsonl")
    data = path.read_bytes() if path.exists() else b""
    copy.write_bytes(data[: data.rfind(b"\n") + 1])
    entries = entries_of(copy)
    copy.unlink()
    return entries
