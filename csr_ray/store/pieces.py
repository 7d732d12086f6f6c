"""The journal of a run at a URL: a store cannot append, so it is a row of objects in `journal/`.

    journal/000000123.jsonl               a segment: lines from number 123 on, behind a line that says who wrote them
    journal/000000000-000000123.jsonl     joined: the lines of many segments, in which nothing can change any more
    journal.jsonl                         a copy of all of it as one file, at the end of each round and of each start

A segment is created only if there is none of its number, so two drivers can never both write a line of one number.
Joined ones are written by whoever has many segments, and then these are removed. So a stale driver may find the
number of a removed segment free; nobody reads what it writes there, because a joined object has those lines.

Numbers count from 0. Nothing here is changed by reading.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO, Final

from csr_ray.store.objects import ObjectStore, StoreError

PIECES_FOLDER: Final = "journal"
WHOLE: Final = "journal.jsonl"

_NAME = re.compile(rf"{PIECES_FOLDER}/(\d{{9}})(?:-(\d{{9}}))?\.jsonl")
_NUM_THREADS: Final = 16
_PIECES_AT_ONCE: Final = 64


class PieceGone(StoreError):
    """A piece was listed and is not there any more."""


@dataclass(frozen=True, order=True)
class Piece:
    """An object of the journal; `end` is the number behind its last line, None for a segment, which is to be read."""

    first: int
    end: int | None = None

    @property
    def name(self) -> str:
        behind = "" if self.end is None else f"-{self.end:09d}"
        return f"{PIECES_FOLDER}/{self.first:09d}{behind}.jsonl"


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The journal as it is at the URL.

    Attributes:
        num_lines, num_bytes: of all of it.
        num_joined, num_joined_bytes: of the lines that joined objects have.
        segments: the names of the segments behind those.
        is_copy: there are no pieces, only the whole file, as somebody has copied it there.
    """

    num_lines: int = 0
    num_bytes: int = 0
    num_joined: int = 0
    num_joined_bytes: int = 0
    segments: tuple[str, ...] = ()
    is_copy: bool = False


def pieces_of(names: Iterable[str]) -> list[Piece]:
    """The pieces among the names of objects, in no order."""
    found = (_NAME.fullmatch(name) for name in names)
    return [Piece(int(match[1]), int(match[2]) if match[2] else None) for match in found if match]


def joined_chain(pieces: Iterable[Piece]) -> list[Piece]:
    """Joined pieces that follow each other from line 0 on, of those that begin at one line the longest."""
    longest: dict[int, int] = {}
    for piece in pieces:
        if piece.end is not None:
            longest[piece.first] = max(piece.end, longest.get(piece.first, 0))
    chain: list[Piece] = []
    at = 0
    while longest.get(at, 0) > at:
        chain.append(Piece(at, longest[at]))
        at = longest[at]
    return chain


def segment(lines: bytes, *, first: int, driver: str) -> bytes:
    """The content of a segment; `driver` is the token of the start that writes it."""
    return json.dumps({"driver": driver, "line": first}).encode() + b"\n" + lines


def lines_of_segment(content: bytes) -> bytes:
    """What a segment holds behind its first line."""
    return content[content.index(b"\n") + 1 :]


def read_journal(store: ObjectStore, *, names: Iterable[str], into: BinaryIO) -> Stored:
    """Write the lines of the journal to a file, in their order.

    Args:
        names: of all objects there are.

    Raises:
        StoreError: a piece cannot be read.
    """
    names = set(names)
    pieces = pieces_of(names)
    chain = joined_chain(pieces)
    if not pieces:
        return _read_copy(store, into=into) if WHOLE in names else Stored()
    num_joined = num_joined_bytes = 0
    for piece, content in _contents(store, chain):
        into.write(content)
        assert piece.end is not None
        num_joined, num_joined_bytes = piece.end, num_joined_bytes + len(content)
    num_lines, num_bytes = num_joined, num_joined_bytes
    segments = []
    for piece, content in _contents(store, sorted(one for one in pieces if one.end is None)):
        if piece.first < num_joined:  # joined by now, or of a driver that was too late
            segments.append(piece.name)
            continue
        if piece.first != num_lines:
            break
        lines = lines_of_segment(content)
        into.write(lines)
        num_lines, num_bytes = num_lines + lines.count(b"\n"), num_bytes + len(lines)
        segments.append(piece.name)
    return Stored(
        num_lines=num_lines,
        num_bytes=num_bytes,
        num_joined=num_joined,
        num_joined_bytes=num_joined_bytes,
        segments=tuple(segments),
    )


def _read_copy(store: ObjectStore, *, into: BinaryIO) -> Stored:
    content = store.read(WHOLE) or b""
    into.write(content)
    return Stored(num_lines=content.count(b"\n"), num_bytes=len(content), is_copy=True)


def _contents(store: ObjectStore, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, bytes]]:
    """The pieces with their content, in threads and a few ahead."""

    def read(piece: Piece) -> bytes:
        content = store.read(piece.name)
        if content is None:
            raise PieceGone(f"{piece.name}: gone while it was about to be read; is another driver at work there?")
        return content

    with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="journal-read") as pool:
        for at in range(0, len(pieces), _PIECES_AT_ONCE):
            some = pieces[at : at + _PIECES_AT_ONCE]
            yield from zip(some, pool.map(read, some), strict=True)
