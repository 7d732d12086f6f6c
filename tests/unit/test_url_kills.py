"""Drivers at a URL that are killed at random moments, each on a machine that has nothing of the run."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import Door, Trouble, s3_door
from url_process import NUM_PROMPTS
from url_runs import UrlDriver

TESTS = Path(__file__).parents[1]
MOST_STARTS = 12


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    with s3_door() as one:
        yield one


@pytest.mark.parametrize("seed", range(4 if os.environ.get("CSR_RAY_LONG_TESTS") else 1))
def test_a_run_whose_drivers_are_killed_is_finished_by_others(door: Door, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    run = UrlDriver(f"s3://bucket/kills{seed}/run", place=tmp_path, num_prompts=NUM_PROMPTS)
    # Some of the requests take longer, so that files and lines of several units are under way together.
    door.trouble = Trouble(seed=seed, delayed=0.3, delay_s=0.05)
    num_killed = 0
    for number in range(MOST_STARTS):
        machine = str(tmp_path / rng.choice(("a", "b", f"new{number}")))
        process = subprocess.Popen(
            [sys.executable, str(TESTS / "url_process.py"), run.url, str(tmp_path)],
            env={
                **os.environ,
                "CSR_RAY_CACHE": machine,
                "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS), str(TESTS / "unit")]),
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None and process.stdout.readline() == "at work\n"
        is_last = num_killed == 5
        if not is_last:
            time.sleep(rng.uniform(0.0, 0.8))
            process.kill()
        process.communicate(timeout=120)
        num_killed += process.returncode == -9
        if any(name.startswith("journal/") for name in door.store(f"kills{seed}/run").list()):
            assert run.check().damage == []
        if process.returncode == 0:
            break
    assert process.returncode == 0 and num_killed >= 3
    report = run.check()
    assert (report.damage, report.next) == ([], "nothing: the run is finished")
    assert [(phase.rolled_out, phase.set_aside) for phase in report.phases] == [(NUM_PROMPTS - 1, 1)] * 2
