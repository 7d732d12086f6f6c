"""Random models of a few thousand parameters, in the folders that the real ones come in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

IMAGE_SIDE_PX = 32
PATCH_PX = 16
NUM_IMAGE_TOKENS = (IMAGE_SIDE_PX // PATCH_PX) ** 2

_QWEN_PATCH_PX = 14
_QWEN_MERGE = 2  # patches a side that make one image token

_CORPUS = (
    "USER: \nDescribe the image. ASSISTANT: A red circle is on the left. A blue square is on the right.",
    "USER: \nIs there a green star? ASSISTANT: No. There are two yellow triangles near a small grey cube.",
)
_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
_QWEN_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_tiny_llava(directory: Path, *, seed: int) -> Path:
    """Write a two-layer LLaVA with random weights that transformers and vLLM both load; returns `directory`.

    Its tokenizer puts a begin-of-sequence token in front, as Llama's does, and its chat template does not.
    """
    from transformers import (
        CLIPImageProcessor,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = _llama_tokenizer()
    config = LlavaConfig(
        vision_config=_clip_tower(patch_px=PATCH_PX),
        text_config=_llama(tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=NUM_IMAGE_TOKENS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    _save_random(LlavaForConditionalGeneration, config=config, directory=directory, seed=seed)
    _name_tower_as_vllm_does(directory)
    LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"height": IMAGE_SIDE_PX, "width": IMAGE_SIDE_PX},
            crop_size={"height": IMAGE_SIDE_PX, "width": IMAGE_SIDE_PX},
        ),
        tokenizer=tokenizer,
        patch_size=PATCH_PX,
        vision_feature_select_strategy="default",
        chat_template=_TEMPLATE,
        num_additional_image_tokens=1,
    ).save_pretrained(directory)
    return directory


def build_tiny_llava_next(directory: Path, *, seed: int) -> Path:
    """Write a two-layer LLaVA-NeXT: an image becomes a thumbnail and as many tiles as its shape asks for."""
    from transformers import (
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
    )

    tokenizer = _llama_tokenizer()
    side, patch_px = IMAGE_SIDE_PX, PATCH_PX // 2
    pinpoints = [[side, 2 * side], [2 * side, side], [2 * side, 2 * side], [3 * side, side], [side, 3 * side]]
    config = LlavaNextConfig(
        vision_config=_clip_tower(patch_px=patch_px),
        text_config=_llama(tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(side // patch_px) ** 2,
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    _save_random(LlavaNextForConditionalGeneration, config=config, directory=directory, seed=seed)
    _name_tower_as_vllm_does(directory)
    LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            image_grid_pinpoints=pinpoints,
        ),
        tokenizer=tokenizer,
        patch_size=patch_px,
        vision_feature_select_strategy="default",
        chat_template=_TEMPLATE,
        num_additional_image_tokens=1,
    ).save_pretrained(directory)
    return directory


def build_tiny_qwen_vl(directory: Path, *, seed: int) -> Path:
    """Write a two-layer Qwen2.5-VL: positions in three axes, windowed tower, biases on q, k and v, two end tokens."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer, ids, ends = _qwen_tokenizer()
    token_px = _QWEN_PATCH_PX * _QWEN_MERGE
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "out_hidden_size": 64,
            "patch_size": _QWEN_PATCH_PX,
            "spatial_merge_size": _QWEN_MERGE,
            "window_size": 2 * token_px,
            "fullatt_block_indexes": [1],
        },
        text_config={
            **_decoder(tokenizer),
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]},
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    end_ids = [ids[ends[1]], ids[ends[0]]]
    _save_random(Qwen2_5_VLForConditionalGeneration, config=config, directory=directory, seed=seed, end_ids=end_ids)
    size = {"shortest_edge": token_px**2, "longest_edge": 24 * token_px**2}
    pixels = {"size": size, "patch_size": _QWEN_PATCH_PX, "merge_size": _QWEN_MERGE}
    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels),
        video_processor=Qwen2VLVideoProcessor(**pixels),
        tokenizer=tokenizer,
        chat_template=_QWEN_TEMPLATE,
    ).save_pretrained(directory)
    return directory


def build_tiny_qwen3_vl(directory: Path, *, seed: int) -> Path:
    """Write a two-layer Qwen3-VL: image features also enter behind the first layers, positions interleaved."""
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    tokenizer, ids, ends = _qwen_tokenizer()
    patch_px = 16
    token_px = patch_px * _QWEN_MERGE
    config = Qwen3VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "out_hidden_size": 64,
            "patch_size": patch_px,
            "spatial_merge_size": _QWEN_MERGE,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        text_config={
            **_decoder(tokenizer),
            "head_dim": 32,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [4, 6, 6],
                "mrope_interleaved": True,
            },
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    end_ids = [ids[end] for end in reversed(ends)]
    _save_random(Qwen3VLForConditionalGeneration, config=config, directory=directory, seed=seed, end_ids=end_ids)
    size = {"shortest_edge": token_px**2, "longest_edge": 24 * token_px**2}
    pixels = {"size": size, "patch_size": patch_px, "merge_size": _QWEN_MERGE}
    Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels),
        video_processor=Qwen3VLVideoProcessor(**pixels),
        tokenizer=tokenizer,
        chat_template=_QWEN_TEMPLATE,
    ).save_pretrained(directory)
    return directory


