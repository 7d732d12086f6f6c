"""ROUGE-L: how much of two texts is the same words in the same order (Lin 2004, "ROUGE", section 3).

Knows nothing of models or files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence


def rouge_l(text: str, *, reference: str) -> float:
    """F-measure of the longest common subsequence of words, 0 to 1; precision and recall weigh the same.

    Words are runs of letters and digits in lower case. There is no stemming. 0 if either text has no word.
    """
    words, wanted = _words(text), _words(reference)
    if not words or not wanted:
        return 0.0
    # 2 P R / (P + R) with P = L / len(words) and R = L / len(wanted).
    return 2 * longest_common(words, wanted) / (len(words) + len(wanted))


def longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest sequence of words that stand in both, in this order, but not without gaps."""
    row = [0] * (len(second) + 1)  # of each beginning of `second`, with the words of `first` so far
    for word in first:
        diagonal = 0
        for place, other in enumerate(second, start=1):
            diagonal, row[place] = row[place], diagonal + 1 if word == other else max(row[place], row[place - 1])
    return row[-1]


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())
