"""What a killed process leaves is found by name and removed; what belongs to the living is not touched."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest

from actors.process import leftovers
from actors.process.leftovers import note_shared_memory, own_folder, sweep

ROOT = Path(__file__).parents[2]
OWNER = """
import sys
from actors.process.leftovers import note_shared_memory, own_folder
from multiprocessing.shared_memory import SharedMemory
from multiprocessing import resource_tracker
memory = SharedMemory(create=True, size=1000)
resource_tracker.unregister(memory._name, "shared_memory")
folder = own_folder("test")
(folder / "inner").mkdir()
note_shared_memory(folder)
print(folder, memory.name, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def owner(temporary: Path) -> Iterator[tuple[subprocess.Popen[str], Path, Path]]:
    """A process with a folder and with shared memory."""
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", OWNER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        folder, memory = process.stdout.readline().split()
        yield process, Path(folder), Path("/dev/shm") / memory
        process.kill()
    (Path("/dev/shm") / memory).unlink(missing_ok=True)


def test_a_killed_process_s_folder_and_shared_memory_go_and_a_living_one_s_stay(
    owner: tuple[subprocess.Popen[str], Path, Path],
) -> None:
    process, folder, memory = owner
    own = own_folder("test")
    assert sweep() == []
    assert folder.is_dir() and memory.exists() and own.is_dir()
    process.kill()
    process.wait()
    assert sweep() == [str(folder)]
    assert not folder.exists() and not memory.exists() and own.is_dir()


def test_shared_memory_that_somebody_still_has_stays(owner: tuple[subprocess.Popen[str], Path, Path]) -> None:
    process, folder, memory = owner
    shared = SharedMemory(name=memory.name)
    process.kill()
    process.wait()
    sweep()
    assert not folder.exists() and memory.exists()
    shared.close()


def test_what_is_not_named_so_is_not_touched(temporary: Path) -> None:
    mine = own_folder("test")
    _, _, what, namespace, pid, start, random = mine.name.split("-")
    others = [
        "csr-ray-adapters-abcdefgh",  # no owner in it
        f"csr-ray-{what}-1-{pid}-1-{random}",  # of another container, whose processes cannot be seen
        f"csr-ray-{what}-{namespace}-x{pid}-{start}-{random}",
        f"something-{namespace}-{pid}-1-{random}",
    ]
    for name in others:
        (temporary / name).mkdir()
    assert sweep() == []
    (temporary / f"csr-ray-{what}-{namespace}-{pid}-1-{random}").mkdir()  # the id is used again
    assert len(sweep()) == 1
    assert {path.name for path in temporary.iterdir()} == {mine.name, *others}


def test_a_process_without_shared_memory_notes_nothing() -> None:
    folder = own_folder("test")
    note_shared_memory(folder)
    assert all("shared_memory" in path.name for path in folder.iterdir())


def test_many_that_sweep_at_the_same_moment_do_not_disturb_each_other(temporary: Path) -> None:
    dead = [temporary / f"csr-ray-x-{leftovers._namespace()}-{2**22 + 1}-1-{number:08d}" for number in range(200)]
    for folder in dead:
        folder.mkdir()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: leftovers.sweep(), range(8)))
    assert not any(folder.exists() for folder in dead)
