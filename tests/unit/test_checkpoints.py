"""Checkpoints of a training: whole or passed over, whatever a death or a disk did to them."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import preference_pair

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


def _write(folder: Path, *, step: int, training: str = TRAINING) -> Path:
    """A checkpoint as it is written, with made-up files in the place of DeepSpeed's."""
    checkpoints = CheckpointFolder(folder)
    checkpoints.clear_staging()
    made = checkpoints.staging / f"checkpoint-{step}"
    (made / "global_step").mkdir(parents=True)
    (made / "global_step" / "optimizer.pt").write_bytes(bytes(range(200)))
    (made / "latest").write_text("global_step")
    progress = Progress(training=training, step=step, is_growing=True, num_planned=8)
    checkpoints.commit(progress, example_keys=[bytes([at]) * 16 for at in range(step)])
    return folder / f"checkpoint-{step}"


def _steps(folder: Path) -> list[int]:
    return [checkpoint.progress.step for checkpoint in CheckpointFolder(folder).whole(training=TRAINING)]


def test_the_last_two_are_kept_and_say_what_they_have_seen(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        _write(tmp_path, step=step)
    assert _steps(tmp_path) == [10, 2]
    assert newest_step(tmp_path) == 10
    newest, _ = CheckpointFolder(tmp_path).whole(training=TRAINING)
    assert newest.example_keys() == [bytes([at]) * 16 for at in range(10)]
    assert (newest.progress.is_growing, newest.progress.num_planned) == (True, 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-2"]


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
from actors.train.pair_trainer import PlainCheckpointEngine

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
