"""Marks a file of answers against a file of truth, for `csr-ray score-answers`; needs neither model nor images.

Knows the forms of the files; the metrics are those of `pope`, `chair` and `world`. Answers and truth are matched by
id, never by order: an answer file that lacks one line would otherwise be marked against its neighbours' truth.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from csr_ray.data.prompts import decode_text, is_unicode, read_json_rows
from csr_ray.data.rows import Row
from csr_ray.errors import ConfigError, NoDataError
from csr_ray.evaluation.chair import is_object_name, mark_captions
from csr_ray.evaluation.chair_truth import OWN_TABLE, OfficialFiles, coco_image_id, coco_truth
from csr_ray.evaluation.comparison import certainty
from csr_ray.evaluation.item_marks import MarkedItems, items_of
from csr_ray.evaluation.marks import quotients
from csr_ray.evaluation.pope import LABELS, mark_answers
from csr_ray.evaluation.pope_splits import (
    load_splits,
    of_split,
    read_split_answers,
    split_metrics,
    split_notes,
    split_sums,
)
from csr_ray.evaluation.world import mark_descriptions
from csr_ray.records import Mark, MarkedAnswer
from csr_ray.world.mentions import VOCABULARY_FILE, kinds_of
from csr_ray.world.vocabulary import KINDS

BENCHMARKS = ("chair", "pope", "world")

Value = TypeVar("Value")


@dataclass(frozen=True)
class MarkedFile:
    """A file of answers, marked against a file of truth.

    Attributes:
        answers: those that have a truth, each with its mark, in the order of the truth.
        skipped: how many lines or ids were left out, by the reason.
        named: what a result says besides: of CHAIR its table and form, of POPE's splits how many answers each has.
    """

    answers: tuple[MarkedAnswer, ...]
    skipped: Mapping[str, int]
    named: Mapping[str, Any] = field(default_factory=dict)


def score_answers(
    benchmark: str, *, answers: Path, truth: Path | None, files: OfficialFiles | None = None
) -> dict[str, Any]:
    """Mark `answers` against `truth` (`mark_file`).

    Returns:
        {"benchmark", "n": answers marked, "metrics": {name: fraction}, "skipped": {reason: lines or ids}}, and of
        chair the "table" (own, official) and the "form" (original, lure) that the figures are by; and how sure the
        figures are (`csr_ray.evaluation.comparison.certainty`).
    """
    marked = mark_file(benchmark, answers=answers, truth=truth, files=files)
    metrics = metrics_of(marked)
    return {
        **marked.named,
        "benchmark": benchmark,
        "n": len(marked.answers),
        "metrics": metrics,
        "skipped": dict(marked.skipped),
        **certainty(marked_items(marked.answers), metrics=metrics),
    }


def marked_items(answers: Sequence[MarkedAnswer]) -> MarkedItems:
    """What a result keeps of marked answers whose ids are unique; the image is what is drawn again."""
    names = {name for answer in answers for name in answer.mark.counts}
    return MarkedItems(items=items_of(answers, by_asking=False), sums=split_sums(names)).with_short_units()


def metrics_of(marked: MarkedFile) -> dict[str, float]:
    """The figures of a marked file, by metric."""
    marks = [answer.mark for answer in marked.answers]
    return split_metrics(marks) if "num_questions" in marked.named else quotients(marks)


def mark_file(benchmark: str, *, answers: Path, truth: Path | None, files: OfficialFiles | None = None) -> MarkedFile:
    """Mark `answers` against `truth`, each by itself; both JSONL (or a JSON list).

    An answer has its id under question_id (pope), or id, image_id or question_id (chair, world), and its text under
    text or caption. Truth has question_id and label (pope), or id or image_id and objects (chair, world); an object
    is a name, or a record with the name under kind, which world needs.

    Args:
        files: what chair is marked by in the place of the own table and of `truth`. An answer has the number of its
            COCO image under image_id, image (a file name), id or question_id; the published scripts' own form of
            answers, an object with imgToEval, is understood, too.

    Raises:
        ConfigError: an unknown benchmark, or a missing or unreadable file.
        NoDataError: no answer has a truth.
    """
    if benchmark not in BENCHMARKS:
        raise ConfigError(f"benchmark = {benchmark!r}: unknown; allowed: {', '.join(BENCHMARKS)}")
    if files is not None:
        return _marked_officially(benchmark, answers=answers, truth=truth, files=files)
    if truth is None:
        raise ConfigError("--truth: missing; name the file with the truth")
    if benchmark == "pope" and (truth.is_dir() or answers.is_dir()):
        return _marked_splits(answers, truth=truth)
    kinds = _kinds_beside(truth) if benchmark == "world" else KINDS
    skipped: Counter[str] = Counter()
    by_question = benchmark == "pope"
    answer_keys = ("question_id",) if by_question else ("id", "image_id", "question_id")
    truth_keys = ("question_id",) if by_question else ("id", "image_id")
    parse_truth: Callable[[dict[str, Any]], Any] = {"pope": label_of, "chair": truth_names, "world": truth_records}[
        benchmark
    ]
    said = _read_by_id(answers, keys=answer_keys, parse=_answer_text, what="answer", skipped=skipped)
    true = _read_by_id(
        truth, keys=truth_keys, parse=lambda record: (parse_truth(record), record), what="truth", skipped=skipped
    )
    found = [key for key in true if key in said]
    skipped["no answer to this truth"] += len(true) - len(found)
    skipped["no truth for this answer"] += len(said) - len(found)
    counts = _counts(skipped)
    if not found:
        raise NoDataError(f"{benchmark}: no answer in {answers} has a truth in {truth} ({_reasons(counts)})")
    texts, truths = [said[key] for key in found], [true[key][0] for key in found]
    marks = _marks(benchmark, ids=found, texts=texts, truths=truths, kinds=kinds)
    return MarkedFile(
        answers=tuple(
            MarkedAnswer(
                asked_as=benchmark,
                id=key,
                image=str(true[key][1].get("image") or key),
                question=str(true[key][1].get("text") or ""),
                answer=said[key],
                truth=json.dumps(true[key][0], sort_keys=True),
                mark=mark,
            )
            for key, mark in zip(found, marks, strict=True)
        ),
        skipped=counts,
        named=OWN_TABLE if benchmark == "chair" else {},
    )


def _marked_officially(benchmark: str, *, answers: Path, truth: Path | None, files: OfficialFiles) -> MarkedFile:
    """CHAIR by the published synonym file and COCO's annotations."""
    if benchmark != "chair":
        raise ConfigError(f"{files.keys[0]}: of chair only; benchmark = {benchmark}")
    if truth is not None:
        raise ConfigError(
            f"--truth contradicts {files.keys[0]}: the truth is in COCO's annotations then; leave it out"
        )
    skipped: Counter[str] = Counter()
    said = _read_by_id(
        answers,
        keys=("image_id", "image", "id", "question_id"),
        parse=_answer_text,
        what="answer",
        skipped=skipped,
        identify=coco_image_id,
    )
    if not said:
        raise NoDataError(f"chair: no answer in {answers} ({_reasons(_counts(skipped))})")
    chair = files.chair()
    present = coco_truth(set(said), files=files, chair=chair)
    found = {key: said[key] for key in present}
    skipped["image is not in the annotations"] += len(said) - len(found)
    marks = chair.marks(found, truth=present)
    return MarkedFile(
        answers=tuple(
            MarkedAnswer(
                asked_as=benchmark,
                id=key,
                image=key,
                question="",
                answer=found[key],
                truth=json.dumps(present[key]),
                mark=mark,
            )
            for key, mark in marks.items()
        ),
        skipped=_counts(skipped),
        named=files.named,
    )


