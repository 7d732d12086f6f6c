"""What an engine is asked for on a GPU, for each config that ships, and what vLLM's own config classes make of it.

The first half are tables of a pure function. The second half hands its arguments to vLLM on a faked CUDA platform
(`fake_gpu.py` says how far that goes), with model folders of the real shapes and no weights.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import build_tiny_llava, build_tiny_qwen_vl

from actors.generate.arguments import (
    engine_arguments,
    engine_environment,
    picture_cache_gib,
    temporary_environment,
)
from actors.generate.engine import EngineSettings
from actors.handover.hot_adapter import HotAdapter
from csr_ray.config.load import load_config

ROOT = Path(__file__).parents[2]
COUPLED = ("search.expand=diverse_greedy",)
PROCESSOR = "actors.generate.hamming:HammingGroups"


def asked_for(config: str, *overrides: str, on_cpu: bool = False, model: str = "MODEL") -> dict[str, Any]:
    settings = EngineSettings.of(load_config(ROOT / f"configs/{config}.yaml", overrides=overrides))
    return engine_arguments(settings, model=model, on_cpu=on_cpu)


# max_num_seqs, max_model_len, GiB for pictures, share of the GPU's memory
TABLE = {
    "llava15-7b": (512, 2048, 4.0, 0.9),
    "llava15-13b": (512, 2048, 4.0, 0.9),
    "llava15-13b-mllm-dpo": (512, 2048, 4.0, 0.9),
    "own-data": (256, None, 2.0, 0.85),
    "qwen25-vl-7b": (256, 4096, 2.0, 0.85),
}


def test_the_table_has_every_config_for_a_gpu() -> None:
    assert {path.stem for path in (ROOT / "configs").glob("*.yaml")} == {*TABLE, "tiny-world"}


@pytest.mark.parametrize("config", TABLE)
def test_on_a_gpu(config: str) -> None:
    max_num_seqs, max_model_len, pictures_gib, memory = TABLE[config]
    assert asked_for(config) == {
        "model": "MODEL",
        "load_format": "safetensors",
        "trust_remote_code": False,
        "dtype": "bfloat16",
        "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": 8192,
        "limit_mm_per_prompt": {"image": 1, "video": 0, "audio": 0},
        "enable_prefix_caching": True,
        "mm_processor_cache_gb": pictures_gib,
        "max_logprobs": 20,
        "hf_overrides": {"head_dtype": "float32"},
        "worker_extension_cls": "actors.handover.loader.PolicyLoader",
        "seed": 0,
        "disable_log_stats": True,
        "enable_logging_iteration_details": True,
        "enforce_eager": False,
        "tensor_parallel_size": 1,
        "distributed_executor_backend": "uni",
        "gpu_memory_utilization": memory,
    }, "no block size, no chunked prefill, no async scheduling: those are vLLM's to choose"


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("generators.gpus=4", "tensor_parallel_size", 4),
        ("generators.gpus=4", "distributed_executor_backend", "mp"),
        ("generators.gpu_memory_utilization=0.45", "gpu_memory_utilization", 0.45),
        ("generators.max_num_batched_tokens=4096", "max_num_batched_tokens", 4096),
        ("generators.in_flight=16", "mm_processor_cache_gb", 1.0),
        ("policy.max_model_len=1024", "max_model_len", 1024),
        ("search.candidates=32", "max_logprobs", 36),
        ("search.expand=diverse_greedy", "async_scheduling", False),
        ("search.expand=diverse_greedy", "logits_processors", [PROCESSOR]),
        ("search.preset=paper", "async_scheduling", False),
        ("search.preset=reference", "async_scheduling", False),
        ("cluster.layout=colocated", "enable_sleep_mode", True),
    ],
)
def test_what_a_key_changes(override: str, key: str, value: object) -> None:
    assert asked_for("own-data", override)[key] == value


def test_on_a_cpu() -> None:
    plain, coupled = (asked_for("tiny-world", *more, on_cpu=True) for more in ((), COUPLED))
    assert (plain["block_size"], plain["enforce_eager"], plain["enable_chunked_prefill"]) == (16, True, False)
    assert plain["kv_cache_memory_bytes"] == 2**29
    assert not {"gpu_memory_utilization", "max_num_batched_tokens", "async_scheduling"} & plain.keys()
    assert coupled["async_scheduling"] is False


@pytest.mark.parametrize(
    ("dtype", "has_tiles", "block"), [("float32", True, 16), ("bfloat16", False, 16), ("bfloat16", True, 32)]
)
def test_blocks_on_a_cpu_are_small_but_where_that_costs_the_kernels_of_amx(
    monkeypatch: pytest.MonkeyPatch, dtype: str, has_tiles: bool, block: int
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_tiles)
    assert asked_for("tiny-world", f"policy.dtype={dtype}", on_cpu=True)["block_size"] == block


@pytest.mark.parametrize(
    ("expand", "environment"),
    [("sample", {}), ("first_token", {}), ("diverse_greedy", {"VLLM_USE_V2_MODEL_RUNNER": "0"})],
)
def test_the_engines_environment(expand: str, environment: dict[str, str]) -> None:
    overrides = [f"search.expand={expand}"]
    settings = EngineSettings.of(load_config(ROOT / "configs/llava15-7b.yaml", overrides=overrides))
    assert engine_environment(settings) == environment


def test_an_engine_that_contrasts_is_coupled_and_plain_evaluations_are_not() -> None:
    settings = EngineSettings.of(load_config(ROOT / "configs/llava15-7b.yaml", overrides=["decoding.kind=vdd"]))
    arguments = engine_arguments(settings, model="m", on_cpu=False)
    assert arguments["logits_processors"] == ["actors.generate.contrast_rows:ContrastedRows"]
    assert arguments["async_scheduling"] is False
    assert engine_environment(settings) == {"VLLM_USE_V2_MODEL_RUNNER": "0"}
    for kind in ("plain", "rescore", "post_hoc"):
        settings = EngineSettings.of(
            load_config(ROOT / "configs/llava15-7b.yaml", overrides=[f"decoding.kind={kind}"])
        )
        assert "logits_processors" not in engine_arguments(settings, model="m", on_cpu=False)


@pytest.mark.parametrize(("num_trees", "gib"), [(1, 1.0), (32, 1.0), (64, 2.0), (128, 4.0)])
def test_the_pictures_of_all_trees_fit(num_trees: int, gib: float) -> None:
    """A picture of a megapixel in bfloat16 takes Qwen2.5-VL 12.3 MiB, LLaVA-NeXT 3.2 and LLaVA-1.5 0.65."""
    assert picture_cache_gib(num_trees) == gib
    assert gib * 2**10 / num_trees > 2 * 12.3


SHAPES: dict[str, dict[str, Any]] = {
    "llava15-7b": {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128},
    "llava15-13b": {"hidden_size": 5120, "num_attention_heads": 40, "num_key_value_heads": 40, "head_dim": 128},
    "qwen25-vl-7b": {"hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders whose config has a real model's attention and context; nothing reads their (tiny) weights."""
    folders = {}
    for name, shape in SHAPES.items():
        build = build_tiny_qwen_vl if "qwen" in name else build_tiny_llava
        folder = build(tmp_path_factory.mktemp(name), seed=0)
        config = json.loads((folder / "config.json").read_text())
        text = config["text_config"]
        text.update(shape, max_position_embeddings=32768 if "qwen" in name else 4096)
        if "qwen" in name:
            text["rope_parameters"]["mrope_section"] = [16, 24, 24]
        (folder / "config.json").write_text(json.dumps(config))
        folders[name] = str(folder)
    folders["own-data"] = folders["llava15-7b"]
    folders["llava15-13b-mllm-dpo"] = folders["llava15-13b"]
    return folders


