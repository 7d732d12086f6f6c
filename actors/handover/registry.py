"""Which policy is current, and the packages that make it: generators pull, nobody pushes.

A generator that starts late, or again, asks here like any other and gets every package it lacks; the trainer's side
never waits for a fixed set of receivers. A version may be taken back, and its number given to another adapter: a
receiver says which adapters it has, not how many, and drops those that are not the policy's any more.

Adapters lie in the run folder; a package's bytes go into Ray's object store when it is asked for, so that nodes fetch
chunks from each other, and only those of the last two that were asked for stay there. Ray starts the actor again when
it dies, and then it reads from a file what it was told before. Knows versions and packages; knows no weights.
"""

from __future__ import annotations

import json
import shutil
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from actors.handover.stopwatch import Stopwatch
from actors.process.leftovers import own_folder
from actors.process.pulse import Heart, Progress, Pulse, actor_class
from csr_ray.errors import ActorFailure
from csr_ray.policy.package import FILES, Manifest, check_package, pack_adapter, write_package
from csr_ray.store.atomic import write_json

PULL: Final = ("pull_sent", "pull_got", "pull_checked", "pull_written")
"""What a generator waits for while it pulls, one after the other: the registry, which reads the adapter's files,
digests them and copies them into the object store, unless another has asked before; the object store; digests; files.
"""

# The newest, which all generators pull at once, and an older one that a newcomer pulls on its way to the newest.
_PACKAGES_KEPT = 2
# Covers the time in which a registry that hangs is noticed, ended and started again.
_CALL_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Package:
    """A manifest and the references of its chunks.

    Attributes:
        identity: tells this adapter from another that had the same version before it was taken back.
    """

    identity: int
    manifest: Manifest
    chunks: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the registry says to a receiver.

    Attributes:
        num_right: how many of the receiver's adapters, oldest first, are the policy's; it drops the others.
        package: of the adapter that follows these; None: these are the whole policy.
    """

    num_right: int
    package: Package | None


@dataclass(frozen=True, kw_only=True)
class _Added:
    """An adapter's folder, and the how-manyth it was of all that were ever added, those taken back included."""

    identity: int
    folder: str


