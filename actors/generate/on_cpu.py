"""What an engine on a CPU needs besides: prefix blocks of 16 tokens, and seeds that outlive a prompt taken in parts.

Only whole blocks are found again in a prefix cache, so each sibling in a tree computes what stands behind the last
of them anew. vLLM's own attention on CPUs takes blocks of 32 and more. Its kernels have a form for 16 (`vec16`),
which its backend does not offer and this one does.

Where a step has no room for a whole prompt, or none for its picture's features, vLLM takes a part of it, draws a
token behind that all the same, and takes the draw back, by a counter that a GPU's random generators have. A CPU's
have none, and the engine dies. Here such a request's generator is put aside for the step, so nothing is drawn from
it.

The classes are named to vLLM, which finds them in the engine's own process.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from vllm.v1.attention.backend import MultipleOf
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm.v1.executor import UniProcExecutor
from vllm.v1.worker.cpu_worker import CPUWorker

BLOCK_TOKENS = 16
_BLOCK_TOKENS_OF_TILES = 32


def block_tokens(dtype: str) -> int:
    """The smallest block that costs nothing elsewhere: for bfloat16 a CPU with AMX has kernels of 32 tokens alone."""
    has_tiles = dtype in ("auto", "bfloat16") and torch.cpu._is_amx_tile_supported()
    return _BLOCK_TOKENS_OF_TILES if has_tiles else BLOCK_TOKENS


class SmallBlocksBackend(CPUAttentionBackend):
    """vLLM's attention on CPUs, which takes blocks of 16 tokens, too."""

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        return [MultipleOf(BLOCK_TOKENS)]


class OneProcessExecutor(UniProcExecutor):
    """The executor of one worker in the engine's own process, which registers the backend before a model is made."""

    def _init_executor(self) -> None:
        backend = f"{SmallBlocksBackend.__module__}.{SmallBlocksBackend.__qualname__}"
        register_backend(AttentionBackendEnum.CPU_ATTN, backend)
        super()._init_executor()


class SeededWorker(CPUWorker):
    """vLLM's worker on CPUs, which puts the generators of prompts that are not done yet aside while it samples."""

    def sample_tokens(self, grammar_output: Any) -> Any:
        batch = self.model_runner.input_batch
        is_partial = self.model_runner.discard_request_mask.np[: batch.num_reqs]
        rows = [int(row) for row in np.nonzero(is_partial)[0] if int(row) in batch.generators]
        aside = {row: batch.generators.pop(row) for row in rows}
        try:
            return super().sample_tokens(grammar_output)
        finally:
            batch.generators.update(aside)
