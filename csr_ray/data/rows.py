"""Reads JSONL, JSON lists, CSV, Parquet and tars as a stream of rows, each with its place in the file.

Knows file formats and encodings. Does not know what a row is for (`csr_ray.data.parsing`), except that a table must
have the columns of a prompt. JSONL, CSV, tars and Parquet are held a row (Parquet: a batch of rows) at a time; one
JSON list has no lines to go by and is held whole.

Where a file allows it, reading begins anywhere in it, so that stretches of one file can be read side by side.
"""

from __future__ import annotations

import codecs
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from itertools import compress, islice, repeat
from pathlib import PurePosixPath
from typing import IO, Any, Final

import fsspec

from csr_ray.data.files import WEB, UnreadableError, check_scheme, open_local, scheme_of
from csr_ray.data.lines import MAX_ROW_CHARS, TOO_LONG, Cursor, Lines, Row, Stretch, next_line
from csr_ray.data.tables import MAX_LIST_BYTES, csv_reader, csv_rows, parquet_rows, table_borders
from csr_ray.data.tars import TarError, samples
from csr_ray.errors import ConfigError
from csr_ray.redaction import without_credentials

KNOWN_SUFFIXES: Final = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".tar": "tar",
}
_KNOWN: Final = "JSONL, a JSON list, CSV, Parquet or a WebDataset tar"
_HEAD_BYTES: Final = 4096
_SILENT_S: Final = 60.0
# Where the text of a row stands, in the order in which the columns are tried: that of a prompt, and of a caption.
PROMPT_TEXTS: Final = ("prompt", "input")
CAPTION_TEXTS: Final = ("caption", "text", "prompt")
# A stretch of lines that is read by itself; and rows that are read together, so that finding their beginning costs
# little beside reading them. In a table it is found by decoding what stands before it in its group of rows.
_PIECE_BYTES: Final = 8 * 2**20
_ROWS_TOGETHER: Final = 1024
_TABLE_ROWS_TOGETHER: Final = 8192


