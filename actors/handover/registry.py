"""Which policy is current, and the packages that make it: generators pull, nobody pushes.

A generator that starts late, or again, asks here like any other and gets every package it lacks; the trainer's side
never waits for a fixed set of receivers. The bytes lie in Ray's object store, so nodes fetch chunks from each other;
this actor holds references only. Knows versions and packages; knows no weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csr_ray.errors import ActorFailure
from csr_ray.policy.package import Manifest, pack_adapter, unpack_adapter


@dataclass(frozen=True, kw_only=True)
class Package:
    """A manifest and the references of its chunks."""

    manifest: Manifest
    chunks: tuple[Any, ...]


class RegistryActor:
    """The packages of a run, version 1 first."""

    def __init__(self) -> None:
        self._packages: list[Package] = []

    def add(self, package: Package) -> int:
        """Make `package` the current policy; returns its version.

        Raises:
            ValueError: it is not the next version.
        """
        version = package.manifest.version
        if version != len(self._packages) + 1:
            raise ValueError(f"package of version {version} after version {len(self._packages)}")
        self._packages.append(package)
        return version

    def packages(self, *, after: int) -> list[Package]:
        """The packages that lead from version `after` to the current one, oldest first."""
        return self._packages[after:]


class Registry:
    """The driver's side: packs adapters and puts their chunks into the object store."""

    def __init__(self, adapters: Sequence[str], *, chunk_bytes: int) -> None:
        import ray

        self.actor = ray.remote(RegistryActor).options(num_cpus=0).remote()
        self._chunk_bytes = chunk_bytes
        self._num_packages = 0
        for version, adapter in enumerate(adapters, start=1):
            self.add(adapter, version=version)

    @property
    def version(self) -> int:
        """The current policy's."""
        return self._num_packages

    def add(self, adapter: str, *, version: int) -> None:
        """Make an adapter folder the package of `version`; does nothing if that version is current already.

        It is current already if the driver died between training and hand-over: started again, it begins with every
        adapter that is trained, and then hands over the last of them.

        Raises:
            ActorFailure: `version` is neither the current one nor the next.
        """
        import ray

        if version not in (self._num_packages, self._num_packages + 1) or version == 0:
            raise ActorFailure(f"asked to hand over version {version} behind version {self._num_packages}")
        if version == self._num_packages:
            return
        manifest, chunks = pack_adapter(Path(adapter), version=version, chunk_bytes=self._chunk_bytes)
        references = tuple(ray.put(chunk) for chunk in chunks)
        ray.get(self.actor.add.remote(Package(manifest=manifest, chunks=references)))
        self._num_packages = version

    def close(self) -> None:
        import ray

        ray.kill(self.actor)


class Receiver:
    """A generator's side: it pulls packages into adapter folders of its own, one for each version."""

    def __init__(self, registry: Any, *, folder: Path) -> None:
        self._registry = registry
        self._folder = folder
        self.adapters: list[str] = []
        self.num_bytes = 0

    async def pull(self) -> int:
        """Fetch the packages that are missing; returns the version that `adapters` make then.

        Raises:
            TransferError: a package did not arrive as it was sent.
        """
        import asyncio

        for package in await self._registry.packages.remote(after=len(self.adapters)):
            manifest = package.manifest
            chunks = await asyncio.gather(*package.chunks)
            folder = unpack_adapter(manifest, chunks, folder=self._folder / f"version_{manifest.version:03d}")
            self.adapters.append(str(folder))
            self.num_bytes += manifest.num_bytes
        return len(self.adapters)
