"""The layers of a serving engine, as vLLM fuses and packs them, with faults planted in them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from actors.engine_proof import TOLERANCES, tensor_gaps

HIDDEN = 16
ROWS = {"q_proj": 16, "k_proj": 8, "v_proj": 8, "o_proj": 16}
HOME = "language_model.model.layers.{layer}.self_attn."


class _Linear(torch.nn.Module):
    """Keeps its weight where only `apply` finds it if `is_packed`, as vLLM's CPU kernels do."""

    def __init__(self, weight: torch.Tensor, *, is_packed: bool) -> None:
        super().__init__()
        self.output_size, self.tp_size = len(weight), 1
        self.weight = torch.nn.Parameter(torch.empty(0) if is_packed else weight.clone(), requires_grad=False)
        self._packed = weight.clone()
        self.quant_method = self

    def apply(self, layer: Any, x: torch.Tensor, bias: None) -> torch.Tensor:  # type: ignore[override]
        return x @ layer._packed.T


def _tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{HOME.format(layer=layer)}{name}.weight": torch.randn(rows, HIDDEN, generator=generator)
        for layer in range(2)
        for name, rows in ROWS.items()
    }


def _model(tensors: dict[str, torch.Tensor], *, is_packed: bool) -> torch.nn.Module:
    layers = torch.nn.ModuleList()
    for layer in range(2):
        home = HOME.format(layer=layer)
        block = torch.nn.Module()
        block.self_attn = torch.nn.Module()
        fused = torch.cat([tensors[f"{home}{name}.weight"] for name in ("q_proj", "k_proj", "v_proj")])
        block.self_attn.qkv_proj = _Linear(fused, is_packed=is_packed)
        block.self_attn.o_proj = _Linear(tensors[f"{home}o_proj.weight"], is_packed=is_packed)
        layers.append(block)
    model = torch.nn.Module()
    model.language_model = torch.nn.Module()
    model.language_model.model = torch.nn.Module()
    model.language_model.model.layers = layers
    return model


def _wrong(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> list[str]:
    gaps, num_unseen = tensor_gaps(model, tensors)
    assert num_unseen == 0 and len(gaps) == 8
    return sorted(name for name, gap in gaps.items() if gap > TOLERANCES[torch.float32])


@pytest.mark.parametrize("is_packed", [False, True])
def test_layers_that_hold_their_tensors_pass(is_packed: bool) -> None:
    tensors = _tensors(0)
    assert _wrong(_model(tensors, is_packed=is_packed), tensors) == []


@pytest.mark.parametrize("is_packed", [False, True])
def test_exchanged_tensors_are_named(is_packed: bool) -> None:
    tensors, (k, v) = _tensors(0), (f"{HOME.format(layer=1)}{name}.weight" for name in ("k_proj", "v_proj"))
    exchanged = {**tensors, k: tensors[v], v: tensors[k]}
    assert _wrong(_model(exchanged, is_packed=is_packed), tensors) == [k, v]


@pytest.mark.parametrize("is_packed", [False, True])
def test_one_layer_that_was_not_updated_is_named_even_if_the_update_is_small(is_packed: bool) -> None:
    old, name = _tensors(0), f"{HOME.format(layer=0)}o_proj.weight"
    new = {key: tensor * (1 + 1e-4) for key, tensor in old.items()}
    assert _wrong(_model({**new, name: old[name]}, is_packed=is_packed), new) == [name]


def test_what_cannot_be_looked_at_is_counted() -> None:
    tensors = _tensors(0)
    model = _model(tensors, is_packed=True)
    model.language_model.model.layers[0].self_attn.o_proj.tp_size = 2
    tensors["language_model.model.layers.7.self_attn.o_proj.weight"] = tensors[f"{HOME.format(layer=0)}o_proj.weight"]
    gaps, num_unseen = tensor_gaps(model, tensors)
    assert (len(gaps), num_unseen) == (7, 2)