class RowFile:
    """The rows of one file, in file order, as often as they are asked for.

    Args:
        source: path or fsspec URL.
        texts: the columns that may have the text of a row.

    Raises:
        ConfigError: there is no such file, it cannot be read, or it is of no known format. `rows` raises it too, for
            what only the rest of the file can show: missing columns, a broken list, a cut table.
    """

    def __init__(self, source: str, *, texts: tuple[str, ...] = PROMPT_TEXTS) -> None:
        self.source = source
        self._texts = texts
        self._name = source.rsplit("/", 1)[-1]
        with _opened(source) as file:
            head = file.read(_HEAD_BYTES)
            self._num_bytes = _size(file)
        self._encoding = _encoding(head)
        kind = KNOWN_SUFFIXES.get(PurePosixPath(self._name).suffix.lower()) or _sniff(head)
        if kind is None:
            raise ConfigError(f"data.prompts = {source!r}: unknown format; expected {_KNOWN}")
        if kind in ("json", "jsonl"):
            with _opened(source) as file:
                begin = (line or "" for line in Lines(self._text(file, newline="\n"), cursor=Cursor()))
                kind = "jsonl" if _is_json_lines(begin, name=self._name) else "json"
        self._kind = kind
        # A list has no places to begin at, nor has UTF-16, in which a bad byte may shift all that follows.
        is_bytewise = kind == "tar" or (kind in ("jsonl", "csv") and not self._encoding[0].startswith("utf-16"))
        self._is_bytewise = is_bytewise and self._num_bytes is not None
        self._has_mark = head.startswith(codecs.BOM_UTF8)
        self._columns: tuple[str, ...] = ()
        if self._is_bytewise and kind == "csv":
            with _opened(source) as file:
                lines = Lines(self._text(file, newline=""), cursor=Cursor())
                self._columns = tuple(csv_reader(lines, name=self._name, texts=texts).fieldnames or ())

    @property
    def rows_together(self) -> int | None:
        """How many rows are best read together; None: all of them, because reading always begins at the first."""
        if self._kind == "parquet":
            return _TABLE_ROWS_TOGETHER if self._num_bytes is not None else None
        return _ROWS_TOGETHER if self._is_bytewise else None

    @property
    def is_archive(self) -> bool:
        """Whether it is a tar, with the pictures in it."""
        return self._kind == "tar"

    def pieces(self) -> list[Stretch]:
        """Stretches that are all of the file together, to be scanned side by side.

        They begin at any byte; a row belongs to the one that its first byte lies in. Numbers in them begin at 1,
        because nobody knows yet how many lines stand before. CSV is one piece: whether a line ends its record shows
        only to who has read all before it. So is a tar, which has many brothers in its folder.
        """
        if self._kind == "parquet" and self._num_bytes is not None:
            with _opened(self.source) as file:
                borders = table_borders(file, name=self._name, texts=self._texts, together=_TABLE_ROWS_TOGETHER)
        elif self._kind == "jsonl" and self._is_bytewise:
            assert self._num_bytes is not None
            borders = [*range(0, max(1, self._num_bytes), _PIECE_BYTES), self._num_bytes]
        else:
            return [Stretch()]
        return [Stretch(begin=begin, end=end) for begin, end in itertools.pairwise(borders)]

    def rows(
        self,
        *,
        chosen: Iterable[int] | None = None,
        start: int = 0,
        stretch: Stretch | None = None,
        cursor: Cursor | None = None,
    ) -> Iterator[Row]:
        """Read the rows. A line of JSONL that is not asked for is counted, not parsed.

        Args:
            chosen: a flag a row; the rows of a true one are read, and none beyond the last flag. None: all rows.
            start: how many of the chosen rows to pass over.
            stretch: the part to read; None: all of the file.
            cursor: is kept at the end of the row that was given last.
        """
        flags = repeat(1) if chosen is None else chosen
        cursor = cursor or Cursor()
        with _opened(self.source) as file:
            for row in islice(compress(self._unparsed(file, stretch or Stretch(), cursor), flags), start, None):
                yield row if isinstance(row, Row) else _json_line(row[1], place=f"{self._name}:", number=row[0])

    def place(self, number: int) -> str:
        """Where the row or line of this number stands, for people."""
        return f"{self._name}:{_COUNTED_IN.get(self._kind, '')}{number}"

    def count(self) -> int:
        """How many rows there are."""
        with _opened(self.source) as file:
            return sum(1 for _ in self._unparsed(file, Stretch(), Cursor()))

    def _unparsed(self, file: IO[bytes], stretch: Stretch, cursor: Cursor) -> Iterator[Row | tuple[int, str]]:
        """The rows as cheaply as they can be told apart: of JSONL, the line and its number."""
        if self._kind == "parquet":
            return parquet_rows(file, name=self._name, texts=self._texts, stretch=stretch, cursor=cursor)
        if not self._is_bytewise:
            return _counted(self._all_unparsed(file), stretch=stretch, cursor=cursor)
        if self._kind == "tar":
            return _tar_rows(file, source=self.source, texts=self._texts, stretch=stretch, cursor=cursor)
        begin = stretch.begin
        if begin and self._kind == "jsonl":
            begin = next_line(file, begin)
        elif not begin and self._has_mark:
            begin = len(codecs.BOM_UTF8)
        file.seek(begin)
        cursor.at, cursor.number = begin, stretch.number
        return self._lines(file, encoding="utf-8", cursor=cursor, end=stretch.end)

    def _lines(
        self, file: IO[bytes], *, encoding: str, cursor: Cursor, end: int | None = None
    ) -> Iterator[Row | tuple[int, str]]:
        """The rows from where the file stands, which is at the beginning of one."""
        is_csv = self._kind == "csv"
        text = io.TextIOWrapper(file, encoding=encoding, errors=self._encoding[1], newline="" if is_csv else "\n")
        lines = Lines(text, cursor=cursor, end=end)
        if is_csv:
            columns = self._columns if cursor.number > 1 else None
            return csv_rows(lines, name=self._name, texts=self._texts, columns=columns)
        return _jsonl_rows(lines, place=f"{self._name}:")

    def _all_unparsed(self, file: IO[bytes]) -> Iterator[Row | tuple[int, str]]:
        """All rows of a file that is only read from its beginning."""
        if self._kind == "tar":
            raise ConfigError(f"{self._name}: its server gives no parts of a file; fetch the file")
        if self._kind in ("jsonl", "csv"):
            return self._lines(file, encoding=self._encoding[0], cursor=Cursor())
        data = file.read(MAX_LIST_BYTES + 1)
        if len(data) > MAX_LIST_BYTES:
            raise ConfigError(
                f"{self._name}: a JSON list of more than {MAX_LIST_BYTES // 2**20} MiB would have to be held whole; "
                "write it as JSONL, one record a line"
            )
        return iter(read_json_rows(decode_text(data), name=self._name))

    def _text(self, file: IO[bytes], *, newline: str) -> IO[str]:
        encoding, errors = self._encoding
        return io.TextIOWrapper(file, encoding=encoding, errors=errors, newline=newline)