NUM_GPUS = {"1xH100": 1, "4xL4": 4, "8xA100": 8}
# As a config is, coupled, with a hot adapter, and split over all GPUs of the machine.
WAYS = {
    "plain": (),
    "coupled": COUPLED,
    "adapter": ("generators.publish=adapter", "run.rounds=2"),
    "split": ("generators.gpus={num_gpus}",),
}


@pytest.fixture(scope="module")
def vllm_says(models: dict[str, str]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """vLLM's answer for each machine, config and way, and for the least arguments there could be."""
    cases: dict[tuple[str, str, str], tuple[str, dict[str, Any], dict[str, str]]] = {}
    for machine, num_gpus in NUM_GPUS.items():
        for config in TABLE:
            for way, overrides in WAYS.items():
                given = [override.format(num_gpus=num_gpus) for override in overrides]
                settings = EngineSettings.of(load_config(ROOT / f"configs/{config}.yaml", overrides=given))
                arguments = engine_arguments(settings, model=models[config], on_cpu=False)
                if settings.max_lora_rank:
                    hot = HotAdapter(max_rank=settings.max_lora_rank, targets=settings.lora_targets)
                    arguments |= hot.engine_arguments()
                    hot.close()
                cases[machine, config, way] = (machine, arguments, engine_environment(settings))
    least = {"model": models["llava15-7b"], "limit_mm_per_prompt": {"image": 1, "video": 0, "audio": 0}}
    first_runner = {"VLLM_USE_V2_MODEL_RUNNER": "0"}
    cases["1xH100", "least", "plain"] = ("1xH100", least, {})
    cases["1xH100", "least", "coupled"] = ("1xH100", {**least, "logits_processors": [PROCESSOR]}, first_runner)
    cases["1xH100", "least", "split"] = ("1xH100", {**least, "tensor_parallel_size": 2}, {})
    program = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("fake_gpu.py"))],
        input=json.dumps(list(cases.values())),
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )
    assert program.returncode == 0, program.stderr[-3000:]
    return dict(zip(cases, json.loads(program.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("machine", NUM_GPUS)
@pytest.mark.parametrize("config", TABLE)
def test_vllm_takes_them(machine: str, config: str, vllm_says: dict[tuple[str, str, str], dict[str, Any]]) -> None:
    plain, coupled, adapter, split = (vllm_says[machine, config, way] for way in WAYS)
    max_num_seqs, max_model_len, _, memory = TABLE[config]
    num_gpus = NUM_GPUS[machine]
    assert plain == {
        "async_scheduling": True,
        "second_model_runner": True,
        "max_num_batched_tokens": 8192,
        "max_num_encoder_input_tokens": 8192,
        "max_num_seqs": max_num_seqs,
        "chunked_prefill": True,
        "max_model_len": max_model_len or 4096,
        "dtype": "bfloat16",
        "logits_processors": None,
        "enforce_eager": False,
        "cuda_graphs": True,
        "block_size": 16,
        "prefix_caching": True,
        "gpu_memory_utilization": memory,
        "tensor_parallel_size": 1,
        "executor": "uni",
        "worker": "vllm.v1.worker.gpu_worker.Worker",
        "worker_extension": "actors.handover.loader.PolicyLoader",
        "lora_rank": None,
    }
    on_the_first_runner = {"async_scheduling": False, "second_model_runner": False}
    assert coupled == {**plain, **on_the_first_runner, "logits_processors": [PROCESSOR]}
    assert adapter == {**plain, "lora_rank": 128 if config == "qwen25-vl-7b" else 256}
    if (machine, config) == ("8xA100", "qwen25-vl-7b"):
        assert "Total number of attention heads (28) must be divisible" in split["error"]
    else:
        executor = "uni" if num_gpus == 1 else "mp"
        assert split == {**plain, "tensor_parallel_size": num_gpus, "executor": executor}


def test_left_to_itself_vllm_would_do_otherwise(vllm_says: dict[tuple[str, str, str], dict[str, Any]]) -> None:
    """What some of the arguments are there for."""
    plain, coupled, split = (vllm_says["1xH100", "least", way] for way in ("plain", "coupled", "split"))
    assert plain["max_num_batched_tokens"] == plain["max_num_encoder_input_tokens"] == 2048
    assert coupled["async_scheduling"] is True
    assert "World size (2) is larger than the number of available GPUs (1)" in split["error"]


def test_an_engines_sockets_lie_in_a_folder_that_is_removed_if_they_can() -> None:
    places = {"usual": Path("/tmp"), "compiled": Path("/tmp/torch")}
    assert temporary_environment(Path("/tmp/short"), **places) == {
        "TMPDIR": "/tmp/short",
        "VLLM_RPC_BASE_PATH": "/tmp/short",
        "TORCHINDUCTOR_CACHE_DIR": "/tmp/torch",
    }
    far = temporary_environment(Path("/tmp", 80 * "x"), **places)
    assert far["VLLM_RPC_BASE_PATH"] == "/tmp", "vLLM could not bind its sockets there"
