"""The real-model configs: every value that can be checked without weights and without a GPU.

What is known of the models is written down here (their configs as released), and the modules are made of it on
torch's meta device, which holds no numbers. Whether a GPU agrees with the estimates of memory has not been seen yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from csr_ray.config.load import load_config
from csr_ray.config.schema import Config
from csr_ray.machine.clip_cost import open_clip_config
from csr_ray.machine.fit import Node, seating
from csr_ray.machine.model_shape import ModelShape, shape_of_model
from csr_ray.machine.needs import PROMPT_TOKENS, engine_bytes, train_worker_bytes
from csr_ray.machine.placement import check_engine_has_gpu, demands_of

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MAKEFILE = CONFIGS.parent / "Makefile"
GIB = 2**30
# What an 80 GB GPU offers (nvidia-smi: 79.6 GiB on an H100, 79.3 on an A100), less what drivers take.
GPU_GIB = 79.0
ONE_GPU = (
    "generators.gpus=0.5",
    "generators.gpu_memory_utilization=0.45",
    "train.gpus_per_worker=0.4",
)
# Config, overrides, and the GPUs of the machine that its header names.
CASES = [
    ("llava15-7b.yaml", (), 8),
    ("llava15-13b.yaml", (), 8),
    ("llava15-13b-mllm-dpo.yaml", (), 8),
    ("qwen25-vl-7b.yaml", (), 4),
    ("own-data.yaml", (), 2),
    ("own-data.yaml", ONE_GPU, 1),
]
each_config = pytest.mark.parametrize(
    ("name", "overrides", "num_gpus"), CASES, ids=[f"{name}-{num_gpus}gpu" for name, _, num_gpus in CASES]
)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A released model, as its config.json has it.

    Attributes:
        num_parameters: as counted in its safetensors files, vision tower included.
        image_tokens: of a picture as the configs expect it: 336 x 336, or COCO's 640 x 480.
        longest: the positions that the model was trained for.
    """

    family: str
    text: dict[str, int]
    vision: dict[str, int]
    num_parameters: float
    image_tokens: int
    longest: int


_CLIP = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
         "image_size": 336, "patch_size": 14}  # fmt: skip
SHAPES = {
    "llava-hf/llava-1.5-7b-hf": Shape(
        family="llava",
        text={"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
              "num_key_value_heads": 32, "vocab_size": 32064},
        vision=_CLIP, num_parameters=7.06e9, image_tokens=(336 // 14) ** 2, longest=4096,
    ),
    "llava-hf/llava-1.5-13b-hf": Shape(
        family="llava",
        text={"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
              "num_key_value_heads": 40, "vocab_size": 32064},
        vision=_CLIP, num_parameters=13.35e9, image_tokens=(336 // 14) ** 2, longest=4096,
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": Shape(
        family="qwen2_5_vl",
        text={"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
              "num_key_value_heads": 4, "vocab_size": 152064},
        vision={"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
                "patch_size": 14},
        num_parameters=8.29e9, image_tokens=round(640 / 28) * round(480 / 28), longest=128000,
    ),
}  # fmt: skip


def config_of(name: str, overrides: Sequence[str] = ()) -> Config:
    return load_config(CONFIGS / name, overrides=list(overrides))


@cache
def meta_model(model: str) -> Any:
    """The released model's modules without weights."""
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
    )

    shape = SHAPES[model]
    with torch.device("meta"):
        if shape.family == "llava":
            text, vision = LlamaConfig(**shape.text), CLIPVisionConfig(**shape.vision)
            return LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision))
        text = {"tie_word_embeddings": False, **shape.text}
        return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=shape.vision))


def num_parameters(model: str) -> int:
    return sum(parameter.numel() for parameter in meta_model(model).parameters())


def lora_parameters(config: Config) -> int:
    """r (in + out) of each layer that the trainer adapts: of that name, in the language model."""
    import torch

    return sum(
        config.train.lora_rank * (module.in_features + module.out_features)
        for name, module in meta_model(config.policy.model).named_modules()
        if isinstance(module, torch.nn.Linear)
        and "language_model" in name.split(".")
        and name.rpartition(".")[2] in config.train.lora_targets
    )


# ---- models and names ----


@pytest.mark.parametrize("model", SHAPES)
def test_the_shapes_written_down_here_are_the_released_ones(model: str) -> None:
    assert num_parameters(model) == pytest.approx(SHAPES[model].num_parameters, rel=0.005)


