"""Multiple choice: how options are put to a model, and how a letter is read out of what it says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from csr_ray.evaluation.benchmarks.base import LETTER_ANSWER

LETTERS: Final = "ABCDE"

_PARTING: Final = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_LAST_WORDS: Final = 4
_ANSWER_IS: Final = re.compile(r"(?i)(?:correct\s+)?answer\s+is\s+\**([ABCD])\**")
# What models of a service say when they decline.
_REFUSALS: Final = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
REFUSED: Final = "Z"


def choice_prompt(question: str, *, options: Sequence[str]) -> str:
    """LLaVA's multiple-choice prompt: the question, an option a line behind its letter, and the suffix."""
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([question, *lines, LETTER_ANSWER])


def inferred_letter(text: str, *, options: Mapping[str, str]) -> str | None:
    """The option that an answer means by VLMEvalKit's rules (`can_infer`), without a language model.

    A letter that stands alone, as the only one of the options' letters, among the last four words; or "answer is X";
    or the words of exactly one option, in an answer at most twice as long as all options together.

    Args:
        options: by their letters.

    Returns:
        A letter; `REFUSED` where the answer declines; None where the rules find nothing.
    """
    if any(refusal in text for refusal in _REFUSALS):
        return REFUSED
    words = text.translate(_PARTING).split()
    named = [letter for letter in options if letter in words]
    if len(named) == 1 and words.index(named[0]) >= len(words) - _LAST_WORDS:
        return named[0]
    if not named and REFUSED in words:
        return REFUSED
    said = _ANSWER_IS.search(text)
    if said and said[1].upper() in options:
        return said[1].upper()
    lowered = text.lower()
    if len(lowered) > 2 * sum(map(len, options.values())):
        return None
    meant = [letter for letter, option in options.items() if option.lower() in lowered]
    return meant[0] if len(meant) == 1 else None
