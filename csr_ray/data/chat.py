"""From a question to the exact prompt the policy sees: text, and token ids with one image token.

The generator and the trainer both call these functions, so an answer is trained behind exactly the prompt behind
which it was sampled. Knows the model's own processor and chat template; knows nothing of engines, batches or answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin


def prompt_text(processor: ProcessorMixin, *, question: str) -> str:
    """The question behind the image, in the model's chat template, up to where the answer begins.

    Raises:
        ValueError: the processor has no chat template.
    """
    if getattr(processor, "chat_template", None) is None:
        raise ValueError(
            f"policy.model: its {type(processor).__name__} has no chat template; add a chat_template.jinja to it"
        )
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert isinstance(text, str)
    return text


def prompt_ids(processor: ProcessorMixin, *, question: str) -> list[int]:
    """Token ids of `prompt_text`, with ONE token for the image; the engine expands it to as many as it needs."""
    text = prompt_text(processor, question=question)
    tokenizer = processor.tokenizer
    return list(tokenizer(text, add_special_tokens=needs_special_tokens(tokenizer, text=text))["input_ids"])


def needs_special_tokens(tokenizer: PreTrainedTokenizerBase, *, text: str) -> bool:
    """Whether the tokenizer has to put the begin-of-sequence token in front of the templated `text`.

    Some templates write that token themselves, others leave it to the tokenizer; doing both, or neither, gives a
    prompt the model was never trained on. Everything that tokenises a prompt passes this as `add_special_tokens`.

    Raises:
        ValueError: the tokenizer would add something behind the prompt, where the answer has to follow.
    """
    start = tokenizer.bos_token
    if start and text.lstrip().startswith(start):
        return False
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a", add_special_tokens=True)["input_ids"]
    if full == plain:
        return False
    if full != [tokenizer.bos_token_id, *plain]:
        raise ValueError(
            f"policy.model: its tokenizer adds {tokenizer.convert_ids_to_tokens(full)} around a text; only a "
            f"begin-of-sequence token in front can precede an answer"
        )
    return True