@pytest.mark.parametrize("model", SHAPES)
def test_a_plan_reckons_with_the_shape_that_the_model_s_own_modules_have(model: str) -> None:
    shape = shape_of_model(model)
    assert shape is not None
    assert shape.num_weights == num_parameters(model)
    of_language = [
        parameter.numel()
        for name, parameter in meta_model(model).named_parameters()
        if "language_model" in name.split(".") or name.startswith("lm_head")
    ]
    assert shape.num_text_weights == sum(of_language)
    assert shape.image_tokens == SHAPES[model].image_tokens


@each_config
def test_models_are_known_and_their_scorer_is_the_one_the_weights_were_made_for(
    name: str, overrides: tuple[str, ...], num_gpus: int
) -> None:
    import open_clip

    config = config_of(name, overrides)
    assert config.policy.model in SHAPES
    assert config.scorer is not None
    clip, _, pretrained = config.scorer.model.partition("/")
    assert (clip, pretrained) in open_clip.list_pretrained()
    # OpenAI's weights were trained with QuickGELU; open_clip would run them under another activation and only warn.
    found = open_clip_config(config.scorer.model)
    assert found is not None
    if pretrained == "openai":
        assert found["quick_gelu"]
        assert open_clip.get_pretrained_cfg(clip, pretrained)["quick_gelu"]


@each_config
def test_every_lora_target_is_a_layer_of_every_block(name: str, overrides: tuple[str, ...], num_gpus: int) -> None:
    from actors.train.cycle import lora_pattern

    config = config_of(name, overrides)
    model = meta_model(config.policy.model)
    lora_pattern(model, targets=config.train.lora_targets)  # refuses a name that is nowhere
    layers = SHAPES[config.policy.model].text["num_hidden_layers"]
    for target in config.train.lora_targets:
        found = [
            module
            for module, _ in model.named_modules()
            if "language_model" in module.split(".") and module.rpartition(".")[2] == target
        ]
        assert len(found) == layers, target


@each_config
def test_bfloat16_is_what_these_gpus_train_and_serve_in(name: str, overrides: tuple[str, ...], num_gpus: int) -> None:
    config = config_of(name, overrides)
    assert (config.policy.dtype, config.train.dtype) == ("bfloat16", "bfloat16")
    assert config.train.gpus_per_worker > 0, "on a CPU bfloat16 takes several times as long"


# ---- lengths ----


@each_config
def test_the_longest_answer_fits_the_engine_and_the_trainer(
    name: str, overrides: tuple[str, ...], num_gpus: int
) -> None:
    config = config_of(name, overrides)
    shape = SHAPES[config.policy.model]
    longest = shape.image_tokens + PROMPT_TOKENS + config.search.max_answer_tokens
    assert longest <= (config.policy.max_model_len or shape.longest) <= shape.longest
    assert longest <= config.train.max_length
    assert config.search.max_sentence_tokens <= config.search.max_answer_tokens
    # CLIP reads 77 tokens, two of which are its own marks.
    assert config.search.max_sentence_tokens + 2 <= 77


# ---- the papers' values ----


@pytest.mark.parametrize("name", ["llava15-7b.yaml", "llava15-13b.yaml"])
def test_csr_on_llava_has_the_paper_s_values(name: str) -> None:
    config = config_of(name)
    search, train = config.search, config.train
    assert (search.candidates, search.width, search.keep_worst) == (5, 5, 2)  # 3 best and 2 worst
    assert (search.max_sentence_tokens, config.reward.weight, config.run.rounds) == (74, 0.9, 3)
    assert (train.beta, train.learning_rate, train.epochs) == (0.1, 1e-7, 1)
    assert (train.schedule, train.warmup_ratio, train.weight_decay) == ("cosine", 0.03, 0.0)
    assert (train.lora_rank, train.lora_alpha) == (128, 256)
    # One pair a GPU and step; the released steps 1 and 2 are written for four GPUs.
    assert (train.batch_size, train.workers, train.micro_batch_size) == (4, 4, 1)
    assert (train.objective, train.label_smoothing, train.nll_weight) == ("sigmoid", 0.0, 0.0)
    assert config.data.per_round is None, "the same 12,856 prompts every round"


