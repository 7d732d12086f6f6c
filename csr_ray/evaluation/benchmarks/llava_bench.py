"""LLaVA-Bench in the wild: open questions, scored by a judge beside a reference's answers (Liu et al. 2023).

The judge reads a person's description of the picture, the question, the reference's answer first and the model's
second, and writes two scores from 1 to 10 on its first line. The result is 100 times the model's mean score over the
reference's. The official script takes what is no pair of scores for two scores of -1, and averages those in; here
they are left out and counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from csr_ray.data.prompts import read_json_rows
from csr_ray.errors import ConfigError
from csr_ray.evaluation.benchmarks.base import Benchmark, Item, Items, Marks, id_of, mean
from csr_ray.evaluation.benchmarks.files import find_image, read_text
from csr_ray.evaluation.benchmarks.judged import about_the_judge, session_of
from csr_ray.judging.session import JudgeSession
from csr_ray.judging.template import Template
from csr_ray.ports import Judge

CATEGORIES = ("conv", "detail", "complex")
_QUESTIONS, _OLDER_QUESTIONS = 60, 90
_TEMPERATURE = 0.2
_MAX_TOKENS = 1024
_LOWEST, _HIGHEST = 1.0, 10.0
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_PROMPT = Path(__file__).parent / "prompts" / "llava-bench.txt"
_UNPARSED = "the judge gave no two scores from 1 to 10"


@dataclass(frozen=True, kw_only=True)
class LlavaBenchTruth:
    """A question with what a person saw (`context`) and the answer that the model's is compared with."""

    question: str
    category: str
    context: str
    reference: str


def build() -> Benchmark:
    return LlavaBench()


def parse_scores(text: str) -> tuple[float, float] | None:
    """The two scores on the first line of a judge's answer; None if there are not exactly two from 1 to 10.

    Example:
        >>> parse_scores("8 6.5\\nThe first ..."), parse_scores("8, 6"), parse_scores("Scores: 8 6")
        ((8.0, 6.5), (8.0, 6.0), None)
    """
    words = text.strip().split("\n", 1)[0].replace(",", " ").split()
    if len(words) != 2 or not all(_NUMBER.fullmatch(word) for word in words):
        return None
    first, second = map(float, words)
    return (first, second) if all(_LOWEST <= score <= _HIGHEST for score in (first, second)) else None


