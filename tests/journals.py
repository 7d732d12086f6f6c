"""Journals for tests of what is made of them: their lines as plain values, and plain values as a journal."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

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
