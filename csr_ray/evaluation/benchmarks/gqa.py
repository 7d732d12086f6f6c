"""GQA: compositional questions on scene graphs, one right answer each (Hudson and Manning 2019, arXiv 1902.09506)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csr_ray.errors import ConfigError
from csr_ray.evaluation.benchmarks.base import SHORT_ANSWER, Benchmark, Item, Items, Marks, counts_of, mean
from csr_ray.evaluation.benchmarks.files import find_file, find_image, read_json
from csr_ray.judging.session import JudgeSession

_NOTE = (
    "Exact match alone: the official eval.py's consistency, validity, plausibility and distribution are not measured."
)


@dataclass(frozen=True, kw_only=True)
class GqaTruth:
    """The one right answer; `is_open` says that it is more than a choice of two, None where the release does not."""

    answer: str
    is_open: bool | None


def build() -> Benchmark:
    return Gqa()


def prediction_of(text: str) -> str:
    """What LLaVA hands to the official script: trailing periods go, then lower case; nothing else is forgiven.

    Example:
        >>> prediction_of("Yes."), prediction_of("Yes. "), prediction_of("A dog")
        ('yes', 'yes. ', 'a dog')
    """
    return text.rstrip(".").lower()


class Gqa(Benchmark):
    """See the module."""

    name = "gqa"
    title = "GQA: short answers to compositional questions; exact match"
    source = "Hudson and Manning 2019, arXiv 1902.09506; LLaVA's convert_gqa_for_eval.py"
    data = "testdev_balanced_questions.json, images/"
    id_keys = ("question_id", "questionId", "id")

    def load(self, path: Path, *, unpack: Path | None = None) -> Items:
        file = find_file(
            path,
            patterns=("testdev_balanced_questions.json", "questions*/testdev_balanced_questions.json"),
            benchmark=self.name,
            remedy=f"it takes {self.data}",
        )
        by_id: dict[str, Item] = {}
        skipped: Counter[str] = Counter()
        for key, record in read_json(file, option="--data", expected=dict).items():
            lacking = _lacking(record)
            if lacking:
                skipped[f"malformed question: no {lacking}"] += 1
                continue
            kind = record.get("types", {}).get("structural") if isinstance(record.get("types"), dict) else None
            by_id[key] = Item(
                id=key,
                text=f"{record['question']}\n{SHORT_ANSWER}",
                image=find_image(file.parent, f"{record['imageId']}.jpg", places=("images", "../images", "")),
                truth=GqaTruth(answer=record["answer"], is_open=None if kind is None else kind == "query"),
            )
        if not by_id:
            raise ConfigError(f"--data {file}: no question of gqa; put the benchmark's own file there")
        return Items(by_id=by_id, skipped=skipped)

    def mark(self, said: Mapping[str, str], *, items: Items, judge: JudgeSession | None = None) -> Marks:
        outcomes: dict[str, float] = {}
        by_kind: dict[bool, list[float]] = {}
        for key, text in said.items():
            truth: GqaTruth = items.by_id[key].truth
            outcomes[key] = float(prediction_of(text) == truth.answer)
            if truth.is_open is not None:
                by_kind.setdefault(truth.is_open, []).append(outcomes[key])
        metrics = {"accuracy": mean(list(outcomes.values()))}
        metrics |= {
            name: mean(by_kind[kind]) for name, kind in (("binary", False), ("open", True)) if kind in by_kind
        }
        counts = counts_of(outcomes)
        for key, value in outcomes.items():
            is_open = items.by_id[key].truth.is_open
            if is_open is not None:
                counts[key]["open" if is_open else "binary"] = (value, 1.0)
        return Marks(metrics=metrics, outcomes=outcomes, counts=counts, notes=(_NOTE,))


def _lacking(record: Any) -> str | None:
    """The first key that a question has to have and has not."""
    if not isinstance(record, dict):
        return "record"
    return next((key for key in ("imageId", "question", "answer") if not isinstance(record.get(key), str)), None)
