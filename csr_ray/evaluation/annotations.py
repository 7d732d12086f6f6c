"""Answers that somebody has rated before, as a file: one line of JSON for each, with the id of the prompt.

A line has `id`, `answer` and the five attributes of `csr_ray.judging.attributes`. Several lines with the same answer
to the same prompt, of several people, count as their mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from csr_ray.data.json_lines import records_of
from csr_ray.data.parsing import is_unicode
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
    rated: dict[str, dict[str, list[dict[str, float]]]] = {}
    for row in records_of(path, key=key):
        answer = row.get("answer")
        if not isinstance(answer, str) or not answer.strip() or not is_unicode(answer):
            continue
        of_answer = rated.setdefault(row["id"], {}).setdefault(answer.strip(), [])
        if (scores := scores_of(row)) is not None:
            of_answer.append(scores)
    if not any(scores for answers in rated.values() for scores in answers.values()):
        wanted = ", ".join(("id", "answer", *ATTRIBUTES))
        raise ConfigError(f"{key} = {path!r}: not one line is a JSON object with {wanted} (0 to 4)")
    return {
        prompt_id: [RatedAnswer(text, _mean(scores)) for text, scores in answers.items()]
        for prompt_id, answers in rated.items()
    }


def _mean(scores: Sequence[Mapping[str, float]]) -> dict[str, float] | None:
    if not scores:
        return None
    return {name: sum(one[name] for one in scores) / len(scores) for name in ATTRIBUTES}
