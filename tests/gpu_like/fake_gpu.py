"""Says what vLLM makes of engine arguments on machines with GPUs: its own config classes, on a faked CUDA platform.

Run as a program, so that nobody else's process meets the fake: it reads a JSON list of `[machine, arguments,
environment]` from stdin and prints what each comes to. The arguments go through vLLM's `create_engine_config` as a
GPU's engine would take them, with a real model folder: every check of a value, and of two that contradict each other,
is vLLM's own. What it cannot show is whatever starts where the config ends: memory, kernels, worker processes.
"""

from __future__ import annotations

import json
import os
import sys
import types
from typing import Any

# Name, compute capability, memory in GiB, number of GPUs.
MACHINES = {
    "1xH100": ("NVIDIA H100 80GB HBM3", (9, 0), 79, 1),
    "4xL4": ("NVIDIA L4", (8, 9), 22, 4),
    "8xA100": ("NVIDIA A100-SXM4-80GB", (8, 0), 79, 8),
}


def fake_cuda(machine: str) -> None:
    """Make vLLM's config classes take this machine for the named one, from now on."""
    # The CUDA platform's module wants compiled kernels that a CPU build does not have, and calls none of them.
    sys.modules["vllm._C_stable_libtorch"] = types.ModuleType("vllm._C_stable_libtorch")
    import vllm.config.vllm
    import vllm.model_executor.model_loader
    import vllm.model_executor.models.llava
    import vllm.model_executor.models.qwen2_5_vl
    import vllm.platforms
    from vllm import AsyncEngineArgs
    from vllm.platforms.cuda import NonNvmlCudaPlatform
    from vllm.platforms.interface import DeviceCapability

    name, capability, memory_gib, num_gpus = MACHINES[machine]

    class Faked(NonNvmlCudaPlatform):
        get_device_name = classmethod(lambda cls, device_id=0: name)
        get_device_total_memory = classmethod(lambda cls, device_id=0: memory_gib * 2**30)
        get_device_capability = classmethod(lambda cls, device_id=0: DeviceCapability(*capability))
        device_count = classmethod(lambda cls: num_gpus)

    platform = Faked()
    vllm.platforms.current_platform = platform
    for module, loaded in list(sys.modules.items()):
        if module.startswith(("vllm.config", AsyncEngineArgs.__module__)) and "current_platform" in vars(loaded):
            loaded.current_platform = platform
    vllm.config.vllm.HAS_TRITON = True


def engine_config(arguments: dict[str, Any]) -> dict[str, Any]:
    """What vLLM decides; `error` alone if it refuses the arguments."""
    from vllm import AsyncEngineArgs

    try:
        config = AsyncEngineArgs(**arguments).create_engine_config()
    except ValueError as error:
        return {"error": str(error)}
    scheduler, cache, parallel = config.scheduler_config, config.cache_config, config.parallel_config
    return {
        "async_scheduling": scheduler.async_scheduling,
        "second_model_runner": config.use_v2_model_runner,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "max_num_encoder_input_tokens": scheduler.max_num_encoder_input_tokens,
        "max_num_seqs": scheduler.max_num_seqs,
        "chunked_prefill": scheduler.enable_chunked_prefill,
        "max_model_len": config.model_config.max_model_len,
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
        "logits_processors": config.model_config.logits_processors,
        "enforce_eager": config.model_config.enforce_eager,
        "cuda_graphs": config.compilation_config.cudagraph_mode.name != "NONE",
        "block_size": cache.block_size,
        "prefix_caching": cache.enable_prefix_caching,
        "gpu_memory_utilization": cache.gpu_memory_utilization,
        "tensor_parallel_size": parallel.tensor_parallel_size,
        "executor": parallel.distributed_executor_backend,
        "worker": parallel.worker_cls,
        "worker_extension": parallel.worker_extension_cls,
        "lora_rank": config.lora_config.max_lora_rank if config.lora_config else None,
    }


if __name__ == "__main__":
    answers = []
    for machine, arguments, environment in json.load(sys.stdin):
        fake_cuda(machine)
        os.environ.pop("VLLM_USE_V2_MODEL_RUNNER", None)
        os.environ.update(environment)
        answers.append(engine_config(arguments))
    print("\n" + json.dumps(answers))
