"""What runs inside a vLLM worker process: adapters are merged into the served weights. vLLM loads it by its name.

The worker reads the adapters itself and hands vLLM's own loader merged tensors under checkpoint names, so any
tensor-parallel or fused layout is served and decoding pays nothing for the adapter. With `generators.publish:
adapter` vLLM loads the adapter instead (`actors.handover.hot_adapter`), and the worker compares what it holds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class PolicyLoader:
    """Mixed into vLLM's worker (`worker_extension_cls`)."""

    _adapted_blocks: frozenset[str] = frozenset()

    def load_policy(self, base: str, adapters: Sequence[str]) -> dict[str, Any]:
        """Load the base plus all `adapters`, summed in float32 and rounded once, whatever was loaded before.

        Returns the fields of `actors.generate.engine.LoadedPolicy` as plain values, because they cross a process
        border.
        """
        from actors.handover.layer_proof import tensor_gaps, tolerance
        from csr_ray.policy.weights import Rounding, block_of, checksum, merged_blocks

        started_s = time.perf_counter()
        dtype = self.vllm_config.model_config.dtype  # type: ignore[attr-defined]
        rounding = Rounding()
        # vLLM fuses q, k, v and their biases (and gate with up) and rebuilds a fused layer from nothing: what it is
        # not given of one stays uninitialised memory. And what only an earlier policy changed has to go back.
        paths = [Path(adapter) for adapter in adapters]
        changed = list(merged_blocks(Path(base), adapters=paths, dtype=dtype, rounding=rounding))
        blocks = frozenset(block_of(name) for name, _ in changed)
        put_back = list(merged_blocks(Path(base), adapters=(), also=self._adapted_blocks - blocks))
        tensors = [*changed, *put_back]
        self._adapted_blocks |= blocks
        if tensors:
            self.reload_weights(weights_iterator=iter(tensors))  # type: ignore[attr-defined]
        model = self.model_runner.get_model()  # type: ignore[attr-defined]
        gaps, num_unseen = tensor_gaps(model, dict(tensors))
        wrong = sorted((name for name, gap in gaps.items() if not gap <= tolerance(model)), key=lambda n: -gaps[n])
        return {
            # What was put back is no part of it: one that has never served another policy has nothing to put back.
            "checksum": checksum(changed),
            "num_tensors": len(tensors),
            "num_unseen": num_unseen,
            "max_tensor_gap": max(gaps.values(), default=0.0),
            "wrong_tensors": wrong,
            "swallowed": rounding.swallowed,
            "kept": rounding.kept,
            "seconds": time.perf_counter() - started_s,
        }

    def prove_adapter(self, adapters: Sequence[str], adapter_id: int) -> dict[str, Any]:
        """Compare vLLM's LoRA of number `adapter_id` (0: none) with the sum of `adapters`, which is read anew here.

        Returns the fields of `actors.generate.engine.LoadedPolicy` as plain values, because they cross a process
        border.
        """
        from actors.handover.layer_proof import adapter_gaps
        from csr_ray.policy.weights import checksum, combined_rounding, combined_tensors

        started_s = time.perf_counter()
        dtype = self.vllm_config.model_config.dtype  # type: ignore[attr-defined]
        tensors = combined_tensors([Path(adapter) for adapter in adapters]) if adapters else {}
        rounding = combined_rounding(tensors, dtype=dtype)
        gaps: dict[str, float] = {}
        num_unseen = 0
        if adapters:
            model = self.model_runner.get_model()  # type: ignore[attr-defined]
            gaps, num_unseen = adapter_gaps(model, tensors, adapter_id=adapter_id)
        return {
            "checksum": checksum(tensors.items()),
            "num_tensors": len(tensors),
            "num_unseen": num_unseen,
            "max_tensor_gap": max(gaps.values(), default=0.0),
            "wrong_tensors": sorted((name for name, gap in gaps.items() if gap != 0.0), key=lambda n: -gaps[n]),
            "swallowed": rounding.swallowed,
            "kept": rounding.kept,
            "seconds": time.perf_counter() - started_s,
        }
