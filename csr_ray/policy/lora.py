"""PEFT's LoRA folders: the update of each layer, and several of them as one.

Knows PEFT's file layout; knows nothing of PEFT, of base models or engines.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash

from csr_ray.policy.checkpoint import StoredTensor, save_tensors, stored_tensors
from csr_ray.store.atomic import new_folder

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_PIECE_BYTES = 8 * 2**20
_PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True, kw_only=True)
class LoraDelta:
    """One layer's low-rank update, `scale * up @ down`.

    Attributes:
        down: [r, in], PEFT's lora_A.
        up: [out, r], PEFT's lora_B.
        scale: alpha / r.
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float

    def dense(self) -> torch.Tensor:
        """[out, in] in float32."""
        return (self.up.float() @ self.down.float()) * self.scale


@dataclass(frozen=True, kw_only=True)
class LoraLayer:
    """Where the update of one module is read, PEFT's lora_A and lora_B, and alpha / r."""

    down: StoredTensor
    up: StoredTensor
    scale: float

    def read(self) -> LoraDelta:
        return LoraDelta(down=self.down.read(), up=self.up.read(), scale=self.scale)


def lora_deltas(adapter: Path) -> dict[str, LoraDelta]:
    """The updates of a PEFT adapter folder, by the module name it was trained under; see `lora_layers`."""
    return {module: layer.read() for module, layer in lora_layers(adapter).items()}


def lora_layers(adapter: Path) -> dict[str, LoraLayer]:
    """The layers of a PEFT adapter folder, by the module name they were trained under; no tensor is read.

    Raises:
        ValueError: files are missing, or the adapter uses a variant whose update is not alpha / r B A.
    """
    for file in (_CONFIG, _WEIGHTS):
        if not (adapter / file).is_file():
            raise ValueError(f"adapter {adapter}: no {file}")
    config = json.loads((adapter / _CONFIG).read_text())
    for key in ("use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "modules_to_save"):
        if config.get(key):
            raise ValueError(f"adapter {adapter}: {key} = {config[key]!r} cannot be merged here; train a plain LoRA")
    rank = config["r"]
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    stored = stored_tensors(adapter / _WEIGHTS)
    layers = {}
    for name in sorted(stored):
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            if (up := stored.get(f"{module}.lora_B.weight")) is None:
                raise ValueError(f"adapter {adapter}: {module} has lora_A but no lora_B")
            layers[module.removeprefix(_PEFT_PREFIX)] = LoraLayer(down=stored[name], up=up, scale=scale)
    if 2 * len(layers) != len(stored):
        raise ValueError(f"adapter {adapter}: holds tensors that are not LoRA pairs: {sorted(stored)[:3]} ...")
    return layers


def adapter_digest(adapter: Path) -> bytes:
    """XXH3 of what makes a PEFT folder's updates; a file that was looked at before and has not changed is not read.

    It notices what storage and transport damage, not what somebody forges.
    """
    weights = adapter / _WEIGHTS
    stamp = weights.stat()
    config = json.loads((adapter / _CONFIG).read_text())
    scale = [config.get(key) for key in ("r", "lora_alpha", "use_rslora")]
    digest = xxhash.xxh3_128(repr(scale).encode())
    digest.update(_file_digest(weights, stamp.st_ino, stamp.st_size, stamp.st_mtime_ns))
    return digest.digest()


@functools.lru_cache(maxsize=1024)
def _file_digest(file: Path, *stamp: int) -> bytes:
    digest = xxhash.xxh3_128()
    with file.open("rb") as content:
        while piece := content.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.digest()


def combined_tensors(adapters: Sequence[Path]) -> dict[str, torch.Tensor]:
    """One adapter that is the sum of `adapters`: its tensors in float32, under PEFT's names.

    Every module gets A = [A_1; A_2; ...] and B = [s_1 B_1, s_2 B_2, ...] with s_i = alpha_i / r_i, so that B A is the
    sum and needs no further scaling. The rank is the sum of the ranks; where an adapter does not change a module, its
    rows and columns are zeros.

    Raises:
        ValueError: an adapter cannot be read (`lora_deltas`), two give one module different shapes, or all are empty.
    """
    rounds = [lora_deltas(adapter) for adapter in adapters]
    ranks = [max((len(delta.down) for delta in deltas.values()), default=0) for deltas in rounds]
    shapes: dict[str, tuple[int, int]] = {}  # out, in
    for adapter, deltas in zip(adapters, rounds, strict=True):
        for module, delta in deltas.items():
            shape = (len(delta.up), delta.down.shape[1])
            if shapes.setdefault(module, shape) != shape:
                raise ValueError(
                    f"adapter {adapter}: {module} is {list(shape)}, before it was {list(shapes[module])}"
                )
    if not shapes:
        raise ValueError(f"adapters {', '.join(map(str, adapters)) or 'none'}: no layer is changed")
    tensors: dict[str, torch.Tensor] = {}
    for module, (rows, columns) in shapes.items():
        down, up = torch.zeros(sum(ranks), columns), torch.zeros(rows, sum(ranks))
        start = 0
        for rank, deltas in zip(ranks, rounds, strict=True):
            if module in deltas:
                down[start : start + rank] = deltas[module].down.float()
                up[:, start : start + rank] = deltas[module].up.float() * deltas[module].scale
            start += rank
        tensors[f"{_PEFT_PREFIX}{module}.lora_A.weight"] = down
        tensors[f"{_PEFT_PREFIX}{module}.lora_B.weight"] = up
    return tensors


def lora_pairs(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Every module of `combined_tensors`, with its A [r, in] and its B [out, r]."""
    for name, down in tensors.items():
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            yield module.removeprefix(_PEFT_PREFIX), down, tensors[f"{module}.lora_B.weight"]


def save_combined(tensors: Mapping[str, torch.Tensor], *, output: Path) -> None:
    """Write `combined_tensors` as a PEFT folder, which appears at `output` whole and replaces a folder there."""
    pairs = {module: len(down) for module, down, _ in lora_pairs(tensors)}
    rank = next(iter(pairs.values()))
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,  # the scales are in B already
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": sorted(pairs),
    }
    with new_folder(output) as staging:
        (staging / _CONFIG).write_text(json.dumps(config))
        save_tensors(dict(tensors), staging / _WEIGHTS, metadata={"format": "pt"})
