"""What we use of vLLM, looked up in its installed sources: a new version shows here what has moved.

On a GPU vLLM runs its second model runner (`vllm/v1/worker/gpu`), which needs Triton even to be imported. So its
sources are read, not run: what is stated here is that the interfaces are there, not that they compute the right
thing. The second runner has not run with this project yet.
"""

from __future__ import annotations

import ast
import inspect
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from actors.generate.expand import COUPLED

SPEC = find_spec("vllm")
assert SPEC is not None and SPEC.origin is not None
VLLM = Path(SPEC.origin).parent
SECOND = "v1/worker/gpu"


@cache
def tree(file: str) -> ast.Module:
    return ast.parse((VLLM / file).read_text(encoding="utf-8"))


def found(file: str, path: str) -> ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef:
    """The class, function or method named `path` ("Class.method")."""
    node: Any = tree(file)
    for name in path.split("."):
        kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        inside = [child for child in node.body if isinstance(child, kinds) and child.name == name]
        assert inside, f"{file}: no {path}"
        node = inside[-1]
    return node


def parameters(file: str, path: str) -> set[str]:
    node = found(file, path)
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    return {one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}


def source(file: str, path: str) -> str:
    return ast.unparse(found(file, path))


@pytest.mark.parametrize(
    ("file", "path", "needed"),
    [
        # the hand-over, inside a worker (actors.handover.loader)
        (f"{SECOND}/model_runner.py", "GPUModelRunner.reload_weights", {"weights_iterator"}),
        (f"{SECOND}/model_runner.py", "GPUModelRunner.get_model", set()),
        (f"{SECOND}/model_runner.py", "GPUModelRunner.reset_mm_cache", set()),
        (f"{SECOND}/model_runner.py", "GPUModelRunner.reset_encoder_cache", set()),
        ("v1/worker/gpu_worker.py", "Worker.reload_weights", set()),
        # LoRAs that are swapped while running (actors.handover.hot_adapter)
        ("v1/worker/lora_model_runner_mixin.py", "LoRAModelRunnerMixin.add_lora", {"lora_request"}),
        ("v1/worker/lora_model_runner_mixin.py", "LoRAModelRunnerMixin.remove_lora", {"lora_id"}),
        # log-probs, prompt log-probs, allowed tokens, seeds
        (f"{SECOND}/sample/logprob.py", "compute_topk_scores", {"num_logprobs", "sampled_token_ids"}),
        (f"{SECOND}/sample/prompt_logprob.py", "PromptLogprobsWorker.compute_prompt_logprobs", {"prompt_lens"}),
        (f"{SECOND}/sample/logit_bias.py", "LogitBiasState.add_request", {"sampling_params"}),
        (f"{SECOND}/sample/states.py", "SamplingStates.any_explicit_seed", set()),
        # the front end (actors.generate.engine)
        ("v1/engine/async_llm.py", "AsyncLLM.from_engine_args", {"engine_args", "stat_loggers"}),
        ("v1/engine/async_llm.py", "AsyncLLM.generate", {"prompt", "sampling_params", "request_id", "lora_request"}),
        ("v1/engine/async_llm.py", "AsyncLLM.collective_rpc", {"method", "args"}),
        ("v1/engine/async_llm.py", "AsyncLLM.add_lora", {"lora_request"}),
        ("v1/engine/async_llm.py", "AsyncLLM.remove_lora", {"lora_id"}),
        ("v1/engine/async_llm.py", "AsyncLLM.errored", set()),
        ("v1/engine/async_llm.py", "AsyncLLM.shutdown", set()),
        ("renderers/base.py", "BaseRenderer.render_cmpl_async", {"prompts"}),
        ("renderers/inputs/preprocess.py", "parse_model_prompt", {"model_config", "prompt"}),
        ("v1/metrics/loggers.py", "StatLoggerBase.record", {"scheduler_stats", "iteration_stats", "mm_cache_stats"}),
    ],
)
def test_it_is_there_and_takes_what_we_give_it(file: str, path: str, needed: set[str]) -> None:
    assert needed <= parameters(file, path), (file, path, parameters(file, path))


@pytest.mark.parametrize(
    ("file", "path", "returns"),
    [
        ("v1/engine/async_llm.py", "AsyncLLM.reset_prefix_cache", "bool"),  # false: refused, so a stale cache
        ("v1/engine/async_llm.py", "AsyncLLM.reset_mm_cache", "None"),
        ("v1/engine/async_llm.py", "AsyncLLM.reset_encoder_cache", "None"),
        (f"{SECOND}/model_runner.py", "GPUModelRunner.reload_weights", "None"),
    ],
)
def test_what_resets_say(file: str, path: str, returns: str) -> None:
    node = found(file, path)
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns is not None
    assert ast.unparse(node.returns) == returns


