"""VizWiz: questions that blind people asked about their own photos (Gurari et al. 2018, arXiv 1802.08218)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from csr_ray.errors import ConfigError
from csr_ray.evaluation.benchmarks.base import SHORT_ANSWER, Benchmark, Item, Items, Marks, counts_of, id_of, mean
from csr_ray.evaluation.benchmarks.files import find_file, find_image, read_json
from csr_ray.evaluation.benchmarks.vqa import NUM_PEOPLE, normalised, soft_accuracy
from csr_ray.judging.session import JudgeSession

_UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
_NOTE = (
    "Marked on a split with answers (val) by LLaVA's normalisation; published figures are of the test split, which "
    "only the benchmark's server can mark."
)


def build() -> Benchmark:
    return VizWiz()


class VizWiz(Benchmark):
    """See the module."""

    name = "vizwiz"
    title = "VizWiz: short answers on blind people's photos, some unanswerable; VQA's soft accuracy over ten people"
    source = "Gurari et al. 2018, arXiv 1802.08218; LLaVA's m4c_evaluator.py"
    data = "val.json (the test split has no answers), val/ with the images"
    id_keys = ("question_id", "image", "id")

    def load(self, path: Path, *, unpack: Path | None = None) -> Items:
        file = find_file(path, patterns=("val.json",), benchmark=self.name, remedy=f"it takes {self.data}")
        records = read_json(file, option="--data", expected=list)
        if records and not any(isinstance(record, dict) and record.get("answers") for record in records):
            raise ConfigError(
                f"--data {file}: no answers, as in the test split, which only the benchmark's server can mark; "
                "name val.json"
            )
        by_id: dict[str, Item] = {}
        skipped: Counter[str] = Counter()
        for record in records:
            try:
                image, question, people = _parsed(record)
            except ValueError as error:
                skipped[f"malformed question: {error}"] += 1
                continue
            if image in by_id:
                skipped["second question with this id"] += 1
                continue
            text = f"{question}\n{_UNANSWERABLE}\n{SHORT_ANSWER}"
            place = find_image(file.parent, image, places=("val", "images", ""))
            by_id[image] = Item(id=image, text=text, image=place, truth=people)
        if not by_id:
            raise ConfigError(
                f"--data {file}: no question with {NUM_PEOPLE} answers; put the benchmark's own file there"
            )
        return Items(by_id=by_id, skipped=skipped)

    def mark(self, said: Mapping[str, str], *, items: Items, judge: JudgeSession | None = None) -> Marks:
        outcomes = {key: soft_accuracy(text, people=items.by_id[key].truth) for key, text in said.items()}
        counts = counts_of(outcomes)
        for key, text in said.items():
            counts[key]["unanswerable_rate"] = (float(normalised(text) == "unanswerable"), 1.0)
        metrics = {
            "accuracy": mean(list(outcomes.values())),
            "unanswerable_rate": mean([counts[key]["unanswerable_rate"][0] for key in said]),
        }
        return Marks(metrics=metrics, outcomes=outcomes, counts=counts, notes=(_NOTE,))


def _parsed(record: Any) -> tuple[str, str, list[str]]:
    if not isinstance(record, dict):
        raise ValueError("not a record")
    image, question, answers = id_of(record, keys=("image",)), record.get("question"), record.get("answers")
    if not isinstance(question, str) or not question.strip():
        raise ValueError("no question")
    said = [one.get("answer") for one in answers if isinstance(one, dict)] if isinstance(answers, list) else []
    people = [one for one in said if isinstance(one, str)]
    if len(people) != NUM_PEOPLE:
        raise ValueError(f"no {NUM_PEOPLE} answers of people")
    return image, question, people
