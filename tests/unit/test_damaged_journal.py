"""A journal is what was written, or says in one line where it is not; two things alone are mended in silence."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from journals import entries_of, write_journal

from csr_ray.__main__ import main
from csr_ray.errors import ConfigError, DamageError, StorageError
from csr_ray.store.journal import Journal
from csr_ray.store.lines import DamagedLine, bodies

LINES = (
    ("eval", {"version": 0, "metrics": {"recall": 0.5}}),
    ("rollout", {"round": 0, "phase": "main", "unit": "3f", "ids": ["J*", "ü"], "prompts": 2, "failed": 0}),
    ("examples", {"round": 0, "phase": "main", "made": 2}),
    ("train", {"round": 0, "phase": "main", "version": 1}),
    ("round", {"round": 0, "wall_s": 1.5}),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    for kind, fields in LINES:
        journal.commit(kind, **fields)
    return path


def split(data: bytes) -> list[bytes]:
    """As iterating over a binary file does: at newlines and at nothing else."""
    return [line for line in re.split(rb"(?<=\n)", data) if line]


def test_every_single_flipped_bit_is_found(path) -> None:
    data = bytearray(path.read_bytes())
    assert len(list(bodies(split(bytes(data))))) == len(LINES)
    found = 0
    for position in range(len(data)):
        for bit in range(8):
            data[position] ^= 1 << bit
            try:
                list(bodies(split(bytes(data))))
            except DamagedLine:
                found += 1
            data[position] ^= 1 << bit
    assert found == 8 * len(data)


def test_a_flipped_bit_is_one_line_with_file_line_and_remedy(path) -> None:
    data = path.read_bytes()
    starts = [0, *(match.end() for match in re.finditer(rb"\n", data))]
    for number, start in enumerate(starts[:-1], 1):
        for position in (start, start + 12, starts[number] - 40, starts[number] - 1):
            damaged = bytearray(data)
            damaged[position] ^= 4
            path.write_bytes(damaged)
            with pytest.raises(DamageError) as caught:
                Journal(path)
            message = str(caught.value)
            assert message.startswith(f"{path}, line {number}: it ") and "\n" not in message
            assert "from a copy" in message
            assert path.read_bytes() == damaged, "nothing is cut off"
            if number == 1:
                assert "--fresh" in message and "head" not in message
                continue
            assert f"the {number - 1} lines before it are sound" in message
            # The remedy is a command that can be given as it stands.
            found = re.search(r"\((head .*?)\)", message)
            assert found
            subprocess.run(found[1], shell=True, check=True)
            assert Journal(path).num_lines == number - 1
            assert path.read_bytes() == data[:start]


@pytest.mark.parametrize("change", ["removed", "doubled", "swapped", "from another run"])
def test_a_line_that_is_not_in_its_place_is_found(path, tmp_path, change: str) -> None:
    lines = split(path.read_bytes())
    if change == "removed":
        del lines[2]
    elif change == "doubled":
        lines.insert(2, lines[2])
    elif change == "swapped":
        lines[2], lines[3] = lines[3], lines[2]
    else:
        other = tmp_path / "other.jsonl"
        write_journal(other, entries=[{"kind": "eval", "version": 0}, *entries_of(path)[1:]])
        lines[2] = split(other.read_bytes())[2]
    path.write_bytes(b"".join(lines))
    with pytest.raises(DamageError, match=r"line [34]: .*changed, or a line before it was removed, doubled or moved"):
        Journal(path)


def test_a_flipped_last_newline_loses_no_line_in_silence(path) -> None:
    data = path.read_bytes()
    for bit in range(8):
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1 << bit]))
        with pytest.raises(DamageError, match="line 5: it is neither a whole line nor the beginning of one"):
            Journal(path)


@pytest.mark.parametrize("rest", [b"\0\0\0\0", b"\n", b"x", b"{}", b"[1]\n"])
def test_what_no_dying_write_leaves_behind_the_last_line_is_damage(path, rest: bytes) -> None:
    with path.open("ab") as file:
        file.write(rest)
    with pytest.raises(DamageError, match="line 6: "):
        Journal(path)


def test_a_journal_of_an_earlier_version_is_not_called_damaged(tmp_path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"kind": "model", "name": "m"}\n{"kind": "train", "round": 0, "phase": "main"}\n')
    with pytest.raises(ConfigError, match=r"^run.dir = .*an earlier version.*no checksums.*--fresh"):
        Journal(path)


def test_reading_while_another_writes_changes_nothing(path) -> None:
    data = path.read_bytes()
    for cut in range(1, 60):
        path.write_bytes(data[:-cut])
        Journal(path)
        assert path.read_bytes() == data[:-cut]


def test_a_file_that_another_process_has_written_to_is_not_written_to(path) -> None:
    journal = Journal(path)
    journal.commit("round", round=1)
    Journal(path).commit("round", round=2)
    data = path.read_bytes()
    with pytest.raises(DamageError, match="something else writes to it"):
        journal.commit("round", round=3)
    assert path.read_bytes() == data


@pytest.mark.parametrize("num_written", [0, 1, 40])
def test_a_full_disk_leaves_no_half_line(path, monkeypatch, num_written: int) -> None:
    before = path.read_bytes()
    journal = Journal(path)

    def full(write, data: bytes) -> None:
        write(memoryview(data)[:num_written])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("csr_ray.store.journal.write_all", full)
        with pytest.raises(StorageError, match=r"cannot write .*journal.jsonl: No space left.* free some space"):
            journal.commit("round", round=1)
        assert path.read_bytes() == before
        # Where not even the cut works, the next commit does it.
        patch.setattr(os, "ftruncate", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
        with pytest.raises(StorageError):
            journal.commit("round", round=1)
        assert path.read_bytes()[: len(before)] == before and path.stat().st_size == len(before) + num_written
    assert Journal(path).num_lines == 5 and journal.num_lines == 5
    journal.commit("round", round=1)
    assert [entry["kind"] for entry in entries_of(path)][4:] == ["round", "round"]
    assert Journal(path).num_lines == 6


def test_a_new_journal_has_its_name_on_the_disk(tmp_path, monkeypatch) -> None:
    synced: list[bool] = []
    fsync = os.fsync

    def watched(handle: int) -> None:
        synced.append(os.path.isdir(f"/proc/self/fd/{handle}"))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    journal = Journal(tmp_path / "journal.jsonl")
    journal.commit("round", round=0)
    assert synced == [False, True], "the file, then the folder that has its name"
    journal.commit("round", round=1)
    assert synced == [False, True, False]


def test_a_line_is_one_json_object_whose_last_key_is_its_checksum(path) -> None:
    for line, (kind, fields) in zip(path.read_text().splitlines(), LINES, strict=True):
        entry = json.loads(line)
        assert list(entry) == ["kind", *fields, "sum"] and entry["kind"] == kind and len(entry["sum"]) == 32


def test_the_command_says_it_in_one_line_and_starts_nothing(path, capsys) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"\n") + 20] ^= 2
    path.write_bytes(data)
    config = Path(__file__).parents[2] / "configs/tiny-world.yaml"
    assert main(["run", str(config), f"run.dir={path.parent}"]) == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"csr-ray: {path}, line 2: it ") and said.err.count("\n") == 1 and not said.out
    assert path.read_bytes() == data and [file.name for file in path.parent.iterdir()] == [path.name]
