"""What decides in a run, held to the truth: what is counted of two answers."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))  # scripts, not a package

from judge_agreement import counted

TRUTHS = {"a": "A star in red and a moon are visible.", "b": "Two kites."}
KINDS = ("star", "moon", "ring", "kite")


def test_wrong_and_right_things_are_counted_once_a_kind() -> None:
    pairs = [
        ("a", ("A star. A star.", 6), ("A star. A ring. A kite.", 9)),  # fewer wrong, shorter, as many right
        ("a", ("A ring.", 3), ("A star. A moon.", 3)),  # more wrong, fewer right
        ("a", ("A star.", 3), ("A star. A moon.", 6)),  # nothing wrong in either, fewer right, shorter
        ("b", ("Kites.", 9), ("A kite. A ring.", 6)),  # fewer wrong, longer
    ]
    counts = counted(pairs, truths=TRUTHS, kinds=KINDS)
    assert dict(counts) == {"pairs": 4, "differ": 3, "agrees": 2, "names_less": 2, "shorter": 2}
