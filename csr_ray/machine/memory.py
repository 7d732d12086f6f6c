"""Bytes: what a machine has, what an adapter weighs, and how large the object store of a private Ray has to be."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

from csr_ray.config.schema import Train

MIB = 2**20
# Of one number.
BYTES_OF = {"bfloat16": 2, "float32": 4}
_SMALLEST_STORE_BYTES = 256 * MIB
# Of a rollout under way: its tree as token ids and log-probs, or its result on the way to the driver. An upper
# estimate for trees of a hundred sentences.
_ROLLOUT_BYTES = MIB // 2
# Packages that lie in the store at a time (`actors.handover.registry`): the newest, and one that a newcomer pulls.
_PACKAGES_KEPT = 2
_STORE_SHARE_OF_MEMORY = 0.3  # Ray's own default


def memory_bytes() -> int:
    """Main memory of this machine, or of this container if it is limited (cgroup v2)."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = cgroup_limit("memory.max")
    return min(total, int(limit)) if limit.isdigit() else total


def shared_memory_bytes() -> int | None:
    """Size of /dev/shm, where Ray's object store lives; None where there is no such place."""
    return shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else None


def cgroup_limit(name: str) -> str:
    """A limit of this container (cgroup v2), "" where there is none."""
    try:
        return Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return ""


def adapter_bytes(model: Path, *, train: Train) -> int:
    """What a LoRA of this model weighs as it is handed over: r (in + out) numbers for each adapted layer.

    An upper bound: layers of the vision tower that bear the name of a target are counted, and get no LoRA. A LoRA has
    the data type that it is trained in (DeepSpeed trains it in that of the frozen weights).

    Args:
        model: a Hugging Face folder; only the headers of its safetensors files are read.

    Returns:
        0 if the folder has no weights in safetensors files.
    """
    num_weights = 0
    for file in sorted(model.glob("*.safetensors")):
        for name, entry in _safetensors_header(file).items():
            parts = name.split(".")
            if (
                parts[-1] == "weight"
                and parts[-2:-1]
                and parts[-2] in train.lora_targets
                and len(entry["shape"]) == 2
            ):
                num_weights += train.lora_rank * sum(entry["shape"])
    return num_weights * BYTES_OF[train.dtype]


def count_weights(model: Path) -> int:
    """How many numbers a model's weights are, from the headers of its safetensors files; 0 if it has none.

    What is quantized is left out, so that it is no more than what has to lie in memory.
    """
    tensors = [
        entry for file in sorted(model.glob("model*.safetensors")) for entry in _safetensors_header(file).values()
    ]
    return sum(math.prod(entry["shape"]) for entry in tensors if entry["dtype"] in ("BF16", "F16", "F32"))


def object_store_bytes(
    *, adapter_bytes: int, num_rollouts: int, memory_bytes: int, shared_memory_bytes: int | None
) -> int:
    """How large the object store of a private Ray is made.

    It holds the chunks of two packages and the rollouts under way. What does not fit is written to disk by Ray, which
    is slow. The ceiling is a share of the machine's memory, and of /dev/shm, without which Ray would use files.
    """
    wanted = max(_SMALLEST_STORE_BYTES, _PACKAGES_KEPT * adapter_bytes + num_rollouts * _ROLLOUT_BYTES)
    ceiling = int(_STORE_SHARE_OF_MEMORY * memory_bytes)
    if shared_memory_bytes is not None:
        ceiling = min(ceiling, int(0.9 * shared_memory_bytes))
    return max(_SMALLEST_STORE_BYTES, min(wanted, ceiling))


def _safetensors_header(file: Path) -> dict[str, dict]:
    """Name to {dtype, shape, data_offsets}. The format: 8 bytes of length, little-endian, then that much JSON."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    header.pop("__metadata__", None)
    return dict(header)
