"""`generators.publish: adapter`: the base stays loaded, and every policy is one LoRA that vLLM swaps while running.

The LoRA is the sum of all phases' adapters (`csr_ray.policy.lora.combined_tensors`), in a folder of its own for
each version. vLLM finds cached prefixes by a LoRA's name, so every load has a name of its own. Image features do not
depend on the LoRA and stay cached. Knows vLLM's LoRA interface; knows no prompts.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.process.leftovers import own_folder
from csr_ray.errors import ConfigError


class HotAdapter:
    """The LoRA that one engine serves.

    Args:
        max_rank: rank of the largest LoRA that the engine makes room for (`Config.served_rank`).
        targets: names of the linear layers that may have one (`train.lora_targets`).

    Attributes:
        request: vLLM's LoRARequest, which every request of the engine carries; None: the base alone is served.
    """

    def __init__(self, *, max_rank: int, targets: Sequence[str]) -> None:
        self._max_rank = max_rank
        self._targets = tuple(targets)
        self._folder = own_folder("served")
        self._ids = itertools.count(1)
        self.request: Any = None

    def engine_arguments(self) -> dict[str, Any]:
        """What vLLM has to know when it starts."""
        return {
            "enable_lora": True,
            "max_loras": 1,
            "max_cpu_loras": 2,  # the new one is read while the old one is still there
            "max_lora_rank": self._max_rank,
            # What is not named gets no LoRA: without this the output head, too, would pay for one at every token.
            "lora_target_modules": list(self._targets),
        }

    async def switch(self, llm: Any, *, adapters: Sequence[str]) -> list[dict[str, Any]]:
        """Serve base plus the sum of `adapters` from the next request on; returns each worker's `prove_adapter`.

        No request may be under way. The LoRA that was served before is removed.

        Raises:
            ValueError: the adapters cannot be combined, or need a larger rank than the engine makes room for.
        """
        old = self.request
        new = await asyncio.to_thread(self._write, adapters) if adapters else None
        if new != old:
            if new is not None:
                await llm.add_lora(new)
            self.request = new
            if old is not None:
                await llm.remove_lora(old.lora_int_id)
                shutil.rmtree(old.lora_path)
        number = 0 if self.request is None else self.request.lora_int_id
        results: list[dict[str, Any]] = await llm.collective_rpc("prove_adapter", args=(list(adapters), number))
        return results

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self, adapters: Sequence[str]) -> Any:
        from vllm.lora.request import LoRARequest

        # Here, because it imports torch, and the driver imports this module.
        from csr_ray.policy.lora import combined_tensors, save_combined

        tensors = combined_tensors([Path(adapter) for adapter in adapters])
        rank = next(len(tensor) for name, tensor in tensors.items() if name.endswith(".lora_A.weight"))
        if rank > self._max_rank:
            raise ValueError(
                f"{len(adapters)} adapters together have rank {rank}; the engine makes room for {self._max_rank} "
                "(train.lora_rank times run.rounds, for each phase of a round); set generators.publish=merge"
            )
        # vLLM's prefix cache goes by the name. With its own number no load finds what another has left, not even one
        # of the same tensors: that may have gone wrong.
        number = next(self._ids)
        name = f"version_{len(adapters):03d}-{number}"
        folder = self._folder / name
        save_combined(tensors, output=folder)
        return LoRARequest(lora_name=name, lora_int_id=number, lora_path=str(folder))


def refusal(model_config: Any) -> ConfigError | None:
    """The error to raise if vLLM has no LoRA for this kind of model; None if it has."""
    from vllm.model_executor.models import ModelRegistry, supports_lora

    model, architecture = ModelRegistry.resolve_model_cls(model_config.architectures, model_config)
    if supports_lora(model):
        return None
    return ConfigError(
        f"generators.publish = 'adapter': vLLM has no LoRA for {architecture} "
        f"(policy.model = {model_config.model!r}); set generators.publish=merge"
    )