# ---- files and encodings ----


@contextmanager
def _opened(source: str) -> Iterator[IO[bytes]]:
    """Open a file; whatever then goes wrong with it is a ConfigError that names the config's key."""
    try:
        with _file_of(source) as file:
            yield file
    except (ConfigError, UnreadableError) as error:
        raise ConfigError(f"data.prompts = {source!r}: {error}") from error
    except FileNotFoundError as error:
        raise ConfigError(f"data.prompts = {source!r}: no such file") from error
    except IsADirectoryError as error:
        raise ConfigError(f"data.prompts = {source!r}: a folder, not a file; name the file in it") from error
    except Exception as error:
        # A store has errors of its own, which are no OSErrors.
        if "://" not in source and not isinstance(error, OSError | ValueError):
            raise
        said = without_credentials(" ".join(str(error).split()))[:500] or type(error).__name__
        raise ConfigError(f"data.prompts = {source!r}: cannot be read: {said}") from error


def _file_of(source: str) -> AbstractContextManager[IO[bytes]]:
    check_scheme(source, urls=True)  # the config's own word; `csr_ray.data.parsing` has asked whether it may be one
    scheme = scheme_of(source)
    if scheme in ("", "file"):
        return open_local(source)
    options: dict[str, Any] = {}
    if scheme in WEB:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_SILENT_S, sock_read=_SILENT_S)
        options = {"client_kwargs": {"timeout": timeout}}
    opened: AbstractContextManager[IO[bytes]] = fsspec.open(source, "rb", **options)
    return opened


def _size(file: IO[bytes]) -> int | None:
    """A file's size in bytes; None if no other part of it can be read than the next."""
    try:
        return file.seek(0, io.SEEK_END)
    except (OSError, ValueError):
        return None


def decode_text(data: bytes) -> str:
    """Decode UTF-8 or UTF-16 with or without a byte-order mark; a bad byte stays a lone surrogate, to be rejected."""
    encoding, errors = _encoding(data)
    return data.decode(encoding, errors=errors)


