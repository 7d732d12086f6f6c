"""From a text back to what it claims: which kinds it names, and its sentences. Pure Python, no images, no models."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Final

from csr_ray.world.vocabulary import KINDS

VOCABULARY_FILE: Final = "vocabulary.json"
"""Beside a world's held-out files: {"kinds": [...]}."""

_END_OF_SENTENCE: Final = re.compile(r"[.!?]")


def mentioned_kinds(text: str, *, kinds: Sequence[str] = KINDS) -> list[str]:
    """Every mention of a kind in order of appearance, repeats kept; a plural is one mention of its kind.

    Args:
        kinds: the world's, in lower case; by default the demo's.
    """
    return [match.group(1) for match in _mention(tuple(kinds)).finditer(text.lower())]


def kinds_of(vocabulary: str | bytes) -> tuple[str, ...]:
    """The kinds that the content of a vocabulary file names.

    Raises:
        ValueError: it is not such a file.
    """
    try:
        kinds = json.loads(vocabulary)["kinds"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError('not a record with "kinds"') from error
    if not isinstance(kinds, list) or not kinds or not all(isinstance(kind, str) and kind for kind in kinds):
        raise ValueError('"kinds" is not a list of words')
    return tuple(kind.lower() for kind in kinds)


def split_sentences(text: str) -> list[str]:
    """The sentences of a text (split at . ! ?), stripped, without empty ones."""
    return [part.strip() for part in _END_OF_SENTENCE.split(text) if part.strip()]


@cache
def _mention(kinds: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"\b({'|'.join(map(re.escape, kinds))})(?:e?s)?\b")
