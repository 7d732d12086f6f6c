"""Some two hundred bad inputs end as docs/bad_inputs.md says, each within its seconds and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import bad_inputs
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "bad_inputs.md"
Named = tuple[str, str]


@pytest.fixture(scope="module")
def outcomes() -> dict[Named, dict]:
    """What becomes of each case now; in a process of its own, because this one's threads would not survive a fork."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "bad_inputs.py"), "--json"],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {(name, what): outcome for outcome, _, name, what in json.loads(done.stdout)}


def test_every_bad_input_is_read_set_aside_or_refused_and_nothing_else(outcomes: dict[Named, dict]) -> None:
    assert len(outcomes) == len(bad_inputs.cases()) >= 200
    words = {"read", "set aside", "refused"}
    assert {case: outcome for case, outcome in outcomes.items() if outcome["word"] not in words} == {}


def test_every_bad_input_costs_no_more_than_it_may(outcomes: dict[Named, dict]) -> None:
    dear = {
        case: outcome
        for case, outcome in outcomes.items()
        if outcome["seconds"] > bad_inputs.MAX_SECONDS or outcome["peak_mib"] > bad_inputs.MAX_PEAK_MIB
    }
    assert dear == {}


def test_the_page_says_what_happens(outcomes: dict[Named, dict]) -> None:
    """Run `make bad-inputs` where this fails, and read what has changed."""
    rows = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    said = [(row[0].removeprefix("| "), row[1], row[2]) for row in rows]
    now = [
        (bad_inputs.shown(name), bad_inputs.shown(what), outcome["word"])
        for (name, what), outcome in outcomes.items()
    ]
    assert said == now
