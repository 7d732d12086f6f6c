"""An adapter folder as numbered, checked chunks of bytes, and back.

Only the LoRA matrices leave the trainer. A package says which policy version it makes, and its digests cover every
byte and that version, so that a truncated, mixed-up or misnumbered transfer is noticed before anything is loaded.
They are XXH3, which runs at the speed of memory: they notice what goes wrong, not what somebody forges. Who may send
at all is the cluster's business (docs/cluster.md). Knows files and digests; knows no object store and no engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from csr_ray.errors import TransferError
from csr_ray.store.atomic import new_folder

FILES = ("adapter_config.json", "adapter_model.safetensors")
Chunk = np.ndarray[Any, np.dtype[np.uint8]]
"""Bytes of one file. As an array they are copied once into an object store's pages, and not at all out of them."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a package consists of, and which policy version it makes.

    Attributes:
        version: the policy version that the base and all packages up to this one make together.
        sizes_bytes: the sizes of `FILES`, in that order. No chunk has bytes of two of them.
        chunk_digests: XXH3 of every chunk.
        digest: XXH3 over the version, the sizes and the chunks' digests.
    """

    version: int
    sizes_bytes: tuple[int, ...]
    chunk_digests: tuple[str, ...]
    digest: str

    @property
    def num_bytes(self) -> int:
        return sum(self.sizes_bytes)


def pack_adapter(folder: Path, *, version: int, chunk_bytes: int) -> tuple[Manifest, list[Chunk]]:
    """The manifest of an adapter folder, and its bytes as chunks of at most `chunk_bytes`, which are mapped files.

    Raises:
        ValueError: a file is missing or empty.
    """
    chunks: list[Chunk] = []
    sizes_bytes = []
    for name in FILES:
        file = folder / name
        if not file.is_file() or not file.stat().st_size:
            raise ValueError(f"adapter {folder}: no {name}")
        content = np.memmap(file, dtype=np.uint8, mode="r")
        sizes_bytes.append(len(content))
        chunks += [np.asarray(content[start : start + chunk_bytes]) for start in range(0, len(content), chunk_bytes)]
    chunk_digests = tuple(_chunk_digest(chunk) for chunk in chunks)
    digest = _digest(version=version, sizes_bytes=tuple(sizes_bytes), chunk_digests=chunk_digests)
    manifest = Manifest(version=version, sizes_bytes=tuple(sizes_bytes), chunk_digests=chunk_digests, digest=digest)
    return manifest, chunks


def check_package(manifest: Manifest, chunks: Sequence[Chunk]) -> None:
    """Hold what arrived to what was packed.

    Raises:
        TransferError: something is missing, altered, or belongs to another version; says what.
    """
    expected = _digest(
        version=manifest.version, sizes_bytes=manifest.sizes_bytes, chunk_digests=manifest.chunk_digests
    )
    if manifest.digest != expected:
        raise TransferError(f"adapter of version {manifest.version}: its manifest is not what was packed")
    if len(chunks) != len(manifest.chunk_digests):
        raise TransferError(
            f"adapter of version {manifest.version}: {len(chunks)} of {len(manifest.chunk_digests)} chunks arrived"
        )
    for number, (chunk, digest) in enumerate(zip(chunks, manifest.chunk_digests, strict=True)):
        if _chunk_digest(chunk) != digest:
            raise TransferError(
                f"adapter of version {manifest.version}: chunk {number} of {len(chunks)} ({len(chunk)} bytes) is "
                f"not what was sent"
            )


def write_package(manifest: Manifest, chunks: Iterable[Chunk], *, folder: Path) -> Path:
    """Write a package that has been checked to `folder`, which appears whole or not at all; returns it."""
    # Not synced: who lost it would ask for it again.
    rest = iter(chunks)
    with new_folder(folder, is_durable=False) as staging:
        for name, size_bytes in zip(FILES, manifest.sizes_bytes, strict=True):
            with (staging / name).open("wb") as file:
                _fill(file, rest, size_bytes=size_bytes)
    return folder


def _fill(file: Any, chunks: Iterator[Chunk], *, size_bytes: int) -> None:
    while size_bytes:
        chunk = next(chunks)
        file.write(chunk.data)
        size_bytes -= len(chunk)
        assert size_bytes >= 0, "a chunk has bytes of two files"


def _chunk_digest(chunk: Chunk) -> str:
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(chunk).data)


def _digest(*, version: int, sizes_bytes: tuple[int, ...], chunk_digests: tuple[str, ...]) -> str:
    return xxhash.xxh3_128_hexdigest(repr((version, sizes_bytes, chunk_digests)).encode())
