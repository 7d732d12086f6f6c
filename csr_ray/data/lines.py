"""Rows and the lines they stand in: where each is in its file, and what reading a part of a file goes by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Final

# Longer than any prompt: a row beyond it is set aside without being held. A field of CSV may have 128 KiB (Python's
# own limit).
MAX_ROW_CHARS: Final = 4 * 2**20
TOO_LONG: Final = f"a row of more than {MAX_ROW_CHARS // 2**20} million characters"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One record of a file: where it stands, and its value or what is wrong with it.

    Attributes:
        place: the file and what its rows are counted in ("prompts.jsonl:", "prompts.json:item ").
        number: the line, item or row, from 1.
    """

    place: str
    number: int
    value: Any = None
    problem: str | None = None

    @property
    def source(self) -> str:
        """Where it stands, for people ("prompts.jsonl:17")."""
        return f"{self.place}{self.number}"


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A part of a file that can be read by itself.

    Attributes:
        begin, end: where its first row begins, and where it is over (None: at the file's end). Of lines and tars in
            bytes; of other files it is the number of rows that stand before.
        number: of its first row or line, from 1.
    """

    begin: int = 0
    end: int | None = None
    number: int = 1


@dataclass
class Cursor:
    """Where the row after the last one begins that was read, and its number; see `Stretch`."""

    at: int = 0
    number: int = 1


class Lines(Iterator[str | None]):
    """The lines of a text; None for one that is too long, of which only a piece is held.

    Args:
        cursor: at the text's beginning, and from then on behind the line that was given last. In bytes of UTF-8.
        end: a line that begins there, or later, is not given.
    """

    def __init__(self, text: IO[str], *, cursor: Cursor, end: int | None = None) -> None:
        self._text = text
        self._end = end
        self.cursor = cursor

    def __next__(self) -> str | None:
        if self.is_over or not (line := self._read(MAX_ROW_CHARS + 1)):
            raise StopIteration
        self.cursor.number += 1
        if len(line) <= MAX_ROW_CHARS or line.endswith("\n"):
            return line
        while (piece := self._read(MAX_ROW_CHARS)) and not piece.endswith("\n"):
            pass
        return None

    @property
    def is_over(self) -> bool:
        return self._end is not None and self.cursor.at >= self._end

    def _read(self, most: int) -> str:
        text = self._text.readline(most)
        self.cursor.at += len(text) if text.isascii() else len(text.encode(errors="surrogateescape"))
        return text


def next_line(file: IO[bytes], position: int) -> int:
    """Where the first line begins that does so at a position or behind it."""
    at = file.seek(position - 1)
    while data := file.read(1 << 16):
        if (found := data.find(b"\n")) >= 0:
            return at + found + 1
        at += len(data)
    return at
