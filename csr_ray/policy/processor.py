"""A model's processor, with what older repositories leave out of its config.

Knows transformers' processors and configs; knows nothing of prompts, batches or engines.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from csr_ray.policy.visual_tokens import kept_tokens

if TYPE_CHECKING:
    from transformers import ProcessorMixin

# Towers with a class token in front of their patches; SigLIP, for one, has none.
_WITH_CLASS_TOKEN = ("clip_vision_model",)


def load_processor(model: str | Path, *, visual_tokens: int | None = None) -> ProcessorMixin:
    """The processor of a model folder.

    LLaVA's and LLaVA-NeXT's processors need to know the tower to count image tokens. Repositories from before
    transformers asked for that lack the keys: without `patch_size` the processor divides by None, and without
    `num_additional_image_tokens` it counts one token too few. vLLM takes these from the model's config, and so do we.

    Args:
        visual_tokens: `policy.visual_tokens`; a prompt gets as many image tokens as the policy keeps.

    Raises:
        ConfigError: the model cannot have its visual tokens merged.
    """
    from transformers import AutoConfig, AutoProcessor

    kept = kept_tokens(model, asked=visual_tokens)
    if kept is None:
        processor = AutoProcessor.from_pretrained(model, trust_remote_code=False)
    else:
        from csr_ray.policy.merged_processor import MergedLlavaProcessor

        processor = MergedLlavaProcessor.from_pretrained(model, visual_tokens=kept, trust_remote_code=False)
    if hasattr(processor, "patch_size") and hasattr(processor, "vision_feature_select_strategy"):
        _fill_in(processor, config=AutoConfig.from_pretrained(model, trust_remote_code=False))
    return processor


def _fill_in(processor: Any, *, config: Any) -> None:
    tower = config.vision_config
    if processor.patch_size is None:
        processor.patch_size = tower.patch_size
    if processor.vision_feature_select_strategy is None:
        processor.vision_feature_select_strategy = config.vision_feature_select_strategy
    if tower.model_type in _WITH_CLASS_TOKEN:
        processor.num_additional_image_tokens = 1
