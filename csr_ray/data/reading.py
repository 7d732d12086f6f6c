"""How stretches of prompt files are read: walked once to see which rows are prompts, and read again for the prompts.

A `Reader` does that, this process alone or many at once. All of them call the functions here, so what a row is, and
why it is none, does not depend on who reads it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Protocol

from csr_ray.data.index import Job
from csr_ray.data.parsing import parse_row
from csr_ray.data.rows import PROMPT_TEXTS, Cursor, Row, RowFile, Stretch
from csr_ray.errors import ConfigError
from csr_ray.records import Prompt, Rejection
from csr_ray.store.digests import short_hash

# Rows of a chunk: an index can enter a file at each of them, and a walk with a limit may end there.
_ROWS_A_CHUNK: Final = 1024

Items = Generator[Prompt | Rejection, None, None]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What makes a prompt of a row, for whoever reads one.

    Attributes:
        folders: that relative image names start from, in the order they are tried.
        urls: whether images may be web pages (`data.urls`).
        refuses: says of a prompt why it cannot be used, or None if it can; it sees the prompt's texts, not its image.
        texts: the columns that may have a row's text.
    """

    folders: tuple[str, ...]
    urls: bool = False
    refuses: Callable[[Prompt], str | None] = lambda _: None
    texts: tuple[str, ...] = PROMPT_TEXTS

    def parse(self, row: Row, *, is_looked_for: bool = False) -> Prompt | Rejection:
        """A row as a prompt; its image has the name that is written there, or is looked for in the folders."""
        folders = self.folders if is_looked_for else None
        item = parse_row(row, folders=folders, urls=self.urls, texts=self.texts)
        if isinstance(item, Prompt) and (reason := self.refuses(item)) is not None:
            return item.refused(reason)
        return item


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A stretch of the file with this number."""

    file: int
    stretch: Stretch


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """What is remembered of some rows that follow each other.

    Attributes:
        piece: the number of the piece that they are in.
        begin, end: see `Stretch`.
        number, next_number: of the first row, and of the row after the last, counted from the piece's beginning.
        parsed: a byte for each row, 1 if it is a prompt.
        hashes: eight bytes for each row, of its id; 0 if it is no prompt.
        is_last: of its piece.
    """

    piece: int
    begin: int
    end: int
    number: int
    next_number: int
    parsed: bytes
    hashes: bytes
    is_last: bool


class Reader(Protocol):
    """Who reads the files of a source: this process (`LocalReader`), or many (`actors.data.reader`).

    What is read, and in which order it is given, is the same.
    """

    def scan(
        self, files: Sequence[RowFile], *, pieces: Sequence[Piece], rules: Rules, limit: int | None
    ) -> Generator[Chunk, None, None]:
        """All chunks in the order of their rows. `limit` says how many prompts may be enough."""
        ...

    def read(self, files: Sequence[RowFile], *, jobs: Iterator[Job], rules: Rules) -> Items:
        """The prompts of some jobs in their order, or what is wrong with their pictures."""
        ...

    def rows_together(self, file: RowFile) -> int | None:
        """How many rows of a file to put in one job; None: all."""
        ...


class LocalReader:
    """See `Reader`. Reads row by row, as rows are asked for, and opens no picture."""

    def scan(
        self, files: Sequence[RowFile], *, pieces: Sequence[Piece], rules: Rules, limit: int | None
    ) -> Generator[Chunk, None, None]:
        for number, piece in enumerate(pieces):
            yield from scan_piece(files[piece.file], piece.stretch, number=number, rules=rules, limit=limit)

    def read(self, files: Sequence[RowFile], *, jobs: Iterator[Job], rules: Rules) -> Items:
        for job in jobs:
            for item in read_job(files[job.file], job, rules=rules):
                if not isinstance(item, Prompt):
                    raise changed(files[job.file])
                yield item

    def rows_together(self, file: RowFile) -> int | None:
        return None


def scan_piece(
    file: RowFile, stretch: Stretch, *, number: int, rules: Rules, limit: int | None = None
) -> Generator[Chunk, None, None]:
    """The chunks of one piece, which has this number. With a limit the first are small, to read no row in vain."""
    cursor = Cursor()
    rows = file.rows(stretch=stretch, cursor=cursor)
    begin, first = stretch.begin, stretch.number
    size = _ROWS_A_CHUNK if limit is None else min(_ROWS_A_CHUNK, limit)
    num_rows = 0
    while True:
        parsed = bytearray()
        hashes: array[int] = array("Q")
        for row in islice(rows, size):
            item = rules.parse(row)
            parsed.append(isinstance(item, Prompt))
            hashes.append(_hash_of(item.id) if isinstance(item, Prompt) else 0)
        is_last = len(parsed) < size
        yield Chunk(
            piece=number,
            begin=begin,
            end=cursor.at,
            number=first,
            next_number=cursor.number,
            parsed=bytes(parsed),
            hashes=hashes.tobytes(),
            is_last=is_last,
        )
        if is_last:
            return
        begin, first = cursor.at, cursor.number
        num_rows += size
        size = min(_ROWS_A_CHUNK, num_rows) if limit is not None else _ROWS_A_CHUNK


def read_job(file: RowFile, job: Job, *, rules: Rules) -> Iterator[Prompt | Rejection]:
    """What the wanted rows of a job are; fewer than there were, if the file has become shorter, is an error."""
    flags = job.flags.rstrip(b"\0")
    num_wanted = flags.count(1)
    for row in file.rows(stretch=job.stretch, chosen=flags):
        num_wanted -= 1
        yield rules.parse(row, is_looked_for=True)
    if num_wanted:
        raise changed(file)


def changed(file: RowFile) -> ConfigError:
    return ConfigError(f"data.prompts = {file.source!r}: changed since it was first read; start again")


def _hash_of(identity: str) -> int:
    """A number of 64 bits, the same for equal ids in every process."""
    return short_hash(identity)
