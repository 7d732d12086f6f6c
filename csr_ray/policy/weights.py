"""Policy weights on disk: a base checkpoint plus LoRA adapters, merged without drift.

Every merged tensor is base + sum_i (alpha_i / r_i) B_i A_i, formed in float32 from the ORIGINAL base and rounded
once, to the dtype in which it is used, so that trainer and generators of one dtype get the same bits. `Rounding` says
how much of the update that rounding leaves. Tensors go by the base checkpoint's own names, whatever the training
library calls its modules. `combined_tensors` gives the same sum as one adapter, for those who keep the base as it is.
Knows safetensors and PEFT's file layout; knows nothing of PEFT, engines or actors.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from csr_ray.store.atomic import new_folder

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_CONFIG = "config.json"
_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PEFT_PREFIX = "base_model.model."
# A safetensors file begins with the length of its header.
_LENGTH_BYTES = 8
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_ROWS_LOOKED_AT = 256
_VECTORS = 16

# Where released checkpoints and transformers' module trees keep the decoder layers of a vision-language model. The
# same layer is `language_model.model.layers.0` in a LLaVA checkpoint, `model.layers.0` in a Qwen2.5-VL one and
# `model.language_model.layers.0` in memory.
_DECODER_HOMES = ("language_model.model.", "model.language_model.", "language_model.", "model.", "")
# `language_model.model.layers.0.self_attn`, and what lies below it.
_BLOCK = re.compile(r"(.*?\.\d+\.[^.]+)\.")


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


@dataclass
class Rounding:
    """How much of an update is left where base + update is rounded, summed over the tensors that were added.

    D is the update in float32, and R the difference between the rounded sum and the rounded base. In bfloat16 a step
    at 0.02 is 1.2e-4, and an update below half of it changes nothing at all if the base lies on that grid already.
    Some `_ROWS_LOOKED_AT` rows of each tensor are looked at.
    """

    _update: float = field(default=0.0, init=False)  # sum of D^2
    _off: float = field(default=0.0, init=False)  # sum of (R - D)^2
    _along: float = field(default=0.0, init=False)  # sum of R D

    @property
    def swallowed(self) -> float:
        """|R - D| / |D|: 0 if nothing is lost, 1 if nothing arrives, more where it arrives with noise."""
        return math.sqrt(self._off / self._update) if self._update else 0.0

    @property
    def kept(self) -> float:
        """R D / |D|^2: the share of the update that arrives in its own direction, whatever noise comes with it."""
        return self._along / self._update if self._update else 1.0

    def add(self, update: torch.Tensor, *, arrived: torch.Tensor) -> None:
        """Count D and R of one tensor, or of some of its rows."""
        wanted, got = update.double(), arrived.double()
        self._update += float(wanted.square().sum())
        self._off += float((got - wanted).square().sum())
        self._along += float((got * wanted).sum())


def tensor_files(base: Path) -> dict[str, Path]:
    """Which safetensors file of a Hugging Face folder holds each tensor.

    Raises:
        ValueError: the folder has no safetensors weights.
    """
    if (base / _INDEX).is_file():
        weight_map = json.loads((base / _INDEX).read_text())["weight_map"]
        return {name: base / file for name, file in weight_map.items()}
    if (base / _SINGLE).is_file():
        with safe_open(base / _SINGLE, framework="pt") as weights:
            return dict.fromkeys(weights.keys(), base / _SINGLE)
    raise ValueError(f"model folder {base}: neither {_INDEX} nor {_SINGLE}; save the model as safetensors")


def checkpoint_name(module: str, *, names: Collection[str]) -> str | None:
    """The checkpoint's name for the weight of an in-memory module, or None if the checkpoint has no such layer.

    Example:
        `model.language_model.layers.0.mlp.up_proj` -> `language_model.model.layers.0.mlp.up_proj.weight`.
    """
    if f"{module}.weight" in names:
        return f"{module}.weight"
    home = next((home for home in _DECODER_HOMES if module.startswith(home)), "")
    tail = module.removeprefix(home)
    found = [name for name in (f"{other}{tail}.weight" for other in _DECODER_HOMES) if name in names]
    return found[0] if len(found) == 1 else None


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies in a safetensors file: `start` is counted in bytes from the file's beginning.

    Every round of a run reads the adapters of all rounds before. A look into the file for each of their tensors is
    slow then, as its header is parsed each time, and `get_tensor` keeps two integers of Python for every tensor that
    it returns (seen in safetensors 0.6.2 to 0.8.0), which in hundreds of rounds are hundreds of MiB.
    """

    file: Path
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> torch.Tensor:
        """Raises ValueError if the file has become shorter since it was looked into."""
        tensor = torch.empty(self.shape, dtype=self.dtype)
        with self.file.open("rb") as file:
            file.seek(self.start)
            if file.readinto(tensor.flatten().view(torch.uint8).numpy()) != self.num_bytes:
                raise ValueError(f"{self.file}: cut off before byte {self.start + self.num_bytes}")
        return tensor


