"""Reads prompt files: what is usable goes on, everything else is set aside with a reason.

`PromptFile` is a stream of any length; `read_prompts` is a list, whose images have all been looked at. Does not know
file formats (`csr_ray.data.rows`), what makes a row a prompt (`csr_ray.data.parsing`), how an image is decoded
(`csr_ray.data.images`), or where the quarantine is written.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np

from csr_ray.data.files import UnreadableError
from csr_ray.data.images import check_image, load_image
from csr_ray.data.index import Index, Job, KeptIndex
from csr_ray.data.parsing import check_places, image_folders, is_unicode, parse_row
from csr_ray.data.reading import Chunk, LocalReader, Piece, Reader, Rules, changed
from csr_ray.data.rows import PROMPT_TEXTS, Row, RowFile, decode_text, read_json_rows
from csr_ray.data.sources import prompt_files
from csr_ray.records import Prompt, Rejection

__all__ = [
    "OnProgress",
    "PromptFile",
    "Row",
    "check_image",
    "decode_text",
    "find_readable",
    "is_unicode",
    "load_image",
    "read_json_rows",
    "read_prompts",
]

OnProgress = Callable[[int, int], None]
"""Called with (rows looked at, rows to look at if no further one turns out bad)."""

_NUM_CHECKERS: Final = min(8, (os.cpu_count() or 1) + 2)
# Ids that are held at once while those with equal hashes are compared; more of them take further walks.
_NUM_IDS_HELD: Final = 1 << 16


class PromptFile:
    """The usable prompts of a file, read as a stream: one row at a time is held, however many there are.

    JSONL, a JSON list, CSV or Parquet with id, image, prompt and optionally truth; CSR's release (id, image, input)
    is read as it is; a WebDataset tar; or a folder of such files, which are read in the order of their names. A JSON
    list, the release included, is held whole while it is read; a large one is better written as JSONL. Building it
    walks the files once and opens no image: whether an image can be read shows when it is used. What stays of that
    walk (`csr_ray.data.index`) is nine bytes for each row, and eight more for a row that repeats an id.

    Args:
        source: path or fsspec URL of the prompt file, or of a folder of prompt files.
        images: folder that relative image names start from; None: the prompt file's own folder, or its `images`.
        limit: the first so many usable prompts are all there are; None: those of all files.
        refuses: see `Rules`.
        urls: whether images may be web pages (`data.urls`).
        reader: who walks the files, and reads what is streamed.
        index_folder: where the index is kept, so that the next to open this source need not walk it; None: nowhere.
        refuses_what: names what `refuses` goes by, for the index.
        texts: the columns that may have a row's text.
        may_repeat: whether rows of one id are all taken.
        on_rows: called with the number of rows walked so far, now and then.

    Raises:
        ConfigError: a file or the image folder is missing, or a file is of no known format. The iterators raise it
            when a file is no longer what it was at first.
    """

    def __init__(
        self,
        source: str,
        *,
        images: str | None,
        limit: int | None,
        refuses: Callable[[Prompt], str | None] = lambda _: None,
        urls: bool = False,
        reader: Reader | None = None,
        index_folder: Path | None = None,
        refuses_what: str = "",
        texts: tuple[str, ...] = PROMPT_TEXTS,
        may_repeat: bool = False,
        on_rows: Callable[[int], None] = lambda _: None,
    ) -> None:
        names, folders = open_source(source, images=images, urls=urls)
        self.rules = Rules(folders=folders, urls=urls, refuses=refuses, texts=texts)
        self._may_repeat = may_repeat
        self._reader = reader or LocalReader()
        self._on_rows = on_rows
        kept = None
        if index_folder is not None:
            kept = KeptIndex.of(index_folder, files=names, rules=(urls, limit, refuses_what, texts, may_repeat))
        self._files = [RowFile(name, texts=texts) for name in names]
        index = kept.load() if kept else None
        if index is None:
            index = self._walk(limit)
            if kept is not None:
                index = kept.save(index)
        self._index = index

    @property
    def num(self) -> int:
        """How many usable prompts there are, at most `limit`."""
        return self._index.num

    def rejections(self) -> Iterator[Rejection]:
        """The rows that are set aside, in file order, up to where the limit stopped."""
        firsts = iter(zip(self._index.first_files, self._index.first_numbers, strict=True))
        for job in self._index.others(together=lambda _: None):
            file = self._files[job.file]
            for row in file.rows(stretch=job.stretch, chosen=job.flags.rstrip(b"\0")):
                item = self.rules.parse(row)
                if isinstance(item, Prompt):
                    first = next(firsts, None)
                    if first is None:
                        raise changed(file)
                    item = _repeated(item, first_source=self._files[first[0]].place(int(first[1])))
                yield item

    def take(self, *, start: int = 0, num: int | None = None) -> Iterator[Prompt]:
        """The usable prompts in file order, from position `start` on, wrapping around after the last one.

        Rows before `start` are not read where a file can be entered anywhere.

        Args:
            start: from 0; counted on around the files if it is past the last prompt.
            num: how many, at most `self.num`; None: all, once.
        """
        local = LocalReader()
        for begin, end in self._parts(start, num=num):
            jobs = self._index.prompts(begin, end, chosen=None, together=lambda _: None)
            for item in local.read(self._files, jobs=jobs, rules=self.rules):
                assert isinstance(item, Prompt), "it opens no picture"
                yield item

    def stream(
        self, *, start: int = 0, num: int | None = None, chosen: np.ndarray | None = None
    ) -> Iterator[Prompt | Rejection]:
        """What `take` gives, or only the chosen of them, as the source's reader reads it.

        Args:
            chosen: a flag for each prompt that `take` would give; None: all.
        """
        done = 0
        for begin, end in self._parts(start, num=num):
            some = None if chosen is None else chosen[done : done + end - begin]
            done += end - begin
            jobs = self._index.prompts(begin, end, chosen=some, together=self._together)
            yield from self._reader.read(self._files, jobs=jobs, rules=self.rules)

    def hashes(self, *, start: int = 0, num: int | None = None) -> np.ndarray:
        """Of the prompts that `take` would give, the `short_hash` of each id; no row is read for it."""
        parts = [self._index.hashes[begin:end] for begin, end in self._parts(start, num=num)]
        return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, dtype=np.uint64), *parts])

    def archives(self) -> list[str]:
        """The files with prompts that are tars, whose members the pictures are; their paths or URLs."""
        used = np.unique(self._index.files).tolist()
        return [self._files[number].source for number in used if self._files[number].is_archive]

    def jobs(self) -> Iterator[tuple[int, RowFile, Job]]:
        """What to read for all prompts, piece by piece: the first one's position, the file, and its rows."""
        position = 0
        together = [file.rows_together for file in self._files]
        for job in self._index.prompts(0, self.num, chosen=None, together=together.__getitem__):
            yield position, self._files[job.file], job
            position += job.flags.count(1)

    def _parts(self, start: int, *, num: int | None) -> list[tuple[int, int]]:
        """From where to where the prompts are taken: up to the last one, and on from the first."""
        num = self.num if num is None else num
        assert start >= 0 and 0 <= num <= self.num, (start, num, self.num)
        start = start % self.num if self.num else 0
        before_end = min(num, self.num - start)
        return [part for part in ((start, start + before_end), (0, num - before_end)) if part[0] < part[1]]

    def _together(self, file: int) -> int | None:
        return self._reader.rows_together(self._files[file])

    # ---- the first walk ----

    def _walk(self, limit: int | None) -> Index:
        """Parse rows until `limit` usable ones are certain."""
        pieces = [
            Piece(file=number, stretch=stretch)
            for number, file in enumerate(self._files)
            for stretch in file.pieces()
        ]
        walked = _Walked(pieces)
        repeats: _Repeats | None = None
        look_at = limit
        scan = self._reader.scan(self._files, pieces=pieces, rules=self.rules, limit=limit)
        with closing(scan) as chunks:
            for chunk in chunks:
                walked.add(chunk)
                self._on_rows(walked.num_rows)
                repeats = None
                if limit is not None and look_at is not None and walked.num_parsed >= look_at:
                    repeats = self._find_repeats(walked)
                    if walked.num_parsed - len(repeats.rows) >= limit:
                        break
                    look_at = 2 * walked.num_parsed
        repeats = repeats or self._find_repeats(walked)
        usable = walked.parsed()
        usable[repeats.rows] = 0
        if limit is not None and np.count_nonzero(usable) >= limit:
            usable = usable[: np.flatnonzero(usable)[limit - 1] + 1]
        return walked.index(usable, repeats=repeats)

    def _find_repeats(self, walked: _Walked) -> _Repeats:
        """Find the rows whose id an earlier one has.

        Ids whose hashes are equal are read again and compared, about `_NUM_IDS_HELD` of them a walk.
        """
        if self._may_repeat:
            return _Repeats.of([])
        keys = walked.hashes()
        is_parsed = walked.parsed().astype(np.bool_)
        in_order = keys[is_parsed]
        in_order.sort()
        shared = np.unique(in_order[1:][in_order[1:] == in_order[:-1]])
        del in_order
        found: list[tuple[int, int, int]] = []
        index = walked.index(walked.parsed(), repeats=_Repeats.of(found)) if len(shared) else None
        for begin in range(0, len(shared), _NUM_IDS_HELD):
            assert index is not None
            some = shared[begin : begin + _NUM_IDS_HELD]
            suspects = is_parsed & (some[np.searchsorted(some, keys).clip(max=len(some) - 1)] == keys)
            # Equal hashes accuse, equal ids convict.
            first_of: dict[str, tuple[int, int]] = {}
            places = iter(np.flatnonzero(suspects).tolist())
            for job in index.rows(suspects, together=lambda _: None):
                file = self._files[job.file]
                for row in file.rows(stretch=job.stretch, chosen=job.flags.rstrip(b"\0")):
                    item = self.rules.parse(row)
                    if not isinstance(item, Prompt):
                        raise changed(file)
                    place, here = next(places), (job.file, row.number)
                    if (first := first_of.setdefault(item.id, here)) != here:
                        found.append((place, *first))
        return _Repeats.of(sorted(found))


