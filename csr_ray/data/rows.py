"""Reads JSONL, JSON lists, CSV and Parquet as a stream of rows, each with the place where it stands in its file.

Knows file formats and encodings. Does not know what a row is for (`csr_ray.data.parsing`), except that a table must
have the columns of a prompt. JSONL, CSV and Parquet are held a row (Parquet: a batch of rows) at a time; one JSON
list has no lines to go by and is held whole.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import chain, compress, islice, repeat
from pathlib import PurePosixPath
from typing import IO, Any, Final

import fsspec
import numpy as np

from csr_ray.data.files import WEB, UnreadableError, check_scheme, open_local, scheme_of
from csr_ray.errors import ConfigError
from csr_ray.redaction import without_credentials

_SUFFIXES: Final = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_HEAD_BYTES: Final = 4096
# Longer than any prompt: a row beyond it is set aside without being held. A field of CSV may have 128 KiB (Python's
# own limit).
_MAX_ROW_CHARS: Final = 4 * 2**20
# A JSON list is held whole, and as Python's values it takes several times as much.
_MAX_LIST_BYTES: Final = 256 * 2**20
_MAX_COLUMNS: Final = 10_000
# The footer of a Parquet file is read whole.
_MAX_FOOTER_BYTES: Final = 64 * 2**20
_SILENT_S: Final = 60.0
# A batch of Parquet rows, and how much of a column is read ahead for it (Arrow would take in the whole row group).
_BATCH_ROWS: Final = 512
_COLUMNS: Final = ("id", "image", "prompt", "input", "truth")
_READ_AHEAD_BYTES: Final = 1 << 18


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


class RowFile:
    """The rows of one file, in file order, as often as they are asked for.

    Args:
        source: path or fsspec URL.

    Raises:
        ConfigError: there is no such file, it cannot be read, or it is of no known format. `rows` raises it too, for
            what only the rest of the file can show: missing columns, a broken list, a cut table.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._name = source.rsplit("/", 1)[-1]
        with _opened(source) as file:
            head = file.read(_HEAD_BYTES)
        self._encoding = _encoding(head)
        kind = _SUFFIXES.get(PurePosixPath(self._name).suffix.lower()) or _sniff(head)
        if kind is None:
            expected = "expected JSONL, a JSON list, CSV or Parquet"
            raise ConfigError(f"data.prompts = {source!r}: unknown format; {expected}")
        if kind in ("json", "jsonl"):
            with _opened(source) as file:
                lines = (line or "" for _, line in _bounded_lines(self._text(file, newline="\n")))
                kind = "jsonl" if _is_json_lines(lines, name=self._name) else "json"
        self._kind = kind

    def rows(self, *, chosen: Iterable[int] | None = None, start: int = 0) -> Iterator[Row]:
        """Read the rows. A line of JSONL that is not asked for is counted, not parsed.

        Args:
            chosen: a flag a row; the rows of a true one are read, and none beyond the last flag. None: all rows.
            start: how many of the chosen rows to pass over.
        """
        flags = repeat(1) if chosen is None else chosen
        place = f"{self._name}:"
        with _opened(self.source) as file:
            for row in islice(compress(self._unparsed(file), flags), start, None):
                yield row if isinstance(row, Row) else _json_line(row[1], place=place, number=row[0])

    def count(self) -> int:
        """How many rows there are."""
        with _opened(self.source) as file:
            return sum(1 for _ in self._unparsed(file))

    def _unparsed(self, file: IO[bytes]) -> Iterator[Row | tuple[int, str]]:
        """The rows as cheaply as they can be told apart: of JSONL, the line and its number."""
        if self._kind == "jsonl":
            return _jsonl_rows(self._text(file, newline="\n"), place=f"{self._name}:")
        if self._kind == "parquet":
            return _parquet_rows(file, name=self._name)
        if self._kind == "csv":
            return _csv_rows(self._text(file, newline=""), name=self._name)
        data = file.read(_MAX_LIST_BYTES + 1)
        if len(data) > _MAX_LIST_BYTES:
            raise ConfigError(
                f"{self._name}: a JSON list of more than {_MAX_LIST_BYTES // 2**20} MiB would have to be held whole; "
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


def _bounded_lines(text: IO[str]) -> Iterator[tuple[int, str | None]]:
    """The lines of a file with their numbers; None for one that is too long, of which only a piece is held."""
    number = 0
    while line := text.readline(_MAX_ROW_CHARS + 1):
        number += 1
        if len(line) <= _MAX_ROW_CHARS or line.endswith("\n"):
            yield number, line
            continue
        while (piece := text.readline(_MAX_ROW_CHARS)) and not piece.endswith("\n"):
            pass
        yield number, None


def _jsonl_rows(text: IO[str], *, place: str) -> Iterator[Row | tuple[int, str]]:
    for number, line in _bounded_lines(text):
        if line is None:
            yield Row(place=place, number=number, problem=_TOO_LONG)
        elif stripped := line.strip():
            yield number, stripped


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
    return _SUFFIXES.get(PurePosixPath(name).suffix.lower()) == "jsonl"


def _numbered_lines(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, each with its number. They end at "\\n" alone: U+2028 is legal in a string."""
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text:
            yield number, text


_TOO_LONG: Final = f"a row of more than {_MAX_ROW_CHARS // 2**20} million characters"


def _json_line(line: str, *, place: str, number: int) -> Row:
    try:
        return Row(place=place, number=number, value=json.loads(line))
    except json.JSONDecodeError as error:
        return Row(place=place, number=number, problem=f"not JSON: {error.msg} (column {error.colno})")
    except (ValueError, RecursionError) as error:
        return Row(place=place, number=number, problem=f"not JSON: {error}")


# ---- tables ----

_OVERLONG_FIELD: Final = "x" * 131_073 + "\n"


def _csv_rows(text: IO[str], *, name: str) -> Iterator[Row]:
    head: list[str] = []
    # Of a line that is too long its beginning would do harm, and its absence would shift the numbers: it becomes one
    # field, which is longer than a field may be.
    lines = (_OVERLONG_FIELD if line is None else line for _, line in _bounded_lines(text))
    for line in lines:
        head.append(line)
        if line.strip():
            break
    else:
        return
    reader = csv.DictReader(chain(head, lines), skipinitialspace=True)
    try:
        columns = reader.fieldnames or ()
    except csv.Error as error:
        raise ConfigError(f"{name}: its first line is not CSV: {error}") from error
    _require_columns(columns, name=name)
    place = f"{name}:"
    while True:
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(place=place, number=reader.line_num, problem=f"not CSV: {error}")
            continue
        surplus = record.pop(None, None)  # type: ignore[call-overload]  # DictReader's key for fields without a column
        # A quoted field may hold line breaks; the record is found by its first line.
        first_line = reader.line_num - sum((value or "").count("\n") for value in record.values())
        problem = f"{len(surplus)} more fields than columns; quote texts with commas" if surplus else None
        yield Row(place=place, number=first_line, value=record, problem=problem)


def _parquet_rows(file: IO[bytes], *, name: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        seekable = file if file.seekable() else io.BytesIO(file.read(_MAX_LIST_BYTES))
        _check_footer(seekable, name=name)
        schema = pyarrow.parquet.read_schema(seekable)
        # A page may name one long text many times; as a dictionary the text is there once.
        texts = [column for column in _COLUMNS if column in schema.names and _is_text(schema.field(column).type)]
        seekable.seek(0)
        table = pyarrow.parquet.ParquetFile(seekable, buffer_size=_READ_AHEAD_BYTES, read_dictionary=texts)
        _require_columns(schema.names, name=name)
        wanted = [column for column in _COLUMNS if column in schema.names]
        # Of the image column of a Hugging Face data set, {bytes, path}, the pictures are left on the disk.
        image = schema.field(schema.names.index("image")).type
        if pyarrow.types.is_struct(image) and image.get_field_index("path") >= 0:
            wanted[wanted.index("image")] = "image.path"
        batches = table.iter_batches(batch_size=_BATCH_ROWS, columns=wanted, use_threads=False)
        records = chain.from_iterable(_records(batch) for batch in batches)
        place = f"{name}:row "
        for number, record in enumerate(records, 1):
            yield Row(place=place, number=number, value=record, problem=_TOO_LONG if record is None else None)
    # Arrow's own errors, and Python's for values that it has no room for: a date in the year 30,000, broken UTF-8.
    except (pyarrow.ArrowException, OSError, OverflowError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: not readable as Parquet: {' '.join(str(error).split())}") from error


def _is_text(kind: Any) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind))


def _records(batch: Any) -> Iterator[dict[str, Any] | None]:
    """The rows of a batch as Python's values, few at a time if they are long; None for one that is too long."""
    import pyarrow
    import pyarrow.compute

    batch.validate(full=True)  # a damaged page may name a text that its dictionary has not
    num_bytes = np.zeros(batch.num_rows, dtype=np.int64)
    for column in batch.columns:
        if pyarrow.types.is_dictionary(column.type):
            of_each = pyarrow.compute.binary_length(column.dictionary).to_numpy(zero_copy_only=False)
            places = column.indices.fill_null(-1).to_numpy(zero_copy_only=False)
            num_bytes += np.append(np.nan_to_num(of_each), 0).astype(np.int64)[places]
    if num_bytes.sum() <= _MAX_ROW_CHARS:
        yield from batch.to_pylist()
        return
    for row in range(batch.num_rows):
        yield batch.slice(row, 1).to_pylist()[0] if num_bytes[row] <= _MAX_ROW_CHARS else None


def _check_footer(file: IO[bytes], *, name: str) -> None:
    """Refuse a footer that would take gigabytes as objects; whatever else is wrong with it, Arrow says."""
    num_bytes = file.seek(0, io.SEEK_END)
    file.seek(max(0, num_bytes - 8))
    if int.from_bytes(file.read(4), "little") > _MAX_FOOTER_BYTES and file.read(4) == b"PAR1":
        raise ConfigError(
            f"{name}: its footer is larger than {_MAX_FOOTER_BYTES // 2**20} MiB; write it with fewer columns, or "
            "larger row groups"
        )
    file.seek(0)


def _require_columns(columns: Iterable[str], *, name: str) -> None:
    present = list(columns)
    if len(present) > _MAX_COLUMNS:
        raise ConfigError(f"{name}: {len(present)} columns; id, image, prompt and truth are needed, write only those")
    if not {"id", "image"} <= set(present) or not {"prompt", "input"} & set(present):
        found = ", ".join(repr(column) for column in present[:8])
        raise ConfigError(f"{name}: needs the columns id, image, prompt; found {found}")
