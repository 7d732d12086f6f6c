"""A LLaVA of any size with random weights, and preference pairs for it; for the benchmarks.

Its tokenizer has one token a word (`w0`, `w1`, ...), so a text has exactly as many tokens as words.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from csr_ray.records import Ask, Example, Picture, Target

_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image> ' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of the model; `image_px` / `patch_px` squared are the tokens of an image."""

    hidden: int = 768
    layers: int = 12
    heads: int = 12
    intermediate: int = 2048
    vocab: int = 2048
    tower_hidden: int = 192
    tower_layers: int = 4
    image_px: int = 336
    patch_px: int = 14

    @property
    def num_image_tokens(self) -> int:
        return (self.image_px // self.patch_px) ** 2


@dataclass(frozen=True, kw_only=True)
class TextPair:
    """One pair as text; `prompt` holds the image's token and the start token."""

    question: str
    prompt: str
    chosen: str
    rejected: str


# LLaVA-1.5-7B: a Llama of 32 layers, CLIP's ViT-L/14 at 336 pixels.
LLAVA_7B = Shape(
    hidden=4096,
    layers=32,
    heads=32,
    intermediate=11008,
    vocab=32064,
    tower_hidden=1024,
    tower_layers=24,
    image_px=336,
)
LLAVA_13B = replace(LLAVA_7B, hidden=5120, layers=40, heads=40, intermediate=13824)


def build(directory: Path, *, shape: Shape, seed: int = 0, dtype: str = "float32") -> Path:
    """Write model and processor in Hugging Face's layout, the weights in `dtype`."""
    model_of(shape, seed=seed, dtype=dtype).save_pretrained(directory)
    _name_tower_as_vllm_does(directory)
    processor_of(shape).save_pretrained(directory)
    return directory


def model_of(shape: Shape, *, seed: int = 0, dtype: str = "float32", device: str = "cpu") -> Any:
    """The model, its weights made in `dtype` on `device`: transformers' LlavaForConditionalGeneration."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    tokenizer = _tokenizer(shape.vocab)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=shape.tower_hidden,
            intermediate_size=4 * shape.tower_hidden,
            num_hidden_layers=shape.tower_layers,
            num_attention_heads=max(1, shape.tower_hidden // 64),
            image_size=shape.image_px,
            patch_size=shape.patch_px,
        ),
        text_config=LlamaConfig(
            vocab_size=shape.vocab,
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=4096,
            tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=shape.num_image_tokens,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))  # made in that dtype, not cast: a large model has no room for both
    try:
        with torch.device(device):
            return LlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)


def processor_of(shape: Shape) -> Any:
    """The processor of a model of this shape, made without any file."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    side = {"height": shape.image_px, "width": shape.image_px}
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(size=side, crop_size=side),
        tokenizer=_tokenizer(shape.vocab),
        patch_size=shape.patch_px,
        vision_feature_select_strategy="default",
        chat_template=_TEMPLATE,
        num_additional_image_tokens=1,
    )


def pairs_of(
    num_pairs: int, *, vocab: int, num_prompt_tokens: int, answer_tokens: tuple[int, int], seed: int = 0
) -> list[TextPair]:
    """Pairs whose answers have between `answer_tokens` tokens, the end token included."""
    rng = random.Random(seed)

    def words(number: int) -> str:
        return " ".join(f"w{rng.randrange(vocab - 8)}" for _ in range(number))

    pairs = []
    for _ in range(num_pairs):
        question = words(num_prompt_tokens - 2)
        chosen, rejected = (words(rng.randint(*answer_tokens) - 1) + " </s>" for _ in range(2))
        pairs.append(TextPair(question=question, prompt=f"<s> <image> {question}", chosen=chosen, rejected=rejected))
    return pairs


def as_examples(
    texts: Sequence[TextPair], *, images: Sequence[str], tokenizer: Any, policy_version: int = 0
) -> list[Example]:
    """The pairs as a method makes them of a rollout, without log-probs."""

    def target(role: str, text: str, *, reward: float, node: int) -> Target:
        ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        return Target(role=role, text=text, token_ids=ids, logp=0.0, reward=reward, nodes=(node,))

    return [
        Example(
            id=str(index),
            ask=Ask(picture=Picture(path=image), text=text.question),
            targets=(
                target("chosen", text.chosen, reward=1.0, node=0),
                target("rejected", text.rejected, reward=0.0, node=1),
            ),
            policy_version=policy_version,
            method="bench",
            seed=0,
        )
        for index, (text, image) in enumerate(zip(texts, images, strict=True))
    ]


def picture(index: int, *, side_px: int) -> Image.Image:
    """Noise, another one an index."""
    return Image.frombytes("RGB", (side_px, side_px), random.Random(index).randbytes(3 * side_px * side_px))


def _name_tower_as_vllm_does(directory: Path) -> None:
    """transformers 5 writes a CLIP tower's names without `vision_model`, and reads both; vLLM wants them with it."""
    from safetensors.torch import load_file, save_file

    for shard in directory.glob("*.safetensors"):
        named = {
            name.replace("vision_tower.", "vision_tower.vision_model.", 1): tensor
            for name, tensor in load_file(shard).items()
        }
        save_file(named, shard, metadata={"format": "pt"})


def _tokenizer(vocab: int) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ("<pad>", "<s>", "</s>", "<image>", "<unk>")
    ids = {token: index for index, token in enumerate((*special, *(f"w{i}" for i in range(vocab - len(special)))))}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", ids["<s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=8192,
    )
