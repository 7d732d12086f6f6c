"""From a text back to what it claims: which kinds it names, and its sentences. Pure Python, no images, no models."""

from __future__ import annotations

import re
from typing import Final

from csr_ray.world.vocabulary import KINDS

_MENTION: Final = re.compile(rf"\b({'|'.join(KINDS)})(?:e?s)?\b")
_END_OF_SENTENCE: Final = re.compile(r"[.!?]")


def mentioned_kinds(text: str) -> list[str]:
    """Every mention of a kind in order of appearance, repeats kept; a plural is one mention of its kind."""
    return [match.group(1) for match in _MENTION.finditer(text.lower())]


def split_sentences(text: str) -> list[str]:
    """The sentences of a text (split at . ! ?), stripped, without empty ones."""
    return [part.strip() for part in _END_OF_SENTENCE.split(text) if part.strip()]
