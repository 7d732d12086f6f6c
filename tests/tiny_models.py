"""Random models of a few thousand parameters, in the folders that the real ones come in."""

from __future__ import annotations

from pathlib import Path

IMAGE_SIDE_PX = 32
PATCH_PX = 16
NUM_IMAGE_TOKENS = (IMAGE_SIDE_PX // PATCH_PX) ** 2

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


def build_tiny_llava(directory: Path, *, seed: int) -> Path:
    """Write a two-layer LLaVA with random weights that transformers and vLLM both load; returns `directory`.

    Its tokenizer puts a begin-of-sequence token in front, as Llama's does, and its chat template does not.
    """
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = _tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=IMAGE_SIDE_PX,
        patch_size=PATCH_PX,
        projection_dim=64,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,  # the smallest that vLLM's CPU attention takes
        max_position_embeddings=512,
        initializer_range=0.2,  # wide, so that answers differ and log-probs are far from uniform
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=NUM_IMAGE_TOKENS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlavaForConditionalGeneration(config).save_pretrained(directory)
    weights = directory / "model.safetensors"
    # transformers 5 writes the tower's names without `vision_model`, and reads both; vLLM wants them with it.
    named = {
        name.replace("vision_tower.", "vision_tower.vision_model.", 1): tensor
        for name, tensor in load_file(weights).items()
    }
    save_file(named, weights, metadata={"format": "pt"})
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


def _tokenizer():  # type: ignore[no-untyped-def]
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<image>"]
    backend.train_from_iterator(
        _CORPUS,
        trainer=trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
