"""Digests of files: what a line of the journal says of the files that it speaks of, and how a file is held to that.

A digest is the file's size and its xxh3_128, which is computed at the speed of memory. It finds what goes wrong by
itself (a flipped bit, a cut file, one file in another's place); it is no seal against somebody who forges a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO

import xxhash

from csr_ray.records import JsonDict

_CHUNK_BYTES = 1 << 20
_NUM_THREADS = 8
_FILES_A_TASK = 256


@dataclass(frozen=True)
class Digest:
    """What a file is expected to be."""

    num_bytes: int
    xxh3: str

    @classmethod
    def of_bytes(cls, data: bytes | memoryview) -> Digest:
        return cls(len(data), xxhash.xxh3_128_hexdigest(data))

    @classmethod
    def of_file(cls, path: Path) -> Digest:
        """Read a file from its beginning to its end."""
        state, num_bytes = xxhash.xxh3_128(), 0
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK_BYTES):
                state.update(chunk)
                num_bytes += len(chunk)
        return cls(num_bytes, state.hexdigest())

    @classmethod
    def from_plain(cls, plain: Mapping[str, object]) -> Digest:
        return cls(int(str(plain["bytes"])), str(plain["xxh3"]))

    def to_plain(self) -> JsonDict:
        return {"bytes": self.num_bytes, "xxh3": self.xxh3}


class DigestingFile:
    """A file that is written from its beginning to its end, whose digest is known when it is closed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._state = xxhash.xxh3_128()
        self._num_bytes = 0

    @property
    def closed(self) -> bool:
        return self._file.closed

    @property
    def digest(self) -> Digest:
        """Of what has been written so far."""
        return Digest(self._num_bytes, self._state.hexdigest())

    def write(self, data: bytes) -> int:
        self._file.write(data)
        self._state.update(data)
        self._num_bytes += len(data)
        return len(data)

    def tell(self) -> int:
        return self._num_bytes

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def digests_of_folder(folder: Path) -> dict[Path, Digest]:
    """The digest of every file below a folder, by path.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    return {path: Digest.of_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def plain_files(digests: Mapping[Path, Digest], *, root: Path) -> JsonDict:
    """Digests as a line of the journal has them: by the file's name within the run folder."""
    return {path.relative_to(root).as_posix(): digest.to_plain() for path, digest in digests.items()}


def damage_of(path: Path, *, expected: Digest) -> str | None:
    """What is wrong with a file, in a few words; None if it is what it was written as."""
    try:
        status = path.stat()
        if not S_ISREG(status.st_mode):
            return "is no file"
        num_bytes = status.st_size
        if num_bytes != expected.num_bytes:
            return f"has {num_bytes} bytes, and was written with {expected.num_bytes}"
        found = Digest.of_file(path)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return None if found == expected else "has not the bytes that were written (its digest differs)"


def find_damage(files: Iterable[tuple[Path, Digest]]) -> Iterator[tuple[Path, str]]:
    """The damaged ones of many files, each with what is wrong; in threads, and without holding the whole list."""

    def look(batch: list[tuple[Path, Digest]]) -> list[tuple[Path, str]]:
        wrong = ((path, damage_of(path, expected=expected)) for path, expected in batch)
        return [(path, reason) for path, reason in wrong if reason is not None]

    remaining = iter(files)
    with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="verify") as pool:
        # A few batches at a time, because a round may have a hundred thousand files.
        while batches := [
            batch for _ in range(2 * _NUM_THREADS) if (batch := list(islice(remaining, _FILES_A_TASK)))
        ]:
            for found in pool.map(look, batches):
                yield from found


def short_hash(text: str) -> int:
    """Eight bytes that stand for a text where there may be a million of them."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
