"""`logs/pool.jsonl`: a line for each actor that was lost, serves again, came or was let go, over all starts of a run.

The driver's threads append to it, and whoever looks at a run afterwards, or meanwhile, reads it. It is a log: half a
line, or one that cannot be read, costs only itself.

    {"time": 1764400000.0, "event": "lost", "replica": "generator 1", "reason": "..."}
"""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Final

from csr_ray.records import JsonDict

NAME: Final = "pool.jsonl"
LOST: Final = "lost"
SERVES_AGAIN: Final = "serves again"
GROWS: Final = "grows"
SHRINKS: Final = "shrinks"
_TOLD: Final = (LOST, SERVES_AGAIN, GROWS, SHRINKS)


def write_event(logs: Path, event: str, **fields: object) -> None:
    """Append a line; a disk that takes nothing costs the line and nothing else."""
    line = {"time": time.time(), "event": event, **fields}
    with contextlib.suppress(OSError), (logs / NAME).open("a") as file:
        file.write(json.dumps(line) + "\n")


class PoolEvents:
    """Reads the events of actors as they are written; `read` takes what is new."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._num_bytes = 0
        self.events: list[JsonDict] = []

    def read(self) -> bool:
        """Take in the lines that are whole by now; returns whether there was a new event.

        Raises:
            OSError: the file cannot be read.
        """
        if not self._path.is_file():  # a pipe would never end
            is_new, self.events, self._num_bytes = bool(self.events), [], 0
            return is_new
        with self._path.open("rb") as file:
            if file.seek(0, 2) < self._num_bytes:  # it is another file
                self.events, self._num_bytes = [], 0
            file.seek(self._num_bytes)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._num_bytes += len(whole)
        new = [entry for line in whole.splitlines() if (entry := _event(line)) is not None]
        self.events += new
        return bool(new)


def _event(line: bytes) -> JsonDict | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_event = isinstance(entry, dict) and entry.get("event") in _TOLD and isinstance(entry.get("time"), int | float)
    return entry if is_event else None
