"""Reads prompt files: what is usable goes on, everything else is set aside with a reason.

`PromptFile` is a stream of any length; `read_prompts` is a list, whose images have all been looked at. Does not know
file formats (`csr_ray.data.rows`), what makes a row a prompt (`csr_ray.data.parsing`), how an image is decoded
(`csr_ray.data.images`), or where the quarantine is written.
"""

from __future__ import annotations

import os
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice
from typing import Final

import numpy as np

from csr_ray.data.files import UnreadableError
from csr_ray.data.images import check_image, load_image
from csr_ray.data.parsing import image_folders, is_unicode, parse_row
from csr_ray.data.rows import Row, RowFile, decode_text, read_json_rows
from csr_ray.errors import ConfigError
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
    is read as it is. A JSON list, the release included, is held whole while it is read; a large one is better written
    as JSONL. Building it walks the file once and opens no image: whether an image can be read shows when it is used.
    What stays in memory of that walk is two bytes for each row, and eight more for a row that repeats an id.

    Args:
        source: path or fsspec URL of the prompt file.
        images: folder that relative image names start from; None: the prompt file's own folder, or its `images`.
        limit: the first so many usable prompts are all there are; None: those of the whole file.
        refuses: says of a prompt why it cannot be used, or None if it can; it sees the prompt's texts, not its image.
        urls: whether images may be web pages (`data.urls`).

    Raises:
        ConfigError: the file or the image folder is missing, or the file is of no known format. The iterators raise
            it when the file is no longer what it was at first.
    """

    def __init__(
        self,
        source: str,
        *,
        images: str | None,
        limit: int | None,
        refuses: Callable[[Prompt], str | None] = lambda _: None,
        urls: bool = False,
    ) -> None:
        source = os.path.expanduser(source)
        self._refuses = refuses
        self._urls = urls
        self._folders = image_folders(source, images=images, urls=urls)
        self._rows = RowFile(source)
        parsed, repeats, first_numbers = self._walk(limit)
        usable = np.frombuffer(parsed, dtype=np.bool_).copy()
        usable[repeats] = False
        if limit is not None and usable.sum() >= limit:
            usable = usable[: np.flatnonzero(usable)[limit - 1] + 1]
        self._num = int(usable.sum())
        self._usable = usable.tobytes()
        self._set_aside = (~usable).tobytes().rstrip(b"\0")
        # Of each repeat among them, in file order: the number of the row that used its id first.
        self._first_numbers = first_numbers

    @property
    def num(self) -> int:
        """How many usable prompts there are, at most `limit`."""
        return self._num

    def rejections(self) -> Iterator[Rejection]:
        """The rows that are set aside, in file order, up to where the limit stopped."""
        first_numbers = iter(self._first_numbers)
        for row in self._rows.rows(chosen=self._set_aside):
            item = self._item(row, folders=None)
            if isinstance(item, Prompt):
                number = next(first_numbers, None)
                if number is None:
                    raise self._changed()
                item = _repeated(item, first_source=f"{row.place}{number}")
            yield item

    def take(self, *, start: int = 0, num: int | None = None) -> Iterator[Prompt]:
        """The usable prompts in file order, from position `start` on, wrapping around after the last one.

        Lines of JSONL before `start` are counted, not parsed.

        Args:
            start: from 0; counted on around the file if it is past the last prompt.
            num: how many, at most `self.num`; None: all, once.
        """
        num = self._num if num is None else num
        assert start >= 0 and 0 <= num <= self._num, (start, num, self._num)
        start = start % self._num if self._num else 0
        num_before_end = min(num, self._num - start)
        return chain(self._stretch(start, num=num_before_end), self._stretch(0, num=num - num_before_end))

    def _stretch(self, start: int, *, num: int) -> Iterator[Prompt]:
        num_taken = 0
        for row in islice(self._rows.rows(chosen=self._usable, start=start), num):
            item = self._item(row, folders=self._folders)
            if not isinstance(item, Prompt):
                raise self._changed()
            num_taken += 1
            yield item
        if num_taken < num:
            raise self._changed()

    def _item(self, row: Row, *, folders: tuple[str, ...] | None) -> Prompt | Rejection:
        item = parse_row(row, folders=folders, urls=self._urls)
        if isinstance(item, Prompt) and (reason := self._refuses(item)) is not None:
            return item.refused(reason)
        return item

    def _changed(self) -> ConfigError:
        return ConfigError(f"data.prompts = {self._rows.source!r}: changed since it was first read; start again")

    # ---- the first walk ----

    def _walk(self, limit: int | None) -> tuple[bytearray, np.ndarray, array[int]]:
        """Parse rows until `limit` usable ones are certain.

        Returns:
            A flag a row, whether it can be parsed; the positions of the rows that repeat an id; and for each of these
            the number of the row that used it first.
        """
        parsed = bytearray()
        hashes: array[int] = array("q")  # of the ids; 0 for a row without
        num_parsed = 0
        look_at = limit
        for row in self._rows.rows():
            item = self._item(row, folders=None)
            parsed.append(isinstance(item, Prompt))
            hashes.append(_hash_of(item.id) if isinstance(item, Prompt) else 0)
            num_parsed += parsed[-1]
            if num_parsed == look_at:
                repeats, first_numbers = self._find_repeats(parsed, hashes)
                if limit is not None and num_parsed - len(repeats) >= limit:
                    return parsed, repeats, first_numbers
                look_at = 2 * num_parsed
        return parsed, *self._find_repeats(parsed, hashes)

    def _find_repeats(self, parsed: bytearray, hashes: array[int]) -> tuple[np.ndarray, array[int]]:
        """Find the rows whose id an earlier one has, and the numbers of those earlier rows, in file order.

        Ids whose hashes are equal are read again and compared, about `_NUM_IDS_HELD` of them a walk.
        """
        keys = np.frombuffer(hashes, dtype=np.int64)
        is_parsed = np.frombuffer(parsed, dtype=np.bool_)
        in_order = keys[is_parsed]
        in_order.sort()
        shared = np.unique(in_order[1:][in_order[1:] == in_order[:-1]])
        del in_order
        positions: array[int] = array("q")
        first_numbers: array[int] = array("q")
        for begin in range(0, len(shared), _NUM_IDS_HELD):
            some = shared[begin : begin + _NUM_IDS_HELD]
            suspects = is_parsed & (some[np.searchsorted(some, keys).clip(max=len(some) - 1)] == keys)
            # Equal hashes accuse, equal ids convict.
            number_of: dict[str, int] = {}
            rows = self._rows.rows(chosen=suspects.tobytes().rstrip(b"\0"))
            for position, row in zip(np.flatnonzero(suspects), rows, strict=False):
                item = self._item(row, folders=None)
                if not isinstance(item, Prompt):
                    raise self._changed()
                if item.id in number_of:
                    positions.append(int(position))
                    first_numbers.append(number_of[item.id])
                else:
                    number_of[item.id] = row.number
        found = np.array(positions, dtype=np.int64)
        order = np.argsort(found)
        return found[order], array("q", np.array(first_numbers, dtype=np.int64)[order].tobytes())


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
    source = os.path.expanduser(source)
    folders = image_folders(source, images=images, urls=urls)
    file = RowFile(source)
    num_rows = 0 if on_progress is None else file.count()
    prompts: list[Prompt] = []
    rejections: list[Rejection] = []
    with _images_checked(_parse_rows(file.rows(), folders=folders, urls=urls)) as items:
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
    with _images_checked(prompts) as items:
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


def _hash_of(identity: str) -> int:
    """A number of 64 bits, the same for equal ids within this process."""
    return hash(identity)


# ---- images ----


@contextmanager
def _images_checked(items: Iterable[Prompt | Rejection]) -> Iterator[Iterator[Prompt | Rejection]]:
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
