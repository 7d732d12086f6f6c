"""Whether each layer of a vLLM worker computes what the tensors that it was given compute.

Kernels keep weights in layouts of their own (vLLM's CPU linears drop the plain weight once it is packed), so a digest
of what lies in memory would prove nothing. Instead the layer is applied to fixed random vectors, and the result
compared with what base and updates make of them, computed by another way than the tensor that was loaded. Where the
plain weight is still there, some of its rows are compared, too. A layer that is split over tensor-parallel workers is
proved by each of them for its own part. Runs inside the worker process.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

# Largest relative gap that the rounding of the products explains, where only a layer's output can be looked at.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}

_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
_NUM_PROBES = 4
_NUM_ROWS = 8
_ALL = slice(None)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a worker keeps its part of a checkpoint's tensor.

    Attributes:
        layer: vLLM's module, which may hold several tensors, one below the other.
        held: rows of the layer's output that are of this tensor.
        rows, columns: of the tensor, which the worker has; all of them, unless it is split over several workers.
    """

    layer: Any
    held: slice
    rows: slice
    columns: slice


@dataclass(frozen=True, kw_only=True)
class _Expected:
    """What is kept of a tensor: its width, what the vectors make of it, and a few rows of the worker's part."""

    place: Place
    width: int
    product: torch.Tensor
    rows: torch.Tensor


