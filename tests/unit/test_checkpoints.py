"""Checkpoints of a training: whole or passed over, whatever a death or a disk did to them."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import preference_pair
from forgetful_disk import ForgetfulDisk
from test_crash_points import Power

from actors.train.checkpoints import (
    CheckpointFolder,
    Progress,
    checkpoints_of,
    example_key,
    newest_step,
    training_key,
)
from csr_ray.config.schema import Train
from csr_ray.records import Cycle

ROOT = Path(__file__).resolve().parents[2]

TRAINING = "the training"


def _write(
    folder: Path,
    *,
    step: int,
    training: str = TRAINING,
    first_example: int = 0,
    num_planned: int = 8,
    checkpoints: CheckpointFolder | None = None,
) -> Path:
    """A checkpoint as it is written, with made-up files in the place of DeepSpeed's.

    Args:
        checkpoints: of the process that writes it; None: of one that has written none before.
    """
    checkpoints = checkpoints or CheckpointFolder(folder)
    checkpoints.clear_staging()
    made = checkpoints.staging / f"checkpoint-{step}"
    (made / "global_step").mkdir(parents=True)
    (made / "global_step" / "optimizer.pt").write_bytes(bytes(range(200)))
    (made / "latest").write_text("global_step")
    progress = Progress(training=training, step=step, is_growing=True, num_planned=num_planned)
    checkpoints.commit(progress, example_keys=[bytes([first_example + at]) * 16 for at in range(step)])
    return folder / f"checkpoint-{step}"


def _steps(folder: Path, *, training: str = TRAINING) -> list[int]:
    return [checkpoint.progress.step for checkpoint in CheckpointFolder(folder).whole(training=training)]


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _flip(path: Path) -> None:
    changed = bytearray(path.read_bytes())
    changed[5] ^= 1
    path.write_bytes(changed)


def test_the_last_two_are_kept_and_say_what_they_have_seen(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        _write(tmp_path, step=step)
    assert _steps(tmp_path) == [10, 2]
    assert newest_step(tmp_path) == 10
    newest, _ = CheckpointFolder(tmp_path).whole(training=TRAINING)
    assert newest.example_keys() == [bytes([at]) * 16 for at in range(10)]
    assert (newest.progress.is_growing, newest.progress.num_planned) == (True, 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-2"]


def test_a_training_by_another_number_of_workers_is_protected_by_its_own_checkpoints(tmp_path: Path) -> None:
    """It begins anew, at lower steps than those of the checkpoints that it could not go on from."""

    def key(workers: int) -> str:
        return training_key(Train(workers=workers), seed=0, cycle=Cycle(round_index=0), merges=True)

    for step in (100, 110):
        _write(tmp_path, step=step, training=key(2))
    assert _steps(tmp_path, training=key(2)) == [110, 100] and not _steps(tmp_path, training=key(1))
    checkpoints = CheckpointFolder(tmp_path)
    for step, kept in ((10, [10]), (20, [20, 10]), (90, [90, 20]), (120, [120, 90])):
        _write(tmp_path, step=step, training=key(1), checkpoints=checkpoints)
        assert _steps(tmp_path, training=key(1)) == kept
        assert _names(tmp_path) == sorted(f"checkpoint-{one}" for one in kept)


def test_what_is_written_is_kept_where_damaged_ones_of_higher_steps_lie(tmp_path: Path) -> None:
    for step in (100, 110):
        _flip(_write(tmp_path, step=step) / "global_step" / "optimizer.pt")
    for step, kept in ((10, [10]), (20, [20, 10]), (30, [30, 20])):
        _write(tmp_path, step=step)  # by another process each time
        assert _steps(tmp_path) == kept
        assert _names(tmp_path) == sorted(f"checkpoint-{one}" for one in kept)


@pytest.mark.parametrize("passed_over", ["damaged", "other training", "other examples", "other plan"])
def test_the_one_that_training_went_on_from_is_kept_and_not_a_newer_one_that_was_passed_over(
    tmp_path: Path, passed_over: str
) -> None:
    _write(tmp_path, step=5)
    if passed_over == "damaged":
        _flip(_write(tmp_path, step=9) / "latest")
    else:
        # As an earlier start left it, which is not there to remove what this one cannot use.
        differs = {
            "other training": {"training": "another"},
            "other examples": {"first_example": 1},
            "other plan": {"num_planned": 7},
        }[passed_over]
        elsewhere = tmp_path.with_name(f"{tmp_path.name}-elsewhere")
        _write(elsewhere, step=9, **differs).rename(tmp_path / "checkpoint-9")
    _write(tmp_path, step=10)
    assert _steps(tmp_path) == [10, 5]
    assert _names(tmp_path) == ["checkpoint-10", "checkpoint-5"]


def test_a_process_does_not_read_its_own_checkpoints_when_it_writes_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be gigabytes, and the other processes of the group wait meanwhile."""
    checkpoints = CheckpointFolder(tmp_path)
    monkeypatch.setattr("actors.train.checkpoints._verified", lambda path: pytest.fail(f"{path} is read"))
    for step in (1, 2, 3):
        _write(tmp_path, step=step, checkpoints=checkpoints)
    assert _names(tmp_path) == ["checkpoint-2", "checkpoint-3"]


