from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from csr_ray.errors import TransferError
from csr_ray.policy.package import FILES, pack_adapter, unpack_adapter


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / FILES[0]).write_text('{"r": 4}')
    (folder / FILES[1]).write_bytes(bytes(range(256)) * 4)
    return folder


def test_what_is_unpacked_is_what_was_packed(adapter: Path, tmp_path: Path) -> None:
    manifest, chunks = pack_adapter(adapter, version=3, chunk_bytes=100)
    assert (manifest.version, manifest.num_bytes, len(chunks)) == (3, 8 + 1024, 12)
    folder = unpack_adapter(manifest, chunks, folder=tmp_path / "received" / "version_003")
    assert all((folder / file).read_bytes() == (adapter / file).read_bytes() for file in FILES)


def test_truncated_transfers_are_refused_and_leave_nothing(adapter: Path, tmp_path: Path) -> None:
    manifest, chunks = pack_adapter(adapter, version=1, chunk_bytes=100)
    received = tmp_path / "received"
    with pytest.raises(TransferError, match="version 1: 11 of 12 chunks arrived"):
        unpack_adapter(manifest, chunks[:-1], folder=received)
    with pytest.raises(TransferError, match=r"chunk 4 of 12 \(99 bytes\)"):
        unpack_adapter(manifest, [*chunks[:4], chunks[4][:-1], *chunks[5:]], folder=received)
    assert not received.exists()


def test_exchanged_chunks_are_refused(adapter: Path, tmp_path: Path) -> None:
    manifest, chunks = pack_adapter(adapter, version=1, chunk_bytes=100)
    with pytest.raises(TransferError, match="chunk 2 of 12"):
        unpack_adapter(manifest, [*chunks[:2], chunks[3], chunks[2], *chunks[4:]], folder=tmp_path / "received")


def test_wrong_version_number_is_refused(adapter: Path, tmp_path: Path) -> None:
    manifest, chunks = pack_adapter(adapter, version=1, chunk_bytes=100)
    with pytest.raises(TransferError, match="version 2: its manifest is not what was packed"):
        unpack_adapter(dataclasses.replace(manifest, version=2), chunks, folder=tmp_path / "received")


def test_incomplete_adapter_folder_is_named(adapter: Path) -> None:
    (adapter / FILES[1]).unlink()
    with pytest.raises(ValueError, match=f"adapter {adapter}: no {FILES[1]}"):
        pack_adapter(adapter, version=1, chunk_bytes=100)