class LlavaBench(Benchmark):
    """See the module."""

    name = "llava-bench"
    title = "LLaVA-Bench in the wild: open questions, scored by a judge beside a reference's answers"
    source = "Liu et al. 2023, arXiv 2304.08485; llava/eval/eval_gpt_review_bench.py, summarize_gpt_review.py"
    metrics_are = "100 times the mean score over the reference's, and both mean scores (1 to 10); more is better"
    data = "questions.jsonl, context.jsonl, answers_gpt4.jsonl and images/, as released"
    max_tokens = 1024
    needs_judge = True

    def load(self, path: Path, *, unpack: Path | None = None) -> Items:
        if not path.is_dir():
            raise ConfigError(f"--data {path}: no such folder; expected {self.data}")
        contexts = {
            name: _text(row, "caption", where=where)
            for where, row in _rows(path / "context.jsonl")
            for name in [_text(row, "image", where=where)]
        }
        references = {
            _id(row, where=where): _text(row, "text", where=where)
            for where, row in _rows(path / "answers_gpt4.jsonl")
        }
        by_id: dict[str, Item] = {}
        skipped: Counter[str] = Counter()
        for where, row in _rows(path / "questions.jsonl"):
            key, image = _id(row, where=where), _text(row, "image", where=where)
            if image not in contexts or key not in references:
                skipped["no description of the image" if image not in contexts else "no answer of the reference"] += 1
                continue
            truth = LlavaBenchTruth(
                question=_text(row, "text", where=where),
                category=_text(row, "category", where=where).removeprefix("llava_bench_"),
                context=contexts[image],
                reference=references[key],
            )
            place = find_image(path, image, places=("images", ""))
            by_id[key] = Item(id=key, text=truth.question, image=place, truth=truth)
        if not by_id:
            raise ConfigError(f"--data {path}: no question with a description and a reference; expected {self.data}")
        return Items(by_id=by_id, skipped=skipped)

    def mark(self, said: Mapping[str, str], *, items: Items, judge: JudgeSession | None = None) -> Marks:
        session = session_of(self, judge)
        template = session.template(
            _PROMPT, needs=("context", "question", "reference", "answer"), knows=("category",)
        )
        _check_order(template)
        scores, skipped = session.each(
            {
                key: partial(_scores, template=template, truth=items.by_id[key].truth, answer=answer)
                for key, answer in said.items()
            }
        )
        pairs = {key: pair for key, pair in scores.items() if pair is not None}
        skipped[_UNPARSED] += len(scores) - len(pairs)
        metrics: dict[str, float] = {}
        for name in ("", *CATEGORIES):
            of_name = [pair for key, pair in pairs.items() if name in ("", items.by_id[key].truth.category)]
            if of_name:
                reference, model = (mean([pair[place] for pair in of_name]) for place in (0, 1))
                metrics[name or "score"] = 100 * model / reference
                metrics |= {f"{name or 'mean'}_model": model, f"{name or 'mean'}_reference": reference}
        notes = [
            f"Left out because {_UNPARSED}: {skipped[_UNPARSED]}; the official script averages two scores of -1 in "
            "for each."
        ]
        if (num := len(items.by_id) + sum(items.skipped.values())) == _OLDER_QUESTIONS:
            notes.append(
                f"{num} questions, as the older version on COCO's images has: another benchmark than LLaVA-Bench, "
                f"which in the wild has {_QUESTIONS}; compare its figures with none of that."
            )
        return about_the_judge(
            Marks(
                metrics=metrics,
                outcomes={key: model / _HIGHEST for key, (_, model) in pairs.items()},
                counts={key: _counts(pair, category=items.by_id[key].truth.category) for key, pair in pairs.items()},
                sums={name: {f"{name}/quotient": 100.0} for name in ("score", *CATEGORIES) if name in metrics},
                skipped=skipped,
                notes=tuple(notes),
            ),
            benchmark=self,
            session=session,
            template=template,
            papers_judge="gpt-4-0314",
        )


def _counts(pair: tuple[float, float], *, category: str) -> dict[str, tuple[float, float]]:
    """What an answer's scores (the reference's, the model's) add to each figure."""
    reference, model = pair
    counts: dict[str, tuple[float, float]] = {}
    for name in ("", *(one for one in CATEGORIES if one == category)):
        counts[f"{name or 'score'}/quotient"] = (model, reference)
        counts[f"{name or 'mean'}_model"] = (model, 1.0)
        counts[f"{name or 'mean'}_reference"] = (reference, 1.0)
    return counts


async def _scores(
    judge: Judge, *, template: Template, truth: LlavaBenchTruth, answer: str
) -> tuple[float, float] | None:
    messages = template.messages(
        {
            "context": truth.context,
            "question": truth.question,
            "category": truth.category,
            "reference": truth.reference,
            "answer": answer,
        }
    )
    return parse_scores(await judge.reply(messages, temperature=_TEMPERATURE, max_tokens=_MAX_TOKENS))


def _check_order(template: Template) -> None:
    """Judges favour what they read first, so a prompt with the model's answer first would be another benchmark."""
    if template.text.index("{answer}") < template.text.index("{reference}"):
        raise ConfigError(
            f"--judge-prompt {template.name}: {{answer}} stands before {{reference}}; the reference is read first in "
            "llava-bench, and its score is the first of the two"
        )


def _rows(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """The records of a file of the release, each with the words that name its place."""
    rows = []
    for row in read_json_rows(read_text(file, option="--data"), name=file.name):
        if row.problem is not None or not isinstance(row.value, dict):
            raise ConfigError(f"--data {file}: {row.source}: not a record; put the benchmark's own file there")
        rows.append((f"--data {file}: {row.source}", row.value))
    return rows


def _text(row: Mapping[str, Any], key: str, *, where: str) -> str:
    value = row.get(key)
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = "\n".join(value)  # a description may come in several sentences
    if not isinstance(value, str):
        raise ConfigError(f"{where}: no {key!r}; put the benchmark's own file there")
    return value


def _id(row: Mapping[str, Any], *, where: str) -> str:
    try:
        return id_of(row, keys=("question_id",))
    except ValueError as error:
        raise ConfigError(f"{where}: {error}; put the benchmark's own file there") from error
