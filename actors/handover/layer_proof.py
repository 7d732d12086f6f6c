"""Whether each layer of a vLLM worker computes what the tensors that it was given compute.

Kernels keep weights in layouts of their own (vLLM's CPU linears drop the plain weight once it is packed), so a digest
of what lies in memory would prove nothing. Instead the layer and the tensor are applied to the same fixed random
vectors, and the results compared; where the plain weight is still there it is compared itself. Runs inside the worker
process.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

# Largest relative gap that the rounding of the products explains, where only a layer's output can be looked at.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}

_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
_NUM_PROBES = 4


def tensor_gaps(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, float], int]:
    """Compare every decoder weight among `tensors` (by checkpoint name) with its layer.

    Returns:
        The relative gap of each weight, and the number of those whose layer could not be looked at, because it is
        split over several workers or not found under a known name.
    """
    layers = {
        _tail(name): module
        for name, module in model.named_modules()
        if "language_model" in name and hasattr(module, "quant_method")
    }
    weights = {name: tensor for name, tensor in tensors.items() if name.endswith(".weight") and tensor.ndim == 2}
    gaps: dict[str, float] = {}
    num_unseen = 0
    for name, tensor in weights.items():
        found = _find(name, layers=layers, weights=weights)
        if found is None:
            num_unseen += 1
            continue
        layer, start = found
        gaps[name] = _gap(layer, tensor=tensor, rows=slice(start, start + len(tensor)))
    return gaps, num_unseen


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


def _find(name: str, *, layers: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> tuple[Any, int] | None:
    """The layer that holds the tensor, and the first of its rows there."""
    tail = _tail(name.removesuffix(".weight"))
    leaf = tail.rpartition(".")[2]
    fused = next((fused for fused, members in _FUSED.items() if leaf in members), None)
    block = tail.removesuffix(leaf)
    members: tuple[str, ...] = (leaf,)
    if tail in layers:
        layer = layers[tail]
    elif fused is not None and f"{block}{fused}" in layers:
        layer, members = layers[f"{block}{fused}"], _FUSED[fused]
    else:
        return None
    home = name.removesuffix(f"{leaf}.weight")
    rows = [len(weights[f"{home}{member}.weight"]) for member in members if f"{home}{member}.weight" in weights]
    is_whole = len(rows) == len(members) and sum(rows) == getattr(layer, "output_size", sum(rows))
    if not is_whole or getattr(layer, "tp_size", 1) != 1:
        return None
    return layer, sum(rows[: members.index(leaf)])


def _gap(layer: Any, *, tensor: torch.Tensor, rows: slice) -> float:
    weight = getattr(layer, "weight", None)
    if weight is not None and weight.ndim == 2 and weight.shape[1] == tensor.shape[1]:
        held = weight[rows].float().cpu()
        expected = tensor.to(weight.dtype).float().cpu()
    else:
        dtype = weight.dtype if weight is not None else tensor.dtype
        device = weight.device if weight is not None else tensor.device
        random = torch.Generator().manual_seed(tensor.shape[1])
        probes = torch.randn(_NUM_PROBES, tensor.shape[1], generator=random).to(dtype)
        expected = (probes.double() @ tensor.to(dtype).double().T).float()
        held = layer.quant_method.apply(layer, probes.to(device), bias=None)[:, rows].float().cpu()
    return float((held - expected).norm() / expected.norm().clamp_min(1e-30))


def _tail(name: str) -> str:
    """The part of a module's name behind `layers.`, such as `0.self_attn.q_proj`."""
    return name.rpartition("layers.")[2]
