"""A policy that is divided among the two workers of a real vLLM engine: each forms, loads and proves its own part.

vLLM's build for CPUs divides a model, too, if it is told which core each worker has. transformers and PEFT are the
oracle of what is served, and a fault in one worker's part has to be found by that worker, by the tensor's name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_models import build_tiny_llava

TARGETS = r".*\blanguage_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
TOKENS = [1, 17, 33, 5, 9, 40, 12, 7]
# One that is divided by rows, fused with others; one that is divided by columns; one of a fused MLP.
NAMES = ("self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llava(tmp_path_factory.mktemp("model"), seed=3)


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    policy = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    folder = tmp_path_factory.mktemp("adapter")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        lora = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, init_lora_weights=False)
        get_peft_model(policy, lora).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[Any]:
    cores = sorted(os.sched_getaffinity(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", f"{cores[0]}|{cores[-1]}")
        patch.setenv("HF_HUB_OFFLINE", "1")
        from vllm import LLM

        llm = LLM(
            model=str(model),
            tensor_parallel_size=2,
            distributed_executor_backend="mp",
            worker_extension_cls="faulty_loader.FaultyLoader",
            load_format="safetensors",
            dtype="float32",
            max_model_len=256,
            max_num_seqs=2,
            kv_cache_memory_bytes=1 << 26,
            enforce_eager=True,
            limit_mm_per_prompt={"image": 1, "video": 0, "audio": 0},
            disable_log_stats=True,
        )
        yield llm
        llm.llm_engine.engine_core.shutdown()


def load(engine: Any, model: Path, *adapters: Path) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = engine.collective_rpc("load_policy", args=(str(model), list(map(str, adapters))))
    engine.reset_prefix_cache()
    return loaded


def served_logp(engine: Any) -> float:
    from vllm import SamplingParams

    asked = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    (output,) = engine.generate([{"prompt_token_ids": TOKENS}], asked, use_tqdm=False)
    pairs = zip(output.prompt_logprobs[1:], TOKENS[1:], strict=True)
    return float(sum(entry[token].logprob for entry, token in pairs))


def expected_logp(model: Path, adapter: Path | None) -> float:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    policy = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    if adapter is not None:
        policy = PeftModel.from_pretrained(policy, str(adapter))
    ids = torch.tensor([TOKENS])
    with torch.no_grad():
        logps = policy.eval()(input_ids=ids, use_cache=False).logits[:, :-1].log_softmax(-1)
    return float(logps.gather(-1, ids[:, 1:, None]).sum())


def tensor_of(name: str, engine: Any, model: Path) -> str:
    from csr_ray.policy.checkpoint import Checkpoint

    (found,) = (key for key in Checkpoint(model) if f"layers.1.{name}.weight" in key and "language_model" in key)
    return found


def test_both_workers_load_and_prove_their_parts(engine: Any, model: Path, adapter: Path) -> None:
    base = expected_logp(model, None)
    assert served_logp(engine) == pytest.approx(base, abs=1e-3)
    loaded = load(engine, model, adapter)
    assert [(one["wrong_tensors"], one["num_unseen"]) for one in loaded] == [([], 0), ([], 0)]
    assert loaded[0]["checksum"] == loaded[1]["checksum"]
    assert max(one["max_tensor_gap"] for one in loaded) < 1e-5
    expected = expected_logp(model, adapter)
    assert abs(expected - base) > 0.1
    assert served_logp(engine) == pytest.approx(expected, abs=1e-3)
    load(engine, model)
    assert served_logp(engine) == pytest.approx(base, abs=1e-3)


@pytest.mark.parametrize("fault", ["old", "larger"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_fault_in_one_workers_part_is_found_by_it_alone(
    engine: Any, model: Path, adapter: Path, rank: int, name: str, fault: str
) -> None:
    tensor = tensor_of(name, engine, model)
    engine.collective_rpc("plant", args=(rank, tensor, fault))
    try:
        found = [one["wrong_tensors"] for one in load(engine, model, adapter)]
    finally:
        engine.collective_rpc("plant", args=(-1, "", ""))
    assert found == [[tensor] if one == rank else [] for one in (0, 1)]
    assert [one["wrong_tensors"] for one in load(engine, model, adapter)] == [[], []], "and then it is right again"