def _marked_splits(answers: Path, *, truth: Path) -> MarkedFile:
    """POPE's splits, each against its own labels."""
    if not truth.is_dir():
        raise ConfigError(f"--truth {truth}: a file, but --answers is a folder; name the folder of the labels")
    questions, left_out = load_splits(truth, key="--truth")
    said, skipped = read_split_answers(answers, questions=questions)
    counts = _counts(left_out + skipped)
    if not said:
        raise NoDataError(f"pope: no answer in {answers} has a truth in {truth} ({_reasons(counts)})")
    found = [question for question in questions if question.id in said]
    marks = mark_answers([said[question.id] for question in found], labels=[question.label for question in found])
    return MarkedFile(
        answers=tuple(
            MarkedAnswer(
                asked_as="pope",
                id=question.id,
                image=question.image,
                question=question.text,
                answer=said[question.id],
                truth=json.dumps(question.label),
                mark=of_split(mark, split=question.split),
            )
            for question, mark in zip(found, marks, strict=True)
        ),
        skipped=counts,
        named=split_notes({question.id: question.split for question in questions}, answered=said),
    )


def _counts(skipped: Mapping[str, int]) -> dict[str, int]:
    return {reason: number for reason, number in sorted(skipped.items()) if number}


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason}: {number}" for reason, number in counts.items()) or "both files are empty"


