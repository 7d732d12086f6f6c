"""Which policy is current, and the packages that make it: generators pull, nobody pushes.

A generator that starts late, or again, asks here like any other and gets every package it lacks; the trainer's side
never waits for a fixed set of receivers. Adapters lie in the run folder; a package's bytes go into Ray's object store
when it is asked for, so that nodes fetch chunks from each other, and only those of the last two that were asked for
stay there. Ray starts the actor again when it dies, and then it reads from a file what it was told before. Knows
versions and packages; knows no weights.
"""

from __future__ import annotations

import json
import shutil
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.process.leftovers import own_folder
from actors.process.pulse import Heart, Progress, Pulse, actor_class
from csr_ray.errors import ActorFailure
from csr_ray.policy.package import FILES, Manifest, pack_adapter, unpack_adapter
from csr_ray.store.atomic import write_json

# The newest, which all generators pull at once, and an older one that a newcomer pulls on its way to the newest.
_PACKAGES_KEPT = 2
# Covers the time in which a registry that hangs is noticed, ended and started again.
_ADD_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Package:
    """A manifest and the references of its chunks."""

    manifest: Manifest
    chunks: tuple[Any, ...]


class RegistryActor:
    """The adapters of a run, version 1 first. Runs where their folders can be read: on the driver's node.

    Args:
        chunk_bytes: size of the chunks in which a package travels.
        memory: file that survives this process, with the adapters' folders.
    """

    def __init__(self, chunk_bytes: int, memory: str) -> None:
        self._chunk_bytes = chunk_bytes
        self._memory = Path(memory)
        known = json.loads(self._memory.read_text()) if self._memory.exists() else []
        self._adapters = [Path(adapter) for adapter in known]
        self._heart = Heart(Progress(), what="its work")
        self._kept: OrderedDict[int, Package] = OrderedDict()  # by version; the last one asked for last

    def add(self, adapter: str, *, version: int) -> None:
        """Make an adapter folder the current policy; nothing if it is already, because Ray may call once more.

        Raises:
            ValueError: it is not the next version, or a file is missing.
        """
        if version == len(self._adapters) and self._adapters[-1] == Path(adapter):
            return
        if version != len(self._adapters) + 1:
            raise ValueError(f"adapter of version {version} after version {len(self._adapters)}")
        for file in FILES:
            if not Path(adapter, file).is_file():
                raise ValueError(f"adapter {adapter}: no {file}")
        write_json(self._memory, value=[str(known) for known in (*self._adapters, adapter)])
        self._adapters.append(Path(adapter))

    def pulse(self) -> Pulse:
        """See `actors.process.pulse`."""
        return self._heart.pulse()

    def package(self, *, after: int) -> Package | None:
        """The package that leads from version `after` to the one behind it; None if `after` is the current version.

        Chunks live as long as somebody holds their references, here or where they are pulled, so dropping a package
        never takes it away from a generator that is still at it.
        """
        import ray

        if after >= len(self._adapters):
            return None
        version = after + 1
        if version not in self._kept:
            manifest, chunks = pack_adapter(self._adapters[after], version=version, chunk_bytes=self._chunk_bytes)
            self._kept[version] = Package(manifest=manifest, chunks=tuple(ray.put(chunk) for chunk in chunks))
        self._kept.move_to_end(version)
        while len(self._kept) > _PACKAGES_KEPT:
            self._kept.popitem(last=False)
        return self._kept[version]


class Registry:
    """The driver's side: says which adapter folders make the policy."""

    def __init__(self, adapters: Sequence[str], *, chunk_bytes: int) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._folder = own_folder("registry")
        self.actor: Any = (
            actor_class(RegistryActor)
            .options(num_cpus=0, scheduling_strategy=here, max_restarts=-1, max_task_retries=-1)
            .remote(chunk_bytes, str(self._folder / "adapters.json"))
        )
        self._num_packages = 0
        for version, adapter in enumerate(adapters, start=1):
            self.add(adapter, version=version)

    @property
    def version(self) -> int:
        """The current policy's."""
        return self._num_packages

    def add(self, adapter: str, *, version: int) -> None:
        """Make an adapter folder the package of `version`; does nothing if that version is current already.

        The folder has to stay: a generator that starts later is sent it from there.

        It is current already if the driver died between training and hand-over: started again, it begins with every
        adapter that is trained, and then hands over the last of them.

        Raises:
            ActorFailure: `version` is neither the current one nor the next.
            ValueError: a file of the folder is missing.
        """
        import ray

        if version not in (self._num_packages, self._num_packages + 1) or version == 0:
            raise ActorFailure(f"asked to hand over version {version} behind version {self._num_packages}")
        if version == self._num_packages:
            return
        adding = self.actor.add.remote(str(Path(adapter).absolute()), version=version)
        try:
            ray.get(adding, timeout=_ADD_S)
        except ray.exceptions.GetTimeoutError as error:
            raise ActorFailure(f"the registry did not take version {version} within {_ADD_S:g} s") from error
        self._num_packages = version

    def close(self) -> None:
        import ray

        ray.kill(self.actor)
        shutil.rmtree(self._folder, ignore_errors=True)


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

        while (package := await self._registry.package.remote(after=len(self.adapters))) is not None:
            manifest = package.manifest
            chunks = await asyncio.gather(*package.chunks)
            folder = unpack_adapter(manifest, chunks, folder=self._folder / f"version_{manifest.version:03d}")
            self.adapters.append(str(folder))
            self.num_bytes += manifest.num_bytes
        return len(self.adapters)
