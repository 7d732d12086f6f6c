"""Where a sentence ends. Knows strings only, nothing of tokens or models.

A sentence ends at . ! or ? (with closing quotes and brackets behind it) before white space or the end of the text. A
period inside a number or an address is followed by something else, so it is no end. A period that ends an
abbreviation does not count either, nor one behind a bare number at the start (the "1." of a list).
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

STOPS: Final = (".", "!", "?")

_ABBREVIATIONS: Final = frozenset(
    f"{word}."
    for word in (
        *("mr", "mrs", "ms", "mx", "dr", "prof", "st", "mt", "vs", "e.g", "i.e", "cf", "approx", "ca", "dept", "vol"),
        *("gen", "capt", "lt", "sgt", "rev", "hon", "gov", "sen", "ave", "blvd"),
    )
)
_CLOSERS: Final = "\"')]}\u201d\u2019\u00bb"
_OPENERS: Final = "\"'([{\u201c\u2018\u00ab"
_STOP: Final = re.compile(rf"[.!?]+[{re.escape(_CLOSERS)}]*")
WHOLE_ENDING: Final = r"""[.!?\x{3002}\x{FF01}\x{FF1F}]["')\]}\x{201D}\x{2019}\x{BB}]*\s*$"""
"""Pattern, for RE2, of a text that ends where a sentence may end, so that it is not cut off in the middle of one."""
_LIST_MARKER: Final = re.compile(r"\s*\d+\.")
_PLAIN_WORD: Final = re.compile(r"[^\W\d_A-Z]{2,}\.")


class Ending(Enum):
    """What is known of a sentence that was just decoded up to a token with . ! or ? in it."""

    WHOLE = "it ends here"
    OPEN = "it goes on"
    UNSURE = "the next character decides"


def first_end(text: str) -> int | None:
    """The position behind the first sentence of `text`, or None if it ends nowhere.

    Example: first_end("Mr. Fox has 3.5 apples. He eats.") == 23
    """
    for stop in _STOP.finditer(text):
        behind = text[stop.end() : stop.end() + 1]
        if (not behind or behind.isspace()) and not _is_no_end(text[: stop.end()]):
            return stop.end()
    return None


def ending(text: str) -> Ending:
    """Judge a sentence that was decoded from its start up to a token with a stop in it.

    Behind a plain word in lower-case letters a period ends the sentence at once, which is nearly always right and
    spares a look at the next token; behind digits, capitals, ! and ? the next character has to be seen.
    """
    if first_end(text.rstrip() if text[-1:].isspace() else f"{text}x") is not None:
        return Ending.WHOLE  # what follows the stop is in the same token
    stop = re.search(_STOP.pattern + r"\Z", text)
    if stop is None or _is_no_end(text):
        return Ending.OPEN
    word = text.split()[-1].lstrip(_OPENERS)
    return Ending.WHOLE if _PLAIN_WORD.fullmatch(word) else Ending.UNSURE


def may_end_sentence(token: str) -> bool:
    """Whether a token's text ends in . ! or ?, closing quotes and white space behind it allowed."""
    return token.rstrip().rstrip(_CLOSERS).endswith(STOPS)


def starts_new(behind: str) -> bool:
    """Whether the text decoded behind a stop (empty, or led by white space) shows that the sentence had ended."""
    return not behind or behind[0].isspace()


def _is_no_end(text: str) -> bool:
    """Whether the stop at the end of `text` belongs to an abbreviation or a list marker."""
    if _LIST_MARKER.fullmatch(text):
        return True
    words = text.split()
    return bool(words) and words[-1].lstrip(_OPENERS).lower() in _ABBREVIATIONS
