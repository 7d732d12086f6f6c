"""VQA's soft accuracy: an answer is as right as people agree with it (Antol et al. 2015, arXiv 1505.00468).

The rules are those of LLaVA's m4c_evaluator.py, which took them from MMF's EvalAI processor; its table of
contractions stands in `vqa_contractions.json`, to the letter, misspellings included.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Final

NUM_PEOPLE: Final = 10

_ENOUGH: Final = 3  # people who say the same make an answer wholly right
_DIGITS: Final = {
    word: str(digit)
    for digit, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
_ARTICLES: Final = ("a", "an", "the")
_PUNCTUATION: Final = ';/[]"{}()=+\\_-><@`!'
# Whatever stands before it: the official pattern means to look behind for a digit, and does not.
_PERIOD: Final = re.compile(r"\.(?!\d)")
# The official call hands over a flag where the number of replacements belongs.
_MAX_PERIODS: Final = int(re.UNICODE)


def normalised(answer: str) -> str:
    """An answer as it is compared: lower case, no punctuation, no articles, digits for number words.

    Example:
        >>> normalised("The two dogs!"), normalised("dont know."), normalised("3.5")
        ('2 dogs', "don't know", '3.5')
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.strip().replace("\n", " ").replace("\t", " ").strip()
    joined = text
    for mark in _PUNCTUATION:
        # At the edge of a word it goes; inside of one it parts two words.
        is_at_an_edge = f"{mark} " in text or f" {mark}" in text
        joined = joined.replace(mark, "" if is_at_an_edge else " ")
    joined = _PERIOD.sub("", joined, count=_MAX_PERIODS)
    words = [_DIGITS.get(word, word) for word in joined.lower().split()]
    contractions = _contractions()
    return " ".join(contractions.get(word, word) for word in words if word not in _ARTICLES)


def soft_accuracy(answer: str, *, people: Sequence[str]) -> float:
    """How right an answer is, in 0..1.

    The mean over the ten sets of nine people of min(1, those who say the same / 3).

    Args:
        people: ten people's answers.

    Raises:
        ValueError: there are not ten.
    """
    if len(people) != NUM_PEOPLE:
        raise ValueError(f"{len(people)} answers of people, not {NUM_PEOPLE}")
    num_same = Counter(map(normalised, people))[normalised(answer)]
    # Left out is one of those who say the same, or one of the others.
    with_one_less = min(1.0, max(0, num_same - 1) / _ENOUGH)
    with_all = min(1.0, num_same / _ENOUGH)
    return (num_same * with_one_less + (NUM_PEOPLE - num_same) * with_all) / NUM_PEOPLE


@cache
def _contractions() -> Mapping[str, str]:
    text = resources.files("csr_ray.evaluation.benchmarks").joinpath("vqa_contractions.json").read_text("utf-8")
    table: dict[str, str] = json.loads(text)
    return table
