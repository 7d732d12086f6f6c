"""MME: two yes/no questions about each image, 14 subtasks (Fu et al. 2023, arXiv 2306.13394).

A subtask's score is 100 times its accuracy plus 100 times its accuracy+, the share of images of which both questions
are right. The rules are those of the official calculation.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csr_ray.errors import ConfigError
from csr_ray.evaluation.benchmarks.base import (
    SHORT_ANSWER,
    Benchmark,
    Item,
    Items,
    Marks,
    Said,
    id_of,
    mean,
    nothing_counts,
)
from csr_ray.evaluation.benchmarks.files import find_image, read_text
from csr_ray.evaluation.pope import LABELS
from csr_ray.judging.session import JudgeSession

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
# The four subtasks that papers on hallucination sum up, under names of their own.
HALLUCINATION = ("existence", "count", "position", "color")
SUBTASKS = (*PERCEPTION, *COGNITION)
_SUMS = {"perception": PERCEPTION, "cognition": COGNITION, "hallucination": HALLUCINATION, "total": SUBTASKS}

_YES_NO = "Please answer yes or no."
_IMAGE_ENDINGS = (".jpg", ".png", ".jpeg")
_PREFIX_CHARS = 4


@dataclass(frozen=True, kw_only=True)
class MmeTruth:
    """A question of a subtask, as the release words it; `label` is "yes" or "no"."""

    subtask: str
    image: str
    question: str
    label: str


def build() -> Benchmark:
    return Mme()


def parse_mme(text: str) -> str:
    """Return "yes", "no" or "other", by MME's own rule.

    Exactly yes or no in any case; else the first four characters are looked through for yes, then for no, wherever in
    a word they stand: "Know" is a no, and so is "None".
    """
    text = text.lower()
    if text in ("yes", "no"):
        return text
    prefix = text[:_PREFIX_CHARS]
    return "yes" if "yes" in prefix else "no" if "no" in prefix else "other"


class Mme(Benchmark):
    """See the module."""

    name = "mme"
    title = "MME: two yes/no questions an image, 14 subtasks; accuracy and accuracy+"
    source = "Fu et al. 2023, arXiv 2306.13394; eval_tool/calculation.py"
    metrics_are = "MME's points: 200 a subtask at most, perception 2000, cognition 800; more is better"
    data = (
        "a folder a subtask with images and a text file an image (question, tab, answer), as released; or one text "
        "file a subtask (image, question, answer; eval_tool/Your_Results)"
    )

    def load(self, path: Path, *, unpack: Path | None = None) -> Items:
        lines, skipped = _read_release(path, num_columns=3)
        by_id: dict[str, Item] = {}
        for truth, _ in lines:
            key = _key(truth.subtask, image=truth.image, question=truth.question)
            if key in by_id:
                skipped["second question with these words about this image"] += 1
                continue
            by_id[key] = Item(
                id=key, text=_asked(truth.question), image=_image(path, truth), truth=truth, choices=LABELS
            )
        if not by_id:
            raise ConfigError(f"--data {path}: no question of mme; expected {self.data}")
        return Items(by_id=by_id, skipped=skipped)

    def read_answers(self, path: Path, *, items: Items) -> Said:
        """Read LLaVA's JSONL, or the official folder of a text file a subtask: image, question, truth, answer.

        In LLaVA's the question_id is the image, which two answers have, so that the prompt counts, too.
        """
        if not path.is_dir():
            return super().read_answers(path, items=items)
        lines, skipped = _read_release(path, num_columns=4)
        found: dict[str, str] = {}
        for truth, answer in lines:
            key = _key(truth.subtask, image=truth.image, question=truth.question)
            if key in found:
                skipped["second answer with this id"] += 1
                continue
            found[key] = answer
        return Said(by_id=found, skipped=skipped)

    def key_of(self, record: Mapping[str, Any], *, items: Items) -> str:
        key = id_of(record, keys=self.id_keys)
        if key in items.by_id:
            return key
        prompt = record.get("prompt")
        subtask, _, image = key.partition("/")
        if not isinstance(prompt, str) or not image:
            raise ValueError("no prompt beside the image's name, which both of its questions have")
        return _key(subtask, image=image.rpartition("/")[2], question=prompt)

    def mark(self, said: Mapping[str, str], *, items: Items, judge: JudgeSession | None = None) -> Marks:
        right: dict[str, dict[str, dict[str, bool]]] = {}
        counts: dict[str, dict[str, tuple[float, float]]] = {}
        num_other = 0
        for key, answer in said.items():
            truth: MmeTruth = items.by_id[key].truth
            parsed = parse_mme(answer)
            num_other += parsed == "other"
            counts[key] = {"other_rate": (float(parsed == "other"), 1.0)}
            right.setdefault(truth.subtask, {}).setdefault(truth.image, {})[key] = parsed == truth.label
        num_lone = sum(len(marks) != 2 for images in right.values() for marks in images.values())
        points: dict[str, float] = {}
        outcomes: dict[str, float] = {}
        for subtask in (name for name in SUBTASKS if name in right):
            pairs = [marks for marks in right[subtask].values() if len(marks) == 2]
            if not pairs:
                continue
            outcomes |= {key: float(is_right) for marks in pairs for key, is_right in marks.items()}
            for marks in pairs:
                for key, is_right in marks.items():
                    counts[key][f"{subtask}/accuracy"] = (float(is_right), 1.0)
                    # Each of the two questions has half of what the image adds.
                    counts[key][f"{subtask}/accuracy+"] = (0.5 * all(marks.values()), 0.5)
            accuracy = mean([float(is_right) for marks in pairs for is_right in marks.values()])
            points[subtask] = 100 * accuracy + 100 * mean([float(all(marks.values())) for marks in pairs])
        skipped = {"one of the two questions about this image has no answer": num_lone}
        if not points:
            raise nothing_counts(self.name, skipped=skipped)
        sums = {
            name: sum(points.get(subtask, 0.0) for subtask in parts)
            for name, parts in _SUMS.items()
            if points.keys() & set(parts)
        }
        notes = ["perception sums up all ten subtasks, hallucination existence, count, position and color alone."]
        if lacking := [name for name in SUBTASKS if name not in points]:
            notes.append(
                f"Without both answers about any image, and so 0 points in the sums: {', '.join(lacking)}. A sum of "
                "such subtasks alone is left out."
            )
        return Marks(
            metrics={**points, **sums, "other_rate": num_other / len(said)},
            outcomes=outcomes,
            counts=counts,
            sums=_sums(tuple(points)),
            skipped=skipped,
            notes=tuple(notes),
        )


def _sums(subtasks: Sequence[str]) -> dict[str, dict[str, float]]:
    """The points of subtasks and the sums of these, each a sum of accuracies."""
    points = {name: {f"{name}/accuracy": 100.0, f"{name}/accuracy+": 100.0} for name in subtasks}
    sums = {
        name: {part: weight for subtask in parts if subtask in points for part, weight in points[subtask].items()}
        for name, parts in _SUMS.items()
    }
    return {**points, **{name: parts for name, parts in sums.items() if parts}}


def _asked(question: str) -> str:
    """As LLaVA's question file asks it: the release's own "Please answer yes or no." gives way to the suffix."""
    return f"{question.replace(_YES_NO, '').strip()}\n{SHORT_ANSWER}"


def _key(subtask: str, *, image: str, question: str) -> str:
    """Names a question by subtask, image and words; prompts that LLaVA's protocol makes of it have the same key."""
    words = " ".join(question.replace(SHORT_ANSWER, "").replace(_YES_NO, "").split())
    return f"{subtask}/{image.rpartition('.')[0] or image}: {words}"


