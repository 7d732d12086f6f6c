"""What an engine is started with: vLLM's arguments and environment, worked out from a config without asking a GPU.

Everything that differs between a CPU and a GPU is decided here, by pure functions, so that tests can say what would
be asked for on machines that are not at hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from actors.generate.contrast import CONTRAST_CLASS
from actors.generate.expand import COUPLED, MEMBER_LOGPROBS_BEYOND
from csr_ray.policy.visual_tokens import merged_config, merging_classes

if TYPE_CHECKING:
    from actors.generate.engine import EngineSettings

# Tokens of one step. vLLM's own default for an engine that is neither its `LLM` nor its server is 2,048, whatever the
# GPU; as many image tokens go through the vision tower in a step, so that would be three pictures of LLaVA-1.5.
_BATCHED_TOKENS_ON_GPU: Final = 8192
# Room in the cache of processed pictures for each tree: about 2.7 megapixels of Qwen2.5-VL, whose processor makes the
# most of a picture (12 bytes a pixel in bfloat16). It is a limit; nothing is set aside.
_MIB_A_PICTURE: Final = 32
# What Linux allows the path of a socket, and what vLLM's name of one takes of it with the slash before it.
_SOCKET_PATH_BYTES: Final = 107
_SOCKET_NAME_BYTES: Final = 37


def engine_arguments(
    settings: EngineSettings, *, model: str, on_cpu: bool, visual_tokens: int | None = None
) -> dict[str, Any]:
    """Arguments of vLLM's `AsyncEngineArgs`, without those of a LoRA (`HotAdapter.engine_arguments`).

    Args:
        model: folder of the base policy.
        on_cpu: whether vLLM runs on its CPU platform.
        visual_tokens: of a picture that are kept; None: all.
    """
    generators, search = settings.generators, settings.search
    # One image a prompt: a modality not named here would count as allowed, and be warmed up and kept room for.
    arguments: dict[str, Any] = {
        "model": model,
        # Never a pickle, nor Python that came with the model: both would run what its author wrote.
        "load_format": "safetensors",
        "trust_remote_code": False,
        "dtype": settings.policy.dtype,
        "max_model_len": settings.policy.max_model_len,
        "max_num_seqs": generators.max_num_seqs,
        "limit_mm_per_prompt": {"image": 1, "video": 0, "audio": 0},
        "enable_prefix_caching": True,
        "mm_processor_cache_gb": picture_cache_gib(generators.most_in_flight),
        "max_logprobs": max(20, search.candidates + MEMBER_LOGPROBS_BEYOND, settings.most_first_tokens),
        "worker_extension_cls": "actors.handover.loader.PolicyLoader",
        "seed": settings.seed,
        "disable_log_stats": True,  # vLLM's own loggers; ours is given when the engine is made
        "enable_logging_iteration_details": True,
        "enforce_eager": on_cpu,
        "tensor_parallel_size": max(1, int(generators.gpus)),
        # Logits of 16 to 32 lie 0.125 apart in bfloat16, and log-probs would be made of those.
        "hf_overrides": {"head_dtype": "float32", **merged_config(visual_tokens)},
    }
    if visual_tokens is not None:
        # vLLM registers the class in every process of the engine, wherever the package comes from: an entry point of
        # the group vllm.general_plugins is found only where the package is installed, and not in a job's copy of it.
        arguments["model_class_overrides"] = merging_classes(visual_tokens)
    if generators.max_num_batched_tokens is not None:
        arguments["max_num_batched_tokens"] = generators.max_num_batched_tokens
    elif not on_cpu:
        arguments["max_num_batched_tokens"] = _BATCHED_TOKENS_ON_GPU
    if coupled := couplings(settings):
        arguments["logits_processors"] = coupled
        arguments["async_scheduling"] = False
    if on_cpu:
        from actors.generate.on_cpu import OneProcessExecutor, SeededWorker, block_tokens

        arguments["kv_cache_memory_bytes"] = int(generators.kv_cache_gib * 2**30)
        # Only whole blocks are found again, and a tree's branches share a prefix of some tens of tokens: with the
        # default of 128 a short prompt is never found.
        arguments["block_size"] = block_tokens(settings.policy.dtype)
        # One process fewer to start and to talk to. vLLM asks for a worker process of its own so that it can set
        # that one's thread count; here the actor's environment has set it already.
        arguments["distributed_executor_backend"] = OneProcessExecutor
        arguments["worker_cls"] = f"{SeededWorker.__module__}.{SeededWorker.__qualname__}"
        # A prompt is taken whole where it can be: CPUs gain nothing by parts.
        arguments["enable_chunked_prefill"] = False
    else:
        arguments["gpu_memory_utilization"] = generators.gpu_memory_utilization
        if settings.sleeps:
            arguments["enable_sleep_mode"] = True
        # The actor has all of its GPUs on its own node. Left to itself, vLLM would start Ray workers of its own
        # wherever the actor sits in a placement group.
        arguments["distributed_executor_backend"] = "uni" if arguments["tensor_parallel_size"] == 1 else "mp"
    return arguments


def couplings(settings: EngineSettings) -> list[str]:
    """The logits processors, by name, of the requests that read each other while they run."""
    expanded = [COUPLED[settings.search.expand]] if settings.search.expand in COUPLED else []
    return [*expanded, *([CONTRAST_CLASS] if settings.contrasts else [])]


def engine_environment(settings: EngineSettings) -> dict[str, str]:
    """Environment variables that have to be set before the engine's processes start."""
    # vLLM's second model runner (its choice on GPUs) has another interface for logits processors and refuses ours.
    return {"VLLM_USE_V2_MODEL_RUNNER": "0"} if couplings(settings) else {}


def temporary_environment(folder: Path, *, usual: Path, compiled: Path) -> dict[str, str]:
    """Environment variables that let an engine have its sockets and temporary files in a folder.

    An engine ends by being killed and removes nothing, so they have to lie where somebody removes all of it. Where
    the folder's path is too long for a socket, the sockets stay in the usual temporary folder.

    Args:
        compiled: where torch keeps what it has compiled, for all engines and later runs.
    """
    fits = len(str(folder)) + _SOCKET_NAME_BYTES <= _SOCKET_PATH_BYTES
    return {
        "TMPDIR": str(folder),
        "VLLM_RPC_BASE_PATH": str(folder if fits else usual),
        "TORCHINDUCTOR_CACHE_DIR": str(compiled),
    }


def picture_cache_gib(num_trees: int) -> float:
    """Limit of vLLM's cache of processed pictures, in GiB, so that those of all trees at work fit, and at least 1.

    A picture that has fallen out is processed and sent to the engine's process anew at every request.
    """
    return max(1.0, num_trees * _MIB_A_PICTURE / 2**10)
