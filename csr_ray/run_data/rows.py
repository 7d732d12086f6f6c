"""The tables of a run: read as objects, as Arrow, as pandas or as `datasets`, and always by the batch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from csr_ray.errors import DamageError
from csr_ray.records import Rejection
from csr_ray.store.parquet import open_by_batch

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset, IterableDataset

T = TypeVar("T")

BATCH_ROWS: Final = 1024
"""So many rows are in memory at once. Where pictures stand in the file itself, a row may have megabytes."""
ReadsBatches: TypeAlias = "Callable[..., Iterator[pa.RecordBatch]]"  # of a path, with `schema` and `rows`
_QUARANTINE: Final = pa.schema([(name, pa.string()) for name in ("id", "source", "reason", "fault")])


class Rows(Generic[T]):
    """The rows of one kind in some files of a run. Nothing is read before it is asked for.

    Iterating gives objects, a batch of which is in memory; `to_arrow`, `batches` and `to_datasets` read a batch at a
    time, too. `to_pandas` is the one that holds all rows, so name the `columns` that you need. What the run commits
    after `load_run` is not among them.

    Attributes:
        schema: of the table: what `to_arrow` gives.

    Example:
        >>> pairs = run.rounds[-1].pairs()                                         # doctest: +SKIP
        >>> len(pairs), next(iter(pairs)).chosen.text                              # doctest: +SKIP
        >>> pairs.to_pandas(columns=["id", "chosen_reward", "rejected_reward"])    # doctest: +SKIP
        >>> pairs.to_datasets(streaming=True)                                      # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        schema: pa.Schema,
        files: Sequence[Path],
        read: Callable[[Path], Iterable[T]],
        fetch: Callable[[Path], Path],
        num_records: Callable[[], int] | None = None,
        batches: ReadsBatches | None = None,
    ) -> None:
        """Made by `Run` and `Round`.

        Args:
            schema: of the table; a file that was written before a column was there has nulls in it.
            files: in which the rows are, in order.
            read: gives the objects of one file, a batch of which is in memory.
            fetch: brings a file to this machine, if it is not there, and returns its path.
            num_records: gives how many objects there are, where that is not the number of rows.
            batches: gives the rows of one file, batch by batch; None: it is Parquet.
        """
        self.schema = schema
        self._files = tuple(files)
        self._read = read
        self._fetch = fetch
        self._num_records = num_records
        self._batches_of = batches or _parquet_batches

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the rows are in. Of a run at a URL they are fetched to this machine for that."""
        return tuple(map(self._fetch, self._files))

    @property
    def num_rows(self) -> int:
        """Rows of the table; the files' footers say it."""
        return sum(self._num_rows_of(self._fetch(path)) for path in self._files)

    def __len__(self) -> int:
        """Number of objects that iterating gives."""
        return self.num_rows if self._num_records is None else self._num_records()

    def __iter__(self) -> Iterator[T]:
        for path in self._files:
            here = self._fetch(path)
            try:
                yield from self._read(here)
            except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
                raise _damage(here, error=error) from error

    def batches(self, *, columns: Sequence[str] | None = None, rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """The table batch by batch.

        Args:
            columns: those that are wanted; by default all.
            rows: of a batch, at most.

        Raises:
            ValueError: there is no such column.
            DamageError: a file is gone or is not what the run wrote.
        """
        schema = self._schema_of(columns)
        return self._batches(schema, rows=rows)

    def to_arrow(self, *, columns: Sequence[str] | None = None) -> pa.RecordBatchReader:
        """The table as a stream of Arrow record batches; `.read_all()` makes it a `pyarrow.Table`, in memory.

        Args, errors: as for `batches`.
        """
        schema = self._schema_of(columns)
        return pa.RecordBatchReader.from_batches(schema, self._batches(schema, rows=BATCH_ROWS))

    def to_pandas(self, *, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The table as a DataFrame, which holds all rows; `iterate_pandas` gives it in pieces.

        Args, errors: as for `batches`.
        """
        frame: pd.DataFrame = self.to_arrow(columns=columns).read_pandas()
        return frame

    def iterate_pandas(
        self, *, columns: Sequence[str] | None = None, rows: int = BATCH_ROWS
    ) -> Iterator[pd.DataFrame]:
        """The table as DataFrames of at most so many rows.

        Args, errors: as for `batches`.
        """
        return (batch.to_pandas() for batch in self.batches(columns=columns, rows=rows))

    def to_datasets(
        self, *, columns: Sequence[str] | None = None, streaming: bool = False
    ) -> Dataset | IterableDataset:
        """The table as a data set of Hugging Face's `datasets`, in which `image` of pairs is a picture.

        Args:
            columns: those that are wanted; by default all.
            streaming: an `IterableDataset`, which reads the run's files while it is iterated. Otherwise a `Dataset`,
                whose rows are copied once into the cache of `datasets` on disk and mapped from there. Neither is held
                in memory.

        Raises:
            ValueError: there is no such column.
            DamageError: a file is gone or is not what the run wrote.
        """
        import datasets

        schema = self._schema_of(columns)
        features = datasets.Features.from_arrow_schema(schema)
        files = self.files
        if not files:
            if streaming:
                return datasets.IterableDataset.from_generator(lambda: iter(()), features=features)
            return datasets.Dataset(schema.empty_table(), info=datasets.DatasetInfo(features=features))
        # Not the Parquet reader of datasets, which reads sixteen groups of rows ahead, and a group may hold 64 MiB.
        # A list is what datasets shares among workers; sizes and times tell it of a run that was started anew.
        shards = [(path, *_stamp(path)) for path in files]
        given = {"shards": shards, "batches": self._batches_of, "schema": schema}
        kind = datasets.IterableDataset if streaming else datasets.Dataset
        try:
            return kind.from_generator(_rows_of_shards, features=features, gen_kwargs=given)
        except datasets.exceptions.DatasetGenerationError as error:
            if isinstance(error.__cause__, DamageError):
                raise error.__cause__ from None
            raise

    def _schema_of(self, columns: Sequence[str] | None) -> pa.Schema:
        if columns is None:
            return self.schema
        missing = [name for name in columns if name not in self.schema.names]
        if missing:
            raise ValueError(f"columns: no column {missing[0]!r}; there are {', '.join(self.schema.names)}")
        return pa.schema([self.schema.field(name) for name in columns], metadata=self.schema.metadata)

    def _batches(self, schema: pa.Schema, *, rows: int) -> Iterator[pa.RecordBatch]:
        for path in self._files:
            here = self._fetch(path)
            try:
                yield from self._batches_of(here, schema=schema, rows=rows)
            except (pa.ArrowException, OSError) as error:
                raise _damage(here, error=error) from error

    def _num_rows_of(self, path: Path) -> int:
        try:
            return pq.read_metadata(path).num_rows
        except (pa.ArrowException, OSError) as error:
            raise _damage(path, error=error) from error

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {', '.join(self.schema.names)}>"


class Quarantine(Rows[Rejection]):
    """What the run set aside, and why: `quarantine.jsonl`. A run that set nothing aside has no such file.

    Example:
        >>> run.quarantine.by_reason().most_common(3)                              # doctest: +SKIP
    """

    def __init__(self, *, files: Sequence[Path], fetch: Callable[[Path], Path]) -> None:
        super().__init__(schema=_QUARANTINE, files=files, read=_rejections, fetch=fetch, batches=_quarantine_batches)

    def by_reason(self) -> Counter[str]:
        """How many inputs were set aside for each reason."""
        return Counter(rejection.reason for rejection in self)

    def _num_rows_of(self, path: Path) -> int:
        return sum(1 for _ in _rejections(path))


def _rejections(path: Path) -> Iterator[Rejection]:
    """The lines of a quarantine. Half a line at its end is being written; any other that is unreadable is told."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                yield Rejection(**{name: entry[name] for name in ("id", "source", "reason")}, fault=entry["fault"])
            except (ValueError, KeyError, TypeError, RecursionError):
                if line.endswith("\n"):
                    yield Rejection(id=None, source=f"{path.name}:{number}", reason="its line cannot be read")


def _parquet_batches(path: Path, *, schema: pa.Schema, rows: int) -> Iterator[pa.RecordBatch]:
    with open_by_batch(path, page_checksum_verification=True) as file:
        names = [name for name in schema.names if name in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=rows, columns=names, use_threads=False):
            yield _conformed(batch, schema=schema)


def _quarantine_batches(path: Path, *, schema: pa.Schema, rows: int) -> Iterator[pa.RecordBatch]:
    rejections = iter(_rejections(path))
    while held := list(islice(rejections, rows)):
        plain = [{name: getattr(rejection, name) for name in schema.names} for rejection in held]
        yield pa.RecordBatch.from_pylist(plain, schema=schema)


def _conformed(batch: pa.RecordBatch, *, schema: pa.Schema) -> pa.RecordBatch:
    """The batch with these columns, in this order: nulls for those that its file does not have."""
    columns = [
        _as_type(batch.column(field.name), type=field.type)
        if field.name in batch.schema.names
        else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _as_type(column: pa.Array, *, type: pa.DataType) -> pa.Array:
    if not pa.types.is_map(column.type):
        return column if column.type == type else column.cast(type)
    # Files of an earlier version have a map where a list of named values is now.
    items = column.items.flatten() if pa.types.is_struct(column.items.type) else [column.items]
    values = pa.StructArray.from_arrays([column.keys, *items], fields=list(type.value_type))
    return pa.ListArray.from_arrays(column.offsets, values, type=type, mask=column.is_null())


def _rows_of_shards(
    shards: Sequence[tuple[Path, int, int]], batches: ReadsBatches, schema: pa.Schema
) -> Iterator[dict[str, Any]]:
    """For `datasets`, which hashes all that it is given."""
    for path, *_ in shards:
        try:
            for batch in batches(path, schema=schema, rows=BATCH_ROWS):
                yield from batch.to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise _damage(path, error=error) from error


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _damage(path: Path, *, error: Exception) -> DamageError:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return DamageError(f"{path} cannot be read: {reason}; csr-ray check says what of the run is damaged")