@pytest.mark.parametrize(
    ("file", "path", "says"),
    [
        # The second runner is the choice wherever nothing speaks against it, and nothing that we ask for does.
        ("config/vllm.py", "VllmConfig.use_v2_model_runner", "envs.VLLM_USE_V2_MODEL_RUNNER"),
        # It refuses logits processors of the first runner's kind (HammingGroups is one), and has others of its own.
        (f"{SECOND}/sample/logits_processor/loader.py", "_load_v2_logitsprocs_by_fqcns", "is not a subclass of"),
        # An explicit seed keeps off the fused sampler, which draws for the whole batch.
        (f"{SECOND}/sample/sampler.py", "Sampler.sample", "any_explicit_seed"),
        # Log-probs are of the raw logits unless another mode is asked for, so a forced token keeps its own.
        (f"{SECOND}/sample/sampler.py", "Sampler.__call__", "PROCESSED_LOGPROBS_MODES"),
        # reload_weights drops image features of the old weights by itself; the prefix cache is the scheduler's.
        (f"{SECOND}/model_runner.py", "GPUModelRunner.reload_weights", "self.reset_encoder_cache()"),
        # The first runner copies the last step's tokens back before it asks logits processors, even with async
        # scheduling; rows of members that have ended are there all the same.
        ("v1/worker/gpu_model_runner.py", "GPUModelRunner._sample", "update_async_output_token_ids()"),
        # Async scheduling: on unless something speaks against it, and the CPU platform switches it off.
        ("platforms/cpu.py", "CpuPlatform.check_and_update_config", "scheduler_config.async_scheduling = False"),
        # Stops are looked through one by one, for every token (why requests name few of them).
        ("v1/core/sched/utils.py", "check_stop", "last_token_id in (sampling_params.stop_token_ids or ())"),
        # A picture that the engine's process has lost ends its request with an error instead of raising one.
        ("v1/engine/core.py", "EngineCoreProc._handle_mm_cache_miss", "finish_reason=FinishReason.ERROR"),
        # The front end learns the cache's size from the engine's process.
        ("v1/engine/core.py", "EngineCoreProc._make_ready_response", "kv_cache_size_tokens="),
        # Several GPUs inside a placement group: Ray workers of vLLM's own, unless another executor is named.
        ("config/parallel.py", "ParallelConfig.__post_init__", "get_current_placement_group"),
    ],
)
def test_what_we_rely_on_is_written_there(file: str, path: str, says: str) -> None:
    assert says in source(file, path), f"{file}, {path}: reads differently now"


def test_the_second_runner_refuses_our_logits_processor() -> None:
    """So a coupled expansion needs the first (`engine_environment`). This part of it can be imported anywhere."""
    from vllm.v1.worker.gpu.sample.logits_processor import build_custom_logits_processors_params_validator

    with pytest.raises(ValueError, match="HammingGroups is not a subclass of"):
        build_custom_logits_processors_params_validator([*COUPLED.values()])


def test_a_forced_token_is_one_of_at_most_1024() -> None:
    """`allowed_token_ids` (the stale-cache proof) has a limit on the second runner; we name one token."""
    limits = {
        target.id: node.value.value
        for node in tree(f"{SECOND}/sample/logit_bias.py").body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    assert limits == {
        "MAX_NUM_ALLOWED_TOKEN_IDS": 1024,
        "MAX_NUM_LOGIT_BIAS_TOKENS": 1024,
        "MAX_NUM_STOP_TOKEN_IDS": 128,  # only with min_tokens, which we do not use
    }


def test_the_second_runner_does_not_say_that_it_lacks_what_we_ask_for() -> None:
    lacking = [
        node.value
        for node in ast.walk(found("config/vllm.py", "VllmConfig._get_v2_model_runner_unsupported_features"))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value
    ]
    for word in ("logprob", "LoRA", "multimodal", "reload", "allowed", "seed", "prefix cach"):
        assert not any(word.lower() in text.lower() for text in lacking[1:]), (word, lacking)


def test_fields_and_options_that_are_named_by_us() -> None:
    from vllm import AsyncEngineArgs, SamplingParams
    from vllm.config import CacheConfig
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.v1.metrics.stats import IterationStats, SchedulerStats

    sampling = inspect.signature(SamplingParams).parameters
    assert sampling.keys() >= {
        "n",
        "temperature",
        "top_p",
        "seed",
        "max_tokens",
        "stop_token_ids",
        "ignore_eos",
        "logprobs",
        "flat_logprobs",
        "prompt_logprobs",
        "allowed_token_ids",
        "extra_args",
        "detokenize",
        "output_kind",
    }
    arguments = inspect.signature(AsyncEngineArgs).parameters
    assert arguments.keys() >= {
        "async_scheduling",
        "worker_extension_cls",
        "logits_processors",
        "mm_processor_cache_gb",
    }
    assert "num_cached_tokens" in inspect.signature(RequestOutput).parameters
    assert inspect.signature(CompletionOutput).parameters.keys() >= {"logprobs", "finish_reason", "stop_reason"}
    assert hasattr(CacheConfig, "__dataclass_fields__") and "kv_cache_size_tokens" in CacheConfig.__dataclass_fields__
    assert {"prefix_cache_stats", "iteration_details"} <= SchedulerStats.__dataclass_fields__.keys()
    assert hasattr(IterationStats(), "num_generation_tokens") and hasattr(IterationStats(), "num_preempted_reqs")
