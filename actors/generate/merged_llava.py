"""LLaVA for vLLM with fewer visual tokens (`csr_ray.policy.token_merging`). vLLM loads it by its name.

It is vLLM's own model and processor, with two differences: a picture has as many placeholders as the model's config
says (`visual_tokens`), and the tower's tokens are merged to that number before they go through the projector. Engine
arguments alone bring it in (`csr_ray.policy.visual_tokens`): nothing of vLLM is changed or replaced.
"""

from __future__ import annotations

from vllm.config import VllmConfig
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from csr_ray.policy.merged_processor import MergedLlavaProcessor
from csr_ray.policy.token_merging import merge_before


class MergedLlavaInfo(LlavaProcessingInfo):
    """What vLLM asks of a model's pictures: here, each has the same number of tokens."""

    def get_num_image_tokens(self, *, image_width: int, image_height: int) -> int:
        return int(self.get_hf_config().visual_tokens)

    def get_hf_processor(self, **kwargs: object) -> MergedLlavaProcessor:
        """For prompts that come as text, in which this processor writes the placeholders itself."""
        processor = self.ctx.get_hf_processor(
            MergedLlavaProcessor, visual_tokens=int(self.get_hf_config().visual_tokens), **kwargs
        )
        if processor.patch_size is None:  # the processor's files need not say
            processor.patch_size = self.get_vision_encoder_info().get_patch_size()
        return processor


@MULTIMODAL_REGISTRY.register_processor(
    LlavaMultiModalProcessor, info=MergedLlavaInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class MergedLlavaForConditionalGeneration(LlavaForConditionalGeneration):
    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        merge_before(self.multi_modal_projector, kept=int(self.config.visual_tokens))
