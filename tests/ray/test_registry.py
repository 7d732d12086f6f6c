"""The registry on real Ray: what it keeps in the object store, and what a generator that starts late is sent."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from actors.handover.registry import Receiver, Registry
from csr_ray.errors import ActorFailure
from csr_ray.policy.package import FILES

MIB = 2**20
ADAPTER_BYTES = 4 * MIB
VERSIONS = 6


@pytest.fixture
def registry(ray_session: None) -> Iterator[Registry]:
    made = Registry([], chunk_bytes=MIB)
    yield made
    made.close()


def _adapter(folder: Path, *, version: int) -> Path:
    place = folder / f"adapter_{version}"
    place.mkdir()
    (place / FILES[0]).write_text("{}")
    (place / FILES[1]).write_bytes(bytes([version]) * ADAPTER_BYTES)
    return place


def _stored_bytes() -> float:
    """What lies in the object store, once Ray's count of it (a second old at most) has settled."""
    counts = [0.0, 1.0]
    while counts[-1] != counts[-2]:
        time.sleep(1.5)
        free = ray.available_resources()["object_store_memory"]
        counts.append(ray.cluster_resources()["object_store_memory"] - free)
    return counts[-1]


def test_the_store_holds_no_more_packages_the_longer_a_run_goes_on(registry: Registry, tmp_path: Path) -> None:
    before = _stored_bytes()
    early = Receiver(registry.actor, folder=tmp_path / "early")
    for version in range(1, VERSIONS + 1):
        registry.add(str(_adapter(tmp_path, version=version)), version=version)
        assert asyncio.run(early.pull()) == version
    # All of them were asked for; kept are the last two, and some bytes a chunk that Ray adds.
    assert _stored_bytes() - before < 2.2 * ADAPTER_BYTES


def test_a_generator_that_starts_late_is_sent_every_version(registry: Registry, tmp_path: Path) -> None:
    early = Receiver(registry.actor, folder=tmp_path / "early")
    for version in range(1, VERSIONS + 1):
        registry.add(str(_adapter(tmp_path, version=version)), version=version)
        asyncio.run(early.pull())
    late = Receiver(registry.actor, folder=tmp_path / "late")
    assert asyncio.run(late.pull()) == VERSIONS
    assert late.num_bytes == early.num_bytes == VERSIONS * (ADAPTER_BYTES + 2)
    for version, adapter in enumerate(late.adapters, start=1):
        assert Path(adapter, FILES[1]).read_bytes() == bytes([version]) * ADAPTER_BYTES


def test_an_adapter_that_was_taken_back_is_told_from_the_next_of_its_number_also_after_a_death(
    registry: Registry, tmp_path: Path
) -> None:
    refused, better = _adapter(tmp_path, version=1), _adapter(tmp_path, version=2)
    watching, away = (Receiver(registry.actor, folder=tmp_path / who) for who in ("watching", "away"))
    registry.add(str(refused), version=1)
    assert [asyncio.run(receiver.pull()) for receiver in (watching, away)] == [1, 1]
    registry.withdraw(1)
    with pytest.raises(ActorFailure, match="take back version 1 behind version 0"):
        registry.withdraw(1)
    assert (asyncio.run(watching.pull()), watching.adapters, registry.version) == (0, [], 0)
    os.kill(ray.get(registry.actor.pulse.remote()).pids[0], signal.SIGKILL)
    registry.add(str(better), version=1)
    for receiver in (watching, away):
        assert asyncio.run(receiver.pull()) == 1
        assert Path(receiver.adapters[0], FILES[1]).read_bytes() == bytes([2]) * ADAPTER_BYTES


def test_only_the_next_version_is_taken_and_only_a_whole_folder(registry: Registry, tmp_path: Path) -> None:
    adapter = _adapter(tmp_path, version=1)
    registry.add(str(adapter), version=1)
    registry.add(str(adapter), version=1)
    assert registry.version == 1
    with pytest.raises(ActorFailure, match="version 3 behind version 1"):
        registry.add(str(adapter), version=3)
    (adapter / FILES[1]).unlink()
    with pytest.raises(ValueError, match=f"no {FILES[1]}"):
        registry.add(str(adapter), version=2)
    assert registry.version == 1
