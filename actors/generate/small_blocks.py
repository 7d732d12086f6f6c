"""An engine on a CPU whose prefix cache has blocks of 16 tokens; vLLM's own attention there takes 32 and more.

Only whole blocks are found again in a prefix cache, so each sibling in a tree computes what stands behind the last of
them anew. vLLM's CPU kernels have a form for blocks of 16 (`vec16`), which its backend does not offer; this one does.
Both classes are named to vLLM, which finds them in the engine's own process.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.attention.backend import MultipleOf
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm.v1.executor import UniProcExecutor

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


class SmallBlocksExecutor(UniProcExecutor):
    """The executor of one worker in the engine's own process, which registers the backend before a model is made."""

    def _init_executor(self) -> None:
        backend = f"{SmallBlocksBackend.__module__}.{SmallBlocksBackend.__qualname__}"
        register_backend(AttentionBackendEnum.CPU_ATTN, backend)
        super()._init_executor()
