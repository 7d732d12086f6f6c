"""MMBench: multiple choice with rotated options (Liu et al. 2023, arXiv 2307.06281); read by rules alone."""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from csr_ray.errors import ConfigError
from csr_ray.evaluation.benchmarks.base import Benchmark, Item, Items, Marks, mean, nothing_counts
from csr_ray.evaluation.benchmarks.files import find_file
from csr_ray.evaluation.benchmarks.letters import choice_prompt, inferred_letter
from csr_ray.judging.session import JudgeSession
from csr_ray.store.atomic import make_folder, write_atomically

_CIRCLE = 1_000_000  # rotations of a question have its number plus a multiple of this
_MAX_FIELD_CHARS = 1 << 30
_MAX_REFERENCE_CHARS = 64  # of an image column that names another row's image
_NO_CIRCLE = "accuracy is left out: no question has an answer to each of its rotations, and so none is counted (n)."
_NOTES = (
    "A letter is read out of an answer by VLMEvalKit's rules alone (exact matching): where they find none the answer "
    "is wrong. With a language model as a reader, that toolkit takes a random option after three failures.",
    "accuracy counts a question only if all its rotations are right; accuracy_single counts the unrotated questions, "
    "as LLaVA asks them.",
)


@dataclass(frozen=True, kw_only=True)
class MmbenchTruth:
    """A row: the question that it is a rotation of, its options by letter, and the right letter."""

    circle: int
    options: Mapping[str, str]
    answer: str
    groups: tuple[str, ...]


def build() -> Benchmark:
    return MmBench()


class MmBench(Benchmark):
    """See the module."""

    name = "mmbench"
    title = "MMBench: multiple choice, each question with its options in every rotation; accuracy if all are right"
    source = "Liu et al. 2023, arXiv 2307.06281; VLMEvalKit's multiple_choice.py and matching_util.py"
    data = "mmbench_dev_20230712.tsv, whose images are inside of it"
    unit = "circular groups"

    def load(self, path: Path, *, unpack: Path | None = None) -> Items:
        file = find_file(
            path, patterns=("mmbench_dev*.tsv", "*.tsv"), benchmark=self.name, remedy=f"it takes {self.data}"
        )
        by_id: dict[str, Item] = {}
        places: dict[str, str] = {}
        skipped: Counter[str] = Counter()
        for row in _rows(file):
            try:
                index, truth = _parsed(row)
                place = "" if unpack is None else _unpacked(row.get("image") or "", places=places, folder=unpack)
            except ValueError as error:
                skipped[f"malformed question: {error}"] += 1
                continue
            key = str(index)
            if key in by_id:
                skipped["second question with this id"] += 1
                continue
            hint = _given(row.get("hint"))
            question = "\n".join(part for part in (hint, row["question"]) if part)
            places[key] = place
            by_id[key] = Item(
                id=key,
                text=choice_prompt(question, options=list(truth.options.values())),
                image=place,
                truth=truth,
                choices=tuple(truth.options),
            )
        if not by_id:
            said = "; ".join(skipped) or "no row"
            raise ConfigError(f"--data {file}: no question of mmbench ({said}); put the benchmark's own file there")
        return Items(by_id=by_id, skipped=skipped)

    def unit_of(self, item: Item) -> str:
        """The question that an item is a rotation of."""
        truth: MmbenchTruth = item.truth
        return str(truth.circle)

    def mark(self, said: Mapping[str, str], *, items: Items, judge: JudgeSession | None = None) -> Marks:
        circles: dict[int, list[str]] = {}
        for key, item in items.by_id.items():
            circles.setdefault(item.truth.circle, []).append(key)
        right: dict[str, bool] = {}
        counts: dict[str, dict[str, tuple[float, float]]] = {}
        num_unread = 0
        for key, text in said.items():
            truth: MmbenchTruth = items.by_id[key].truth
            letter = inferred_letter(text, options=truth.options)
            num_unread += letter is None
            right[key] = letter == truth.answer
            counts[key] = {"unread_rate": (float(letter is None), 1.0)}
        outcomes: dict[str, float] = {}
        groups: dict[str, list[float]] = {}
        single: list[float] = []
        skipped: Counter[str] = Counter()
        for circle, keys in circles.items():
            if str(circle) in right:
                single.append(float(right[str(circle)]))
                counts[str(circle)]["accuracy_single"] = (single[-1], 1.0)
            if str(circle) not in keys:
                skipped["a rotation of a question that is not there"] += sum(key in right for key in keys)
            elif all(key in right for key in keys):
                outcomes[str(circle)] = float(all(right[key] for key in keys))
                counts[str(circle)]["accuracy"] = (outcomes[str(circle)], 1.0)
                for group in items.by_id[str(circle)].truth.groups:
                    groups.setdefault(group, []).append(outcomes[str(circle)])
                    counts[str(circle)][group] = (outcomes[str(circle)], 1.0)
            elif any(key in right for key in keys):
                skipped["a rotation of this question has no answer"] += 1
        if not single:  # and so no circle either, which the unrotated question is part of
            raise nothing_counts(self.name, skipped=skipped)
        metrics = {
            **({"accuracy": mean(list(outcomes.values()))} if outcomes else {}),
            "accuracy_single": mean(single),
            "unread_rate": num_unread / len(said),
            **{group: mean(marks) for group, marks in sorted(groups.items())},
        }
        notes = _NOTES if outcomes else (*_NOTES, _NO_CIRCLE)
        return Marks(metrics=metrics, outcomes=outcomes, counts=counts, skipped=skipped, notes=notes)


