"""Policy weights: a base checkpoint plus LoRA adapters, merged without drift.

Every merged tensor is base + sum_i (alpha_i / r_i) B_i A_i, formed in float32 from the ORIGINAL base and rounded
once, to the dtype in which it is used, so that trainer and generators of one dtype come to the same. `Rounding` says
how much of the update that rounding leaves. Tensors go by the base checkpoint's own names, whatever the training
library calls its modules. `csr_ray.policy.lora.combined_tensors` gives the same sum as one adapter, for those who
keep the base as it is. Knows checkpoints and adapters; knows nothing of PEFT, engines or actors.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from csr_ray.policy.checkpoint import Checkpoint, block_of, checkpoint_name, digest_of, save_tensors, tensor_files
from csr_ray.policy.lora import LoraLayer, lora_layers, lora_pairs
from csr_ray.store.atomic import new_folder

_CONFIG = "config.json"
_ROWS_LOOKED_AT = 256
_VECTORS = 16
_ROWS_AT_ONCE = 1024
_ALL = slice(None)


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

    def include(self, other: Rounding) -> None:
        """Count what another one has counted."""
        self._update += other._update
        self._off += other._off
        self._along += other._along


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


@dataclass(frozen=True, kw_only=True)
class Merged:
    """A tensor as it is to be used.

    Attributes:
        tensor: of the base's shape. Where only a part was formed, anything may stand in the rest.
        product: [n, rows] what the vectors that were given make of the base and the updates, in float32, and not by
            way of `tensor`; None: none were given, or the tensor is no matrix.
    """

    tensor: torch.Tensor
    product: torch.Tensor | None


@dataclass(frozen=True, kw_only=True)
class Merge:
    """A tensor of the base and the updates that it gets, of which nothing is computed yet.

    Attributes:
        module: what training calls its module; "": nothing changes it.
        base: a view of the checkpoint.
        updates: oldest first.
    """

    name: str
    module: str
    base: torch.Tensor
    updates: tuple[LoraLayer, ...]

    def form(
        self,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        vectors: torch.Tensor | None = None,
        rows: slice = _ALL,
        columns: slice = _ALL,
        rounding: Rounding | None = None,
    ) -> Merged:
        """Form the sum, or the part of it in these rows and columns. One update is in memory at a time.

        Args:
            dtype: what a tensor that is changed is rounded to; None: the base's.
            device: where it is formed, and lies afterwards; one that is not changed stays where it is.
            vectors: [n, in] in float32.
            rounding: counts how much of the updates that leaves.

        Raises:
            ValueError: an update has another shape than the tensor.
        """
        if self.base.ndim != 2:
            return Merged(tensor=self.base, product=None)
        weight = self.base[rows, columns]
        if self.updates or vectors is not None:
            weight = weight.to(device)
        seen = None if vectors is None else vectors[:, columns].to(device)
        product = None if seen is None else _product(seen, weight)
        if not self.updates:
            return Merged(tensor=self.base, product=product)
        total = weight.to(torch.float32, copy=True)  # never in place: the file is mapped into memory
        for layer in self.updates:
            delta = down = up = None  # the one before is not kept while the next one is read
            delta = layer.read()
            shape = [len(delta.up), delta.down.shape[1]]
            if shape != list(self.base.shape):
                raise ValueError(f"adapter update of {self.name} is {shape}, the weight {list(self.base.shape)}")
            down, up = (part.to(device, torch.float32) for part in (delta.down[:, columns], delta.up[rows]))
            total.addmm_(up, down, alpha=delta.scale)
            if seen is not None and product is not None:
                product.addmm_(seen @ down.T, up.T, alpha=delta.scale)
        part = total.to(dtype or weight.dtype)
        if rounding is not None:
            some = slice(None, None, max(1, len(total) // _ROWS_LOOKED_AT))
            before = weight[some]
            rounding.add(total[some] - before.float(), arrived=part[some].double() - before.to(part.dtype).double())
        if part.shape == self.base.shape:
            return Merged(tensor=part, product=product)
        # Of a CPU's memory, pages that nobody writes cost nothing.
        whole = torch.empty(self.base.shape, dtype=part.dtype, device=part.device)
        whole[rows, columns] = part
        return Merged(tensor=whole, product=product)


def _product(vectors: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[n, out] vectors @ weight.T in float32, a few rows at a time where they have to be turned into that first."""
    if weight.dtype != torch.float32:
        parts = [vectors @ rows.float().T for rows in weight.split(_ROWS_AT_ONCE)]
        return torch.cat(parts, dim=1)
    return vectors @ weight.T


