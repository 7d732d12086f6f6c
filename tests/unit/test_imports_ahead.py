"""Imports while there is time for them change nothing but caches."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from actors.process.imports import imported_meanwhile


def _wait_for(path: Path) -> str:
    until_s = time.monotonic() + 60
    while not (path.exists() and path.read_text()) and time.monotonic() < until_s:
        time.sleep(0.05)
    return path.read_text()


def test_modules_are_compiled_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "heavy_module.py").write_text("VALUE = 1\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    done = tmp_path / "done"
    then = f"open({str(done)!r}, 'w').write('yes')"
    with imported_meanwhile(modules=("heavy_module", "one_that_is_not_there"), then=then):
        assert _wait_for(done) == "yes"
    assert list((tmp_path / "__pycache__").glob("heavy_module.*.pyc"))


def test_it_ends_with_the_block_and_so_does_what_it_started(tmp_path: Path) -> None:
    path = tmp_path / "pids"
    then = (
        "import os, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(path)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "child.wait()"
    )
    with imported_meanwhile(modules=(), then=then):
        pids = [int(pid) for pid in _wait_for(path).split()]
        assert os.sched_getscheduler(pids[0]) == os.SCHED_IDLE
    until_s = time.monotonic() + 30
    while any(_lives(pid) for pid in pids):
        assert time.monotonic() < until_s
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False