def _kinds_beside(truth: Path) -> Sequence[str]:
    """What the world's kinds are called, from the file beside its truth; without one, they are the demo's."""
    path = truth.parent / VOCABULARY_FILE
    try:
        return kinds_of(path.read_bytes()) if path.is_file() else KINDS
    except (OSError, ValueError) as error:
        raise ConfigError(f"--truth: {path} beside it cannot be used ({error})") from error


def _marks(
    benchmark: str, *, ids: Sequence[str], texts: Sequence[str], truths: Sequence[Any], kinds: Sequence[str]
) -> Sequence[Mark]:
    if benchmark == "pope":
        return mark_answers(texts, labels=truths)
    if benchmark == "chair":
        return mark_captions(texts, truth=truths)
    said, true = dict(zip(ids, texts, strict=True)), dict(zip(ids, truths, strict=True))
    marks = mark_descriptions(said, truth=true, kinds=kinds)
    return list(marks.values())


def _read_by_id(
    path: Path,
    *,
    keys: Sequence[str],
    parse: Callable[[dict[str, Any]], Value],
    what: str,
    skipped: Counter[str],
    identify: Callable[[str], str] = str,
) -> dict[str, Value]:
    """Read a file into {id: parsed}, in file order. Of several lines with one id only the first counts.

    Args:
        identify: makes the id of what stands under the key.
    """
    found: dict[str, Value] = {}
    for row in _rows(_read_text(path, what=what), name=path.name):
        try:
            if row.problem is not None or not isinstance(row.value, dict):
                raise ValueError("not a record")
            key = identify(_id_of(row.value, keys=keys))
            value = parse(row.value)
        except ValueError as error:
            skipped[f"malformed {what} line: {error}"] += 1
            continue
        if key in found:
            skipped[f"second {what} with this id"] += 1
            continue
        found[key] = value
    return found


def _rows(text: str, *, name: str) -> list[Row]:
    """The rows of a file; of the published CHAIR scripts' form of answers those that are evaluated."""
    if text.lstrip().startswith("{") and '"imgToEval"' in text:
        with contextlib.suppress(ValueError, RecursionError):
            evaluated = json.loads(text).get("imgToEval")
            if isinstance(evaluated, dict):
                rows = enumerate(evaluated.values(), 1)
                return [Row(place=f"{name}:imgToEval ", number=number, value=value) for number, value in rows]
    return read_json_rows(text, name=name)


def _read_text(path: Path, *, what: str) -> str:
    option = "--answers" if what == "answer" else "--truth"
    if not path.is_file():
        raise ConfigError(f"{option} {path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    try:
        return decode_text(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{option} {path}: cannot be read: {error.strerror}") from error


def _id_of(record: Mapping[str, Any], *, keys: Sequence[str]) -> str:
    value = next((record[key] for key in keys if record.get(key) is not None), None)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise ValueError(f"no {' or '.join(keys)}")
    return str(value).strip()


def _answer_text(record: Mapping[str, Any]) -> str:
    text = record.get("text", record.get("caption"))
    if not isinstance(text, str) or not is_unicode(text):
        raise ValueError("no text")
    return text


def label_of(record: Mapping[str, Any]) -> str:
    """The label of a question, "yes" or "no", in whatever case it is written; else a ValueError."""
    label = record.get("label")
    label = label.strip().lower() if isinstance(label, str) else None
    if label not in LABELS:
        raise ValueError("label is neither yes nor no")
    return label


def truth_names(record: Mapping[str, Any]) -> list[str]:
    """The names under `objects`, each a string or a record with the name under `kind`; else a ValueError."""
    objects = record.get("objects")
    if not isinstance(objects, list):
        raise ValueError("no list of objects")
    names: list[str] = []
    for item in objects:
        name = item.get("kind") if isinstance(item, dict) else item
        if not isinstance(name, str) or not is_object_name(name):
            raise ValueError("an object without a name in plain words")
        names.append(name)
    return names


def truth_records(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """The records under `objects`, each with a name under `kind`; else a ValueError."""
    objects = record.get("objects")
    if not isinstance(objects, list):
        raise ValueError("no list of objects")
    if not all(isinstance(item, dict) and isinstance(item.get("kind"), str) for item in objects):
        raise ValueError("an object without kind")
    return objects
