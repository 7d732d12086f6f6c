"""Tokenizers of the two models: small byte-level BPE vocabularies trained on the world's own sentences.

Byte-level, so any text a user types can be encoded. Knows special tokens and vocabulary sizes; knows nothing of
models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

IMAGE_TOKEN: Final = "<image>"
PAD_TOKEN: Final = "<pad>"
END_TOKEN: Final = "</s>"
START_TOKEN: Final = "<s>"

# More than any world's words need, so that each of them is one token.
_VOCABULARY_SIZE: Final = 768


def policy_tokenizer(corpus: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return the policy's tokenizer; the chat template alone places special tokens, nothing is added in front."""
    from transformers import PreTrainedTokenizerFast

    turns = [f"USER: \n{text} ASSISTANT: {text}" for text in corpus]
    backend = _train(turns, special_tokens=[PAD_TOKEN, START_TOKEN, END_TOKEN, IMAGE_TOKEN])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD_TOKEN,
        bos_token=START_TOKEN,
        eos_token=END_TOKEN,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def clip_tokenizer(corpus: Sequence[str], *, context_length: int) -> PreTrainedTokenizerFast:
    """Return the scorer's tokenizer: start and end around the text, and the end token is the HIGHEST id.

    open_clip's text tower reads its output where the id is largest, so the order of the vocabulary matters.
    """
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend = _train([f" {text}" for text in corpus], special_tokens=[PAD_TOKEN, START_TOKEN])
    backend.add_special_tokens([END_TOKEN])
    start_id, end_id = backend.token_to_id(START_TOKEN), backend.token_to_id(END_TOKEN)
    assert end_id == backend.get_vocab_size() - 1
    backend.post_processor = TemplateProcessing(
        single=f"{START_TOKEN} $A {END_TOKEN}", special_tokens=[(START_TOKEN, start_id), (END_TOKEN, end_id)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD_TOKEN,
        bos_token=START_TOKEN,
        eos_token=END_TOKEN,
        padding_side="right",
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
    )


def _train(texts: Sequence[str], *, special_tokens: list[str]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY_SIZE,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer=trainer)
    return backend
