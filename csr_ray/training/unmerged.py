"""Training on top of earlier rounds without merging them, so that no rounding of weights takes anything of them.

The base keeps its weights to the bit, and each of its layers adds what the earlier rounds' LoRAs, together and
frozen, make of its input. This is what an engine with `generators.publish: adapter` computes. PEFT wraps the layer
with the LoRA in training on top, and with that one switched off the layer is the policy of before, which is the
reference. Knows torch modules; knows nothing of PEFT or trainers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from csr_ray.policy.lora import combined_tensors, lora_pairs


def add_unmerged(policy: torch.nn.Module, *, adapters: Sequence[Path]) -> None:
    """Let `policy` compute base plus the sum of `adapters`, whose matrices it gets in each layer's own dtype.

    Raises:
        ValueError: the adapters cannot be combined (`csr_ray.policy.lora.combined_tensors`), or change a layer
            that the policy does not have.
    """
    if not adapters:
        return
    for module, down, up in lora_pairs(combined_tensors(adapters)):
        try:
            layer = policy.get_submodule(module)
        except AttributeError as error:
            raise ValueError(f"adapters {', '.join(map(str, adapters))}: the policy has no layer {module}") from error
        # Buffers go where the layer goes (device, dtype), and are no parameters that an optimizer could find.
        layer.register_buffer("unmerged_down", down.to(layer.weight.dtype), persistent=False)
        layer.register_buffer("unmerged_up", up.to(layer.weight.dtype), persistent=False)
        layer.register_forward_hook(_add)


def _add(layer: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> Any:
    linear = torch.nn.functional.linear
    return output + linear(linear(args[0], layer.unmerged_down), layer.unmerged_up)  # type: ignore[arg-type]
