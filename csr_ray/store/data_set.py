"""The examples of a run as a data set of its own: Parquet files for `datasets`, TRL and the hub's viewer.

The files hold what the run's own have, and which round and phase a row is of. Rows go through a few at a time, with
their pictures, so a set of any size needs little memory. Knows tables and names of pictures; how a picture is read is
its caller's.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from csr_ray.store.tables import schema_of_examples, with_new_columns

# As `datasets` cuts what it pushes: files that a viewer and a download in parts can take.
_FILE_BYTES: Final = 500_000_000
# A group of rows is decoded whole to read one of them, and held whole while it is written.
_GROUP_BYTES: Final = 32 * 2**20
_GROUP_ROWS: Final = 1000
_PICTURES_AT_ONCE: Final = 16
_SPLIT: Final = "train"
UNREADABLE: Final = "the picture cannot be read"

Pictures = Callable[[Sequence[str]], Sequence[bytes | None]]


@dataclass(frozen=True, kw_only=True)
class ExampleFile:
    """One phase's file of examples.

    Attributes:
        round_index: counts from 0; in the data set rounds are numbered as people do, from 1.
        num_answers: of an example: 2 are pairs, 1 are single answers.
    """

    path: Path
    round_index: int
    phase: str
    num_answers: int


@dataclass(kw_only=True)
class Written:
    """What a data set has of one kind of example.

    Attributes:
        files: in order, within the data set's folder.
        by_phase: number of rows by round index and phase.
        num_pictures: rows whose picture's bytes stand in them.
        left_out: rows that are not there, by reason.
    """

    files: tuple[str, ...] = ()
    by_phase: Counter[tuple[int, str]] = field(default_factory=Counter)
    num_pictures: int = 0
    num_bytes: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def num_rows(self) -> int:
        return sum(self.by_phase.values())


def write_data_set(
    folder: Path,
    *,
    sources: Sequence[ExampleFile],
    pictures: Pictures | None,
    place: str = "data",
    file_bytes: int = _FILE_BYTES,
) -> Written:
    """Write examples of one kind into `folder`/`place`, in files of about `file_bytes`.

    Args:
        sources: all with the same number of answers.
        pictures: gives the bytes of pictures by their names. A row whose picture it cannot give is left out, and of a
            picture that is there nothing but the file's own name is kept. None: pictures stay as the run has them.

    Raises:
        OSError, pyarrow.ArrowException: a source cannot be read, or the disk takes no more.
    """
    schema = _schema(sources[0].num_answers)
    written = Written()
    (folder / place).mkdir(parents=True)
    open_files: list[Path] = []
    writer: pq.ParquetWriter | None = None
    try:
        for group in _groups(_rows(sources, schema=schema, pictures=pictures, written=written)):
            if writer is None:
                open_files.append(folder / place / f"unfinished-{len(open_files):05d}.parquet")
                writer = pq.ParquetWriter(open_files[-1], schema, compression="zstd", write_page_checksum=True)
            writer.write_table(group)
            if open_files[-1].stat().st_size >= file_bytes:
                writer.close()
                writer = None
    finally:
        if writer is not None:
            writer.close()
    names = [f"{place}/{_SPLIT}-{at:05d}-of-{len(open_files):05d}.parquet" for at in range(len(open_files))]
    for path, name in zip(open_files, names, strict=True):
        path.rename(folder / name)
    written.files = tuple(names)
    written.num_bytes = sum((folder / name).stat().st_size for name in names)
    return written


def _schema(num_answers: int) -> pa.Schema:
    schema = schema_of_examples(num_answers)
    for name, kind in (("round", pa.int32()), ("phase", pa.string())):
        schema = schema.append(pa.field(name, kind))
    return schema


def _rows(
    sources: Sequence[ExampleFile], *, schema: pa.Schema, pictures: Pictures | None, written: Written
) -> Iterator[pa.Table]:
    """The rows of all sources as the data set has them, a few at a time."""
    for source in sources:
        assert source.num_answers == sources[0].num_answers, "one data set, one kind of example"
        with pq.ParquetFile(source.path, page_checksum_verification=True) as file:
            size = _PICTURES_AT_ONCE if pictures is not None or _has_pictures(file) else _GROUP_ROWS
            for batch in file.iter_batches(batch_size=size, use_threads=False):
                table = with_new_columns(
                    pa.Table.from_batches([batch]).replace_schema_metadata(None),
                    schema=schema_of_examples(source.num_answers),
                )
                if pictures is not None:
                    table = _with_pictures(table, pictures=pictures, written=written)
                num = len(table)
                table = table.append_column("round", pa.array([source.round_index + 1] * num, pa.int32()))
                table = table.append_column("phase", pa.array([source.phase] * num, pa.string()))
                written.by_phase[source.round_index, source.phase] += num
                written.num_pictures += num - pc.struct_field(table["image"], "bytes").null_count
                yield table.select(schema.names).cast(schema.remove_metadata())


def _has_pictures(file: pq.ParquetFile) -> bool:
    """Whether bytes of pictures stand in a file, by the sizes that its footer has."""
    metadata = file.metadata
    names = [metadata.schema.column(at).path for at in range(len(metadata.schema))]
    at, groups = names.index("image.bytes"), range(metadata.num_row_groups)
    columns = [metadata.row_group(group).column(at) for group in groups]
    return sum(column.total_uncompressed_size for column in columns) > metadata.num_rows


def _with_pictures(table: pa.Table, *, pictures: Pictures, written: Written) -> pa.Table:
    rows = table["image"].to_pylist()
    wanted = [row["path"] for row in rows if not row["bytes"]]
    found = dict(zip(wanted, pictures(wanted), strict=True))
    content = [row["bytes"] or found.get(row["path"]) for row in rows]
    values = [{"bytes": data, "path": _file_name(row["path"])} for data, row in zip(content, rows, strict=True)]
    at = table.schema.get_field_index("image")
    table = table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))
    is_there = [data is not None for data in content]
    if not all(is_there):
        written.left_out[UNREADABLE] += is_there.count(False)
        table = table.filter(pa.array(is_there))
    return table


def _file_name(path: str) -> str:
    """The picture's own name, without the folders of a machine and what stands behind a URL's path."""
    name = path.partition("?")[0] if "://" in path else path
    return os.path.basename(name.rstrip("/"))


def _groups(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    held: list[pa.Table] = []
    for table in tables:
        if len(table):
            held.append(table)
        if sum(map(len, held)) >= _GROUP_ROWS or sum(one.nbytes for one in held) >= _GROUP_BYTES:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)
