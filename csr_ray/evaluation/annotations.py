"""Answers that somebody has rated before, as a file: one line of JSON for each, with the id of the prompt.

A line has `id`, `answer` and the five attributes of `csr_ray.judging.attributes`. Several lines with the same answer
to the same prompt, of several people, count as their mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from csr_ray.data.files import UnreadableError, open_file
from csr_ray.errors import ConfigError
from csr_ray.judging.attributes import ATTRIBUTES, scores_of


@dataclass(frozen=True)
class RatedAnswer:
    """An answer; `scores` is None where no line has five whole numbers from 0 to 4."""

    text: str
    scores: Mapping[str, float] | None


@lru_cache(maxsize=2)
def read_annotations(path: str, *, key: str) -> Mapping[str, Sequence[RatedAnswer]]:
    """The rated answers by their prompt's id. Lines that are no such record are passed over.

    Args:
        key: of the config, that names the file.

    Raises:
        ConfigError: the file cannot be read, or has no usable line.
    """
    try:
        with open_file(path) as file:
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except (OSError, UnreadableError) as error:
        raise ConfigError(f"{key} = {path!r}: cannot be read: {error}") from None
    rated: dict[str, dict[str, list[dict[str, float]]]] = {}
    for line in lines:
        if (row := _row(line)) is None:
            continue
        of_answer = rated.setdefault(str(row["id"]), {}).setdefault(row["answer"].strip(), [])
        if (scores := scores_of(row)) is not None:
            of_answer.append(scores)
    if not any(scores for answers in rated.values() for scores in answers.values()):
        wanted = ", ".join(("id", "answer", *ATTRIBUTES))
        raise ConfigError(f"{key} = {path!r}: not one line is a JSON object with {wanted} (0 to 4)")
    return {
        prompt_id: [RatedAnswer(text, _mean(scores)) for text, scores in answers.items()]
        for prompt_id, answers in rated.items()
    }


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_record = isinstance(row, dict) and isinstance(row.get("id"), str | int) and isinstance(row.get("answer"), str)
    return row if is_record and row["answer"].strip() else None


def _mean(scores: Sequence[Mapping[str, float]]) -> dict[str, float] | None:
    if not scores:
        return None
    return {name: sum(one[name] for one in scores) / len(scores) for name in ATTRIBUTES}
