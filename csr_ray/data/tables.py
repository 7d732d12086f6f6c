"""CSV and Parquet as rows, from any row on.

Knows that a table must have the columns of a prompt, and reads no other. What is wrong with a whole table is a
ConfigError, what is wrong with a row of it stands in the row.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from typing import IO, Any, Final

import numpy as np

from csr_ray.data.lines import MAX_ROW_CHARS, TOO_LONG, Cursor, Lines, Row, Stretch
from csr_ray.errors import ConfigError

_MAX_COLUMNS: Final = 10_000
# The footer of a Parquet file is read whole.
_MAX_FOOTER_BYTES: Final = 64 * 2**20
# A batch of Parquet rows, and how much of a column is read ahead for it (Arrow would take in the whole row group).
_BATCH_ROWS: Final = 512
_READ_AHEAD_BYTES: Final = 1 << 18
# The most that is held of a file that has to be held whole: a JSON list, which takes several times as much as
# Python values, and a table of which no part can be had.
MAX_LIST_BYTES: Final = 256 * 2**20
_OVERLONG_FIELD: Final = "x" * 131_073 + "\n"


def csv_rows(lines: Lines, *, name: str, texts: tuple[str, ...], columns: tuple[str, ...] | None) -> Iterator[Row]:
    """The records from here on; `columns` are None where the first line is still to come, which names them."""
    reader = csv_reader(lines, name=name, texts=texts, columns=columns)
    if not reader.fieldnames:
        return
    place = f"{name}:"
    while not lines.is_over:
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(place=place, number=lines.cursor.number - 1, problem=f"not CSV: {error}")
            continue
        surplus = record.pop(None, None)  # type: ignore[call-overload]  # DictReader's key for fields without a column
        # A quoted field may hold line breaks; the record is found by its first line.
        num_breaks = sum((value or "").count("\n") for value in record.values())
        problem = f"{len(surplus)} more fields than columns; quote texts with commas" if surplus else None
        number = lines.cursor.number - 1 - num_breaks
        yield Row(place=place, number=number, value=record, problem=problem)


def csv_reader(
    lines: Lines, *, name: str, texts: tuple[str, ...], columns: tuple[str, ...] | None = None
) -> csv.DictReader[str]:
    """Of an empty file it has no columns."""
    # Of a line that is too long its beginning would do harm, and its absence would shift the numbers: it becomes one
    # field, which is longer than a field may be.
    bounded = (_OVERLONG_FIELD if line is None else line for line in lines)
    head: list[str] = []
    if columns is None:
        head = list(islice((line for line in bounded if line.strip()), 1))
        columns = None if head else ()
    reader = csv.DictReader(chain(head, bounded), fieldnames=columns, skipinitialspace=True)
    if columns is None:
        try:
            columns = tuple(reader.fieldnames or ())
        except csv.Error as error:
            raise ConfigError(f"{name}: its first line is not CSV: {error}") from error
        _require_columns(columns, name=name, texts=texts)
    return reader


@contextmanager
def _table(file: IO[bytes], *, name: str, texts: tuple[str, ...]) -> Iterator[Any]:
    """A Parquet file, and what its rows are read of; whatever is wrong with it inside is a ConfigError."""
    import pyarrow
    import pyarrow.parquet

    from csr_ray.store.parquet import open_by_batch

    try:
        seekable = file if file.seekable() else io.BytesIO(file.read(MAX_LIST_BYTES))
        _check_footer(seekable, name=name)
        schema = pyarrow.parquet.read_schema(seekable)
        # A page may name one long text many times; as a dictionary the text is there once.
        once = [column for column in _wanted(schema.names, texts=texts) if _is_text(schema.field(column).type)]
        seekable.seek(0)
        table = open_by_batch(seekable, buffer_size=_READ_AHEAD_BYTES, read_dictionary=once)
        _require_columns(schema.names, name=name, texts=texts)
        yield table
    # Arrow's own errors, and Python's for values that it has no room for: a date in the year 30,000, broken UTF-8.
    except (pyarrow.ArrowException, OSError, OverflowError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: not readable as Parquet: {' '.join(str(error).split())}") from error


def _wanted(columns: Iterable[str], *, texts: tuple[str, ...]) -> list[str]:
    """The columns that are read, of those that there are."""
    there = set(columns)
    return [column for column in ("id", "image", *texts, "truth") if column in there]


def table_borders(file: IO[bytes], *, name: str, texts: tuple[str, ...], together: int) -> list[int]:
    """How many rows stand before each piece of a table, and in all of it: pieces end with its groups of rows."""
    with _table(file, name=name, texts=texts) as table:
        begins = [0, *itertools.accumulate(_group_sizes(table))]
    cuts = {cut for begin, end in itertools.pairwise(begins) for cut in range(begin, end, together)}
    return sorted({0, begins[-1]} | cuts) if begins[-1] else [0, 0]


def _group_sizes(table: Any) -> list[int]:
    return [table.metadata.row_group(group).num_rows for group in range(table.metadata.num_row_groups)]


def parquet_rows(
    file: IO[bytes], *, name: str, texts: tuple[str, ...], stretch: Stretch, cursor: Cursor
) -> Iterator[Row]:
    import pyarrow

    with _table(file, name=name, texts=texts) as table:
        schema = table.schema_arrow
        wanted = _wanted(schema.names, texts=texts)
        # Of the image column of a Hugging Face data set, {bytes, path}, the pictures are left on the disk.
        image = schema.field(schema.names.index("image")).type
        if pyarrow.types.is_struct(image) and image.get_field_index("path") >= 0:
            wanted[wanted.index("image")] = "image.path"
        sizes = _group_sizes(table)
        begins = [0, *itertools.accumulate(sizes)]
        end = begins[-1] if stretch.end is None else stretch.end
        groups = [
            group for group, size in enumerate(sizes) if begins[group] < end and begins[group] + size > stretch.begin
        ]
        cursor.at, cursor.number = stretch.begin, stretch.number
        batches: Iterable[Any] = ()
        if groups:
            batches = table.iter_batches(batch_size=_BATCH_ROWS, columns=wanted, use_threads=False, row_groups=groups)
            at = begins[groups[0]]
            batches = _within_rows(batches, num_skipped=stretch.begin - at, num=end - stretch.begin)
        place = f"{name}:row "
        for record in chain.from_iterable(_records(batch) for batch in batches):
            cursor.at += 1
            cursor.number += 1
            problem = TOO_LONG if record is None else None
            yield Row(place=place, number=cursor.number - 1, value=record, problem=problem)


def _within_rows(batches: Iterable[Any], *, num_skipped: int, num: int) -> Iterator[Any]:
    """Batches without the first rows, which cost no more than their decoding, and with so many of the others."""
    for batch in batches:
        begin = min(num_skipped, batch.num_rows)
        num_skipped -= begin
        part = batch.slice(begin, num)
        num -= part.num_rows
        if part.num_rows:
            yield part
        if not num:
            return


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
    if num_bytes.sum() <= MAX_ROW_CHARS:
        yield from batch.to_pylist()
        return
    for row in range(batch.num_rows):
        yield batch.slice(row, 1).to_pylist()[0] if num_bytes[row] <= MAX_ROW_CHARS else None


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


def _require_columns(columns: Iterable[str], *, name: str, texts: tuple[str, ...]) -> None:
    present = list(columns)
    if len(present) > _MAX_COLUMNS:
        needed = f"id, image, {texts[0]} and truth"
        raise ConfigError(f"{name}: {len(present)} columns; {needed} are needed, write only those")
    if not {"id", "image"} <= set(present) or not set(texts) & set(present):
        found = ", ".join(repr(column) for column in present[:8])
        raise ConfigError(f"{name}: needs the columns id, image, {texts[0]}; found {found}")
