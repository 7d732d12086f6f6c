"""An adapter folder as numbered, checked chunks of bytes, and back.

Only the LoRA matrices leave the trainer. A package says which policy version it makes, and its digests cover every
byte and that version, so that a truncated, mixed-up or misnumbered transfer is noticed before anything is loaded.
Knows files and digests; knows no object store and no engine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from csr_ray.errors import TransferError
from csr_ray.store.atomic import new_folder

FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a package consists of, and which policy version it makes.

    Attributes:
        version: the policy version that the base and all packages up to this one make together.
        sizes_bytes: the sizes of `FILES`, in that order.
        chunk_digests: SHA-256 of every chunk.
        digest: SHA-256 over the version, the sizes and the chunks' digests.
    """

    version: int
    sizes_bytes: tuple[int, ...]
    chunk_digests: tuple[str, ...]
    digest: str

    @property
    def num_bytes(self) -> int:
        return sum(self.sizes_bytes)


def pack_adapter(folder: Path, *, version: int, chunk_bytes: int) -> tuple[Manifest, list[bytes]]:
    """Read an adapter folder; return its manifest and its bytes as chunks of `chunk_bytes`, the last one shorter.

    Raises:
        ValueError: a file is missing.
    """
    for file in FILES:
        if not (folder / file).is_file():
            raise ValueError(f"adapter {folder}: no {file}")
    contents = [(folder / file).read_bytes() for file in FILES]
    content = b"".join(contents)
    chunks = [content[start : start + chunk_bytes] for start in range(0, len(content), chunk_bytes)]
    sizes_bytes = tuple(len(part) for part in contents)
    chunk_digests = tuple(hashlib.sha256(chunk).hexdigest() for chunk in chunks)
    digest = _digest(version=version, sizes_bytes=sizes_bytes, chunk_digests=chunk_digests)
    return Manifest(version=version, sizes_bytes=sizes_bytes, chunk_digests=chunk_digests, digest=digest), chunks


def unpack_adapter(manifest: Manifest, chunks: Iterable[bytes], *, folder: Path) -> Path:
    """Write the package to `folder`, which appears whole or not at all; returns it.

    Raises:
        TransferError: something is missing, altered, or belongs to another version; says what.
    """
    expected = _digest(
        version=manifest.version, sizes_bytes=manifest.sizes_bytes, chunk_digests=manifest.chunk_digests
    )
    if manifest.digest != expected:
        raise TransferError(f"adapter of version {manifest.version}: its manifest is not what was packed")
    received = list(chunks)
    if len(received) != len(manifest.chunk_digests):
        raise TransferError(
            f"adapter of version {manifest.version}: {len(received)} of {len(manifest.chunk_digests)} chunks arrived"
        )
    for number, (chunk, digest) in enumerate(zip(received, manifest.chunk_digests, strict=True)):
        if hashlib.sha256(chunk).hexdigest() != digest:
            raise TransferError(
                f"adapter of version {manifest.version}: chunk {number} of {len(received)} ({len(chunk)} bytes) is "
                f"not what was sent"
            )
    content = b"".join(received)
    # Not synced: who lost it would ask for it again.
    with new_folder(folder, is_durable=False) as staging:
        start = 0
        for file, size_bytes in zip(FILES, manifest.sizes_bytes, strict=True):
            (staging / file).write_bytes(content[start : start + size_bytes])
            start += size_bytes
    return folder


def _digest(*, version: int, sizes_bytes: tuple[int, ...], chunk_digests: tuple[str, ...]) -> str:
    return hashlib.sha256(repr((version, sizes_bytes, chunk_digests)).encode()).hexdigest()