def test_mllm_dpo_has_its_released_values() -> None:
    train = config_of("llava15-13b-mllm-dpo.yaml").train
    assert (train.beta, train.learning_rate, train.epochs, train.objective) == (0.1, 5e-5, 3, "sigmoid")
    assert (train.lora_rank, train.lora_alpha, train.deepspeed_stage, train.max_length) == (128, 256, 3, 3000)
    per_worker = train.batch_size // train.workers
    assert (train.micro_batch_size, per_worker // (train.micro_batch_size or per_worker)) == (8, 4)


# ---- GPUs ----


@each_config
def test_everybody_has_a_seat_on_the_machine_that_the_header_names(
    name: str, overrides: tuple[str, ...], num_gpus: int
) -> None:
    config = config_of(name, overrides)
    words = {1: "One GPU", 2: "two GPUs", 4: "four GPUs", 8: "eight GPUs"}
    assert f"{words[num_gpus]} of 80 GB" in (CONFIGS / name).read_text()
    found = seating(demands_of(config, needs_scorer=True), nodes=[Node(name="a", cpus=64, gpus=num_gpus)])
    assert found.standing == ()
    fewer = seating(demands_of(config, needs_scorer=True), nodes=[Node(name="a", cpus=64, gpus=num_gpus - 1)])
    assert fewer.standing, "the header could name a smaller machine"


def in_gib(parts: Mapping[str, int]) -> dict[str, float]:
    return {name: num_bytes / GIB for name, num_bytes in parts.items()}


def engine_gib(config: Config) -> dict[str, float]:
    return in_gib(engine_bytes(config, shape=shape_of(config)))


def trainer_gib(config: Config) -> dict[str, float]:
    return in_gib(train_worker_bytes(config, shape=shape_of(config)))


def shape_of(config: Config) -> ModelShape:
    shape = shape_of_model(config.policy.model)
    assert shape is not None
    return shape


@each_config
def test_an_engine_holds_its_model_and_enough_trees(name: str, overrides: tuple[str, ...], num_gpus: int) -> None:
    config = config_of(name, overrides)
    parts = engine_gib(config)
    assert sum(parts.values()) <= config.generators.gpu_memory_utilization * GPU_GIB, parts


@each_config
def test_a_train_worker_holds_its_longest_pairs(name: str, overrides: tuple[str, ...], num_gpus: int) -> None:
    config = config_of(name, overrides)
    parts = trainer_gib(config)
    assert sum(parts.values()) <= min(1.0, config.train.gpus_per_worker) * GPU_GIB, parts


def test_eight_pairs_a_pass_do_need_gradient_checkpointing() -> None:
    parts = trainer_gib(config_of("llava15-13b-mllm-dpo.yaml", ["train.gradient_checkpointing=false"]))
    assert parts["activations"] > GPU_GIB


@each_config
def test_a_scorer_beside_an_engine_has_what_the_engine_leaves(
    name: str, overrides: tuple[str, ...], num_gpus: int
) -> None:
    config = config_of(name, overrides)
    left = GPU_GIB
    if config.scorers.gpus < 1:
        left -= config.generators.gpu_memory_utilization * GPU_GIB
    if config.generators.gpus + config.scorers.gpus + config.train.gpus_per_worker <= 1:
        left -= config.train.gpus_per_worker * GPU_GIB
    # 428 M numbers in float32, CUDA, and a batch: 64 pictures keep 577 x 1024 floats a layer only while it is at it.
    assert left >= 4 * 428e6 / GIB + 3


@each_config
def test_a_plan_s_adapter_is_as_large_as_the_trainer_s(name: str, overrides: tuple[str, ...], num_gpus: int) -> None:
    config = config_of(name, overrides)
    train = config.train
    planned = shape_of(config).num_lora_weights(rank=train.lora_rank, targets=train.lora_targets)
    assert planned == lora_parameters(config)


def test_an_adapter_of_llava_7b_has_610_mib() -> None:
    config = config_of("llava15-7b.yaml")
    assert 2 * lora_parameters(config) / 2**20 == pytest.approx(610, abs=1)


def test_the_demo_on_a_machine_with_one_gpu_has_a_seat_for_everybody() -> None:
    """`make demo` there installs vLLM's GPU build, which serves on GPUs only."""
    (line,) = (line for line in MAKEFILE.read_text().splitlines() if line.startswith("ON_ONE_GPU := "))
    config = config_of("tiny-world.yaml", line.removeprefix("ON_ONE_GPU := ").split())
    check_engine_has_gpu(config.generators, needs_gpu=True)
    assert seating(demands_of(config, needs_scorer=True), nodes=[Node(name="a", cpus=8, gpus=1)]).standing == ()
    assert "$(if $(filter gpu,$(ENGINE)),$(ON_ONE_GPU))" in MAKEFILE.read_text()