def stored_tensors(file: Path) -> dict[str, StoredTensor]:
    """Where the tensors of a safetensors file lie, by name. The file has no gaps between them, which is checked.

    Raises:
        ValueError: it holds numbers of a kind that no weights are kept in.
        safetensors.SafetensorError: it is damaged.
    """
    with file.open("rb") as content:
        start = _LENGTH_BYTES + int.from_bytes(content.read(_LENGTH_BYTES), "little")
    stored = {}
    with safe_open(file, framework="pt") as weights:
        for name in weights.offset_keys():
            view = weights.get_slice(name)
            if (dtype := _DTYPES.get(view.get_dtype())) is None:
                raise ValueError(f"{file}: {name} is of {view.get_dtype()}; allowed: {', '.join(_DTYPES)}")
            stored[name] = StoredTensor(file=file, start=start, dtype=dtype, shape=tuple(view.get_shape()))
            start += stored[name].num_bytes
    return stored


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
    for file in (_ADAPTER_CONFIG, _ADAPTER_WEIGHTS):
        if not (adapter / file).is_file():
            raise ValueError(f"adapter {adapter}: no {file}")
    config = json.loads((adapter / _ADAPTER_CONFIG).read_text())
    for key in ("use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "modules_to_save"):
        if config.get(key):
            raise ValueError(f"adapter {adapter}: {key} = {config[key]!r} cannot be merged here; train a plain LoRA")
    rank = config["r"]
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    stored = stored_tensors(adapter / _ADAPTER_WEIGHTS)
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


def combined_rounding(tensors: Mapping[str, torch.Tensor], *, dtype: torch.dtype) -> Rounding:
    """What is left of the update of `combined_tensors` where its A and B are each rounded to `dtype`.

    B A is compared by what it makes of a few fixed random vectors.
    """
    rounding = Rounding()
    for _, down, up in lora_pairs(tensors):
        random = torch.Generator().manual_seed(down.shape[1])
        vectors = torch.randn(down.shape[1], _VECTORS, generator=random)
        rounding.add(up @ (down @ vectors), arrived=up.to(dtype).float() @ (down.to(dtype).float() @ vectors))
    return rounding


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
        (staging / _ADAPTER_CONFIG).write_text(json.dumps(config))
        _save(dict(tensors), staging / _ADAPTER_WEIGHTS, metadata={"format": "pt"})


def merged_tensors(
    base: Path,
    *,
    adapters: Sequence[Path],
    dtype: torch.dtype | None = None,
    rounding: Rounding | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that `adapters` change, merged into `base`: (checkpoint name, [out, in]).

    One tensor and one update of it are in memory at a time, however many adapters there are. Without any there is
    nothing to yield.

    Args:
        dtype: what the sums are rounded to, which is what they are used in; None: the dtype they have in `base`.
        rounding: counts how much of the updates that leaves.

    Raises:
        ValueError: an adapter changes a layer the checkpoint does not have (lists them), or of another shape.
    """
    for name, _, tensor in merged_by_module(base, adapters=adapters, dtype=dtype, rounding=rounding):
        yield name, tensor


def block_of(name: str) -> str:
    """The block a tensor belongs to: one layer's attention or MLP; outside the layers, its module's parent."""
    match = _BLOCK.match(name)
    return match[1] if match else name.rpartition(".")[0].rpartition(".")[0]


def merged_blocks(
    base: Path,
    *,
    adapters: Sequence[Path],
    also: Collection[str] = (),
    dtype: torch.dtype | None = None,
    rounding: Rounding | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what `merged_tensors` yields, then, unchanged, every other tensor of the same blocks: (name, tensor).

    This is for an engine that keeps several tensors as one (q, k, v and their biases; gate and up) and so cannot take
    one of them alone. The blocks are those that `adapters` change and those named in `also` (see `block_of`).
    """
    blocks, changed = set(also), set()
    for name, tensor in merged_tensors(base, adapters=adapters, dtype=dtype, rounding=rounding):
        blocks.add(block_of(name))
        changed.add(name)
        yield name, tensor
    files = tensor_files(base)
    rest = [name for name in files if name not in changed and block_of(name) in blocks]
    for name in sorted(rest, key=lambda name: (str(files[name]), name)):
        with safe_open(files[name], framework="pt") as weights:
            yield name, weights.get_tensor(name)


def merged_by_module(
    base: Path,
    *,
    adapters: Sequence[Path],
    dtype: torch.dtype | None = None,
    rounding: Rounding | None = None,
) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Yield what `merged_tensors` yields, with the module's name: (checkpoint name, module name, tensor)."""
    files = tensor_files(base)
    updates: dict[str, list[LoraLayer]] = {}
    modules: dict[str, str] = {}
    for adapter in adapters:
        layers = lora_layers(adapter)
        resolved = {module: checkpoint_name(module, names=files) for module in layers}
        missing = sorted(module for module, name in resolved.items() if name is None)
        if missing:
            raise ValueError(f"adapter {adapter}: {base} has no weights for {', '.join(missing)}")
        for module, name in resolved.items():
            assert name is not None
            updates.setdefault(name, []).append(layers[module])
            modules[name] = module
    for name in sorted(updates, key=lambda name: (str(files[name]), name)):
        with safe_open(files[name], framework="pt") as weights:
            weight = weights.get_tensor(name)
        total = _sum(weight, layers=updates[name], name=name)
        merged = total.to(dtype or weight.dtype)
        if rounding is not None:
            rows = slice(None, None, max(1, len(total) // _ROWS_LOOKED_AT))
            rounded = weight[rows].to(merged.dtype)
            rounding.add(total[rows] - weight[rows].float(), arrived=merged[rows].double() - rounded.double())
        yield name, modules[name], merged


def _sum(weight: torch.Tensor, *, layers: Sequence[LoraLayer], name: str) -> torch.Tensor:
    """[out, in] weight plus all updates, in float32. The updates are read one after the other."""
    total = weight.to(torch.float32, copy=True)  # never in place: the file may be mapped into memory
    for layer in layers:
        dense = layer.read().dense()
        if dense.shape != total.shape:
            raise ValueError(f"adapter update of {name} is {list(dense.shape)}, the weight {list(total.shape)}")
        total += dense
    return total


def checksum(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes; the order of the tensors does not matter."""
    digests = []
    for name, tensor in tensors:
        digest = hashlib.sha256(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        digests.append(digest.digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def save_merged(
    base: Path, *, adapters: Sequence[Path], output: Path, config_lines: Mapping[str, Any] | None = None
) -> Rounding:
    """Write base plus adapters as a whole model folder, with the same files, shards, names and dtypes as `base`.

    The folder appears at `output` whole, and replaces a model that is already there. Returns what rounding to the
    base's dtypes left of the adapters.

    Args:
        config_lines: what its config.json says otherwise than the base's.

    Raises:
        ValueError: see `merged_tensors`.
        StorageError: the disk is full, or the place cannot be written; what was there before is still there.
    """
    rounding = Rounding()
    with new_folder(output) as staging:
        shards = set(tensor_files(base).values())
        for path in sorted(base.iterdir()):
            if path.is_file() and path not in shards:
                shutil.copy2(path, staging / path.name)
            elif path.is_dir():
                shutil.copytree(path, staging / path.name)
        if config_lines:
            config = json.loads((base / _CONFIG).read_text(encoding="utf-8"))
            (staging / _CONFIG).write_text(json.dumps({**config, **config_lines}, indent=2) + "\n", encoding="utf-8")
        merged = dict(merged_tensors(base, adapters=adapters, rounding=rounding))
        for shard in sorted(shards):
            _write_shard(shard, merged=merged, output=staging / shard.name)
    return rounding


def _write_shard(shard: Path, *, merged: dict[str, torch.Tensor], output: Path) -> None:
    with safe_open(shard, framework="pt") as weights:
        names = list(weights.keys())
        tensors = {name: merged.get(name, weights.get_tensor(name)) for name in names}
        _save(tensors, output, metadata=weights.metadata() or {"format": "pt"})


def _save(tensors: dict[str, torch.Tensor], path: Path, *, metadata: dict[str, str]) -> None:
    """safetensors' `save_file`, whose errors of the system are raised as such.

    Raises:
        OSError: the disk is full, or something else of the system failed.
    """
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:
        # "I/O error: No space left on device (os error 28)"
        if (found := re.search(r"\(os error (\d+)\)", str(error))) is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