def _rows(file: Path) -> Iterator[dict[str, str]]:
    """The rows of a TSV with quoted fields; one at a time, since each has a picture in it."""
    csv.field_size_limit(_MAX_FIELD_CHARS)
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text, delimiter="\t")
            columns = reader.fieldnames or ()
            if "index" not in columns or "question" not in columns or "A" not in columns:
                raise ConfigError(
                    f"--data {file}: no columns index, question and A; put the benchmark's own file there"
                )
            if "answer" not in columns:
                raise ConfigError(
                    f"--data {file}: no column answer, as in the test split, which only the benchmark's server can "
                    "mark; name the dev split"
                )
            for row in reader:
                yield {name: value or "" for name, value in row.items() if isinstance(name, str)}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"--data {file}: cannot be read: {error}; put the benchmark's own file there") from error


def _parsed(row: Mapping[str, str]) -> tuple[int, MmbenchTruth]:
    try:
        index = int(row["index"])
    except ValueError:
        raise ValueError("index is no number") from None
    options: dict[str, str] = {}
    for letter in "ABCD":
        # As in LLaVA's script the first option that is not there ends them.
        if (option := _given(row.get(letter))) is None:
            break
        options[letter] = option
    if row["answer"] not in options:
        raise ValueError("answer is no letter of an option")
    groups = tuple(row[name] for name in ("l2-category", "category") if row.get(name))
    return index, MmbenchTruth(circle=index % _CIRCLE, options=options, answer=row["answer"], groups=groups)


def _given(value: str | None) -> str | None:
    return None if value is None or value.lower() in ("", "nan", "none") else value


def _unpacked(image: str, *, places: Mapping[str, str], folder: Path) -> str:
    """Write a picture in base64 into a folder, once, and return its path; a number names another row's."""
    if len(image) <= _MAX_REFERENCE_CHARS and image in places:
        return places[image]
    try:
        content = base64.b64decode(image, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("image is not in base64") from None
    if not content:
        raise ValueError("no image")
    path = folder / f"{hashlib.sha256(content).hexdigest()[:32]}.jpg"
    if not path.is_file():
        make_folder(folder)
        write_atomically(path, write=lambda staging: staging.write_bytes(content))
    return str(path)
