"""The layers of a serving engine, as vLLM fuses and packs them, with faults planted in them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from actors.handover.layer_proof import TOLERANCES, LayerProof, adapter_gaps

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


def _proved(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> tuple[dict[str, float], int]:
    """The gaps of layers that are to compute these tensors, and how many could not be looked at."""
    proof = LayerProof(model)
    sizes = {name: len(tensor) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        place = proof.place(name, shape=(tensor.shape[0], tensor.shape[1]), sizes=sizes)
        part = (slice(None), slice(None)) if place is None else (place.rows, place.columns)
        product = proof.vectors(tensor.shape[1])[:, part[1]] @ tensor[part].T
        proof.expect(name, place=place, tensor=tensor, product=product)
    return proof.gaps()


def _wrong(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> list[str]:
    gaps, num_unseen = _proved(model, tensors)
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


@pytest.mark.parametrize("is_packed", [False, True])
def test_one_number_that_is_off_by_a_tenth_is_named(is_packed: bool) -> None:
    tensors, name = _tensors(0), f"{HOME.format(layer=1)}q_proj.weight"
    damaged = {**tensors, name: tensors[name].clone()}
    damaged[name][3, 7] *= 1.1
    assert _wrong(_model(damaged, is_packed=is_packed), tensors) == [name]


def test_what_a_kept_weight_of_half_precision_lacks_is_seen_where_products_are_too_coarse_for_it() -> None:
    old, name = {key: it.bfloat16() for key, it in _tensors(0).items()}, f"{HOME.format(layer=0)}o_proj.weight"
    new = {key: (tensor.float() * (1 + 1e-2)).bfloat16() for key, tensor in old.items()}
    proof_of = {key: tensor.float() for key, tensor in new.items()}
    model = _model({**new, name: old[name]}, is_packed=False)
    proof, sizes = LayerProof(model), {key: len(tensor) for key, tensor in new.items()}
    for key, tensor in new.items():
        place = proof.place(key, shape=(tensor.shape[0], tensor.shape[1]), sizes=sizes)
        proof.expect(key, place=place, tensor=tensor, product=proof.vectors(tensor.shape[1]) @ proof_of[key].T)
    gaps, _ = proof.gaps()
    assert [key for key, gap in gaps.items() if gap > TOLERANCES[torch.bfloat16]] == [name]


def test_what_cannot_be_looked_at_is_counted() -> None:
    tensors = _tensors(0)
    model = _model(tensors, is_packed=True)
    model.language_model.model.layers[0].self_attn.o_proj.tp_size = 2  # and says nothing of its part
    tensors["language_model.model.layers.7.self_attn.o_proj.weight"] = tensors[f"{HOME.format(layer=0)}o_proj.weight"]
    gaps, num_unseen = _proved(model, tensors)
    assert (len(gaps), num_unseen) == (7, 2)


class _Split:
    """One of several tensor-parallel workers, with its parts of a block's tensors in layers as vLLM's."""

    def __init__(self, tensors: dict[str, torch.Tensor], *, num: int, rank: int, num_kv_heads: int) -> None:
        home = HOME.format(layer=0)
        copies = max(1, num // num_kv_heads)
        parts = []
        for name in ("q_proj", "k_proj", "v_proj"):
            shared = copies if name != "q_proj" else 1
            parts.append(tensors[f"{home}{name}.weight"].chunk(num // shared)[rank // shared])
        down = tensors[f"{home}o_proj.weight"].chunk(num, dim=1)[rank]
        self.qkv = _Linear(torch.cat(parts), is_packed=True)
        self.qkv.output_partition_sizes = [len(part) for part in parts]  # type: ignore[assignment]
        self.qkv.num_kv_head_replicas = copies  # type: ignore[assignment]
        self.qkv.input_size_per_partition = HIDDEN  # type: ignore[assignment]
        self.o = _Linear(down, is_packed=True)
        self.o.output_partition_sizes = [len(down)]  # type: ignore[assignment]
        self.o.input_size_per_partition = down.shape[1]  # type: ignore[assignment]
        for layer in (self.qkv, self.o):
            layer.tp_size, layer.tp_rank = num, rank  # type: ignore[assignment]
        attention = torch.nn.Module()
        attention.qkv_proj, attention.o_proj = self.qkv, self.o
        block = torch.nn.Module()
        block.self_attn = attention
        self.model = torch.nn.Module()
        self.model.language_model = torch.nn.Module()
        self.model.language_model.model = torch.nn.Module()
        self.model.language_model.model.layers = torch.nn.ModuleList([block])


@pytest.mark.parametrize(("num", "rank", "num_kv_heads"), [(2, 0, 2), (2, 1, 2), (4, 3, 2), (4, 0, 4)])
def test_each_worker_proves_its_own_part(num: int, rank: int, num_kv_heads: int) -> None:
    tensors = {name: tensor for name, tensor in _tensors(0).items() if name.startswith(HOME.format(layer=0))}
    split = _Split(tensors, num=num, rank=rank, num_kv_heads=num_kv_heads)
    gaps, num_unseen = _proved(split.model, tensors)
    assert num_unseen == 0 and len(gaps) == 4 and max(gaps.values()) < TOLERANCES[torch.float32]


@pytest.mark.parametrize("name", ["q_proj", "k_proj", "v_proj", "o_proj"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_worker_with_another_ones_part_is_found_by_name(name: str, rank: int) -> None:
    tensors = {key: tensor for key, tensor in _tensors(0).items() if key.startswith(HOME.format(layer=0))}
    key = f"{HOME.format(layer=0)}{name}.weight"
    halves = tensors[key].chunk(2, dim=1 if name == "o_proj" else 0)
    exchanged = {**tensors, key: torch.cat(tuple(reversed(halves)), dim=1 if name == "o_proj" else 0)}
    split = _Split(exchanged, num=2, rank=rank, num_kv_heads=2)
    gaps, _ = _proved(split.model, tensors)
    assert [one for one, gap in gaps.items() if gap > TOLERANCES[torch.float32]] == [key]


RANK, ROOM, SLOT, ADAPTER = 3, 8, 1, 7
PARTS = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "o_proj": ("o_proj",)}


def _lora(seed: int) -> dict[str, torch.Tensor]:
    """Of all layers but the first one's output, under PEFT's names."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(2):
        for name, rows in ROWS.items():
            home = f"base_model.model.model.language_model.layers.{layer}.self_attn.{name}"
            if (layer, name) != (0, "o_proj"):
                tensors[f"{home}.lora_A.weight"] = torch.randn(RANK, HIDDEN, generator=generator)
                tensors[f"{home}.lora_B.weight"] = torch.randn(rows, RANK, generator=generator)
    return tensors


