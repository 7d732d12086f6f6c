"""What `csr-ray eval` does, given a benchmark and somebody who answers it: goes on where it was, and marks."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console

from csr_ray.app.bulk import DoWork, do_what_is_left
from csr_ray.app.figures_table import print_figures
from csr_ray.app.paths import is_in_a_copy
from csr_ray.errors import NoDataError
from csr_ray.evaluation.benchmarks.questions import Asked
from csr_ray.evaluation.chunks import AnswerJob, by_image
from csr_ray.evaluation.comparison import certainty
from csr_ray.evaluation.suite import Asking, Suite
from csr_ray.judging.session import JudgeSession
from csr_ray.policy.source import local_folder, revision_of
from csr_ray.records import Calibration, Contrast, JsonDict, Rescoring, WayToAsk
from csr_ray.stages.view import View
from csr_ray.store.digests import Digest
from csr_ray.store.parts import PartFolder, Work

_KINDS = {type(None): "plain", Contrast: "vdd", Rescoring: "rescore", Calibration: "post_hoc"}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation came to, as its JSON file says it.

    Attributes:
        n: images whose description was marked, or answers where there are no descriptions.
        metrics: by the names of `csr-ray score-answers` (pope, chair), or of a run's evaluation (world).
        skipped: how many questions have no answer, by the reason without the picture's name.
        more: further keys: how sure the figures are (`csr_ray.evaluation.comparison.certainty`), of chair its table
            and form, of POPE's splits how many answers each has, and those of a benchmark's own
            (`csr_ray.evaluation.benchmarks`).
    """

    benchmark: str
    n: int
    metrics: dict[str, float]
    skipped: dict[str, int]
    more: JsonDict = field(default_factory=dict)

    def to_plain(self) -> JsonDict:
        plain = asdict(self)
        more = plain.pop("more")
        return {**plain, **more}


def evaluate(
    suite: Suite | Asked,
    *,
    benchmark: str,
    what: JsonDict,
    folder: PartFolder,
    quarantine: Path,
    answer_jobs: DoWork,
    view: View,
    on_answered: Callable[[], object] = lambda: None,
    judge: JudgeSession | None = None,
) -> Evaluation:
    """Answer the questions that have no answer in the folder yet, and mark all of them.

    Args:
        what: says what is asked of whom; a folder that says otherwise is refused.
        quarantine: the file that lists the questions without an answer.
        answer_jobs: gives, for some pieces of `works_of`, the table of each as it is done
            (`csr_ray.store.answers.ANSWERS`).
        on_answered: called when all answers are there and nobody is asked for any more, before they are marked.
        judge: of a benchmark that has one.

    Raises:
        NoDataError: not one question has an answer.
    """
    done = do_what_is_left(
        list(works_of(suite)),
        what=what,
        folder=folder,
        quarantine=quarantine,
        do=answer_jobs,
        view=view,
        stage="evaluate",
        unit="answers",
    )
    if done.done_before:
        view.say(f"{done.done_before} answers were there already")
    answers: dict[str, dict[str, str]] = {}
    skipped: Counter[str] = Counter()
    for table in folder.columns("asked_as", "id", "image", "answer", "reason", positions=done.positions):
        for row in table.to_pylist():
            if row["reason"] is None:
                answers.setdefault(row["asked_as"], {})[row["id"]] = row["answer"]
            else:
                skipped[row["reason"].replace(f" {row['image']}:", ":")] += 1
    if not answers:
        raise NoDataError(
            f"{benchmark}: not one question can be answered; first reason: {done.first_reason or 'there is none'}; "
            f"{quarantine} has a line for each"
        )
    if done.set_aside:
        view.say(f"{done.set_aside} without an answer, see {quarantine}; first reason: {done.first_reason}")
    on_answered()
    if isinstance(suite, Asked):
        if judge is not None:
            view.say(f"{judge.name} reads {sum(map(len, answers.values()))} answers")
        found = suite.result(answers, skipped=skipped, judge=judge)
        known = {name: found.pop(name) for name in ("benchmark", "n", "metrics", "skipped")}
        return Evaluation(**known, more=found)
    metrics = suite.benchmark_marks(benchmark, answers=answers)
    items = suite.benchmark_items(benchmark, answers=answers)
    return Evaluation(
        benchmark=benchmark,
        n=suite.num_marked(answers),
        metrics=metrics,
        skipped=dict(sorted(skipped.items())),
        more={**suite.says(answers), **certainty(items, metrics=metrics, counted=("num_images",))},
    )


def works_of(suite: Suite | Asked) -> Iterator[Work[AnswerJob]]:
    """What is asked, in pieces of one call each; the same questions make the same pieces."""
    position = 0
    for asking in suite.askings():
        for questions in by_image(asking.questions):
            job = AnswerJob(
                asked_as=asking.name,
                questions=tuple(questions),
                temperature=asking.temperature,
                max_tokens=asking.max_tokens,
            )
            yield Work(position, len(questions), job)
            position += len(questions)


def what_is_asked(suite: Suite | Asked, *, model: str, reference: str, dtype: str, seed: int) -> JsonDict:
    """Says, for the folder of the answers, what is asked of whom.

    Args:
        model: by the name that the user gave.
        reference: of the model (`csr_ray.policy.source`); of a folder the sizes and times of its files count, too. Of
            one in a job's copy, which has another place and other times with each upload, name and content count.
    """
    is_folder = revision_of(reference) is None
    is_copy = is_folder and is_in_a_copy(model)
    return {
        "model": os.path.normpath(model) if is_copy else reference,
        "model_files": _stamps(local_folder(reference), by_content=is_copy) if is_folder else [],
        "dtype": dtype,
        "seed": seed,
        "questions": _digest([_plain(asking) for asking in suite.askings()]),
    }


def _stamps(folder: Path, *, by_content: bool) -> list[tuple[str, int, int | str]]:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if by_content:
        digests = [Digest.of_file(path) for path in files]
        return [(path.name, found.num_bytes, found.xxh3) for path, found in zip(files, digests, strict=True)]
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def _plain(asking: Asking) -> JsonDict:
    """What is asked; of questions that are asked plainly nothing but what earlier versions of this program knew."""
    plain = asdict(asking)
    for question, asked in zip(plain["questions"], asking.questions, strict=True):
        if asked.way == WayToAsk():
            del question["way"], question["choices"]
    return plain


def said_of(way: WayToAsk) -> JsonDict:
    """What a result says of the way in which was asked, under `way`; nothing where that is the plain one."""
    if way == WayToAsk():
        return {}
    kind = _KINDS[type(way.decoding)]
    keys = {} if way.decoding is None else asdict(way.decoding)
    return {"way": {"decoding": {"kind": kind, **keys}, "describe_first": way.describe_first}}


def _digest(content: Sequence[JsonDict]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def print_evaluation(found: Evaluation, *, console: Console) -> None:
    """What is printed at the end (`csr_ray.app.figures_table`)."""
    print_figures(found.to_plain(), console=console)
