"""Journals for tests of what is made of them: their lines as plain values, and plain values as a journal."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from csr_ray.store.journal import Journal
from csr_ray.store.lines import FIRST, seal


def entries_of(path: Path) -> list[dict[str, Any]]:
    """Every line without its checksum, which is not looked at."""
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    for entry in entries:
        del entry["sum"]
    return entries


def write_journal(path: Path, *, entries: Iterable[dict[str, Any]]) -> None:
    """Write a sound journal of these lines."""
    checksum, lines = FIRST, []
    for entry in entries:
        line, checksum = seal(entry, previous=checksum)
        lines.append(line)
    path.write_bytes(b"".join(lines))


def die_after_line(patch: pytest.MonkeyPatch, number: int) -> None:
    """Let the process that writes a journal die when so many lines are on disk."""
    append = Journal._append

    def append_and_die(journal: Journal, *entries: dict[str, Any]) -> None:
        append(journal, *entries)
        if journal.num_lines == number:
            raise KeyboardInterrupt

    patch.setattr(Journal, "_append", append_and_die)
