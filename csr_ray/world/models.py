"""The two architectures and their folders: a LLaVA policy (Hugging Face) and an open_clip scorer.

Knows shapes and file layouts; knows nothing of scenes or training. Everything is built from configurations, no
weights are fetched from anywhere.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from csr_ray.world.tokenizer import END_TOKEN, IMAGE_TOKEN
from csr_ray.world.variant import Variety

if TYPE_CHECKING:
    from open_clip import CLIP
    from transformers import CLIPImageProcessor, LlavaForConditionalGeneration, PreTrainedTokenizerFast

PIXEL_MEAN: Final = 0.5
PIXEL_STD: Final = 0.5
CLIP_CONTEXT_LENGTH: Final = 16

# "USER: <image>\n" and the prompt, then the answer; the end token closes every assistant turn, so it is trained.
CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ ' ASSISTANT: ' }}"
    "{% else %}{{ message['role'] | upper + ': ' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '" + IMAGE_TOKEN + "\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '" + END_TOKEN + "' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)

_MAX_POSITIONS: Final = 1024


def new_policy(tokenizer: PreTrainedTokenizerFast, *, variety: Variety) -> LlavaForConditionalGeneration:
    """Return an untrained LLaVA of 2 to 5 M parameters (float32), random by torch's global generator."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    tower, language = variety.tower, variety.language
    vision = CLIPVisionConfig(
        hidden_size=tower.width,
        intermediate_size=4 * tower.width,
        num_hidden_layers=tower.num_layers,
        num_attention_heads=tower.num_heads,
        image_size=variety.side_px,
        patch_size=variety.patch_px,
        projection_dim=tower.width,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=language.width,
        intermediate_size=2 * language.width,
        num_hidden_layers=language.num_layers,
        num_attention_heads=language.num_heads,
        num_key_value_heads=language.num_heads,
        head_dim=language.width // language.num_heads,
        max_position_embeddings=_MAX_POSITIONS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=variety.num_image_tokens,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
    )
    return LlavaForConditionalGeneration(config)


def save_policy(
    policy: LlavaForConditionalGeneration, directory: Path, *, tokenizer: PreTrainedTokenizerFast, variety: Variety
) -> None:
    """Write the policy, its tokenizer, processor and chat template as one Hugging Face folder (float32)."""
    from safetensors.torch import load_file, save_file
    from transformers import GenerationConfig, LlavaProcessor

    policy.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=64,
    )
    policy.save_pretrained(directory)
    weights = directory / "model.safetensors"
    # transformers 5 drops a level of the vision tower's names that serving engines still expect; it reads both forms.
    named = {_released_name(name): tensor for name, tensor in load_file(weights).items()}
    save_file(named, weights, metadata={"format": "pt"})
    processor = LlavaProcessor(
        image_processor=_image_processor(variety),
        tokenizer=tokenizer,
        patch_size=variety.patch_px,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=1,
    )
    processor.save_pretrained(directory)


def new_scorer(tokenizer: PreTrainedTokenizerFast, *, variety: Variety) -> CLIP:
    """Return an untrained open_clip model of 1 to 3 M parameters (float32), random by torch's global generator."""
    from open_clip import CLIP

    return CLIP(**_scorer_config(len(tokenizer), variety=variety), output_dict=False)


def save_scorer(scorer: CLIP, directory: Path, *, tokenizer: PreTrainedTokenizerFast, variety: Variety) -> None:
    """Write the scorer as a folder that open_clip opens as `local-dir:PATH` (weights float32)."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    model_config = _scorer_config(len(tokenizer), variety=variety)
    # Any non-empty name makes open_clip read the tokenizer files that lie in this same folder.
    model_config["text_cfg"]["hf_tokenizer_name"] = "local"
    config = {
        "model_cfg": model_config,
        "preprocess_cfg": {
            "mean": [PIXEL_MEAN] * 3,
            "std": [PIXEL_STD] * 3,
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
    }
    (directory / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {name: tensor.detach().float().contiguous() for name, tensor in scorer.state_dict().items()}
    save_file(weights, directory / "open_clip_model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(directory)


def _scorer_config(vocabulary_size: int, *, variety: Variety) -> dict[str, Any]:
    tower, text = variety.clip_tower, variety.clip_text
    return {
        "embed_dim": tower.width,
        "vision_cfg": {
            "image_size": variety.side_px,
            "patch_size": variety.patch_px,
            "width": tower.width,
            "layers": tower.num_layers,
            "head_width": tower.width // tower.num_heads,
        },
        "text_cfg": {
            "context_length": CLIP_CONTEXT_LENGTH,
            "vocab_size": vocabulary_size,
            "width": text.width,
            "heads": text.num_heads,
            "layers": text.num_layers,
        },
    }


def _image_processor(variety: Variety) -> CLIPImageProcessor:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(
        size={"height": variety.side_px, "width": variety.side_px},
        crop_size={"height": variety.side_px, "width": variety.side_px},
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_STD] * 3,
    )


def _released_name(name: str) -> str:
    tower = "vision_tower."
    inner = "vision_tower.vision_model."
    return name.replace(tower, inner, 1) if tower in name and inner not in name else name