def build_tiny_gemma3(directory: Path, *, seed: int) -> Path:
    """Write a two-layer Gemma 3: the tokens of an image see each other in both directions."""
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3ImageProcessor,
        Gemma3Processor,
    )

    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = _tokenizer(
        ("<pad>", "<eos>", "<bos>", *names.values()),
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        extra_special_tokens=names,
    )
    config = Gemma3Config(
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": IMAGE_SIDE_PX,
            "patch_size": PATCH_PX // 2,
        },
        text_config={**_decoder(tokenizer), "head_dim": 32, "sliding_window": 512, "query_pre_attn_scalar": 32},
        mm_tokens_per_image=NUM_IMAGE_TOKENS,
        boi_token_index=tokenizer.convert_tokens_to_ids(names["boi_token"]),
        eoi_token_index=tokenizer.convert_tokens_to_ids(names["eoi_token"]),
        image_token_index=tokenizer.convert_tokens_to_ids(names["image_token"]),
        tie_word_embeddings=False,
    )
    _save_random(Gemma3ForConditionalGeneration, config=config, directory=directory, seed=seed)
    Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size={"height": IMAGE_SIDE_PX, "width": IMAGE_SIDE_PX}),
        tokenizer=tokenizer,
        chat_template=_TEMPLATE.replace("<image>", names["boi_token"]),
        image_seq_length=NUM_IMAGE_TOKENS,
    ).save_pretrained(directory)
    return directory


def _qwen_tokenizer() -> tuple[Any, dict[str, int], tuple[str, str]]:
    """The tokenizer, the ids of its special tokens, and the two that end an answer."""
    ends = ("<|endoftext|>", "<|im_end|>")
    vision = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer = _tokenizer((*ends, "<|im_start|>", *vision), pad_token=ends[0], eos_token=ends[1])
    return tokenizer, {token: tokenizer.convert_tokens_to_ids(token) for token in (*ends, *vision)}, ends


def _clip_tower(*, patch_px: int) -> Any:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=IMAGE_SIDE_PX,
        patch_size=patch_px,
        projection_dim=64,
    )


def _decoder(tokenizer: Any) -> dict[str, Any]:
    """The language model's shape, in the words that Llama and Qwen2 share."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,  # wide, so that answers differ and log-probs are far from uniform
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _llama(tokenizer: Any) -> Any:
    from transformers import LlamaConfig

    head_dim = 32  # the smallest that vLLM's CPU attention takes
    return LlamaConfig(**_decoder(tokenizer), head_dim=head_dim, tie_word_embeddings=False)


def _save_random(
    model: Any, *, config: Any, directory: Path, seed: int, end_ids: Sequence[int] | None = None
) -> None:
    """Random weights; also where they would start at zero (biases, a projector), and so hide whoever forgets them."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = model(config)
        for name, parameter in made.named_parameters():
            if ("language_model" in name and name.endswith(".bias")) or name.endswith("projection_weight"):
                torch.nn.init.normal_(parameter, std=0.2)
    if end_ids is not None:
        made.generation_config.eos_token_id = list(end_ids)
    made.save_pretrained(directory)


def _name_tower_as_vllm_does(directory: Path) -> None:
    """transformers 5 writes a CLIP tower's names without `vision_model`, and reads both; vLLM wants them with it."""
    from safetensors.torch import load_file, save_file

    weights = directory / "model.safetensors"
    named = {
        name.replace("vision_tower.", "vision_tower.vision_model.", 1): tensor
        for name, tensor in load_file(weights).items()
    }
    save_file(named, weights, metadata={"format": "pt"})


def _llama_tokenizer() -> Any:
    """Puts a begin-of-sequence token in front, which the chat template does not write."""
    return _tokenizer(
        ("<pad>", "<s>", "</s>", "<image>"),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )


def _tokenizer(special: Sequence[str], *, bos_token: str | None = None, **roles: Any) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        _CORPUS,
        trainer=trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=list(special),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if bos_token is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos_token} $A", special_tokens=[(bos_token, backend.token_to_id(bos_token))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos_token,
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        **roles,
    )


FAMILIES: dict[str, Callable[..., Path]] = {
    "llava": build_tiny_llava,
    "llava_next": build_tiny_llava_next,
    "qwen2_5_vl": build_tiny_qwen_vl,
    "qwen3_vl": build_tiny_qwen3_vl,
}
