"""The journal: one line a committed piece of work, and the atomic writes that stand before the line.

The line is written last, so a piece of work either happened or did not: a file without its line is overwritten when
the work is done again, and a torn last line (the machine died while writing it) counts as not written.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from csr_ray.errors import StorageError
from csr_ray.records import JsonDict, Rejection


class Journal:
    """The lines of one run, in memory and on disk.

    Lines are looked up by kind and round without reading all of them: a round may have thousands of units.

    Example line: {"kind": "rollout", "round": 0, "unit": "3f2c...", "ids": [...], "prompts": 16, "seconds": 2.1}
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.entries: list[JsonDict] = []
        self._index: dict[tuple[str, int | None], list[JsonDict]] = {}  # by kind and round, and by kind alone (None)
        if path.exists():
            self._load()

    def find(self, kind: str, **keys: int | str) -> JsonDict | None:
        """The line of this kind with these keys, or None."""
        return next(iter(self.all(kind, **keys)), None)

    def all(self, kind: str, **keys: int | str) -> list[JsonDict]:
        """Every line of this kind with these keys, oldest first."""
        round_index = keys.get("round")
        assert round_index is None or isinstance(round_index, int)
        found = self._index.get((kind, round_index), [])
        return [entry for entry in found if all(entry.get(key) == value for key, value in keys.items())]

    def commit(self, kind: str, **fields: object) -> JsonDict:
        """Append a line and make it durable. Whatever it speaks of must be on disk already."""
        entry: JsonDict = {"kind": kind, **fields}
        line = json.dumps(entry, allow_nan=False).encode() + b"\n"
        with storage_errors(self._path), self._path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._add(entry)
        return entry

    def _add(self, entry: JsonDict) -> None:
        self.entries.append(entry)
        for round_index in {None, entry.get("round")}:
            self._index.setdefault((entry["kind"], round_index), []).append(entry)

    def _load(self) -> None:
        data = self._path.read_bytes()
        whole, newline, torn = data.rpartition(b"\n")
        if torn:
            # Cut the torn tail off, or the next line would be glued to it.
            os.truncate(self._path, len(whole) + len(newline))
        for line in whole.split(b"\n"):
            if line:
                self._add(json.loads(line))


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a failing disk into one clear line."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}; free some space or fix the permissions, then start the "
            f"same command again: it goes on where it was"
        ) from error


def write_atomically(path: Path, *, write: Callable[[Path], object]) -> None:
    """`write(temporary)` beside `path`, then rename: a reader sees the old file or the whole new one."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())  # mkstemp's files are their owner's alone
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def write_json(path: Path, *, value: object) -> None:
    write_atomically(path, write=lambda temporary: temporary.write_text(json.dumps(value, indent=2) + "\n"))


class Quarantine:
    """quarantine.jsonl: a line an input that was set aside, once each, also where a resumed run meets it again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: set[str] | None = None

    def add(self, rejections: Sequence[Rejection]) -> None:
        """Append what is not there yet. The file is read once, at the first input to set aside."""
        if not rejections:
            return
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._known is None:
                self._known = set(self.path.read_text().splitlines()) if self.path.exists() else set()
            rows = [json.dumps({"id": item.id, "source": item.source, "reason": item.reason}) for item in rejections]
            new = [row for row in dict.fromkeys(rows) if row not in self._known]
            with self.path.open("a") as file:
                file.writelines(row + "\n" for row in new)
            self._known.update(new)
