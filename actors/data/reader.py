"""Reads prompt files on the nodes of the cluster, and looks at their pictures there, by Ray Data.

What is read and why a row is set aside is `csr_ray.data.reading`'s, whose functions run here in tasks. Prompts are
read in windows of some thousands: each is a data set of its own, which is carried out and then over, so that nothing
runs while nobody draws, and at most two windows are ahead of whoever draws.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from itertools import islice
from typing import Any, Final

import pyarrow as pa

from actors.data.context import data_context, num_cpus_of_cluster, tasks
from actors.data.work import ERROR, dataset_of, done, tables
from csr_ray.data.images import fault_elsewhere
from csr_ray.data.index import Job
from csr_ray.data.prompts import images_checked
from csr_ray.data.reading import Chunk, Items, Piece, Rules, changed, read_job, scan_piece
from csr_ray.data.rows import RowFile, Stretch
from csr_ray.records import Prompt, Rejection

# The first window is small, so that the first tree need not wait for a large one.
_FIRST_WINDOW: Final = 512
_WINDOW: Final = 8192
# The pictures of a block are looked at by one task.
_PROMPTS_A_BLOCK: Final = 256
_BLOCK_BYTES: Final = 1 << 16

_ITEMS: Final = pa.schema(
    [(name, pa.string()) for name in ("id", "image", "text", "truth", "source", "reason", "fault")]
)


class RayReader:
    """See `csr_ray.data.reading.Reader`. The Ray that it reads on is the one that this process has joined.

    Args:
        connect: joins or starts Ray, if this process has not done so yet; called before files are walked, for which
            nothing else has to be there.
        looks_at_pictures: whether a prompt whose picture cannot be read is given as its rejection.
    """

    def __init__(self, *, connect: Callable[[], None] = lambda: None, looks_at_pictures: bool = True) -> None:
        self._connect = connect
        self._looks_at_pictures = looks_at_pictures

    def scan(
        self, files: Sequence[RowFile], *, pieces: Sequence[Piece], rules: Rules, limit: int | None
    ) -> Generator[Chunk, None, None]:
        self._connect()
        work = [(files[piece.file], piece.stretch, number) for number, piece in enumerate(pieces)]
        with data_context():
            scan = partial(done, do=partial(_scan, rules=rules))
            dataset = dataset_of(work).map_batches(
                scan, batch_size=None, **tasks(min(len(work), num_cpus_of_cluster()))
            )
        with closing(tables(dataset)) as scanned:
            for table in scanned:
                yield from (Chunk(**row) for row in table.to_pylist())

    def read(self, files: Sequence[RowFile], *, jobs: Iterator[Job], rules: Rules) -> Items:
        pool = ThreadPoolExecutor(1, thread_name_prefix="prompt-reader")
        is_over = threading.Event()
        ahead: _Tables | None = None
        try:
            for window in _windows(jobs):
                work = [(files[job.file], job) for job in window]
                following = _Tables()
                pool.submit(self._read_window, work, rules=rules, into=following, is_over=is_over)
                if ahead is not None:
                    yield from _items(ahead)
                ahead = following
            if ahead is not None:
                yield from _items(ahead)
        finally:  # also where nobody draws any more: what is read meanwhile ends with its next block
            is_over.set()
            pool.shutdown(cancel_futures=True)

    def rows_together(self, file: RowFile) -> int | None:
        return file.rows_together

    def _read_window(
        self, work: Sequence[tuple[RowFile, Job]], *, rules: Rules, into: _Tables, is_over: threading.Event
    ) -> None:
        with into.ended():
            dataset = self._dataset(work, rules=rules)
            with closing(tables(dataset)) as read_tables:
                for table in itertools.takewhile(lambda _: not is_over.is_set(), read_tables):
                    into.put(table)

    def _dataset(self, work: Sequence[tuple[RowFile, Job]], *, rules: Rules) -> Any:
        num_cpus = num_cpus_of_cluster()
        num_reading = min(len(work), max(1, num_cpus // 2))
        with data_context(block_bytes=_BLOCK_BYTES):
            read = partial(done, do=partial(_read, rules=rules))
            dataset = dataset_of(work).map_batches(read, batch_size=None, **tasks(num_reading))
            if self._looks_at_pictures:
                # Not as many as read, or Ray Data would make one task of a job's reading and all of its pictures.
                dataset = dataset.map_batches(
                    _look, batch_size=None, batch_format="pyarrow", **tasks(max(num_cpus, num_reading + 1))
                )
        return dataset


class _Tables:
    """What is read of a window, handed from the thread that reads to whoever draws, block by block."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[pa.Table | BaseException | None] = queue.SimpleQueue()

    def put(self, table: pa.Table) -> None:
        self._queue.put(table)

    @contextmanager
    def ended(self) -> Iterator[None]:
        """Nothing is put after the block, and what it raises is raised where the tables are drawn."""
        try:
            yield
        except BaseException as error:
            self._queue.put(error)
        else:
            self._queue.put(None)

    def __iter__(self) -> Iterator[pa.Table]:
        while (table := self._queue.get()) is not None:
            if isinstance(table, BaseException):
                raise table
            yield table


def _windows(jobs: Iterable[Job]) -> Iterator[list[Job]]:
    """Jobs in lists that have about so many prompts that reading them is worth a data set."""
    window: list[Job] = []
    num, most = 0, _FIRST_WINDOW
    for job in jobs:
        window.append(job)
        num += job.flags.count(1)
        if num >= most:
            yield window
            window, num, most = [], 0, _WINDOW
    if window:
        yield window


def _items(tables: Iterable[pa.Table]) -> Iterator[Prompt | Rejection]:
    for table in tables:
        for row in table.to_pylist():
            reason, fault = row.pop("reason"), row.pop("fault")
            prompt = Prompt(**row)
            if reason is not None:  # in the driver, which may see a file that the task's node has not got
                reason, fault = fault_elsewhere(prompt.image, reason=reason, fault=fault)
            yield prompt if reason is None else prompt.refused(reason, fault=fault)


# ---- in tasks ----


def _scan(work: tuple[RowFile, Stretch, int], *, rules: Rules) -> Iterator[pa.Table]:
    file, stretch, number = work
    yield pa.Table.from_pylist([vars(chunk) for chunk in scan_piece(file, stretch, number=number, rules=rules)])


def _read(work: tuple[RowFile, Job], *, rules: Rules) -> Iterator[pa.Table]:
    file, job = work
    items = read_job(file, job, rules=rules)
    while some := list(islice(items, _PROMPTS_A_BLOCK)):
        if not all(isinstance(item, Prompt) for item in some):
            raise changed(file)
        yield _table(some)


def _look(table: pa.Table) -> pa.Table:
    """Notes beside each prompt whose picture cannot be read why that is."""
    errors = table[ERROR.name]
    if errors.null_count < len(errors):
        return table
    prompts = [item for item in _items([table.drop_columns([ERROR.name])]) if isinstance(item, Prompt)]
    with images_checked(prompts) as items:
        faults = [None if isinstance(item, Prompt) else item for item in items]
    return _table(prompts, faults=faults).append_column(ERROR, errors)


def _table(prompts: Sequence[Any], *, faults: Sequence[Rejection | None] | None = None) -> pa.Table:
    faults = faults or [None] * len(prompts)
    rows = [
        {**vars(prompt), "reason": fault.reason if fault else None, "fault": fault.fault if fault else None}
        for prompt, fault in zip(prompts, faults, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=_ITEMS)
