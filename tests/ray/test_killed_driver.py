"""A private Ray whose driver is killed, for real: what is left of it, and for how long."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
_GONE_WITHIN_S = 15.0


@pytest.fixture
def driver() -> Iterator[tuple[subprocess.Popen[str], dict[str, Any], str]]:
    """The driver, what its actor has, and a variable that all its processes have in their environment."""
    token = f"LEFTOVERS_OF_TEST={os.getpid()}-{time.monotonic_ns()}"
    name, value = token.split("=")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "leftover_run.py"), "watched"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), name: value},
    )
    assert process.stdout is not None
    yield process, json.loads(process.stdout.readline()), token
    process.kill()
    process.communicate()
    for pid in _processes(token):
        os.kill(pid, signal.SIGKILL)


def _processes(token: str) -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if token.encode() in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                found.append(int(name))
        except OSError:
            continue
    return found


def _left(names: dict[str, Any], token: str) -> list[str]:
    paths = [names["folder"], names["session"], *(f"/dev/shm/{name}" for name in names["shared"])]
    return [str(pid) for pid in _processes(token)] + [path for path in paths if Path(path).exists()]


def test_nothing_outlives_a_killed_driver_by_more_than_seconds(
    driver: tuple[subprocess.Popen[str], dict[str, Any], str],
) -> None:
    process, names, token = driver
    assert len(_left(names, token)) > 8, "it was there"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    until_s = time.monotonic() + _GONE_WITHIN_S
    while (left := _left(names, token)) and time.monotonic() < until_s:
        time.sleep(0.1)
    assert left == []


def test_nothing_is_left_after_an_orderly_end(driver: tuple[subprocess.Popen[str], dict[str, Any], str]) -> None:
    process, names, token = driver
    output, _ = process.communicate("close\n", timeout=60)
    assert output.strip() == "closed" and process.returncode == 0
    assert _left(names, token) == []
