"""A disk that is full at any write: one clear line, nothing half-written, and the same command goes on afterwards."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_loop import Driver, merged_model

from csr_ray import waiting
from csr_ray.errors import StorageError
from csr_ray.store.atomic import new_folder, storage_errors, write_atomically
from csr_ray.store.unfinished import remove_unfinished

__all__ = ["merged_model"]  # a fixture
ROOT = Path(__file__).parents[2]
WRITES = ((os, "fsync"), (os, "replace"), (tempfile, "mkstemp"))


class FullAt:
    """The disk is full at the write number `at` and from then on; everything that is written goes through here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, at: int | None, error: int = errno.ENOSPC) -> None:
        self.num = 0
        self._at = at
        self._error = error
        for module, name in WRITES:
            monkeypatch.setattr(module, name, self._counted(getattr(module, name)))

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            self.num += 1
            if self._at is not None and self.num > self._at:
                raise OSError(self._error, os.strerror(self._error))
            return call(*arguments, **named)

        return counted


def test_a_disk_that_is_full_at_any_write_is_one_line_and_the_run_goes_on(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        counted = FullAt(patch, at=None)
        expected = Driver(tmp_path / "whole", run={"rounds": 1}).run()
        num_writes = counted.num
    assert num_writes > 20
    for at in range(num_writes):
        driver = Driver(tmp_path / f"full_at_{at}", run={"rounds": 1})
        with pytest.MonkeyPatch.context() as patch:
            FullAt(patch, at=at)
            with pytest.raises(StorageError) as failed:
                driver.run()
        line = str(failed.value)
        assert "\n" not in line and "No space left on device" in line and "free some space" in line
        assert failed.value.exit_code == 1
        assert driver.machinery.closed
        summary = driver.run()
        assert [entry["pairs"]["made"] for entry in summary["rounds"]] == [
            entry["pairs"]["made"] for entry in expected["rounds"]
        ]
        assert summary["finished"]
        assert [path for path in driver.folder.root.rglob(".*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EROFS, "how it is mounted"),
        (errno.EACCES, "permissions"),
        (errno.ESTALE, "file system is there"),
        (errno.EIO, "file system is there"),
    ],
)
def test_the_line_says_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str) -> None:
    FullAt(monkeypatch, at=0, error=number)
    with pytest.raises(StorageError, match=remedy) as failed:
        write_atomically(tmp_path / "file", write=lambda path: path.write_text("text"))
    assert os.strerror(number) in str(failed.value) and str(tmp_path / "file") in str(failed.value)


TOO_LARGE = """
import resource, signal, sys
import torch
from pathlib import Path
from safetensors.torch import save_file
from csr_ray.errors import StorageError
from csr_ray.store.atomic import new_folder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    with new_folder(Path(sys.argv[1]) / "adapter") as staging:
        save_file({"weight": torch.zeros(100_000)}, staging / "adapter_model.safetensors")
except StorageError as error:
    print(error)
"""


def test_weights_that_do_not_fit_are_one_line_and_leave_nothing(tmp_path: Path) -> None:
    """safetensors is written in Rust and has errors of its own."""
    done = subprocess.run(
        [sys.executable, "-c", TOO_LARGE, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert "cannot write" in done.stdout and "File too large" in done.stdout and done.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_an_error_that_is_not_the_storage_s_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "folder"):
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_written_is_on_the_disk_before_it_has_its_name_and_its_name_before_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    done: list[str] = []
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def synced(handle: int) -> None:
        done.append(f"sync {Path(os.readlink(f'/proc/self/fd/{handle}')).name}")
        fsync(handle)

    def moved(source: Any, target: Any, *, move: Callable[..., None]) -> None:
        done.append("move")
        move(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda source, target: moved(source, target, move=replace))
    monkeypatch.setattr(os, "rename", lambda source, target: moved(source, target, move=rename))
    target = tmp_path / "below" / "target"
    if kind == "file":
        write_atomically(target, write=lambda temporary: temporary.write_text("x"))
    else:
        with new_folder(target) as staging:
            (staging / "weights").write_text("x")
    before, after = done[: done.index("move")], done[done.index("move") :]
    assert f"sync {tmp_path.name}" in before, "the new folder's name"
    assert any(one.startswith("sync .target." if kind == "file" else "sync weights") for one in before)
    assert after == ["move", "sync below"]


def test_a_write_that_takes_long_says_what_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import time

    monkeypatch.setattr(waiting, "SAY_EVERY_S", 0.05)
    with storage_errors(tmp_path / "slow"):
        time.sleep(0.3)
    with storage_errors(tmp_path / "fast"):
        pass
    time.sleep(0.1)
    said = capsys.readouterr().err
    assert said.count("still waiting for") >= 2 and "slow to be written" in said and "fast" not in said


def test_a_rest_that_cannot_be_removed_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    (tmp_path / ".pairs.parquet.ab12cd_9").write_text("half")
    monkeypatch.setattr(Path, "unlink", refuses)
    remove_unfinished(tmp_path)
    remove_unfinished(tmp_path / "is not there")


def test_what_a_killed_run_was_writing_is_removed_at_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "round_000").mkdir()
    (tmp_path / "round_000" / ".pairs.parquet.ab12cd_9").write_text("half")
    (tmp_path / "round_000" / ".adapter.00000000").mkdir()
    (tmp_path / ".model.old.abc_1234").mkdir()
    (tmp_path / ".summary.json.abc_1234").write_text("half")
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / ".version_001.jsonl.abc_1234").write_text("half")
    kept = [".hidden", ".run.lock.abcdefgh", "journal.jsonl"]  # the lock's is another start's that is asking just now
    for name in kept:
        (tmp_path / name).write_text("whole")
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted([*kept, "round_000", "eval"])


def test_what_is_not_the_runs_own_is_never_removed(tmp_path: Path) -> None:
    """A run folder may be somebody's project, and hold other runs that are at work."""
    files = [
        ".env.template",
        "sub/.htaccess.disabled",
        ".config.original/precious.txt",
        "runs/other/round_000/.pairs.parquet.a1b2c3d4",
        "round_000.copy/.pairs.parquet.a1b2c3d4",
        "eval/.notes.md.download",
    ]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    remove_unfinished(tmp_path)
    assert all((tmp_path / name).is_file() for name in files)


def test_the_line_names_the_file_that_the_error_speaks_of(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("no folder")
    says = rf"cannot write {tmp_path}/logs: File exists; move away"
    with pytest.raises(StorageError, match=says), storage_errors(tmp_path):
        (tmp_path / "logs").mkdir()
