"""How many tokens of a picture a policy keeps: what the config asks, what a model folder says of itself, and vLLM.

A run with `policy.visual_tokens` saves its model with two changed lines of config.json: `visual_tokens`, and the name
of an architecture that vLLM does not have. So an engine which would not merge refuses the folder, and never serves
all the tokens by mistake. Merging itself is `csr_ray.policy.token_merging`. Knows model configs; knows no tensors and
no engine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from csr_ray.errors import ConfigError

_ARCHITECTURE: Final = "MergedLlavaForConditionalGeneration"
_ENGINE_CLASS: Final = f"actors.generate.merged_llava:{_ARCHITECTURE}"
# LLaVA with a tower whose pictures all have the same number of tokens; with Pixtral's they have not.
_FAMILY: Final = "llava"
_TOWERS: Final = ("clip_vision_model", "siglip_vision_model")


def kept_tokens(model: str | Path, *, asked: int | None) -> int | None:
    """How many tokens of a picture the policy of a model folder keeps; None: all, and nothing is merged.

    Args:
        asked: `policy.visual_tokens`; None: what the folder was trained with, which its config.json says.

    Raises:
        ConfigError: the model cannot have its tokens merged, or has not as many.
    """
    kept = asked if asked is not None else _said(Path(model))
    if kept is None:
        return None
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    key = f"policy.visual_tokens = {kept}"
    tower = config.vision_config.model_type if config.model_type == _FAMILY else None
    if tower not in _TOWERS:
        family = config.model_type if tower is None else f"{config.model_type} with a {tower}"
        raise ConfigError(
            f"{key}: tokens are merged for LLaVA with a CLIP or SigLIP tower only, and policy.model is a {family}; "
            "set policy.visual_tokens=null"
        )
    if kept > (num_tokens := _num_tokens(config)):
        raise ConfigError(
            f"{key}: a picture has {num_tokens} tokens in this model; set policy.visual_tokens to at most "
            f"{num_tokens}, or to null for all of them"
        )
    return kept


def merged_config(kept: int | None) -> dict[str, Any]:
    """The lines of config.json by which a model folder says that it keeps `kept` tokens; of None there are none."""
    return {} if kept is None else {"architectures": [_ARCHITECTURE], "visual_tokens": kept}


def merging_classes(kept: int | None) -> dict[str, str]:
    """Which class serves the architecture of `merged_config`: vLLM's engine argument `model_class_overrides`."""
    return {} if kept is None else {_ARCHITECTURE: _ENGINE_CLASS}


def _said(folder: Path) -> int | None:
    try:
        kept = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("visual_tokens")
    except (OSError, ValueError, AttributeError):
        return None  # whoever loads the model says what is wrong with it
    return int(kept) if kept else None


def _num_tokens(config: Any) -> int:
    tower = config.vision_config
    has_class_token = tower.model_type == "clip_vision_model" and config.vision_feature_select_strategy == "full"
    return (tower.image_size // tower.patch_size) ** 2 + int(has_class_token)
