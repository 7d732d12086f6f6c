"""Kinds of GPU by the names that Ray gives them (`accelerator_type:A100`), and the memory of each. Knows no Ray."""

from __future__ import annotations

from collections.abc import Mapping

GB = 10**9
# Ray's resource of a node, of which there is 1, and what is asked of it so that an actor sits on such a node.
_RESOURCE = "accelerator_type:"
_ASKED = 0.001

# GB of one GPU, by the names of ray.util.accelerators, from NVIDIA's data sheets. Where a kind is sold with several
# sizes it is the largest, because it is used to say what cannot fit; a name with the size in it, which somebody has
# to put on the nodes, is more exact. What a program finds is a little more or less, as drivers count.
_MEMORY_GB = {
    "K80": 12,  # Tesla K80: 24 GB on a board of two
    "P4": 8,
    "P100": 16,  # 12 or 16
    "V100": 32,  # 16 or 32
    "T4": 16,
    "A10G": 24,
    "A100": 80,  # 40 or 80
    "A100-40G": 40,
    "A100-80G": 80,
    "L4": 24,
    "L40S": 48,
    "H20": 96,
    "H100": 80,  # H100 SXM and PCIe; an H100 NVL has 94
    "H200": 141,
    "RTX-PRO-6000": 96,
    "B200": 180,  # DGX B200: 1,440 GB in eight
    "GB200": 186,  # GB200 superchip: 372 GB in two
    "B300": 288,
    "GB300": 288,
}


def kind_of(resources: Mapping[str, float]) -> str:
    """The kind of a node's GPUs by Ray's resources of it; "" if it has none, or nobody knows.

    Of several names the longest is taken: who puts `A100-40G` beside Ray's own `A100` says more.
    """
    names = [name.removeprefix(_RESOURCE) for name in resources if name.startswith(_RESOURCE)]
    return max(names, key=lambda name: (len(name), name), default="")


def resources_of(kind: str | None) -> dict[str, float]:
    """What Ray is asked for, beside CPUs and GPUs, by who has to sit on this kind."""
    return {f"{_RESOURCE}{kind}": _ASKED} if kind else {}


def gpu_memory_bytes(kind: str) -> int | None:
    """Memory of one GPU in bytes, at most; None if it is not known."""
    memory_gb = _MEMORY_GB.get(kind)
    return None if memory_gb is None else memory_gb * GB
