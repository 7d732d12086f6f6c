"""Reads a large JSON object piece by piece: of COCO's annotations (half a gigabyte) only one entry is held at a time.

Knows JSON; does not know what the members mean.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

_CHUNK_CHARS = 2**20
_SPACE = " \t\r\n"


def members(file: IO[str]) -> Iterator[tuple[str, Any]]:
    """Yield (key, value) of the object in a file; of a list every entry on its own, under the list's key.

    Raises:
        ValueError: it is no JSON object, or ends early.
    """
    text = _Text(file)
    text.take("{")
    if text.peek() == "}":
        return
    while True:
        key = text.value()
        text.take(":")
        if text.peek() == "[":
            yield from ((str(key), entry) for entry in _entries(text))
        else:
            yield str(key), text.value()
        if text.take(",}") == "}":
            return


def _entries(text: _Text) -> Iterator[Any]:
    text.take("[")
    if text.peek() == "]":
        text.take("]")
        return
    while True:
        yield text.value()
        if text.take(",]") == "]":
            return


class _Text:
    """A file's text, of which what has been read is let go."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._text = ""
        self._at = 0
        self._ended = False
        self._decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _SPACE:
                    return self._text[self._at]
                self._at += 1
            if self._ended:
                return ""
            self._fill()

    def take(self, allowed: str) -> str:
        """Go past the next character, which has to be one of some."""
        found = self.peek()
        if not found or found not in allowed:
            raise ValueError(f"expected one of {' '.join(allowed)}, found {found or 'the end of the file'}")
        self._at += 1
        return found

    def value(self) -> Any:
        """Go past the next value, and return it."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError:
                if self._ended:
                    raise
            else:
                # A number that ends with what is here may go on.
                if self._ended or end < len(self._text) or self._text[end - 1] in '}]"':
                    self._at = end
                    return value
            self._fill()

    def _fill(self) -> None:
        rest = self._text[self._at :]
        more = self._file.read(max(_CHUNK_CHARS, len(rest)))
        self._ended = not more
        self._text, self._at = rest + more, 0
