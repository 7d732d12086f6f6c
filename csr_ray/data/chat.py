"""From a question to the exact prompt the policy sees: text, and token ids with one image token.

The generator and the trainer both call these functions, so an answer is trained behind exactly the prompt behind
which it was sampled. Knows the model's own processor and chat template; knows nothing of engines, batches or answers.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin


# Stands for any question; where its answer begins does not depend on it.
_SOME_QUESTION = "What is it?"


def prompt_text(processor: ProcessorMixin, *, question: str, has_picture: bool = True) -> str:
    """The question behind the image, in the model's chat template, up to where the answer begins.

    Args:
        has_picture: whether there is an image; without one the question stands alone.

    Raises:
        ValueError: the processor has no chat template.
    """
    if getattr(processor, "chat_template", None) is None:
        raise ValueError(
            f"policy.model: its {type(processor).__name__} has no chat template; add a chat_template.jinja to it"
        )
    content = [*([{"type": "image"}] if has_picture else []), {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert isinstance(text, str)
    return text


def prompt_ids(processor: ProcessorMixin, *, question: str, has_picture: bool = True) -> list[int]:
    """Token ids of `prompt_text`, with ONE token for the image; the engine expands it to as many as it needs."""
    text = prompt_text(processor, question=question, has_picture=has_picture)
    tokenizer = processor.tokenizer
    return list(tokenizer(text, add_special_tokens=needs_special_tokens(tokenizer, text=text))["input_ids"])


def answer_ids(processor: ProcessorMixin, *, answer: str, ends: Collection[int]) -> list[int]:
    """Token ids of an answer that the policy has not given, as it would have: behind `prompt_text`, and ended.

    The chat template says what stands before the answer, mostly a space, and which token ends it. Where it writes an
    answer otherwise than behind the prompt of a question, a space is put before it; where it ends an answer with none
    of `ends`, the tokenizer's end token does.

    Args:
        ends: the tokens that may end an answer.
    """
    answer = answer.strip()
    tokenizer = processor.tokenizer
    if not answer:  # which a policy gives by ending it at once
        return [tokenizer.eos_token_id]
    prompt = prompt_text(processor, question=_SOME_QUESTION)
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": _SOME_QUESTION}]},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    said = processor.apply_chat_template(turns)
    assert isinstance(said, str)
    before, found, behind = said.removeprefix(prompt).partition(answer)
    if not said.startswith(prompt) or not found:
        before, behind = "" if prompt[-1:].isspace() else " ", said.rpartition(answer)[2]
    has_start = needs_special_tokens(tokenizer, text=prompt)
    of_prompt, of_both = (
        list(tokenizer(text, add_special_tokens=has_start)["input_ids"])
        for text in (prompt, f"{prompt}{before}{answer}")
    )
    ids = of_both[len(of_prompt) :]
    if of_both[: len(of_prompt)] != of_prompt:  # a token goes over the border; an engine would not write it
        ids = list(tokenizer(f"{before}{answer}", add_special_tokens=False)["input_ids"])
    closing = tokenizer(behind, add_special_tokens=False)["input_ids"] if behind else []
    return [*ids, next((token for token in closing if token in ends), tokenizer.eos_token_id)]


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
