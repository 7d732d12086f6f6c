"""The first few prompts of a run as they will be asked, for a person to look at before anything starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.text import Text

from csr_ray.data.files import TAR, UnreadableError, scheme_of
from csr_ray.data.images import image_size
from csr_ray.policy.chat_template import templated
from csr_ray.records import Prompt

NUM_SHOWN: Final = 3
_MOST_CHARS: Final = 600


def print_sample(prompts: Sequence[Prompt], *, num: int, model: str, console: Console) -> None:
    """Print the first prompts: which picture and how large, and the text as the policy gets it.

    The text is in the model's chat template where that is on this machine; else it is the question alone, and that is
    said.

    Args:
        prompts: at least the first few of those that can be used.
        num: how many there are.
        model: `policy.model`, with its place in the embedded world resolved.
    """
    shown = prompts[:NUM_SHOWN]
    if not shown:
        return
    texts = [templated(model, question=prompt.text) for prompt in shown]
    how = "as the policy gets it" if None not in texts else "the question; the model's chat template is not here yet"
    of = f" of {num:,}" if num > len(shown) else ""
    console.print(Text(f"what will be asked, {len(shown)}{of} ({how}):"), soft_wrap=True)
    for prompt, text in zip(shown, texts, strict=True):
        console.print(Text(f"  {_picture_in_words(prompt)}", style="dim"), soft_wrap=True)
        for line in _shortened(prompt.text if text is None else text).splitlines():
            console.print(Text(f"    {_printable(line)}"))


def _picture_in_words(prompt: Prompt) -> str:
    name = prompt.image if "://" in prompt.image else os.path.basename(prompt.image)
    if scheme_of(prompt.image) not in ("", "file", TAR):
        return _printable(name)  # to look at it would be to fetch it
    try:
        width, height = image_size(prompt.image)
    except UnreadableError as error:
        return f"{_printable(name)}, which will be set aside: {_printable(str(error))}"
    return f"{_printable(name)}, {width} x {height}"


def _shortened(text: str) -> str:
    return text if len(text) <= _MOST_CHARS else f"{text[:_MOST_CHARS]} ... ({len(text):,} characters)"


def _printable(text: str) -> str:
    """Somebody else's text without what would move a terminal's cursor."""
    return "".join(character if character.isprintable() else " " for character in text)