def _image(path: Path, truth: MmeTruth) -> str:
    folder = path / truth.subtask if path.is_dir() else path.parent
    stem = truth.image.rpartition(".")[0] if truth.image.endswith(".txt") else ""
    names = [stem + ending for ending in _IMAGE_ENDINGS] if stem else [truth.image]
    found = [find_image(folder, name, places=("images", "")) for name in names]
    return next((name for name in found if Path(name).is_file()), found[0])


def _read_release(path: Path, *, num_columns: int) -> tuple[list[tuple[MmeTruth, str]], Counter[str]]:
    """The lines of a release or of a folder of results, each with its answer ("" in a release)."""
    lines: list[tuple[MmeTruth, str]] = []
    skipped: Counter[str] = Counter()
    for subtask, file in _files(path):
        by_image = file.stem not in SUBTASKS
        for line in read_text(file, option="--data").splitlines():
            if not line.strip():
                continue
            columns = line.split("\t")
            if by_image:
                columns = [file.name, *columns]
            if len(columns) < num_columns or columns[2].strip().lower() not in ("yes", "no"):
                skipped["malformed line: not image, question, yes or no" + ", answer" * (num_columns > 3)] += 1
                continue
            truth = MmeTruth(
                subtask=subtask, image=columns[0], question=columns[1].strip(), label=columns[2].strip().lower()
            )
            lines.append((truth, "\t".join(columns[3:])))
    return lines, skipped


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    if path.is_file():
        yield path.stem, path
        return
    if not path.is_dir():
        raise ConfigError(f"--data {path}: no such folder; expected {Mme.data}")
    for subtask in SUBTASKS:
        if (path / f"{subtask}.txt").is_file():
            yield subtask, path / f"{subtask}.txt"
            continue
        for folder in (path / subtask / "questions_answers_YN", path / subtask):
            if files := sorted(folder.glob("*.txt")):
                yield from ((subtask, file) for file in files)
                break
