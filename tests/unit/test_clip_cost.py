"""The cost of CLIPs from their configs, against torch's own count."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from csr_ray.machine.clip_cost import ClipCost, clip_cost, open_clip_config

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 56, "layers": 3, "width": 64, "patch_size": 14, "head_width": 32},
    "text_cfg": {"context_length": 20, "vocab_size": 100, "width": 48, "heads": 4, "layers": 2},
}


def test_it_is_what_torch_counts() -> None:
    import torch
    from open_clip.model import CLIP
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = CLIP(**TINY)
    counts = []
    # Other backends of attention are not counted, nor is the fused layer that runs without gradients.
    with sdpa_kernel(SDPBackend.MATH):
        for encode, batch in (
            (model.encode_image, torch.zeros(1, 3, 56, 56)),
            (model.encode_text, torch.zeros(1, 20, dtype=torch.long)),
        ):
            with FlopCounterMode(display=False) as counter:
                encode(batch)
            counts.append(counter.get_total_flops())
    assert ClipCost(picture=counts[0], sentence=counts[1]) == clip_cost(TINY)


def test_the_scorer_of_the_real_model_configs_costs_what_the_docs_say() -> None:
    config = open_clip_config("ViT-L-14-336-quickgelu/openai")
    assert config is not None
    whole, short = clip_cost(config), clip_cost(config, sentence_tokens=27)
    assert whole is not None and short is not None
    assert (round(whole.picture / 1e9), round(whole.sentence / 1e9, 1)) == (382, 13.3)
    assert (short.picture, round(short.sentence / 1e9, 1)) == (whole.picture, 4.6)


def test_seconds_are_operations_over_the_rate() -> None:
    cost = ClipCost(picture=100e9, sentence=10e9)
    assert cost.seconds(num_pictures=2, num_sentences=30, gflops=50) == 10


def test_a_folder_has_its_own_config_and_an_unknown_name_has_none(tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    assert open_clip_config(str(tmp_path)) == TINY
    assert open_clip_config("ViT-Z-99/nobody") is None
    assert open_clip_config("${world}/clip") is None


@pytest.mark.parametrize("name", ["RN50", "convnext_base", "roberta-ViT-B-32"])
def test_towers_of_other_kinds_are_not_guessed(name: str) -> None:
    config = open_clip_config(name)
    assert config is not None
    assert clip_cost(config) is None
