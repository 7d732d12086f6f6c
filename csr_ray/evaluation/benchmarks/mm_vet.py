"""MM-Vet: open questions that need several capabilities at once, graded by a judge (Yu et al. 2023).

The grade is 0.0 to 1.0. The judge is asked as the official notebook asks: at temperature 0 for three tokens; what is
no grade is asked for again, each time half a degree warmer, and after five tries the answer is graded 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from csr_ray.errors import ConfigError
from csr_ray.evaluation.benchmarks.base import Benchmark, Item, Items, Marks, Said, id_of, mean
from csr_ray.evaluation.benchmarks.files import find_file, find_image, read_json
from csr_ray.evaluation.benchmarks.judged import about_the_judge, session_of
from csr_ray.judging.session import JudgeSession
from csr_ray.judging.template import Template
from csr_ray.ports import Judge

CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")
_NUM_TRIES = 5
_WARMER = 0.5
_MAX_TOKENS = 3
_REMINDER = "\nGive the grade only, as a number from 0.0 to 1.0:"
_GRADE = re.compile(r"[01](?:\.\d*)?|\.\d+")
_PROMPT = Path(__file__).parent / "prompts" / "mm-vet.txt"
_PREFIX = "v1_"


@dataclass(frozen=True, kw_only=True)
class MmVetTruth:
    """A question with its right answer (parts joined by <AND> or <OR>) and the capabilities that it needs."""

    question: str
    answer: str
    capabilities: tuple[str, ...]


def build() -> Benchmark:
    return MmVet()


def parse_grade(text: str) -> float | None:
    """The grade that a judge's answer begins with; None if its first word is no number from 0 to 1.

    Example:
        >>> parse_grade(" 0.7 since"), parse_grade("1"), parse_grade("I think 0.7"), parse_grade("1.5")
        (0.7, 1.0, None, None)
    """
    words = text.split()
    if not words or not _GRADE.fullmatch(words[0]):
        return None
    grade = float(words[0])
    return grade if grade <= 1 else None


class MmVet(Benchmark):
    """See the module."""

    name = "mm-vet"
    title = "MM-Vet: open questions that need several capabilities, graded by a judge"
    source = "Yu et al. 2023, arXiv 2308.02490; mm-vet_evaluator.ipynb"
    metrics_are = "100 times the mean grade, in all and of the questions that need each capability; more is better"
    data = "mm-vet.json and images/, as released"
    max_tokens = 1024
    needs_judge = True

    def load(self, path: Path, *, unpack: Path | None = None) -> Items:
        file = find_file(path, patterns=("mm-vet.json",), benchmark=self.name, remedy=f"expected {self.data}")
        rows = read_json(file, option="--data", expected=dict)
        by_id = {key: _item(key, row, file=file) for key, row in rows.items()}
        if not by_id:
            raise ConfigError(f"--data {file}: no question of mm-vet; expected {self.data}")
        return Items(by_id=by_id)

    def read_answers(self, path: Path, *, items: Items) -> Said:
        """Read the official form, one object of answers by id, or LLaVA's JSONL."""
        try:
            rows = read_json(path, option="--answers", expected=dict)
        except ConfigError:
            return super().read_answers(path, items=items)
        if not all(isinstance(text, str) for text in rows.values()):  # a JSONL of a single line is an object, too
            return super().read_answers(path, items=items)
        if any(name in rows for name in self.id_keys):
            return super().read_answers(path, items=items)
        return Said(by_id=dict(rows))

    def key_of(self, record: Mapping[str, Any], *, items: Items) -> str:
        """LLaVA's question file has the numbers alone."""
        key = id_of(record, keys=self.id_keys)
        return key if key in items.by_id else _PREFIX + key

    def mark(self, said: Mapping[str, str], *, items: Items, judge: JudgeSession | None = None) -> Marks:
        session = session_of(self, judge)
        template = session.template(_PROMPT, needs=("question", "truth", "answer"))
        grades, failed = session.each(
            {
                key: partial(_grade, template=template, truth=items.by_id[key].truth, answer=answer)
                for key, answer in said.items()
            }
        )
        outcomes = {key: grade or 0.0 for key, grade in grades.items()}
        num_none = sum(grade is None for grade in grades.values())
        metrics = {"total": 100 * mean(list(outcomes.values()))}
        for capability in CAPABILITIES:
            having = [value for key, value in outcomes.items() if capability in items.by_id[key].truth.capabilities]
            if having:
                metrics[capability] = 100 * mean(having)
        return about_the_judge(
            Marks(
                metrics={**metrics, "ungraded": float(num_none)},
                outcomes=outcomes,
                counts={
                    key: {f"{name}/grade": (grade, 1.0) for name in ("total", *items.by_id[key].truth.capabilities)}
                    for key, grade in outcomes.items()
                },
                sums={name: {f"{name}/grade": 100.0} for name in metrics},
                counted=("ungraded",),
                skipped=failed,
                notes=(f"Graded 0 because the judge gave no grade in {_NUM_TRIES} tries: {num_none}.",),
            ),
            benchmark=self,
            session=session,
            template=template,
            papers_judge="gpt-4-0613, and means of five runs",
        )


async def _grade(judge: Judge, *, template: Template, truth: MmVetTruth, answer: str) -> float | None:
    messages = template.messages({"question": truth.question, "truth": truth.answer, "answer": answer})
    for number in range(_NUM_TRIES):
        said = await judge.reply(messages, temperature=min(2.0, number * _WARMER), max_tokens=_MAX_TOKENS)
        if (grade := parse_grade(said)) is not None:
            return grade
        if number == 0:
            messages = (*messages[:-1], replace(messages[-1], text=messages[-1].text + _REMINDER))
    return None


def _item(key: str, row: Any, *, file: Path) -> Item:
    try:
        question, answer, name, capabilities = (
            row[part] for part in ("question", "answer", "imagename", "capability")
        )
        if not all(isinstance(text, str) for text in (question, answer, name, *capabilities)):
            raise TypeError
    except (TypeError, KeyError) as error:
        raise ConfigError(
            f"--data {file}: {key}: not a record of question, answer, imagename and capability; put the benchmark's "
            "own file there"
        ) from error
    # Set apart, as the official notebook does, so that a part is not read together with the mark.
    answer = answer.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    truth = MmVetTruth(question=question, answer=answer, capabilities=tuple(capabilities))
    return Item(id=key, text=question, image=find_image(file.parent, name, places=("images", "")), truth=truth)
