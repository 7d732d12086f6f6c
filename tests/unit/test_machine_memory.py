"""Sizes of adapters and of the object store, worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import tiny_config
from safetensors.numpy import save_file

from csr_ray.machine.memory import MIB, adapter_bytes, count_weights, object_store_bytes


def test_an_adapter_weighs_rank_times_in_plus_out_for_each_target(tmp_path: Path) -> None:
    import numpy as np

    def zeros(*shape: int) -> np.ndarray:
        return np.zeros(shape, dtype=np.float16)

    save_file(
        {
            "language_model.model.layers.0.self_attn.q_proj.weight": zeros(8, 16),
            "language_model.model.layers.0.self_attn.q_proj.bias": zeros(8),
            "language_model.model.layers.0.mlp.up_proj.weight": zeros(40, 16),
            "language_model.lm_head.weight": zeros(100, 16),
        },
        tmp_path / "model-00001-of-00002.safetensors",
    )
    save_file({"visual.blocks.0.q_proj.weight": zeros(4, 4)}, tmp_path / "model-00002-of-00002.safetensors")
    train = tiny_config(train={"lora_rank": 4, "dtype": "float32", "lora_targets": ["q_proj", "up_proj"]}).train
    # The tower's q_proj is counted, too: an upper bound.
    assert adapter_bytes(tmp_path, train=train) == 4 * 4 * ((8 + 16) + (40 + 16) + (4 + 4))
    assert adapter_bytes(tmp_path, train=train.model_copy(update={"dtype": "bfloat16"})) == 2 * 4 * 88
    assert adapter_bytes(tmp_path / "nowhere", train=train) == 0


def test_the_numbers_of_a_model_are_counted_as_they_will_lie_in_memory(tmp_path: Path) -> None:
    import numpy as np

    save_file({"a": np.zeros((8, 16), np.float16), "b": np.zeros(5, np.float32)}, tmp_path / "model-1.safetensors")
    save_file({"c": np.zeros((7, 2), np.float32), "d": np.zeros(9, np.int8)}, tmp_path / "model-2.safetensors")
    save_file({"a": np.zeros((8, 16), np.float16)}, tmp_path / "consolidated.safetensors")
    assert count_weights(tmp_path) == 8 * 16 + 5 + 7 * 2
    assert count_weights(tmp_path / "nowhere") == 0


@pytest.mark.parametrize(
    ("adapter", "rollouts", "memory", "shared", "store"),
    [
        (0, 64, 64 * 1024, 32 * 1024, 256),  # what is small needs no more than before
        (610, 384, 512 * 1024, 256 * 1024, 2 * 610 + 192),
        (610, 384, 4 * 1024, 256 * 1024, 1228.8),  # 0.3 of the memory
        (610, 384, 512 * 1024, 1024, 921.6),  # 0.9 of /dev/shm
        (610, 384, 512 * 1024, 64, 256),  # a container's default: Ray takes files then, and says so
        (610, 384, 512 * 1024, None, 2 * 610 + 192),
    ],
)
def test_the_store_holds_two_packages_and_the_rollouts_as_far_as_the_machine_allows(
    adapter: int, rollouts: int, memory: int, shared: int | None, store: float
) -> None:
    found = object_store_bytes(
        adapter_bytes=adapter * MIB,
        num_rollouts=rollouts,
        memory_bytes=memory * MIB,
        shared_memory_bytes=None if shared is None else shared * MIB,
    )
    assert found == int(store * MIB)