def test_one_of_another_training_stays_until_there_is_one_of_this(tmp_path: Path) -> None:
    """Whoever changes a setting by mistake can take it back as long as nothing was saved since."""
    _write(tmp_path, step=7, training="another")
    checkpoints = CheckpointFolder(tmp_path)
    assert checkpoints.whole(training=TRAINING) == []
    checkpoints.clear_staging()
    assert _steps(tmp_path, training="another") == [7]
    _write(tmp_path, step=2, checkpoints=checkpoints)
    assert _names(tmp_path) == ["checkpoint-2"]


def test_a_checkpoint_outlives_a_power_cut_with_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the first one of a cycle, whose folder is made for it."""
    root = tmp_path / "run"
    root.mkdir()
    disk, fsync = ForgetfulDisk(root), os.fsync

    def watched(handle: int) -> None:
        fsync(handle)
        disk.synced(handle)

    monkeypatch.setattr(os, "fsync", watched)
    folder = checkpoints_of(root / "round_000" / "adapter")
    _write(folder, step=3)
    disk.forget()
    (checkpoint,) = CheckpointFolder(folder).whole(training=TRAINING)
    assert checkpoint.progress.step == 3 and len(checkpoint.example_keys()) == 3


@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
def test_a_power_cut_at_any_write_leaves_no_damaged_checkpoint_and_takes_none_that_counts(
    tmp_path: Path, is_done: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A checkpoint has its name only when all of it is on the disk, and only then the oldest one goes."""
    with pytest.MonkeyPatch.context() as patch:
        power = Power(patch, last=10**9, is_done=is_done)
        _write(tmp_path / "whole", step=1)
        num_writes = power.num
    assert num_writes >= 9  # five files, two folders, the name and the folder that has it
    for last in range(1, num_writes + 1):
        folder = tmp_path / f"cut{last}"
        for step in (1, 2):
            _write(folder, step=step)
        with pytest.MonkeyPatch.context() as patch:
            disk = ForgetfulDisk(folder)
            Power(patch, last=last, is_done=is_done, disk=disk)
            with contextlib.suppress(SystemExit):
                _write(folder, step=3)
                assert last > num_writes - 2, "the folders that it is in were there already"
        disk.forget()
        assert _steps(folder) in ([2, 1], [3, 2], [3, 2, 1]), last
    assert "damaged" not in caplog.text


def test_every_flipped_bit_is_seen_and_the_one_before_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _write(tmp_path, step=1)
    newest = _write(tmp_path, step=2)
    num_flipped = 0
    for file in [path for path in newest.rglob("*") if path.is_file()]:
        whole = file.read_bytes()
        for at in range(len(whole)):
            changed = bytearray(whole)
            changed[at] ^= 1 << (at % 8)
            file.write_bytes(changed)
            with caplog.at_level(logging.CRITICAL):
                steps = _steps(tmp_path)
            # Spaces and the like inside the list of digests carry nothing, and changing one changes nothing.
            is_same = file.name.endswith("digests.json") and _means_the_same(whole, bytes(changed))
            assert steps == ([2, 1] if is_same else [1]), (file.name, at)
            num_flipped += 1
        file.write_bytes(whole)
    assert num_flipped > 500
    assert _steps(tmp_path) == [2, 1]


def _means_the_same(left: bytes, right: bytes) -> bool:
    try:
        return json.loads(left) == json.loads(right)
    except ValueError:
        return False


