"""LLaVA's processor for a policy whose visual tokens are merged (`csr_ray.policy.token_merging`)."""

from __future__ import annotations

from typing import Any

from transformers import LlavaProcessor


class MergedLlavaProcessor(LlavaProcessor):
    """Writes as many image tokens into a prompt as the policy keeps; all else is transformers' own.

    Args:
        visual_tokens: of a picture; None: all.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int | None = None,
        vision_feature_select_strategy: str | None = None,
        chat_template: str | None = None,
        image_token: str = "<image>",
        num_additional_image_tokens: int = 0,
        visual_tokens: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            image_processor,
            tokenizer,
            patch_size=patch_size,
            vision_feature_select_strategy=vision_feature_select_strategy,
            chat_template=chat_template,
            image_token=image_token,
            num_additional_image_tokens=num_additional_image_tokens,
            **kwargs,
        )
        self.visual_tokens = visual_tokens

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        if self.visual_tokens is None:
            return str(super().replace_image_token(image_inputs, image_idx, **kwargs))
        return str(self.image_token) * self.visual_tokens
