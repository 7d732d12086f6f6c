"""Seeded histories of runs at a URL that go on here and there (`moved_history`)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from moved_history import MovedHistory

NUM_HISTORIES = 24


def test_a_run_goes_on_from_whatever_its_url_and_a_machine_have(tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    for seed in range(NUM_HISTORIES):
        folder = tmp_path / str(seed)
        folder.mkdir()
        seen.update(MovedHistory(seed, folder=folder).play().tally)
    assert seen["runs finished"] + seen["runs of hopeless prompts alone"] == NUM_HISTORIES
    for how in ("same machine", "new machine", "earlier machine"):
        assert seen[f"moved: {how}"] > NUM_HISTORIES / 4, seen
    assert seen["lines sent late"] > NUM_HISTORIES / 4, seen
