"""What a worker of vLLM says of the weights it was given, whatever it served before; vLLM itself stands aside."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from actors.handover.loader import PolicyLoader

HOME = "language_model.model.layers.{}."
WEIGHTS = [HOME.format(layer) + name for layer in (0, 1) for name in ("self_attn.q_proj", "mlp.up_proj")]


class Worker(PolicyLoader):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.vllm_config = SimpleNamespace(model_config=SimpleNamespace(dtype=torch.float32))
        model = torch.nn.Linear(1, 1)
        self.model_runner = SimpleNamespace(get_model=lambda: model)
        self.weights: dict[str, torch.Tensor] = {}
        self.num_loads = 0

    def reload_weights(self, *, weights_iterator: Iterable[tuple[str, torch.Tensor]]) -> None:
        self.num_loads += 1
        self.weights |= dict(weights_iterator)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    save_file({f"{name}.weight": torch.randn(4, 4) for name in WEIGHTS}, folder / "model.safetensors")
    return folder


def adapter(folder: Path, *, module: str) -> str:
    place = folder / module
    place.mkdir()
    (place / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 2}))
    names = {f"base_model.model.{module}.lora_{side}.weight": torch.randn(2, 4) for side in "AB"}
    tensors = {name: tensor.T.contiguous() if "lora_B" in name else tensor for name, tensor in names.items()}
    save_file(tensors, place / "adapter_model.safetensors")
    return str(place)


def test_a_version_has_one_checksum_whatever_was_loaded_before_it(base: Path, tmp_path: Path) -> None:
    """A newcomer has not loaded the version that the others went back from, and serves the same as they do."""
    first, second = (adapter(tmp_path, module=module) for module in (WEIGHTS[0], WEIGHTS[3]))
    old = Worker()
    there = [old.load_policy(str(base), versions)["checksum"] for versions in ([first], [first, second])]
    assert there[0] != there[1]
    back = [old.load_policy(str(base), versions)["checksum"] for versions in ([first], [])]
    newcomer = [Worker().load_policy(str(base), versions)["checksum"] for versions in ([first], [])]
    assert back == newcomer and back[0] == there[0]


def test_what_only_the_later_version_changed_goes_back(base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    first, second = (adapter(tmp_path, module=module) for module in (WEIGHTS[0], WEIGHTS[3]))
    worker = Worker()
    original = load_file(base / "model.safetensors")
    worker.load_policy(str(base), [first, second])
    assert not torch.equal(worker.weights[f"{WEIGHTS[3]}.weight"], original[f"{WEIGHTS[3]}.weight"])
    worker.load_policy(str(base), [first])
    assert torch.equal(worker.weights[f"{WEIGHTS[3]}.weight"], original[f"{WEIGHTS[3]}.weight"])
    worker.load_policy(str(base), [])
    assert all(torch.equal(tensor, original[name]) for name, tensor in worker.weights.items())


def test_one_that_has_nothing_to_put_back_reloads_nothing(base: Path) -> None:
    """vLLM would walk through all its layers for it."""
    worker: Any = Worker()
    loaded = worker.load_policy(str(base), [])
    assert (worker.num_loads, loaded["num_tensors"], loaded["wrong_tensors"]) == (0, 0, [])