def _model_with_lora(tensors: dict[str, torch.Tensor], *, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """Layers as vLLM wraps them, the tensors in one of two slots and others in the other."""
    model = _model(_tensors(0), is_packed=True)
    for layer, block in enumerate(model.language_model.model.layers):
        for home, members in PARTS.items():
            module, stacks = getattr(block.self_attn, home), []
            for member in members:
                down, up = (
                    torch.zeros(2, 1, ROOM, HIDDEN, dtype=dtype),
                    torch.zeros(2, 1, ROWS[member], ROOM, dtype=dtype),
                )
                key = f"base_model.model.model.language_model.layers.{layer}.self_attn.{member}"
                down[1 - SLOT], up[1 - SLOT] = 1.0, 1.0
                if f"{key}.lora_A.weight" in tensors:
                    down[SLOT, 0, :RANK] = tensors[f"{key}.lora_A.weight"]
                    up[SLOT, 0, :, :RANK] = tensors[f"{key}.lora_B.weight"]
                stacks.append((down, up))
            module.lora_a_stacked, module.lora_b_stacked = (tuple(side) for side in zip(*stacks, strict=True))
    model.lora_manager = SimpleNamespace(lora_index_to_id=[3, ADAPTER])  # type: ignore[assignment]
    return model


def _wrong_lora(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> list[str]:
    gaps, num_unseen = adapter_gaps(model, tensors, adapter_id=ADAPTER)
    assert num_unseen == 0
    return sorted(name.removeprefix("base_model.model.model.language_model.") for name, gap in gaps.items() if gap)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lora_that_arrived_whole_passes(dtype: torch.dtype) -> None:
    tensors = _lora(0)
    assert _wrong_lora(_model_with_lora(tensors, dtype=dtype), tensors) == []


def test_exchanged_zeroed_and_surplus_lora_tensors_are_named() -> None:
    tensors, home = _lora(0), "base_model.model.model.language_model.layers.1.self_attn."
    k, v, up = f"{home}k_proj.lora_A.weight", f"{home}v_proj.lora_A.weight", f"{home}o_proj.lora_B.weight"
    exchanged = {**tensors, k: tensors[v], v: tensors[k]}
    tail = "layers.1.self_attn."
    assert _wrong_lora(_model_with_lora(exchanged), tensors) == [
        f"{tail}k_proj.lora_A.weight",
        f"{tail}v_proj.lora_A.weight",
    ]
    zeroed = {**tensors, up: torch.zeros_like(tensors[up])}
    assert _wrong_lora(_model_with_lora(zeroed), tensors) == [f"{tail}o_proj.lora_B.weight"]
    less = {name: tensor for name, tensor in tensors.items() if "o_proj" not in name}
    assert _wrong_lora(_model_with_lora(tensors), less) == ["1.self_attn.o_proj"]


def test_lora_that_no_layer_took_up_is_wrong_and_one_split_over_workers_is_counted() -> None:
    tensors = _lora(0)
    model = _model_with_lora(tensors)
    assert len(_wrong_lora(model, tensors)) == 0
    model.lora_manager.lora_index_to_id = [3, None]  # type: ignore[union-attr]
    assert len(_wrong_lora(model, tensors)) == len(tensors)
    model = _model_with_lora(tensors)
    del model.language_model.model.layers[1].self_attn.o_proj.lora_a_stacked
    assert _wrong_lora(model, tensors) == [f"layers.1.self_attn.o_proj.lora_{side}.weight" for side in "AB"]
    model = _model_with_lora(tensors)
    model.language_model.model.layers[1].self_attn.qkv_proj.tp_size = 2
    gaps, num_unseen = adapter_gaps(model, tensors, adapter_id=ADAPTER)
    assert (set(gaps.values()), num_unseen) == ({0.0}, 6)