class RegistryActor:
    """The adapters of a run, version 1 first. Runs where their folders can be read: on the driver's node.

    Args:
        chunk_bytes: size of the chunks in which a package travels.
        memory: file that survives this process, with the adapters' folders and how many were ever added.
    """

    def __init__(self, chunk_bytes: int, memory: str) -> None:
        self._chunk_bytes = chunk_bytes
        self._memory = Path(memory)
        known: dict[str, Any] = {"num_added": 0, "adapters": []}
        if self._memory.exists():
            known = json.loads(self._memory.read_text())
        self._num_added: int = known["num_added"]
        self._adapters = [_Added(**adapter) for adapter in known["adapters"]]
        self._heart = Heart(Progress(), what="its work")
        self._kept: OrderedDict[int, Package] = OrderedDict()  # by identity; the last one asked for last

    def add(self, adapter: str, *, version: int) -> None:
        """Make an adapter folder the current policy; nothing if it is already, because Ray may call once more.

        Raises:
            ValueError: it is not the next version, or a file is missing.
        """
        if version == len(self._adapters) and self._adapters[-1].folder == adapter:
            return
        if version != len(self._adapters) + 1:
            raise ValueError(f"adapter of version {version} after version {len(self._adapters)}")
        for file in FILES:
            if not Path(adapter, file).is_file():
                raise ValueError(f"adapter {adapter}: no {file}")
        added = _Added(identity=self._num_added + 1, folder=adapter)
        self._remember([*self._adapters, added], num_added=added.identity)

    def withdraw(self, *, version: int) -> None:
        """Take the newest adapter back; nothing if that is done already, because Ray may call once more.

        Raises:
            ValueError: it is not the newest version.
        """
        if version == len(self._adapters) + 1:
            return
        if version != len(self._adapters) or version == 0:
            raise ValueError(f"asked to take back version {version} behind version {len(self._adapters)}")
        withdrawn = self._adapters[-1]
        self._remember(self._adapters[:-1], num_added=self._num_added)
        self._kept.pop(withdrawn.identity, None)

    def _remember(self, adapters: list[_Added], *, num_added: int) -> None:
        """Let these be the policy's adapters, here and for whoever is started in place of this actor."""
        value = {"num_added": num_added, "adapters": [asdict(adapter) for adapter in adapters]}
        write_json(self._memory, value=value)
        self._adapters, self._num_added = adapters, num_added

    def pulse(self) -> Pulse:
        """See `actors.process.pulse`."""
        return self._heart.pulse()

    def package(self, *, held: Sequence[int]) -> Answer:
        """What a receiver has to drop and to add next; `held` are the identities of its adapters, oldest first."""
        num_right = 0
        for adapter, identity in zip(self._adapters, held, strict=False):
            if adapter.identity != identity:
                break
            num_right += 1
        is_whole = num_right == len(self._adapters)
        return Answer(num_right=num_right, package=None if is_whole else self._package(version=num_right + 1))

    def _package(self, *, version: int) -> Package:
        """The package that leads to `version` from the one before it.

        Chunks live as long as somebody holds their references, here or where they are pulled, so dropping a package
        never takes it away from a generator that is still at it.
        """
        import ray

        added = self._adapters[version - 1]
        if added.identity not in self._kept:
            manifest, chunks = pack_adapter(Path(added.folder), version=version, chunk_bytes=self._chunk_bytes)
            self._kept[added.identity] = Package(
                identity=added.identity, manifest=manifest, chunks=tuple(ray.put(chunk) for chunk in chunks)
            )
        self._kept.move_to_end(added.identity)
        while len(self._kept) > _PACKAGES_KEPT:
            self._kept.popitem(last=False)
        return self._kept[added.identity]


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
        if version not in (self._num_packages, self._num_packages + 1) or version == 0:
            raise ActorFailure(f"asked to hand over version {version} behind version {self._num_packages}")
        if version == self._num_packages:
            return
        self._wait_for(
            self.actor.add.remote(str(Path(adapter).absolute()), version=version), f"take version {version}"
        )
        self._num_packages = version

    def withdraw(self, version: int) -> None:
        """Take the newest version back: no generator is sent it any more, and those that have it drop it.

        Raises:
            ActorFailure: it is not the newest, or is the base.
        """
        if version != self._num_packages or version == 0:
            raise ActorFailure(f"asked to take back version {version} behind version {self._num_packages}")
        self._wait_for(self.actor.withdraw.remote(version=version), f"take back version {version}")
        self._num_packages = version - 1

    def _wait_for(self, call: Any, what: str) -> None:
        import ray

        try:
            ray.get(call, timeout=_CALL_S)
        except ray.exceptions.GetTimeoutError as error:
            raise ActorFailure(f"the registry did not {what} within {_CALL_S:g} s") from error

    def close(self) -> None:
        import ray

        ray.kill(self.actor)
        shutil.rmtree(self._folder, ignore_errors=True)


class Receiver:
    """A generator's side: it pulls packages into adapter folders of its own, one for each version."""

    def __init__(self, registry: Any, *, folder: Path) -> None:
        self._registry = registry
        self._folder = folder
        self._identities: list[int] = []  # of `adapters`
        self.adapters: list[str] = []
        self.num_bytes = 0

    async def pull(self, watch: Stopwatch | None = None) -> int:
        """Drop adapters that were taken back, and fetch those that are missing; returns the version of `adapters`.

        Args:
            watch: counts what is done here under the names of `PULL`; None: nobody wants to know.

        Raises:
            TransferError: a package did not arrive as it was sent.
        """
        import asyncio

        watch = watch or Stopwatch("pull")
        sent, got, checked, written = PULL
        while True:
            with watch.at(sent):
                package = await self._next()
            if package is None:
                return len(self.adapters)
            manifest = package.manifest
            with watch.at(got):
                chunks = await asyncio.gather(*package.chunks)
            with watch.at(checked):
                check_package(manifest, chunks)
            with watch.at(written):
                folder = write_package(manifest, chunks, folder=self._folder / f"version_{manifest.version:03d}")
            self.adapters.append(str(folder))
            self._identities.append(package.identity)
            self.num_bytes += manifest.num_bytes

    async def _next(self) -> Package | None:
        answer: Answer = await self._registry.package.remote(held=tuple(self._identities))
        dropped = self.adapters[answer.num_right :]
        del self.adapters[answer.num_right :], self._identities[answer.num_right :]
        for folder in dropped:
            shutil.rmtree(folder, ignore_errors=True)
        return answer.package
