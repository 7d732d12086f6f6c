"""quarantine.jsonl: one line for each input that was set aside, for people and their tools to read.

A line is on the disk before the journal's line that speaks of its prompt. The file follows from other things: the
reader says at every start which rows it cannot use, and the journal's lines name the prompts that were set aside in
rollouts. So it is made again at every start, and what is torn, damaged or out of date in it is gone then.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from csr_ray.records import Rejection
from csr_ray.store.atomic import make_folder, storage_errors, sync_folder, write_all, write_atomically
from csr_ray.store.digests import short_hash

_LINES_A_WRITE = 1000


class Quarantine:
    """The file, and hashes of the lines that are in it: there may be as many as prompts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: set[int] | None = None

    def rewrite(self, rejections: Iterable[Rejection]) -> int:
        """Make the file again, of these and nothing else; returns how many were given. Without any it is removed."""
        self._known = set()
        given = iter(rejections)
        first = next(given, None)
        if first is None:
            with storage_errors(self.path):
                self.path.unlink(missing_ok=True)
            return 0
        num = 0

        def write(temporary: Path) -> None:
            nonlocal num
            with temporary.open("wb") as file:
                for item in chain([first], given):
                    num += 1
                    file.writelines(self._new_lines([item]))

        write_atomically(self.path, write=write)
        return num

    def add(self, rejections: Iterable[Rejection]) -> int:
        """Append the rejections that are not in the file yet; returns how many were given."""
        num = 0
        chunk: list[Rejection] = []
        for item in rejections:
            num += 1
            chunk.append(item)
            if len(chunk) == _LINES_A_WRITE:
                self._append(chunk)
                chunk = []
        if chunk:
            self._append(chunk)
        return num

    def is_whole(self, rejections: Iterable[Rejection]) -> bool:
        """Whether every line of the file can be read, none is there twice, and these have theirs."""
        known: set[int] = set()
        try:
            if self.path.exists() and not self.path.is_file():  # a pipe would never end
                return False
            with self.path.open("rb") as file:
                for line in file:
                    key = short_hash(line[:-1].decode())
                    if not line.endswith(b"\n") or key in known or not isinstance(json.loads(line), dict):
                        return False
                    known.add(key)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, RecursionError):
            return False
        return all(short_hash(quarantine_line(item)) in known for item in rejections)

    def _append(self, rejections: Iterable[Rejection]) -> None:
        with storage_errors(self.path):
            make_folder(self.path.parent)
            if self._known is None:
                self._known = self._read()
            lines = list(self._new_lines(rejections))
            is_new = not self.path.exists()
            with self.path.open("ab", buffering=0) as file:
                num_bytes = os.fstat(file.fileno()).st_size
                try:
                    write_all(file.write, b"".join(lines))
                    os.fsync(file.fileno())
                    if is_new:
                        sync_folder(self.path.parent)
                except BaseException:
                    # The disk may be full: no half line may stand before the next one, and none counts as written.
                    os.ftruncate(file.fileno(), num_bytes)
                    self._known = None
                    raise

    def _new_lines(self, rejections: Iterable[Rejection]) -> Iterator[bytes]:
        assert self._known is not None
        for item in rejections:
            line = quarantine_line(item)
            if (key := short_hash(line)) not in self._known:
                self._known.add(key)
                yield line.encode() + b"\n"

    def _read(self) -> set[int]:
        if not self.path.exists():
            return set()
        with self.path.open(errors="replace") as file:
            return {short_hash(line.rstrip("\n")) for line in file}


def quarantine_line(item: Rejection) -> str:
    """A rejection as its line in the file, without the newline."""
    return json.dumps({"id": item.id, "source": item.source, "reason": item.reason, "fault": item.fault})
