"""What is known of a prompt source after it has been walked once: where its rows are, and which of them are prompts.

With it, prompts are found by their position, and whether a prompt is done is seen by the hash of its id, without
reading a row. An index of a large source is kept on the disk, and there it also stays while it is used: of a million
rows it has nine megabytes, which are read as they are needed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

import numpy as np

from csr_ray import __version__
from csr_ray.data.rows import Stretch
from csr_ray.data.sources import stamp_of
from csr_ray.errors import StorageError
from csr_ray.store.atomic import new_folder

# Changes with what is in an index, or with what makes a row a prompt.
_FORM: Final = 1


@dataclass(frozen=True, kw_only=True)
class Job:
    """Rows of one file that are read together.

    Attributes:
        file: its number among the source's files.
        flags: one byte for each row from the beginning of `stretch` on; rows of a true one are wanted.
    """

    file: int
    stretch: Stretch
    flags: bytes


@dataclass(frozen=True, kw_only=True)
class Index:
    """Arrays over the chunks of rows that files were walked in, over all rows, and over the usable ones.

    Attributes:
        files: of a chunk, the number of its file.
        begins, ends, numbers: of a chunk, see `Stretch`.
        num_rows: of a chunk.
        usable: of a row, 1 if it is a prompt; those that the limit cuts off are not there.
        hashes: of a prompt's id (`csr_ray.store.digests.short_hash`).
        first_files, first_numbers: of each row that repeats an id, the file and the number of the row that had it
            first.
    """

    files: np.ndarray
    begins: np.ndarray
    ends: np.ndarray
    numbers: np.ndarray
    num_rows: np.ndarray
    usable: np.ndarray
    hashes: np.ndarray
    first_files: np.ndarray
    first_numbers: np.ndarray

    def __post_init__(self) -> None:
        first_rows = np.concatenate(([0], np.cumsum(self.num_rows, dtype=np.int64)))
        sums = [int(np.count_nonzero(self.usable[begin:end])) for begin, end in itertools.pairwise(first_rows)]
        object.__setattr__(self, "_first_rows", first_rows)
        object.__setattr__(self, "_first_prompts", np.concatenate(([0], np.cumsum(sums, dtype=np.int64))))

    _first_rows = _first_prompts = np.zeros(1, dtype=np.int64)

    @property
    def num(self) -> int:
        """How many prompts there are."""
        return int(self._first_prompts[-1])

    def prompts(self, begin: int, end: int, *, chosen: np.ndarray | None, together: Together) -> Iterator[Job]:
        """What to read for the prompts at the positions from `begin` to before `end`.

        Args:
            chosen: a flag for each of these positions; None: all of them.
        """

        def flags(chunk: int) -> np.ndarray:
            rows = self._rows(chunk).astype(np.bool_)
            places = np.flatnonzero(rows)
            positions = int(self._first_prompts[chunk]) + np.arange(len(places))
            wanted = (positions >= begin) & (positions < end)
            if chosen is not None:
                wanted[wanted] = chosen[positions[wanted] - begin]
            rows[places[~wanted]] = False
            return rows

        first = int(np.searchsorted(self._first_prompts, begin, side="right")) - 1
        last = int(np.searchsorted(self._first_prompts, end, side="left"))
        return self._jobs(range(max(first, 0), min(last, len(self.files))), flags=flags, together=together)

    def others(self, *, together: Together) -> Iterator[Job]:
        """What to read for the rows that are no prompts."""
        return self._jobs(range(len(self.files)), flags=lambda chunk: self._rows(chunk) == 0, together=together)

    def rows(self, chosen: np.ndarray, *, together: Together) -> Iterator[Job]:
        """What to read for some of all rows; `chosen` has a flag for each."""
        bounds = self._first_rows
        return self._jobs(
            range(len(self.files)),
            flags=lambda chunk: chosen[bounds[chunk] : bounds[chunk + 1]].astype(np.bool_),
            together=together,
        )

    def _rows(self, chunk: int) -> np.ndarray:
        return np.asarray(self.usable[self._first_rows[chunk] : self._first_rows[chunk + 1]])

    def _jobs(
        self, chunks: Sequence[int], *, flags: Callable[[int], np.ndarray], together: Together
    ) -> Iterator[Job]:
        """Joins chunks that follow each other in a file, up to so many rows as are to be read together."""
        held: list[np.ndarray] = []
        first = 0

        def job() -> Job:
            last = first + len(held) - 1
            stretch = Stretch(
                begin=int(self.begins[first]), end=int(self.ends[last]), number=int(self.numbers[first])
            )
            return Job(file=int(self.files[first]), stretch=stretch, flags=np.concatenate(held).tobytes())

        for chunk in chunks:
            some = flags(chunk)
            is_wanted = bool(some.any())
            if held:
                most = together(int(self.files[first]))
                is_full = most is not None and (not is_wanted or sum(map(len, held)) + len(some) > most)
                if is_full or self.files[chunk] != self.files[first]:
                    yield job()
                    held = []
            if held or is_wanted:
                first = first if held else chunk
                held.append(some)
        if held:
            yield job()


Together = Callable[[int], int | None]
"""Of a file, by its number: how many rows to read together; None: whatever is wanted of it, at once."""


@dataclass(frozen=True)
class KeptIndex:
    """Where the index of a source is kept.

    Args:
        folder: for the indexes of all sources.
        key: of the source as it is now.
    """

    folder: Path
    key: str

    @classmethod
    def of(cls, folder: Path, *, files: Sequence[str], rules: object) -> KeptIndex | None:
        """None if nobody can tell whether these files are still the same later.

        Args:
            rules: all else that decides which rows are prompts; its `repr` counts.
        """
        stamps = [stamp_of(file) for file in files]
        if None in stamps:
            return None
        named = json.dumps([_FORM, __version__, repr(rules), list(zip(files, stamps, strict=True))])
        return cls(folder, hashlib.blake2b(named.encode(), digest_size=16).hexdigest())

    def load(self) -> Index | None:
        """The index; None if there is none, or none that can be used."""
        try:
            arrays = {
                field.name: np.load(self._path / f"{field.name}.npy", mmap_mode="r", allow_pickle=False)
                for field in fields(Index)
            }
            index = Index(**{name: array if name in _LARGE else np.array(array) for name, array in arrays.items()})
        except (OSError, ValueError, EOFError):
            return None
        is_whole = len(index.hashes) == index.num and len(index.usable) == index.num_rows.sum()
        return index if is_whole else None

    def save(self, index: Index) -> Index:
        """Keep an index, and give it as it lies on the disk; where that cannot be, as it is."""
        try:
            with new_folder(self._path, is_durable=False) as folder:
                for field in fields(Index):
                    np.save(folder / f"{field.name}.npy", getattr(index, field.name), allow_pickle=False)
        except StorageError:  # it can be made again
            return index
        return self.load() or index

    @property
    def _path(self) -> Path:
        return self.folder / self.key


_LARGE: Final = ("usable", "hashes")
