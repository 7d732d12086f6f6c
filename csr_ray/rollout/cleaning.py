"""The released code's cleaning of a sentence before it is scored. Knows strings only, nothing of models.

The released code is utils.py (clean_text, extract_new_text, clean_tree) and score.py (dfs_score) of YiyangZhou/CSR at
commit 353de42. `tests/data/released_cleaning.jsonl` holds what these functions themselves made of some 3,000 strings.
"""

from __future__ import annotations

import re
from typing import Final

_MIN_CHARS: Final = 4
_MAX_NEWLINES: Final = 5
# What the release keeps: letters, digits and underscores of every script, white space, and these. A hyphen is not
# among them, nor are typographic quotes, dashes and emoji.
_STRIPPED: Final = re.compile(
    r"""[^\w\s.,;:?!'"#$%&()\[\]{}/+*=<>^\u20ac\u00a3\u00b0\u2122\u00a9\u00ae\u266b\u266a\u03c0\u221a]+"""
)
_DROPPED: Final = re.compile(
    "[\u3130-\u318f\uac00-\ud7af]"  # Hangul
    "|[\u3040-\u30ff]"  # kana
    "|[\u0400-\u04ff]"  # Cyrillic
    "|(?:&nbsp;){2}"
    r"|\b(\w+)\b(?:\s+\1){5}"  # a word six times; the sixth may be the beginning of a longer one
    r"|(.)(?:\s*\2){10}"  # a character eleven times, white space between and white space itself allowed
    "|'{10}"
)


def scored_text(text: str) -> str | None:
    """Return the text that CLIP sees of a sentence, or None if the sentence is dropped with all that follows it.

    First every character that is not a letter, a digit, white space or among a few signs is removed. What is left is
    dropped if it has under 4 characters, more than 5 newlines, Hangul, kana or Cyrillic, two "&nbsp;" side by
    side, a word six times or a character eleven times in a row, or ten apostrophes in a row. (The release also tests
    for emoji, which never meet that test because they have been removed.)

    Example: scored_text("A well-lit T-shirt.") == "A welllit Tshirt."
    """
    cleaned = _STRIPPED.sub("", text.strip())
    is_dropped = len(cleaned) < _MIN_CHARS or cleaned.count("\n") > _MAX_NEWLINES or _DROPPED.search(cleaned)
    return None if is_dropped else cleaned