def merges(base: Checkpoint, *, adapters: Sequence[Path]) -> list[Merge]:
    """What `adapters` change, in the order of the base's files.

    Raises:
        ValueError: an adapter changes a layer the checkpoint does not have (lists them), or cannot be read.
    """
    updates: dict[str, list[LoraLayer]] = {}
    modules: dict[str, str] = {}
    for adapter in adapters:
        layers = lora_layers(adapter)
        resolved = {module: checkpoint_name(module, names=base) for module in layers}
        missing = sorted(module for module, name in resolved.items() if name is None)
        if missing:
            raise ValueError(f"adapter {adapter}: {base.folder} has no weights for {', '.join(missing)}")
        for module, name in resolved.items():
            assert name is not None
            updates.setdefault(name, []).append(layers[module])
            modules[name] = module
    return [
        Merge(name=name, module=modules[name], base=base[name], updates=tuple(updates[name]))
        for name in base
        if name in updates
    ]


def with_their_blocks(found: Sequence[Merge], *, base: Checkpoint, also: Collection[str] = ()) -> list[Merge]:
    """These and, unchanged, every other tensor of the same blocks (see `block_of`), a block after the other.

    This is for an engine that keeps several tensors as one (q, k, v and their biases; gate and up): it cannot take
    one of them alone, and keeps what it was given of one until it has all.

    Args:
        also: blocks of which nothing is changed, and which are wanted, too.
    """
    changed = {merge.name: merge for merge in found}
    blocks: dict[str, list[Merge]] = {block: [] for block in (*(block_of(name) for name in changed), *also)}
    for name in base:
        if (block := block_of(name)) in blocks:
            plain = Merge(name=name, module="", base=base[name], updates=())
            blocks[block].append(changed.get(name, plain))
    return [merge for of_block in blocks.values() for merge in of_block]


def merged_tensors(
    base: Path,
    *,
    adapters: Sequence[Path],
    dtype: torch.dtype | None = None,
    rounding: Rounding | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that `adapters` change, merged into `base`: (checkpoint name, [out, in]).

    One tensor is in memory at a time. Without any adapter there is nothing to yield.

    Args:
        dtype: what the sums are rounded to, which is what they are used in; None: the dtype they have in `base`.
        rounding: counts how much of the updates that leaves.

    Raises:
        ValueError: an adapter changes a layer the checkpoint does not have (lists them), or of another shape.
    """
    for merge in merges(Checkpoint(base), adapters=adapters):
        yield merge.name, merge.form(dtype=dtype, rounding=rounding).tensor


def merged_by_module(
    base: Path, *, adapters: Sequence[Path], dtype: torch.dtype | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """What `merged_tensors` yields, by the name that training has for the module."""
    for merge in merges(Checkpoint(base), adapters=adapters):
        yield merge.module, merge.form(dtype=dtype).tensor


def checksum(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """XXH3 over names, dtypes, shapes and bytes, in hex; the order of the tensors does not matter."""
    return checksum_of(digest_of(name, tensor) for name, tensor in tensors)


def checksum_of(digests: Iterable[bytes]) -> str:
    """One checksum of several digests, in hex, whatever their order."""
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
        save_tensors(tensors, output, metadata=weights.metadata() or {"format": "pt"})
