"""Kinds of GPU by the names that Ray gives them (`accelerator_type:A100`): what each has and costs. Knows no Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from csr_ray.config.schema import GpuKindKeys

GB = 10**9
# Ray's resource of a node, of which there is 1, and what is asked of it so that an actor sits on such a node.
_RESOURCE = "accelerator_type:"
_ASKED = 0.001

# By the names of ray.util.accelerators: GB of memory, TFLOP/s in bfloat16 without sparsity (float16 where there is no
# bfloat16), GB/s of memory, from NVIDIA's data sheets, of the SXM form where there are several; and US dollars an
# hour, of the order of what GPU clouds asked on demand in 2026, where prices of a kind differ by a factor of four.
# Where a kind is sold with several sizes of memory it is the largest, because it is used to say what cannot fit; a
# name with the size in it, which somebody has to put on the nodes, is more exact. A user's own: `cluster.gpu_kinds`.
_KINDS = {
    "K80": (12, 4.4, 240, None),  # Tesla K80: 24 GB on a board of two; it computes in float32 only
    "P4": (8, 5.5, 192, None),  # float32
    "P100": (16, 21, 732, None),  # 12 or 16
    "V100": (32, 125, 900, 0.90),  # 16 or 32
    "T4": (16, 65, 320, 0.40),
    "A10G": (24, 70, 600, 1.00),
    "A100": (80, 312, 2039, 1.80),  # 40 or 80
    "A100-40G": (40, 312, 1555, 1.30),
    "A100-80G": (80, 312, 2039, 1.80),
    "L4": (24, 121, 300, 0.70),
    "L40S": (48, 362, 864, 1.20),
    "H20": (96, 148, 4000, None),
    "H100": (80, 989, 3350, 3.00),  # H100 SXM and PCIe; an H100 NVL has 94
    "H200": (141, 989, 4800, 3.80),
    "RTX-PRO-6000": (96, 504, 1792, 2.00),
    "B200": (180, 2250, 8000, 5.50),  # DGX B200: 1,440 GB in eight
    "GB200": (186, 2500, 8000, None),  # GB200 superchip: 372 GB in two
    "B300": (288, 2250, 8000, None),
    "GB300": (288, 2500, 8000, None),
}


@dataclass(frozen=True, kw_only=True)
class GpuKind:
    """What one GPU of a kind has; None is not known.

    Attributes:
        tflops: TFLOP/s of dense products in bfloat16, as the maker states them.
        memory_gb_per_s: of its own memory, as the maker states it.
        usd_per_hour: what an hour of it costs.
        lacks_bfloat16: it is of a generation before Ampere, which vLLM lets compute in other numbers only.
    """

    memory_gb: float | None = None
    tflops: float | None = None
    memory_gb_per_s: float | None = None
    usd_per_hour: float | None = None
    lacks_bfloat16: bool = False


_LACK_BFLOAT16 = ("K80", "P4", "P100", "V100", "T4")


def gpu_kind(name: str, *, given: Mapping[str, GpuKindKeys] | None = None) -> GpuKind | None:
    """What is known of a kind, with what a user says of it (`cluster.gpu_kinds`) in front; None if nothing is.

    A kind may be one that only the user knows.
    """
    said = {} if given is None or name not in given else given[name].model_dump(exclude_none=True)
    if name not in _KINDS and not said:
        return None
    memory_gb, tflops, memory_gb_per_s, usd_per_hour = _KINDS.get(name, (None, None, None, None))
    known = GpuKind(
        memory_gb=memory_gb,
        tflops=tflops,
        memory_gb_per_s=memory_gb_per_s,
        usd_per_hour=usd_per_hour,
        lacks_bfloat16=name in _LACK_BFLOAT16,
    )
    return replace(known, **said)


def known_kinds() -> list[str]:
    """The names that need no keys."""
    return list(_KINDS)


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
    return _KINDS[kind][0] * GB if kind in _KINDS else None
