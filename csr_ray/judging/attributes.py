"""Five attributes of an answer, 0 to 4 each, as a judge gives them: its prompt, and what it said as numbers.

They are those of HelpSteer, which mllm-dpo (arXiv 2402.10884) has a strong model give. Knows texts only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

ATTRIBUTES: Final = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
QUALITY: Final = ATTRIBUTES[:3]
"""Those that say how good an answer is; the other two say what it is like."""
HIGHEST: Final = 4

_DECODER = json.JSONDecoder()
# A reply has a few hundred characters an answer; whatever is behind these is no verdict.
_MOST_CHARACTERS = 50_000
# What some models write before they answer, in which they try verdicts out.
_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL | re.IGNORECASE)
_NUMBER = re.compile(r"\d{1,3}")
_NAMED = re.compile(r"\s*answer\s*", re.IGNORECASE)


def quality(scores: Mapping[str, float | None]) -> float | None:
    """The sum of helpfulness, correctness and coherence, 0 to 12; None: one of them is not known."""
    values = [scores.get(name) for name in QUALITY]
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def listed(answers: Sequence[str]) -> str:
    """The answers as a judge reads them: numbered from 1, a line each, line breaks within them as spaces."""
    return "\n".join(
        f"Answer {number}: [{' '.join(answer.split())}]" for number, answer in enumerate(answers, start=1)
    )


def parse_verdicts(reply: str, *, num: int) -> list[dict[str, float] | None]:
    """The scores of each of `num` answers; None for one of which the reply says nothing that can be used.

    Wherever in the reply JSON stands, its objects with the five attributes are verdicts. Each is of the answer that
    its "answer" names, counted from 1; without such numbers they are of the answers in their order, if there are as
    many. A verdict counts if all five are whole numbers from 0 to 4, and if no other is of the same answer. Names may
    be in capitals, and numbers in quotes ("3", "Answer 1"), as models write them. What a model thinks aloud within
    `<think>` is no reply.
    """
    entries = list(_entries(_THOUGHT.sub(" ", reply[:_MOST_CHARACTERS])))
    if not any("answer" in entry for entry in entries):
        entries = (
            [{**entry, "answer": place} for place, entry in enumerate(entries, start=1)]
            if len(entries) == num
            else []
        )
    found: list[list[dict[str, float] | None]] = [[] for _ in range(num)]
    for entry in entries:
        named = entry.get("answer")
        named = _NAMED.sub("", named, count=1) if isinstance(named, str) else named
        if (number := _whole(named, low=1, high=num)) is not None:
            found[int(number) - 1].append(scores_of(entry))
    return [verdicts[0] if len(verdicts) == 1 else None for verdicts in found]


def scores_of(entry: Mapping[str, Any]) -> dict[str, float] | None:
    """The five scores of an object; None: one is missing, or no whole number from 0 to 4."""
    values = {name: _whole(entry.get(name), low=0, high=HIGHEST) for name in ATTRIBUTES}
    known = {name: value for name, value in values.items() if value is not None}
    return known if len(known) == len(ATTRIBUTES) else None


def _whole(value: Any, *, low: int, high: int) -> float | None:
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if low <= value <= high and value == int(value) else None


def _entries(text: str) -> Iterator[dict[str, Any]]:
    """The objects with an attribute in them, of all JSON in a text."""
    at = 0
    while (at := min((place for sign in "[{" if (place := text.find(sign, at)) >= 0), default=-1)) >= 0:
        try:
            value, at = _DECODER.raw_decode(text, at)
            yield from _objects(value)
        except ValueError:
            at += 1
        except RecursionError:  # thousands of opening brackets; no verdict has that
            return


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        named = {name.strip().lower(): inner for name, inner in value.items()}
        if any(name in named for name in ATTRIBUTES):
            yield named
            return
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(inner)