@pytest.mark.parametrize("harm", ["cut", "lost", "added", "no_list", "not_json", "empty"])
def test_a_damaged_one_is_passed_over_with_a_warning(
    tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    newest = _write(tmp_path, step=3)
    optimizer, digests = newest / "global_step" / "optimizer.pt", newest / "csr_ray_digests.json"
    if harm == "cut":
        optimizer.write_bytes(optimizer.read_bytes()[:100])
    elif harm == "lost":
        optimizer.unlink()
    elif harm == "added":
        (newest / "global_step" / "other.pt").write_bytes(b"pickle")
    elif harm == "no_list":
        digests.unlink()
    elif harm == "not_json":
        digests.write_text("[]")
    else:
        for path in [path for path in newest.rglob("*") if path.is_file()]:
            path.unlink()
    assert _steps(tmp_path) == []
    assert f"{newest} is damaged" in caplog.text


def test_half_of_one_has_no_name_and_makes_room(tmp_path: Path) -> None:
    _write(tmp_path, step=1)
    half = tmp_path / ".staging" / "checkpoint-2"
    half.mkdir(parents=True)
    (half / "optimizer.pt").write_bytes(b"half")
    assert (_steps(tmp_path), newest_step(tmp_path)) == ([1], 1)
    _write(tmp_path, step=3)
    assert _steps(tmp_path) == [3, 1]


DISK_FULL = """
import resource, signal, sys
from pathlib import Path
import torch
from actors.train.checkpoints import CheckpointFolder
from actors.train.shards import PlainCheckpointEngine

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = CheckpointFolder(Path(sys.argv[1]))
folder.clear_staging()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with folder.writing():
        PlainCheckpointEngine().save({"x": torch.zeros(1_000_000)}, str(folder.staging / "optimizer.pt"))
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_full_disk_is_one_line_whatever_the_library_makes_of_it(tmp_path: Path) -> None:
    """Torch's writer raises a RuntimeError, of an assertion in its C++."""
    done = subprocess.run(
        [sys.executable, "-c", DISK_FULL, str(tmp_path)], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    *_, line = done.stdout.splitlines()  # DeepSpeed's come first
    assert line.startswith(f"StorageError cannot write {tmp_path}") and "free some space" in line, done.stderr


def test_an_error_that_is_not_the_storages_stays_what_it_is(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.clear_staging()
    with pytest.raises(RuntimeError, match="another"), folder.writing():
        raise RuntimeError("another")
    assert not list(folder.staging.iterdir())


def test_one_of_another_training_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _write(tmp_path, step=1, training="another")
    assert _steps(tmp_path) == []
    assert "is of another training" in caplog.text


def test_no_folder_has_no_checkpoints(tmp_path: Path) -> None:
    assert checkpoints_of(tmp_path / "round_000" / "adapter") == tmp_path / "round_000" / "checkpoints"
    assert newest_step(tmp_path / "none") is None
    assert _steps(tmp_path / "none") == []


def test_what_makes_another_adapter_makes_another_training() -> None:
    def key(**settings: object) -> str:
        return training_key(Train(**settings), seed=0, cycle=Cycle(round_index=0), merges=True)

    assert key() == key(restarts=7, hang_s=20.0, silent_s=4.0, checkpoint_s=None, checkpoint_steps=3, threads=2)
    changed = [key(beta=0.3), key(batch_size=4), key(batch_size=8, workers=2), key(deepspeed_stage=3), key(epochs=2)]
    assert len({key(), *changed}) == 6
    other = training_key(Train(), seed=0, cycle=Cycle(round_index=1, policy_version=1), merges=True)
    assert len({key(), other, training_key(Train(), seed=1, cycle=Cycle(round_index=0), merges=True)}) == 3


def test_examples_are_told_apart_by_all_that_is_trained_on() -> None:
    pair = preference_pair(id="a", chosen_ids=(1, 2), rejected_ids=(3,))
    same = preference_pair(id="a", chosen_ids=(1, 2), rejected_ids=(3,))
    others = [
        preference_pair(id="b", chosen_ids=(1, 2), rejected_ids=(3,)),
        preference_pair(id="a", chosen_ids=(1, 4), rejected_ids=(3,)),
        preference_pair(id="a", chosen_ids=(1, 2), rejected_ids=(3,), chosen_logp=-1.5),
        preference_pair(id="a", chosen_ids=(1, 2), rejected_ids=(3,), policy_version=1),
    ]
    assert example_key(pair) == example_key(same)
    assert len({example_key(example) for example in (pair, *others)}) == 5
