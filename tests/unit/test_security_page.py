"""docs/security.md promises nothing without a test, and names no test that is not there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def promises() -> list[str]:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")]
    return [row for row in rows if not row.startswith("| promise |")]


def test_every_promise_names_its_test() -> None:
    assert len(promises()) > 30
    assert [row for row in promises() if not _TEST.search(row)] == []


def test_every_test_that_is_named_exists() -> None:
    named = _TEST.findall(PAGE)
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not (ROOT / file).is_file() or f"def {name}(" not in (ROOT / file).read_text(encoding="utf-8")
    ]
    assert named and missing == []
