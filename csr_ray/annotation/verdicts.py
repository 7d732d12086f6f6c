"""What people said, one file a person: RUN_DIR/annotations/NAME.jsonl, one line a verdict, only ever appended to.

A verdict counts when its line is on the disk. Taking one back is a line of its own. A line that cannot be read, such
as one that was torn when the machine died, is left out and counted.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from csr_ray.annotation.items import NO_ANSWER, Item, ItemKey, digest
from csr_ray.errors import ConfigError
from csr_ray.records import JsonDict, Target
from csr_ray.store.atomic import make_folder, storage_errors, sync_folder, write_all

CHOICES: Final = ("left", "right", "tie", "skip")
UNDO: Final = "undo"
FOLDER: Final = "annotations"
ANSWERS_FOLDER: Final = f"{FOLDER}/answers"
ACCEPTED: Final = f"{FOLDER}/accepted.jsonl"

# Not the name of the file that stands beside those of people.
_NAME = re.compile(r"(?!accepted$)[a-z0-9][a-z0-9_-]{0,39}")


def person_of(text: str) -> str | None:
    """The name by which a person's file is called; None if it cannot be one.

    Capitals are made small, because some file systems do not tell them apart.

    Example:
        >>> person_of(" Ada "), person_of("../ada"), person_of("")
        ('ada', None, None)
    """
    name = text.strip().lower()
    return name if _NAME.fullmatch(name) else None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a person said of two answers, or that they take it back.

    Attributes:
        left_nodes, right_nodes: the candidates that the answers consist of, as they stood on the page.
        left_digest, right_digest: of the texts (`csr_ray.annotation.items.digest`).
        verdict: one of `CHOICES`, or `UNDO`. Of an answer alone, "left" accepts it and "right" refuses it.
        seconds: from when the page was sent to when the verdict came; None: unknown.
        time: when it came, UTC, in ISO 8601.
    """

    round_index: int
    phase: str
    id: str
    left_nodes: tuple[int, ...]
    right_nodes: tuple[int, ...]
    left_digest: str
    right_digest: str
    verdict: str
    seconds: float | None
    time: str

    @classmethod
    def of(
        cls, item: Item, *, sides: tuple[Target, Target | None], verdict: str, seconds: float | None, time: str
    ) -> Verdict:
        left, right = sides
        return cls(
            round_index=item.key.round_index,
            phase=item.key.phase,
            id=item.key.id,
            left_nodes=left.nodes,
            right_nodes=() if right is None else right.nodes,
            left_digest=digest(left.text),
            right_digest=NO_ANSWER if right is None else digest(right.text),
            verdict=verdict,
            seconds=seconds,
            time=time,
        )

    @property
    def key(self) -> ItemKey:
        return ItemKey(self.round_index, self.phase, self.id, frozenset((self.left_digest, self.right_digest)))

    @property
    def better(self) -> str | None:
        """Digest of the answer that was found better; None where neither was."""
        return {"left": self.left_digest, "right": self.right_digest}.get(self.verdict)

    def says_the_same_as(self, other: Verdict) -> bool:
        """Of the same two answers, on whichever side each of them stood."""
        return self.better == other.better and (self.better is not None or self.verdict == other.verdict)

    def to_plain(self) -> JsonDict:
        """As its line has it."""
        return {
            "id": self.id,
            "round": self.round_index,
            "phase": self.phase,
            "left_nodes": list(self.left_nodes),
            "right_nodes": list(self.right_nodes),
            "left_digest": self.left_digest,
            "right_digest": self.right_digest,
            "verdict": self.verdict,
            "seconds": self.seconds,
            "time": self.time,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Verdict:
        """Raises KeyError, TypeError or ValueError for what is no verdict."""
        found = cls(
            round_index=int(plain["round"]),
            phase=str(plain["phase"]),
            id=str(plain["id"]),
            left_nodes=tuple(int(node) for node in plain["left_nodes"]),
            right_nodes=tuple(int(node) for node in plain["right_nodes"]),
            left_digest=str(plain["left_digest"]),
            right_digest=str(plain["right_digest"]),
            verdict=str(plain["verdict"]),
            seconds=None if plain.get("seconds") is None else float(plain["seconds"]),
            time=str(plain.get("time", "")),
        )
        if found.verdict not in (*CHOICES, UNDO) or found.left_digest == found.right_digest:
            raise ValueError(f"verdict {found.verdict!r}")
        return found


def standing(lines: list[Verdict]) -> dict[ItemKey, Verdict]:
    """What counts in the end, by item, in the order in which it was said: the last word on each, if not undone."""
    counted: dict[ItemKey, Verdict] = {}
    for line in lines:
        counted.pop(line.key, None)
        if line.verdict != UNDO:
            counted[line.key] = line
    return counted


class VerdictFile:
    """The file of one person, in memory and on disk. It is made with the first line that is added.

    Raises:
        ConfigError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_bad_lines = 0
        self.standing: dict[ItemKey, Verdict] = {}
        self._num_bytes = 0
        self._ends_whole = True
        self.refresh()

    def refresh(self) -> None:
        """Read the file anew if it has grown: another process may serve the same run."""
        try:
            num_bytes = self.path.stat().st_size
            content = self.path.read_bytes() if num_bytes != self._num_bytes else None
        except (FileNotFoundError, NotADirectoryError):
            num_bytes, content = 0, b"" if self._num_bytes else None
        except OSError as error:
            raise ConfigError(f"{self.path}: the verdicts cannot be read: {error.strerror or error}") from error
        if content is None:
            return
        verdicts, self.num_bad_lines = [], 0
        for line in content.splitlines():
            if not line.strip():
                continue
            try:
                verdicts.append(Verdict.from_plain(json.loads(line)))
            except (ValueError, KeyError, TypeError, RecursionError):
                self.num_bad_lines += 1
        self.standing = standing(verdicts)
        self._num_bytes, self._ends_whole = len(content), content.endswith(b"\n") or not content

    def add(self, verdict: Verdict) -> None:
        """Append a line, and return when it is on disk.

        Raises:
            StorageError: it cannot be written; it does not count then.
        """
        self.refresh()
        # Behind a line that was torn, so that it does not spoil this one, too.
        data = (b"" if self._ends_whole else b"\n") + json.dumps(verdict.to_plain()).encode() + b"\n"
        with storage_errors(self.path):
            make_folder(self.path.parent)
            is_new = not self.path.exists()
            with self.path.open("ab", buffering=0) as file:
                write_all(file.write, data)
                os.fsync(file.fileno())
            if is_new:
                sync_folder(self.path.parent)
        self.refresh()


class Annotations:
    """The verdicts of all people on one run. Threads may share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, VerdictFile] = {}
        self._lock = threading.RLock()

    def by_person(self) -> dict[str, dict[ItemKey, Verdict]]:
        """What counts of everybody who has said something, by name and item."""
        with self._lock:
            found = {name: self.of(name) for name in self._names()}
        return {name: verdicts for name, verdicts in found.items() if verdicts}

    @property
    def has_begun(self) -> bool:
        """Whether anybody has ever said something, taken back since or not."""
        return bool(self._names())

    def of(self, name: str) -> dict[ItemKey, Verdict]:
        """What counts of one person, in the order in which it was said."""
        with self._lock:
            file = self._file(name)
            file.refresh()
            return dict(file.standing)

    def add(self, name: str, *, verdict: Verdict) -> bool:
        """Write a verdict of this person; False if the item has one already, or, to take back, has none.

        Raises:
            StorageError: it cannot be written.
        """
        with self._lock:
            has_one = verdict.key in self.of(name)
            if has_one != (verdict.verdict == UNDO):
                return False
            self._file(name).add(verdict)
            return True

    @property
    def num_bad_lines(self) -> int:
        with self._lock:
            return sum(file.num_bad_lines for file in self._files.values())

    def _names(self) -> list[str]:
        return [path.stem for path in sorted(self.folder.glob("*.jsonl")) if person_of(path.stem) == path.stem]

    def _file(self, name: str) -> VerdictFile:
        assert person_of(name) == name, name
        if name not in self._files:
            self._files[name] = VerdictFile(self.folder / f"{name}.jsonl")
        return self._files[name]