class LayerProof:
    """Compares the layers of a model with what they are to compute, of which it is told before they are loaded.

    A tensor is only looked at while it is there: a few products and rows of it are kept.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._layers = {
            _tail(name): module
            for name, module in model.named_modules()
            if "language_model" in name and hasattr(module, "quant_method")
        }
        self._vectors: dict[int, torch.Tensor] = {}
        self._expected: dict[str, _Expected] = {}
        self._num_unseen = 0

    def place(self, name: str, *, shape: tuple[int, int], sizes: Mapping[str, int]) -> Place | None:
        """Where this worker keeps a tensor; None: no layer under a known name, or one that is split in another way.

        Args:
            sizes: numbers of rows of the checkpoint's tensors, by name.
        """
        tail = _tail(name.removesuffix(".weight"))
        leaf = tail.rpartition(".")[2]
        fused = next((fused for fused, members in _FUSED.items() if leaf in members), None)
        block = tail.removesuffix(leaf)
        members: tuple[str, ...] = (leaf,)
        if tail in self._layers:
            layer = self._layers[tail]
        elif fused is not None and f"{block}{fused}" in self._layers:
            layer, members = self._layers[f"{block}{fused}"], _FUSED[fused]
        else:
            return None
        home = name.removesuffix(f"{leaf}.weight")
        whole = [sizes.get(f"{home}{member}.weight", 0) for member in members]
        number = members.index(leaf)
        num, rank = int(getattr(layer, "tp_size", 1)), int(getattr(layer, "tp_rank", 0))
        if num == 1:
            if not all(whole) or sum(whole) != getattr(layer, "output_size", sum(whole)):
                return None
            start = sum(whole[:number])
            return Place(layer=layer, held=slice(start, start + shape[0]), rows=_ALL, columns=_ALL)
        if (own := getattr(layer, "input_size_per_partition", shape[1])) < shape[1]:
            if own * num != shape[1]:
                return None
            columns = slice(rank * own, (rank + 1) * own)
            return Place(layer=layer, held=slice(0, shape[0]), rows=_ALL, columns=columns)
        held = list(getattr(layer, "output_partition_sizes", ()))
        if len(held) != len(members):
            return None
        # Where there are fewer heads of keys and values than workers, several have the same ones.
        copies = getattr(layer, "num_kv_head_replicas", 1) if leaf in ("k_proj", "v_proj") else 1
        first = rank // copies * held[number]
        if held[number] * num != shape[0] * copies:
            return None
        start = sum(held[:number])
        return Place(
            layer=layer,
            held=slice(start, start + held[number]),
            rows=slice(first, first + held[number]),
            columns=_ALL,
        )

    def vectors(self, width: int) -> torch.Tensor:
        """[`_NUM_PROBES`, width] the fixed random vectors that a tensor of this width is multiplied with."""
        if width not in self._vectors:
            random = torch.Generator().manual_seed(width)
            # Numbers that every dtype here has, so that a layer is given exactly these.
            self._vectors[width] = torch.randn(_NUM_PROBES, width, generator=random).bfloat16().float()
        return self._vectors[width]

    def expect(self, name: str, *, place: Place | None, tensor: torch.Tensor, product: torch.Tensor | None) -> None:
        """Keep what the layer has to compute.

        Args:
            tensor: as it is loaded.
            product: [n, rows] what `vectors` make of the part that the worker has.
        """
        if place is None or product is None:
            self._num_unseen += 1
            return
        part = tensor[place.rows, place.columns]
        self._expected[name] = _Expected(
            place=place, width=tensor.shape[1], product=product.cpu(), rows=part[_some(len(part))].cpu().clone()
        )

    def gaps(self) -> tuple[dict[str, float], int]:
        """Look at the layers.

        Returns:
            The relative gap of each tensor that was expected, and the number of those whose layer could not be looked
            at, because it is not found under a known name.
        """
        found = {name: self._gap(expected) for name, expected in self._expected.items()}
        return found, self._num_unseen

    def _gap(self, expected: _Expected) -> float:
        place, layer = expected.place, expected.place.layer
        weight = getattr(layer, "weight", None)
        dtype, device = (expected.rows.dtype, None) if weight is None else (weight.dtype, weight.device)
        seen = self.vectors(expected.width)[:, place.columns].to(device=device, dtype=dtype)
        held = layer.quant_method.apply(layer, seen, bias=None)[:, place.held].float().cpu()
        gap = (held - expected.product).norm() / expected.product.norm().clamp_min(1e-30)
        if weight is not None and weight.ndim == 2 and weight.shape[1] == expected.rows.shape[1]:
            kept = weight[place.held]
            if not torch.equal(kept[_some(len(kept))].cpu(), expected.rows.to(dtype)):
                return math.inf  # nothing is computed on its way, so it is the same or another one
        return float(gap) if gap.isfinite() else math.inf


def adapter_gaps(
    model: torch.nn.Module, tensors: Mapping[str, torch.Tensor], *, adapter_id: int
) -> tuple[dict[str, float], int]:
    """Compare a LoRA's tensors (by PEFT's names) with those that vLLM holds of it.

    Returns:
        The relative gap of each tensor, and the number of those that could not be looked at because their layer is
        split. Tensors are only copied on their way, so the gap of a right one is 0. A module that no layer has taken
        up has an infinite gap, and so has a layer (under vLLM's name) that holds what is not in the LoRA.
    """
    layers = {
        _tail(name): module
        for name, module in model.named_modules()
        if "language_model" in name and hasattr(module, "lora_a_stacked")
    }
    slots = model.lora_manager.lora_index_to_id  # type: ignore[union-attr]
    slot = slots.index(adapter_id) if adapter_id in slots else None
    gaps: dict[str, float] = {}
    num_unseen = 0
    taken = set()
    for name, tensor in tensors.items():
        module, _, side = name.removesuffix(".weight").rpartition(".")
        tail = _tail(module)
        leaf = tail.rpartition(".")[2]
        fused = next((fused for fused, members in _FUSED.items() if leaf in members), "")
        home = tail if tail in layers else tail.removesuffix(leaf) + fused
        if home not in layers or slot is None:
            gaps[name] = math.inf
        elif getattr(layers[home], "tp_size", 1) != 1:
            num_unseen += 1
        else:
            part = 0 if home == tail else _FUSED[fused].index(leaf)
            stacks = layers[home].lora_a_stacked if side == "lora_A" else layers[home].lora_b_stacked
            gaps[name] = _held_gap(stacks[part][slot, 0], tensor=tensor)
            taken.add((home, part))
    for home, layer in layers.items() if slot is not None else ():
        others = [stack[slot] for part, stack in enumerate(layer.lora_b_stacked) if (home, part) not in taken]
        if getattr(layer, "tp_size", 1) == 1 and any(stack.any() for stack in others):
            gaps[home] = math.inf
    return gaps, num_unseen


def _held_gap(held: torch.Tensor, *, tensor: torch.Tensor) -> float:
    """Relative gap of a tensor that vLLM holds in the upper left corner of a larger one, which is zero elsewhere."""
    if held.shape[0] < tensor.shape[0] or held.shape[1] < tensor.shape[1]:
        return math.inf
    expected = torch.zeros(held.shape, dtype=held.dtype)
    expected[: tensor.shape[0], : tensor.shape[1]] = tensor.to(held.dtype)
    gap = (held.cpu().float() - expected.float()).norm() / expected.float().norm().clamp_min(1e-30)
    return float(gap) if gap.isfinite() else math.inf


def tolerance(model: torch.nn.Module) -> float:
    """The largest gap that rounding explains, in this model's dtype."""
    return TOLERANCES.get(next(model.parameters()).dtype, 1e-2)


def _some(num: int) -> slice:
    """A few of so many rows, the same for all who ask."""
    return slice(num // (2 * _NUM_ROWS), None, max(1, num // _NUM_ROWS))


def _tail(name: str) -> str:
    """The part of a module's name behind `layers.`, such as `0.self_attn.q_proj`."""
    return name.rpartition("layers.")[2]
