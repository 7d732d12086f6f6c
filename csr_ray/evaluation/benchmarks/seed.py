"""SEED-Bench: multiple choice on images and videos (Li et al. 2023, arXiv 2307.16125); exact letters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csr_ray.data.prompts import read_json_rows
from csr_ray.errors import ConfigError
from csr_ray.evaluation.benchmarks.base import Benchmark, Item, Items, Marks, id_of, mean
from csr_ray.evaluation.benchmarks.files import find_file, find_image, read_json, read_text
from csr_ray.evaluation.benchmarks.letters import LETTERS, choice_prompt
from csr_ray.judging.session import JudgeSession

_FRAMES = "llava-seed-bench.jsonl"
_CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")
_NUM_IMAGE_TYPES = 9
_NUM_TYPES = 12
_NOTES = (
    "A question is right if the answer is its letter to the letter, as in LLaVA's script; the official one takes the "
    "option with the lowest loss.",
    "accuracy is over all types, accuracy_image over types 1 to 9, accuracy_video over 10 to 12 (one frame); papers "
    "report either of the first two under one name.",
)


@dataclass(frozen=True, kw_only=True)
class SeedTruth:
    """The right letter, and the type of the question by name and number (1 to 9 images, 10 to 12 videos)."""

    answer: str
    kind: str
    kind_id: int


def build() -> Benchmark:
    return Seed()


class Seed(Benchmark):
    """See the module."""

    name = "seed"
    title = "SEED-Bench: multiple choice on images and on frames of videos, 12 types; accuracy by exact letter"
    source = "Li et al. 2023, arXiv 2307.16125; LLaVA's convert_seed_for_submission.py"
    data = f"SEED-Bench.json, SEED-Bench-image/, {_FRAMES} and SEED-Bench-video-image/ (middle frames of the videos)"

    def load(self, path: Path, *, unpack: Path | None = None) -> Items:
        file = find_file(path, patterns=("SEED-Bench.json",), benchmark=self.name, remedy=f"it takes {self.data}")
        release = read_json(file, option="--data", expected=dict)
        questions, kinds = release.get("questions"), release.get("question_type")
        if not isinstance(questions, list) or not isinstance(kinds, dict):
            raise ConfigError(
                f"--data {file}: no 'questions' and 'question_type'; put the benchmark's own file there"
            )
        kind_of = {number: name for name, number in kinds.items() if isinstance(number, int)}
        images = _images(file.parent / _FRAMES)
        by_id: dict[str, Item] = {}
        skipped: Counter[str] = Counter()
        for record in questions:
            try:
                key, truth = _parsed(record, kind_of=kind_of)
            except ValueError as error:
                skipped[f"malformed question: {error}"] += 1
                continue
            name = images.get(key)
            if name is None and truth.kind_id > _NUM_IMAGE_TYPES and unpack is not None:
                skipped[f"a video; {_FRAMES} names its middle frame, and is not there or does not have it"] += 1
                continue
            if key in by_id:
                skipped["second question with this id"] += 1
                continue
            place = find_image(file.parent, name or str(record["data_id"]), places=("", "SEED-Bench-image", "images"))
            text = choice_prompt(record["question"], options=[str(record[choice]) for choice in _CHOICES])
            by_id[key] = Item(id=key, text=text, image=place, truth=truth, choices=tuple(LETTERS[: len(_CHOICES)]))
        if not by_id:
            raise ConfigError(f"--data {file}: no question of seed; put the benchmark's own file there")
        return Items(by_id=by_id, skipped=skipped)

    def mark(self, said: Mapping[str, str], *, items: Items, judge: JudgeSession | None = None) -> Marks:
        outcomes: dict[str, float] = {}
        groups: dict[str, list[float]] = {"accuracy": []}
        counts: dict[str, dict[str, tuple[float, float]]] = {}
        for key, text in said.items():
            truth: SeedTruth = items.by_id[key].truth
            outcomes[key] = float(text == truth.answer)
            shown = "accuracy_image" if truth.kind_id <= _NUM_IMAGE_TYPES else "accuracy_video"
            for name in ("accuracy", shown, truth.kind):
                groups.setdefault(name, []).append(outcomes[key])
                counts.setdefault(key, {})[name] = (outcomes[key], 1.0)
        metrics = {name: mean(marks) for name, marks in groups.items()}
        return Marks(metrics=metrics, outcomes=outcomes, counts=counts, notes=_NOTES)


def _parsed(record: Any, *, kind_of: Mapping[Any, str]) -> tuple[str, SeedTruth]:
    if not isinstance(record, dict):
        raise ValueError("not a record")
    key = id_of(record, keys=("question_id",))
    lacking = ["question"] if not isinstance(record.get("question"), str) else []
    lacking += [name for name in (*_CHOICES, "data_id") if not isinstance(record.get(name), str | int)]
    if lacking:
        raise ValueError(f"no {lacking[0]}")
    kind_id, answer = record.get("question_type_id"), record.get("answer")
    if isinstance(kind_id, bool) or not isinstance(kind_id, int) or not 1 <= kind_id <= _NUM_TYPES:
        raise ValueError(f"question_type_id is not 1 to {_NUM_TYPES}")
    if answer not in ("A", "B", "C", "D"):
        raise ValueError("answer is no letter from A to D")
    return key, SeedTruth(answer=answer, kind=kind_of.get(kind_id, f"type {kind_id}"), kind_id=kind_id)


def _images(path: Path) -> dict[str, str]:
    """The images that LLaVA's own question file names, by question; none where it is not there."""
    if not path.is_file():
        return {}
    rows = (row.value for row in read_json_rows(read_text(path, option="--data"), name=path.name))
    usable = (row for row in rows if isinstance(row, dict) and isinstance(row.get("image"), str))
    return {str(row.get("question_id")): row["image"] for row in usable}
