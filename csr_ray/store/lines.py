"""The lines of the journal as bytes: one JSON object a line, the last key of which is the line's own checksum.

The checksum covers the line and the checksum of the line before it. So a flipped bit is found, and so is a line that
was removed, doubled or moved. Only lines that are missing at the end leave no trace: they are work that did not
happen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import xxhash

from csr_ray.records import JsonDict

FIRST = "csr_ray journal"
"""Stands for the checksum of the line before the first."""

_BEGINNING = b'{"kind": "'
_ENDING = re.compile(rb', "sum": "([0-9a-f]{32})"\}')
_NUM_ENDING_BYTES = len(', "sum": ""}') + 32


class DamagedLine(ValueError):
    """Line `number` is not what was written; the `num_sound_bytes` before it are."""

    def __init__(self, number: int, *, num_sound_bytes: int, reason: str, is_unsealed: bool = False) -> None:
        super().__init__(f"line {number} {reason}")
        self.number = number
        self.num_sound_bytes = num_sound_bytes
        self.reason = reason
        self.is_unsealed = is_unsealed


@dataclass(frozen=True)
class Tail:
    """How a file ends.

    Attributes:
        num_bytes: of the whole lines.
        checksum: of the last of them.
        num_lines: how many there are.
        lacks_newline: the last line is whole but for its newline, which `num_bytes` leaves out.
    """

    num_bytes: int = 0
    checksum: str = FIRST
    num_lines: int = 0
    lacks_newline: bool = False


def seal(entry: JsonDict, *, previous: str) -> tuple[bytes, str]:
    """The line of an entry, with its newline, and its checksum."""
    body = json.dumps(entry, allow_nan=False).encode()
    checksum = xxhash.xxh3_128_hexdigest(previous.encode() + body)
    return b'%s, "sum": "%s"}\n' % (body[:-1], checksum.encode()), checksum


def bodies(lines: Iterable[bytes], *, after: Tail | None = None) -> Iterator[tuple[bytes, Tail]]:
    """Check the lines of a file one by one, each with its newline. A torn last line counts as not there.

    Args:
        after: how the part of the file before these lines ends; None: they are the first.

    Yields:
        Each line without its checksum, and how the whole lines of the file would end with it.

    Raises:
        DamagedLine: a line is not what was written.
    """
    known = after or Tail()
    num_bytes, checksum = known.num_bytes, known.checksum
    for number, line in enumerate(lines, known.num_lines + 1):
        has_newline = line.endswith(b"\n")
        bare = line[:-1] if has_newline else line
        body = _unsealed(bare, previous=checksum)
        if body is not None:
            checksum = bare[-34:-2].decode()
            num_bytes += len(line)
            yield body, Tail(num_bytes, checksum, number, lacks_newline=not has_newline)
        elif not has_newline and _may_be_torn(line, previous=checksum):
            return
        else:
            reason = _what_is_wrong(bare, is_last=not has_newline)
            raise DamagedLine(number, num_sound_bytes=num_bytes, reason=reason, is_unsealed=_is_unsealed(bare))


def _unsealed(bare: bytes, *, previous: str) -> bytes | None:
    """The line without its checksum; None if the checksum is missing or wrong."""
    ending = _ENDING.fullmatch(bare, max(0, len(bare) - _NUM_ENDING_BYTES))
    if ending is None:
        return None
    body = bare[: ending.start()] + b"}"
    return body if xxhash.xxh3_128_hexdigest(previous.encode() + body).encode() == ending[1] else None


def _may_be_torn(line: bytes, *, previous: str) -> bool:
    """Whether this can be the beginning of a line that was being written when the machine died.

    A whole line with something behind it cannot: there the newline is damaged, and the line did happen.
    """
    if not (line.startswith(_BEGINNING) or _BEGINNING.startswith(line)):
        return False
    return not any(_unsealed(line[: ending.end()], previous=previous) for ending in _ENDING.finditer(line))


def _what_is_wrong(bare: bytes, *, is_last: bool) -> str:
    if is_last:
        return "is neither a whole line nor the beginning of one"
    if not bare.endswith(b'"}') or not _ENDING.fullmatch(bare, max(0, len(bare) - _NUM_ENDING_BYTES)):
        return "has no checksum at its end"
    return "does not have its checksum: it was changed, or a line before it was removed, doubled or moved"


def _is_unsealed(bare: bytes) -> bool:
    """Whether a line is whole in the way of a version that wrote no checksums."""
    if b'"sum": "' in bare or re.search(rb'"[0-9a-f]{32}"\}$', bare):
        return False
    try:
        return isinstance(json.loads(bare), dict)
    except (ValueError, RecursionError):  # a thousand opening brackets end the recursion
        return False
