"""Seeded histories of whole runs: the real loop, journal, store and gate, on simulated pools and a disk that fails.

After every start the folder is held to its promises (`stored_history`); `make sim N=...` plays many more of them.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from stored_history import StoredHistory

NUM_HISTORIES = 60
NUM_PARTS = 6


@pytest.fixture(scope="module")
def seen() -> Counter[str]:
    """What all histories together were made of."""
    return Counter()


@pytest.mark.parametrize("part", range(NUM_PARTS))
def test_a_run_loses_nothing_and_doubles_nothing_whatever_its_starts_meet(
    tmp_path: Path, part: int, seen: Counter[str]
) -> None:
    for seed in range(part, NUM_HISTORIES, NUM_PARTS):
        folder = tmp_path / str(seed)
        folder.mkdir()
        seen.update(StoredHistory(seed, folder=folder).play().tally)
    if part == NUM_PARTS - 1 and seen["runs finished"] == NUM_HISTORIES:
        for ended in ("power", "stopped", "StorageError", "LockLost", "ActorFailure"):
            assert seen[f"a start ended: {ended}"] > 2, seen
        assert seen["results done again"] < seen["results"] / 4
        for what, least in (("trainings refused", 10), ("trainings accepted", 30), ("runs ended early", 3)):
            assert seen[what] > least, (what, seen)
        assert seen["runs like one that nothing happened to"] > NUM_HISTORIES / 4, seen
