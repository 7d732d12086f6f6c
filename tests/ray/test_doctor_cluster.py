"""The doctor on a real cluster of one node: a config that fits, one that does not, in less than ten seconds each."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from heads import ROOT, Head

WORLD = "configs/tiny-world.yaml"


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    head = Head(num_cpus=3)
    yield head
    head.close()


def doctor(head: Head, folder: Path, *words: str) -> tuple[int, str, float]:
    environment = {**head.environment, "RAY_ADDRESS": head.address, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "csr_ray", "doctor", *words, f"run.dir={folder / 'run'}"]
    started_s = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, " ".join((done.stdout + done.stderr).split()), time.monotonic() - started_s


def test_a_config_is_compared_with_a_live_cluster_in_ten_seconds(head: Head, tmp_path: Path) -> None:
    code, said, seconds = doctor(head, tmp_path, "--config", WORLD)
    assert code == 0, said
    assert f"{head.address}: 1 node, 3 CPUs, no GPU" in said
    assert "1 scorer, 1 generator, 1 train worker" in said
    assert "has the same versions" in said
    assert seconds < 10, said
    code, said, seconds = doctor(head, tmp_path, "--config", WORLD, "generators.min=4", "generators.max=4")
    assert code == 1 and "no room for 2 generators, 1" in said, said
    assert "fits: generators.min=1" in said, "the smallest change"
    assert seconds < 10, said
