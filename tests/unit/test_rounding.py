"""What rounding takes of a LoRA that is merged into bfloat16 weights, how that is told, and what takes nothing.

Oracle: the same sums in float64, by hand or by transformers with PEFT.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import build_tiny_llava

from csr_ray.policy.lora import combined_tensors
from csr_ray.policy.weights import Rounding, combined_rounding, merged_tensors, save_merged
from csr_ray.training.unmerged import add_unmerged

HIDDEN, RANK = 512, 4
MODULE = "model.layers.0.self_attn.q_proj"


def _base(folder: Path, *, dtype: torch.dtype, size: float = 0.02) -> Path:
    folder.mkdir()
    torch.manual_seed(0)
    weight = torch.randn(HIDDEN, HIDDEN) * size
    save_file({f"{MODULE}.weight": weight.to(dtype)}, folder / "model.safetensors")
    return folder


def _adapter(folder: Path, *, size: float, module: str = MODULE, in_out: tuple[int, int] = (HIDDEN, HIDDEN)) -> Path:
    """A LoRA whose B A has entries of about `size`."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(1)
    down = torch.randn(RANK, in_out[0], generator=generator)
    up = torch.randn(in_out[1], RANK, generator=generator) * size / math.sqrt(RANK)
    names = (f"base_model.model.{module}.lora_{side}.weight" for side in "AB")
    save_file(dict(zip(names, (down, up), strict=True)), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": RANK}))
    return folder


def _measured(base: Path, adapter: Path, *, dtype: torch.dtype) -> Rounding:
    rounding = Rounding()
    list(merged_tensors(base, adapters=[adapter], dtype=dtype, rounding=rounding))
    return rounding


@pytest.mark.parametrize(
    ("size", "swallowed", "kept"),
    [(1e-2, (0.0, 0.02), (0.99, 1.01)), (1e-4, (0.1, 0.6), (0.8, 1.2)), (3e-6, (0.9, 1.5), (0.0, 0.5))],
)
def test_an_update_far_below_a_rounding_step_is_swallowed_by_bfloat16_weights(
    tmp_path: Path, size: float, swallowed: tuple[float, float], kept: tuple[float, float]
) -> None:
    base = _base(tmp_path / "base", dtype=torch.bfloat16)
    measured = _measured(base, _adapter(tmp_path / "lora", size=size), dtype=torch.bfloat16)
    assert swallowed[0] <= measured.swallowed <= swallowed[1]
    assert kept[0] <= measured.kept <= kept[1]


def test_figures_are_those_of_the_formula(tmp_path: Path) -> None:
    base, adapter = _base(tmp_path / "base", dtype=torch.bfloat16), _adapter(tmp_path / "lora", size=3e-5)
    (weight,) = load_file(base / "model.safetensors").values()
    lora = load_file(adapter / "adapter_model.safetensors")
    down, up = (lora[f"base_model.model.{MODULE}.lora_{side}.weight"] for side in "AB")
    exact = up.double() @ down.double()
    arrived = (weight.double() + exact).float().to(torch.bfloat16).double() - weight.double()
    measured = _measured(base, adapter, dtype=torch.bfloat16)
    # Half of the rows are looked at.
    assert measured.swallowed == pytest.approx(float((arrived - exact).norm() / exact.norm()), rel=0.05)
    assert measured.kept == pytest.approx(float((arrived * exact).sum() / exact.square().sum()), rel=0.05)


def test_weights_between_the_rounding_steps_lose_no_part_of_an_update_but_gain_noise(tmp_path: Path) -> None:
    """So a base in float32 that is served in bfloat16 learns on, however small the steps."""
    base = _base(tmp_path / "base", dtype=torch.float32)
    measured = _measured(base, _adapter(tmp_path / "lora", size=2e-5), dtype=torch.bfloat16)
    assert measured.kept == pytest.approx(1.0, abs=0.1) and measured.swallowed > 0.5


def test_float32_swallows_nothing_and_no_adapter_has_nothing_to_swallow(tmp_path: Path) -> None:
    base = _base(tmp_path / "base", dtype=torch.bfloat16)
    measured = _measured(base, _adapter(tmp_path / "lora", size=1e-6), dtype=torch.float32)
    assert measured.swallowed < 1e-2 and measured.kept == pytest.approx(1.0, abs=1e-2)
    assert (Rounding().swallowed, Rounding().kept) == (0.0, 1.0)


def test_the_exported_model_says_what_rounding_left(tmp_path: Path) -> None:
    base, adapter = _base(tmp_path / "base", dtype=torch.bfloat16), _adapter(tmp_path / "lora", size=1e-6)
    rounding = save_merged(base, adapters=[adapter], output=tmp_path / "model")
    assert rounding.swallowed == pytest.approx(1.0, abs=0.2) and rounding.kept < 0.3


def test_a_lora_beside_the_base_keeps_what_bfloat16_weights_would_swallow(tmp_path: Path) -> None:
    adapter = _adapter(tmp_path / "lora", size=1e-7)
    measured = combined_rounding(combined_tensors([adapter]), dtype=torch.bfloat16)
    assert measured.swallowed < 0.01 and measured.kept == pytest.approx(1.0, abs=0.01)


def _half(base: Path, folder: Path) -> Path:
    """A copy of a model folder in bfloat16."""
    folder.mkdir()
    for path in base.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_trainers_unmerged_policy_is_base_plus_adapters(tmp_path: Path, dtype: torch.dtype) -> None:
    from transformers import AutoModelForImageTextToText

    base = _half(build_tiny_llava(tmp_path / "full", seed=0), tmp_path / "base")
    load = AutoModelForImageTextToText.from_pretrained
    module = "model.language_model.layers.1.mlp.up_proj"
    rows, columns = load(base, dtype=torch.float32).get_parameter(f"{module}.weight").shape
    # In bfloat16 one that the weights themselves, of about 0.02, would swallow.
    size = 1e-2 if dtype is torch.float32 else 1e-6
    adapters = [
        _adapter(tmp_path / f"lora_{name}", size=size, module=f"model.language_model.{name}", in_out=shape)
        for name, shape in (("layers.1.mlp.up_proj", (columns, rows)), ("layers.0.mlp.up_proj", (columns, rows)))
    ]
    policy = load(base, dtype=dtype)
    before = policy.get_parameter(f"{module}.weight").clone()
    add_unmerged(policy, adapters=adapters)
    vectors = torch.randn(3, columns, generator=torch.Generator().manual_seed(2))
    layer = policy.get_submodule(module)
    got = layer(vectors.to(dtype)).double() - torch.nn.functional.linear(vectors.to(dtype), layer.weight).double()
    lora = load_file(adapters[0] / "adapter_model.safetensors")
    down, up = (lora[f"base_model.model.{module}.lora_{side}.weight"].double() for side in "AB")
    expected = vectors.double() @ down.T @ up.T
    if dtype is torch.float32:
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    else:
        # The layer's output is rounded, so the update is seen where it stands alone.
        alone = torch.nn.functional.linear(
            torch.nn.functional.linear(vectors.to(dtype), layer.unmerged_down), layer.unmerged_up
        )
        torch.testing.assert_close(alone.double(), expected, rtol=0.05, atol=float(expected.abs().max()) * 0.02)
    assert torch.equal(policy.get_parameter(f"{module}.weight"), before), "the base is not touched"
    assert not [name for name, _ in policy.named_parameters() if "unmerged" in name]
    assert not [name for name in policy.state_dict() if "unmerged" in name]


def test_an_adapter_for_a_layer_that_is_not_there_is_refused(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    policy = AutoModelForImageTextToText.from_pretrained(build_tiny_llava(tmp_path / "base", seed=0))
    with pytest.raises(ValueError, match=r"no layer model\.layers\.0\.self_attn\.q_proj"):
        add_unmerged(policy, adapters=[_adapter(tmp_path / "lora", size=1.0)])
