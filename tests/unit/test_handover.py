from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from csr_ray.errors import TransferError
from csr_ray.policy.package import FILES, check_package, pack_adapter, write_package


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / FILES[0]).write_text('{"r": 4}')
    (folder / FILES[1]).write_bytes(bytes(range(256)) * 4)
    return folder


def test_what_is_written_is_what_was_packed(adapter: Path, tmp_path: Path) -> None:
    manifest, chunks = pack_adapter(adapter, version=3, chunk_bytes=100)
    assert (manifest.version, manifest.num_bytes, len(chunks)) == (3, 8 + 1024, 12)
    check_package(manifest, chunks)
    folder = write_package(manifest, chunks, folder=tmp_path / "received" / "version_003")
    assert all((folder / file).read_bytes() == (adapter / file).read_bytes() for file in FILES)


def test_truncated_transfers_are_refused(adapter: Path) -> None:
    manifest, chunks = pack_adapter(adapter, version=1, chunk_bytes=100)
    with pytest.raises(TransferError, match="version 1: 11 of 12 chunks arrived"):
        check_package(manifest, chunks[:-1])
    with pytest.raises(TransferError, match=r"chunk 4 of 12 \(99 bytes\)"):
        check_package(manifest, [*chunks[:4], chunks[4][:-1], *chunks[5:]])


def test_exchanged_chunks_are_refused(adapter: Path) -> None:
    manifest, chunks = pack_adapter(adapter, version=1, chunk_bytes=100)
    with pytest.raises(TransferError, match="chunk 2 of 12"):
        check_package(manifest, [*chunks[:2], chunks[3], chunks[2], *chunks[4:]])


def test_wrong_version_number_is_refused(adapter: Path) -> None:
    manifest, chunks = pack_adapter(adapter, version=1, chunk_bytes=100)
    with pytest.raises(TransferError, match="version 2: its manifest is not what was packed"):
        check_package(dataclasses.replace(manifest, version=2), chunks)


def test_incomplete_adapter_folder_is_named(adapter: Path) -> None:
    (adapter / FILES[1]).unlink()
    with pytest.raises(ValueError, match=f"adapter {adapter}: no {FILES[1]}"):
        pack_adapter(adapter, version=1, chunk_bytes=100)
