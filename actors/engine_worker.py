"""What runs inside a vLLM worker process: merging adapters into the served weights. Loaded by name, no patching.

The worker reads the adapters itself and hands vLLM's own loader merged tensors under checkpoint names, so any
tensor-parallel or fused layout is served and decoding pays nothing for the adapter.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class PolicyLoader:
    """Mixed into vLLM's worker (`worker_extension_cls`)."""

    def load_policy(self, base: str, adapters: Sequence[str]) -> dict[str, Any]:
        """Load base + all `adapters` (fp32 sum, one rounding).

        Returns plain values only: they cross a process border.
        """
        from csr_ray.weights import checksum, merged_tensors

        started_s = time.perf_counter()
        tensors = list(merged_tensors(Path(base), adapters=[Path(adapter) for adapter in adapters]))
        self.model_runner.reload_weights(weights_iterator=iter(tensors))  # type: ignore[attr-defined]
        return {
            "checksum": checksum(tensors),
            "num_tensors": len(tensors),
            "seconds": time.perf_counter() - started_s,
        }