def _encoding(head: bytes) -> tuple[str, str]:
    """The encoding of a file that begins so, and what becomes of its bad bytes."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16", "replace"
    return "utf-8-sig", "surrogateescape"


def _sniff(head: bytes) -> str | None:
    """Guess the format of a file whose suffix says nothing."""
    if head.startswith(b"PAR1"):
        return "parquet"
    if head[257:262] == b"ustar":
        return "tar"
    text = decode_text(head).lstrip()
    if text[:1] in ("[", "{"):
        return "json"
    columns = {column.strip().strip('"') for column in text.split("\n", 1)[0].split(",")}
    return "csv" if {"id", "image"} <= columns else None


# ---- JSON ----


def read_json_rows(text: str, *, name: str) -> list[Row]:
    """Split JSONL, or one JSON list, into rows. Blank lines are no rows; a bad line is a row with a `problem`.

    Raises:
        ConfigError: `name` does not end in .jsonl and the text is neither a list of records nor JSONL.
    """
    first = text.lstrip()[:1]
    lines_only = _is_named_jsonl(name)
    if first == "[" or (first == "{" and not lines_only):
        try:
            whole = json.loads(text)
        except (ValueError, RecursionError) as error:
            # A `{` may start JSONL under another name; a broken list is not worth a rejection a line.
            if first == "[" and not lines_only:
                raise ConfigError(f"{name}: not JSON: {error}; mend the file") from error
        else:
            if isinstance(whole, list):
                return [Row(place=f"{name}:item ", number=index, value=item) for index, item in enumerate(whole, 1)]
            if isinstance(whole, dict) and "image" not in whole and not lines_only and "\n" in text.strip():
                keys = ", ".join(list(whole)[:5])
                raise ConfigError(f"{name}: expected a list of records, found one object with keys {keys}")
            if isinstance(whole, dict) and not lines_only:
                return [Row(place=f"{name}:item ", number=1, value=whole)]
    elif first and not lines_only:
        raise ConfigError(f"{name}: neither a JSON list nor JSONL; it starts with {text.lstrip()[:20]!r}")
    lines = _numbered_lines(text.split("\n"))
    return [_json_line(line, place=f"{name}:", number=number) for number, line in lines]


def _counted(
    rows: Iterator[Row | tuple[int, str]], *, stretch: Stretch, cursor: Cursor
) -> Iterator[Row | tuple[int, str]]:
    """A stretch of the rows of a file that is always read from its beginning."""
    for at, row in enumerate(islice(rows, stretch.begin, stretch.end), stretch.begin + 1):
        cursor.at = at
        yield row


def _jsonl_rows(lines: Lines, *, place: str) -> Iterator[Row | tuple[int, str]]:
    for line in lines:
        if line is None:
            yield Row(place=place, number=lines.cursor.number - 1, problem=TOO_LONG)
        elif stripped := line.strip():
            yield lines.cursor.number - 1, stripped


def _is_json_lines(lines: Iterable[str], *, name: str) -> bool:
    """Whether the first lines alone tell that `read_json_rows` would take a file line by line.

    False also for JSONL whose first line is broken, or a list: only the whole text tells that from one JSON value.
    """
    filled = (line.strip() for line in lines)
    filled = (line for line in filled if line)
    first = next(filled, "")
    lines_only = _is_named_jsonl(name)
    if lines_only and not first.startswith("["):
        return True
    if not lines_only and not first.startswith("{"):
        return False
    return _json_line(first, place="", number=1).problem is None and next(filled, None) is not None


def _is_named_jsonl(name: str) -> bool:
    return KNOWN_SUFFIXES.get(PurePosixPath(name).suffix.lower()) == "jsonl"


def _numbered_lines(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, each with its number. They end at "\\n" alone: U+2028 is legal in a string."""
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text:
            yield number, text


def _json_line(line: str, *, place: str, number: int) -> Row:
    try:
        return Row(place=place, number=number, value=json.loads(line))
    except json.JSONDecodeError as error:
        return Row(place=place, number=number, problem=f"not JSON: {error.msg} (column {error.colno})")
    except (ValueError, RecursionError) as error:
        return Row(place=place, number=number, problem=f"not JSON: {error}")


# What the rows of a kind of file are counted in; the others are counted in lines.
_COUNTED_IN: Final = {"json": "item ", "parquet": "row ", "tar": "sample "}


# ---- tars ----


def _tar_rows(
    file: IO[bytes], *, source: str, texts: tuple[str, ...], stretch: Stretch, cursor: Cursor
) -> Iterator[Row]:
    name = source.rsplit("/", 1)[-1]
    place = f"{name}:sample "
    cursor.at, cursor.number = stretch.begin, stretch.number
    file.seek(stretch.begin)
    try:
        for sample in samples(file, archive=source, end=stretch.end, max_text_bytes=MAX_ROW_CHARS):
            row = _sample_row(sample.texts, columns=texts, place=place, number=cursor.number)
            cursor.at = sample.end
            cursor.number += 1
            if row.problem is not None:
                yield row
                continue
            yield Row(
                place=place, number=row.number, value={"id": sample.key, **row.value, "image": sample.picture or None}
            )
    except TarError as error:
        raise ConfigError(f"{name}: not readable as a tar: {error}") from error


def _sample_row(texts: Mapping[str, bytes | None], *, columns: tuple[str, ...], place: str, number: int) -> Row:
    """What the texts beside a picture say: KEY.json is a record, and KEY.txt the text of one that has none."""
    if None in texts.values():
        return Row(place=place, number=number, problem=TOO_LONG)
    row = Row(place=place, number=number, value={})
    if (text := texts.get("json")) is not None:
        row = _json_line(decode_text(text), place=place, number=number)
    if row.problem is None and not isinstance(row.value, dict):
        return replace(row, problem=f"its .json is a {type(row.value).__name__}, not a record")
    if row.problem is None and (text := texts.get("txt")) is not None and not set(columns) & set(row.value):
        row.value[columns[0]] = decode_text(text)
    return row