@dataclass(frozen=True, kw_only=True)
class _Repeats:
    """Rows whose id an earlier one has, in file order; and the file and the number of that earlier row of each."""

    rows: np.ndarray
    first_files: np.ndarray
    first_numbers: np.ndarray

    @classmethod
    def of(cls, found: Sequence[tuple[int, int, int]]) -> _Repeats:
        table = np.array(found, dtype=np.int64).reshape(-1, 3)
        return cls(rows=table[:, 0].copy(), first_files=table[:, 1].copy(), first_numbers=table[:, 2].copy())


class _Walked:
    """The chunks that have been walked so far, with numbers that count from the beginning of each file."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._pieces = pieces
        self._chunks: list[tuple[int, int, int, int, int]] = []  # file, begin, end, number, rows
        self._parsed: list[bytes] = []
        self._hashes: list[bytes] = []
        self._num_before = 0  # rows or lines of this file in the pieces before this one
        self.num_rows = self.num_parsed = 0

    def add(self, chunk: Chunk) -> None:
        file = self._pieces[chunk.piece].file
        if chunk.parsed:
            number = self._num_before + chunk.number
            self._chunks.append((file, chunk.begin, chunk.end, number, len(chunk.parsed)))
            self._parsed.append(chunk.parsed)
            self._hashes.append(chunk.hashes)
            self.num_rows += len(chunk.parsed)
            self.num_parsed += chunk.parsed.count(1)
        if chunk.is_last:
            following = self._pieces[chunk.piece + 1 : chunk.piece + 2]
            is_in_same_file = bool(following) and following[0].file == file
            self._num_before = self._num_before + chunk.next_number - 1 if is_in_same_file else 0

    def parsed(self) -> np.ndarray:
        """A flag a row, 1 if it is a prompt."""
        return np.frombuffer(bytearray().join(self._parsed), dtype=np.uint8)

    def hashes(self) -> np.ndarray:
        return np.frombuffer(b"".join(self._hashes), dtype=np.uint64)

    def index(self, usable: np.ndarray, *, repeats: _Repeats) -> Index:
        """An index of the first rows, as many as there are flags for."""
        table = np.array(self._chunks, dtype=np.int64).reshape(-1, 5)
        bounds = np.concatenate(([0], np.cumsum(table[:, 4])))
        num_chunks = int(np.searchsorted(bounds, len(usable), side="left"))
        table = table[:num_chunks].copy()
        if num_chunks:
            table[-1, 4] = len(usable) - bounds[num_chunks - 1]
        is_there = repeats.rows < len(usable)
        return Index(
            files=table[:, 0].copy(),
            begins=table[:, 1].copy(),
            ends=table[:, 2].copy(),
            numbers=table[:, 3].copy(),
            num_rows=table[:, 4].copy(),
            usable=usable,
            hashes=self.hashes()[: len(usable)][usable.astype(np.bool_)],
            first_files=repeats.first_files[is_there],
            first_numbers=repeats.first_numbers[is_there],
        )


def read_prompts(
    source: str,
    *,
    images: str | None,
    limit: int | None,
    on_progress: OnProgress | None = None,
    urls: bool = False,
) -> tuple[list[Prompt], list[Rejection]]:
    """Read the first `limit` usable prompts of a file, in file order, and what was set aside on the way.

    The file is read as `PromptFile` reads it. Every image that is passed on has been decoded once, in threads, so the
    limit counts prompts with sound images. `source` of the prompts is left empty: they are the same in any format.

    Args:
        source: path or fsspec URL of the prompt file.
        images: folder that relative image names start from; None: the prompt file's own folder, or its `images`.
        limit: stop after so many usable prompts; None: read all.
        urls: whether images may be web pages (`data.urls`).

    Raises:
        ConfigError: the file or the image folder is missing, or the file is of no known format.
    """
    names, folders = open_source(source, images=images, urls=urls)
    files = [RowFile(name) for name in names]
    num_rows = 0 if on_progress is None else sum(file.count() for file in files)
    rows = chain.from_iterable(file.rows() for file in files)
    prompts: list[Prompt] = []
    rejections: list[Rejection] = []
    with images_checked(_parse_rows(rows, folders=folders, urls=urls)) as items:
        for item in items:
            if isinstance(item, Prompt):
                prompts.append(replace(item, source=""))
            else:
                rejections.append(item)
            if on_progress is not None:
                num_wanted = num_rows if limit is None else limit
                on_progress(len(prompts) + len(rejections), min(num_rows, num_wanted + len(rejections)))
            if limit is not None and len(prompts) >= limit:
                break
    return prompts, rejections


def open_source(source: str, *, images: str | None, urls: bool) -> tuple[list[str], tuple[str, ...]]:
    """The files of `data.prompts`, and the folders that relative image names in them start from.

    Raises:
        ConfigError: one of these is not there, or is where nobody may read.
    """
    source = os.path.expanduser(source)
    check_places(source, images=images, urls=urls)
    files = prompt_files(source)
    return files, image_folders(source, images=images, is_folder=files != [source])


def find_readable(prompts: Iterable[Prompt]) -> tuple[bool, list[Rejection]]:
    """Look at the images of prompts, in threads and a few ahead, until one can be read.

    Returns:
        Whether there is one, and the prompts before it as rejections.
    """
    rejections: list[Rejection] = []
    return first_readable(prompts, on_rejection=rejections.append) is not None, rejections


def first_readable(
    prompts: Iterable[Prompt], *, on_rejection: Callable[[Rejection], None] = lambda _: None
) -> Prompt | None:
    """The first prompt whose image can be read, looked for in threads and a few ahead; None if there is none."""
    with images_checked(prompts) as items:
        for item in items:
            if isinstance(item, Prompt):
                return item
            on_rejection(item)
    return None


def _parse_rows(rows: Iterable[Row], *, folders: tuple[str, ...], urls: bool) -> Iterator[Prompt | Rejection]:
    first_seen: dict[str, str] = {}
    for row in rows:
        item = parse_row(row, folders=folders, urls=urls)
        if isinstance(item, Prompt) and item.id in first_seen:
            item = _repeated(item, first_source=first_seen[item.id])
        elif isinstance(item, Prompt):
            first_seen[item.id] = row.source
        yield item


def _repeated(prompt: Prompt, *, first_source: str) -> Rejection:
    reason = f"duplicate id; it is first used at {first_source}"
    return Rejection(id=prompt.id, source=prompt.source, reason=reason)


# ---- images ----


@contextmanager
def images_checked(items: Iterable[Prompt | Rejection]) -> Iterator[Iterator[Prompt | Rejection]]:
    """Give the items in order, with a Rejection for each prompt whose image is bad.

    Images are decoded ahead in threads; at the end of the block, decodes that have not begun are cancelled.
    """
    with ThreadPoolExecutor(_NUM_CHECKERS, thread_name_prefix="image-check") as pool:
        try:
            yield _with_images_checked(items, pool=pool)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _with_images_checked(
    items: Iterable[Prompt | Rejection], *, pool: ThreadPoolExecutor
) -> Iterator[Prompt | Rejection]:
    """Yield the items in order; looks a few rows ahead, not to the end. An image is decoded once."""
    checks: dict[str, Future[UnreadableError | None]] = {}
    faults: dict[str, UnreadableError | None] = {}
    waiting: deque[Prompt | Rejection] = deque()

    def settle(item: Prompt | Rejection) -> Prompt | Rejection:
        if isinstance(item, Rejection):
            return item
        if item.image in checks:
            faults[item.image] = checks.pop(item.image).result()
        error = faults[item.image]
        return item if error is None else item.refused(str(error), fault=error.fault)

    for item in items:
        if isinstance(item, Prompt) and item.image not in checks and item.image not in faults:
            checks[item.image] = pool.submit(check_image, item.image)
        waiting.append(item)
        if len(waiting) > 4 * _NUM_CHECKERS:
            yield settle(waiting.popleft())
    while waiting:
        yield settle(waiting.popleft())
