"""Merging a picture's similar tokens: worked by hand, its properties, and where it is allowed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_models import (
    NUM_IMAGE_TOKENS,
    build_tiny_gemma3,
    build_tiny_llava,
    build_tiny_llava_next,
    build_tiny_qwen_vl,
)

from csr_ray.app.inputs import check_paths
from csr_ray.config.load import parse_config
from csr_ray.errors import ConfigError
from csr_ray.machine.model_shape import shape_of_model
from csr_ray.machine.roofline import vision_flops
from csr_ray.policy.processor import load_processor
from csr_ray.policy.token_merging import merge_before, merge_tokens
from csr_ray.policy.visual_tokens import kept_tokens, merged_config, merging_classes
from csr_ray.policy.weights import save_merged
from csr_ray.records import Ask, Example, Picture, Target
from csr_ray.training.collate import PairCollator, PairJudge

# The first and third are compared with the second and fourth: cosines 1 and 0, and 0 and -1.
FOUR = ((2.0, 0.0), (4.0, 0.0), (0.0, 1.0), (0.0, -3.0))


def tokens(num: int, *, width: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, num, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("kept", "expected", "sizes"),
    [
        (5, FOUR, [1, 1, 1, 1]),
        (4, FOUR, [1, 1, 1, 1]),
        (3, ((3.0, 0.0), (0.0, 1.0), (0.0, -3.0)), [2, 1, 1]),
        (2, ((2.0, 1 / 3), (0.0, -3.0)), [3, 1]),  # two of one round go into the same token
        (1, ((1.5, -0.5),), [4]),  # two rounds; the second weighs 3 to 1
    ],
)
def test_what_was_worked_by_hand(kept: int, expected: Any, sizes: list[int]) -> None:
    merged, counted = merge_tokens(torch.tensor([FOUR]), kept=kept)
    torch.testing.assert_close(merged, torch.tensor([expected]))
    assert counted.tolist() == [sizes]


@pytest.mark.parametrize("num", [1, 2, 3, 7, 16, 25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mean_stays_and_each_token_is_in_one(num: int, dtype: torch.dtype) -> None:
    features = tokens(num, seed=num).to(dtype)
    for kept in range(1, num + 1):
        merged, sizes = merge_tokens(features, kept=kept)
        assert merged.shape == (1, kept, 8) and merged.dtype == dtype
        assert sizes.sum() == num and sizes.min() >= 1
        mean = (merged.float() * sizes[..., None]).sum(dim=1) / num
        within = 1e-5 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(mean, features.float().mean(dim=1), atol=within, rtol=0)


@pytest.mark.parametrize("at", range(9))
def test_tokens_that_are_alike_become_one_first_and_the_others_keep_their_order(at: int) -> None:
    features = tokens(10, seed=3)
    features[:, at + 1] = features[:, at]
    merged, sizes = merge_tokens(features, kept=9)
    torch.testing.assert_close(merged, torch.cat([features[:, :at], features[:, at + 1 :]], dim=1))
    assert sizes[0].tolist() == [2.0 if place == at else 1.0 for place in range(9)]


def test_of_equal_pairs_the_first_is_merged() -> None:
    _, sizes = merge_tokens(torch.ones(1, 6, 4), kept=5)
    assert sizes.tolist() == [[2, 1, 1, 1, 1]]


def test_a_picture_is_merged_as_if_it_were_alone_and_the_same_each_time() -> None:
    pictures = torch.cat([tokens(16, seed=seed) for seed in range(5)])
    together, sizes = merge_tokens(pictures, kept=5)
    assert torch.equal(together, merge_tokens(pictures, kept=5)[0])
    for place, picture in enumerate(pictures):
        alone, alone_sizes = merge_tokens(picture[None], kept=5)
        assert torch.equal(alone_sizes[0], sizes[place])
        torch.testing.assert_close(alone[0], together[place])


def picture(_: Picture) -> Image.Image:
    return Image.linear_gradient("L").resize((96, 64)).convert("RGB")


def test_a_model_of_transformers_sees_the_kept_tokens(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    model = build_tiny_llava(tmp_path, seed=0)
    policy = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval()
    seen: list[torch.Tensor] = []
    ask = [Ask(picture=Picture(path="x"), text="What is it?")]
    whole = PairCollator(processor=load_processor(model), load_picture=picture).prompts(ask)
    with torch.no_grad():
        plain = policy(**whole).logits
        policy.model.multi_modal_projector.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        merge_before(policy.model.multi_modal_projector, kept=3)
        policy.model.multi_modal_projector.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        batch = PairCollator(processor=load_processor(model, visual_tokens=3), load_picture=picture).prompts(ask)
        logits = policy(**batch).logits
        assert logits.shape[1] == plain.shape[1] - NUM_IMAGE_TOKENS + 3
        assert torch.equal(seen[1], merge_tokens(seen[0], kept=3)[0])
        with pytest.raises(ValueError, match="do not match"):  # the processor of the whole picture
            policy(**whole)


def test_what_counts_image_tokens_counts_the_kept_ones(tmp_path: Path) -> None:
    model = build_tiny_llava(tmp_path, seed=0)

    def longest(visual_tokens: int | None) -> int:
        """The longest answer that a pair may have."""
        judge = PairJudge(
            processor=load_processor(model, visual_tokens=visual_tokens),
            picture_size=lambda _: (32, 32),
            max_length=64,
        )
        ask = Ask(picture=Picture(path="x"), text="What is it?")

        def example(num: int) -> Example:
            targets = tuple(
                Target(role=role, text="a", token_ids=ids, logp=0.0, reward=0.0, nodes=(), num_sentences=1)
                for role, ids in (("chosen", (5,) * num), ("rejected", (6,)))
            )
            return Example(id="1", ask=ask, targets=targets, policy_version=0, method="csr", seed=0)

        return max(num for num in range(1, 64) if judge(example(num)) is None)

    assert longest(1) == longest(None) + NUM_IMAGE_TOKENS - 1


@pytest.mark.parametrize(
    ("build", "family"),
    [(build_tiny_llava_next, "llava_next"), (build_tiny_qwen_vl, "qwen2_5_vl"), (build_tiny_gemma3, "gemma3")],
)
def test_another_family_is_refused(tmp_path: Path, build: Callable[..., Path], family: str) -> None:
    model = build(tmp_path, seed=0)
    with pytest.raises(ConfigError, match=rf"^policy\.visual_tokens = 2: .*policy\.model is a {family}; set "):
        kept_tokens(model, asked=2)
    assert kept_tokens(model, asked=None) is None
    with pytest.raises(ConfigError, match=r"^policy\.visual_tokens = 2: "):
        load_processor(model, visual_tokens=2)


def test_more_than_there_are_is_refused_before_a_run_starts(tmp_path: Path) -> None:
    model = build_tiny_llava(tmp_path / "model", seed=0)
    (tmp_path / "prompts.jsonl").write_text("{}\n")

    def config(kept: int) -> Any:
        policy = {"model": str(model), "visual_tokens": kept}
        return parse_config(
            {"run": {"dir": str(tmp_path / "run")}, "data": {"prompts": str(tmp_path / "prompts.jsonl")}}
            | {"policy": policy}
        )

    check_paths(config(NUM_IMAGE_TOKENS))
    with pytest.raises(ConfigError, match=r"^policy\.visual_tokens = 5: a picture has 4 tokens in this model; set "):
        check_paths(config(5))
    with pytest.raises(ConfigError, match=r"policy\.visual_tokens"):
        config(0)


def test_the_saved_model_says_what_it_was_trained_with(tmp_path: Path) -> None:
    base = build_tiny_llava(tmp_path / "base", seed=0)
    saved, plain = tmp_path / "saved", tmp_path / "plain"
    save_merged(base, adapters=[], output=saved, config_lines=merged_config(3))
    save_merged(base, adapters=[], output=plain, config_lines=merged_config(None))
    said, before = (json.loads((folder / "config.json").read_text()) for folder in (saved, base))
    assert said == {**before, "architectures": ["MergedLlavaForConditionalGeneration"], "visual_tokens": 3}
    assert (plain / "config.json").read_bytes() == (base / "config.json").read_bytes()
    assert kept_tokens(saved, asked=None) == 3 and kept_tokens(saved, asked=2) == 2
    assert kept_tokens(plain, asked=None) is None
    ask = [Ask(picture=Picture(path="x"), text="What is it?")]
    prompts = PairCollator(processor=load_processor(saved), load_picture=picture).prompts(ask)
    assert (prompts["input_ids"] == load_processor(saved).image_token_id).sum() == 3


def test_the_engine_is_told_by_arguments_alone() -> None:
    from actors.generate.arguments import engine_arguments
    from actors.generate.engine import EngineSettings
    from csr_ray.config.schema import Generators, Policy

    settings = EngineSettings(policy=Policy(model="m"), generators=Generators())
    plain = engine_arguments(settings, model="m", on_cpu=False)
    merging = engine_arguments(settings, model="m", on_cpu=False, visual_tokens=3)
    assert "model_class_overrides" not in plain and plain["hf_overrides"] == {"head_dtype": "float32"}
    assert merging["hf_overrides"] == {**plain["hf_overrides"], **merged_config(3)}
    assert set(merging["model_class_overrides"]) == set(merged_config(3)["architectures"])


def test_vllms_own_server_is_told_too(tmp_path: Path) -> None:
    from csr_ray.app.served import server_command

    base = build_tiny_llava(tmp_path / "base", seed=0)
    save_merged(base, adapters=[], output=tmp_path / "saved", config_lines=merged_config(3))
    words = server_command(tmp_path / "saved", dtype="float32", gpus=0, port=80, template=None)
    assert json.loads(words[words.index("--model-class-overrides") + 1]) == merging_classes(3)
    assert "--model-class-overrides" not in server_command(base, dtype="float32", gpus=0, port=80, template=None)


def test_the_forecast_counts_the_kept_tokens_and_all_of_the_towers_work() -> None:
    whole, half = (shape_of_model("llava-hf/llava-1.5-7b-hf", visual_tokens=kept) for kept in (None, 288))
    assert whole is not None and half is not None
    assert (whole.image_tokens, half.image_tokens) == (576, 288)
    assert vision_flops(whole) == vision_flops(half)
