"""TextVQA: questions on text in a picture, ten people's answers each (Singh et al. 2019, arXiv 1904.08920)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from csr_ray.data.prompts import read_json_rows
from csr_ray.errors import ConfigError
from csr_ray.evaluation.benchmarks.base import SHORT_ANSWER, Benchmark, Item, Items, Marks, counts_of, id_of, mean
from csr_ray.evaluation.benchmarks.files import find_file, find_image, read_json, read_text
from csr_ray.evaluation.benchmarks.vqa import NUM_PEOPLE, soft_accuracy
from csr_ray.judging.session import JudgeSession

_PROMPTS = "llava_textvqa_val_v051_ocr.jsonl"
_OCR = "TextVQA_Rosetta_OCR_v0.2_val.json"
_OCR_LINE = "Reference OCR token: "
_WITHOUT_OCR = (
    "Asked without the reference OCR tokens that LLaVA's protocol puts behind the question, so the figure is not "
    f"comparable to LLaVA's; {_PROMPTS} or {_OCR} beside the questions adds them."
)
_UNKNOWN_OCR = "Whether the prompts held LLaVA's reference OCR tokens is not seen in a file of answers."
_IMAGE_PLACES = ("train_images", "", "images")


def build() -> Benchmark:
    return TextVqa()


class TextVqa(Benchmark):
    """See the module. `Items.shared` is the note on OCR tokens, or None where they are asked with."""

    name = "textvqa"
    title = "TextVQA: short answers on text in a picture; VQA's soft accuracy over ten people"
    source = "Singh et al. 2019, arXiv 1904.08920; LLaVA's eval_textvqa.py and m4c_evaluator.py"
    data = f"TextVQA_0.5.1_val.json, {_PROMPTS} or {_OCR} (for LLaVA's prompt), train_images/"

    def load(self, path: Path, *, unpack: Path | None = None) -> Items:
        file = find_file(
            path, patterns=("TextVQA_0.5.1_val.json",), benchmark=self.name, remedy=f"it takes {self.data}"
        )
        folder = file.parent
        questions = read_json(file, option="--data", expected=dict).get("data")
        if not isinstance(questions, list):
            raise ConfigError(f"--data {file}: no list 'data'; put the benchmark's own file there")
        prompts, ocr = _prompts(folder / _PROMPTS), _ocr_tokens(folder / _OCR)
        by_id: dict[str, Item] = {}
        skipped: Counter[str] = Counter()
        for record in questions:
            try:
                key, image, question, people = _parsed(record)
            except ValueError as error:
                skipped[f"malformed question: {error}"] += 1
                continue
            if key in by_id:
                skipped["second question with this id"] += 1
                continue
            by_id[key] = Item(
                id=key,
                text=prompts.get((image, question.lower())) or _asked(question, tokens=ocr.get(image, ())),
                image=find_image(folder, f"{image}.jpg", places=_IMAGE_PLACES),
                truth=(image, question, people),
            )
        if not by_id:
            raise ConfigError(
                f"--data {file}: no question with {NUM_PEOPLE} answers; put the benchmark's own file there"
            )
        note = _UNKNOWN_OCR if unpack is None else None if prompts or ocr else _WITHOUT_OCR
        return Items(by_id=by_id, skipped=skipped, shared=note)

    def key_of(self, record: Mapping[str, Any], *, items: Items) -> str:
        """The question's id; in LLaVA's answers question_id is the image, which several questions share."""
        key = id_of(record, keys=self.id_keys)
        prompt = record.get("prompt")
        if key in items.by_id or not isinstance(prompt, str):
            return key
        asked = (key, question_of(prompt).lower())
        found = (item.id for item in items.by_id.values() if (item.truth[0], item.truth[1].lower()) == asked)
        return next(found, key)

    def mark(self, said: Mapping[str, str], *, items: Items, judge: JudgeSession | None = None) -> Marks:
        outcomes = {key: soft_accuracy(text, people=items.by_id[key].truth[2]) for key, text in said.items()}
        notes = () if items.shared is None else (items.shared,)
        metrics = {"accuracy": mean(list(outcomes.values()))}
        return Marks(metrics=metrics, outcomes=outcomes, counts=counts_of(outcomes), notes=notes)


def question_of(prompt: str) -> str:
    """The question within one of LLaVA's prompts: without suffix, and without OCR tokens in front or behind."""
    lines = [line for line in prompt.split("\n") if not line.startswith(_OCR_LINE.strip()) and line != SHORT_ANSWER]
    return "\n".join(lines).strip()


def _asked(question: str, *, tokens: tuple[str, ...]) -> str:
    """LLaVA's prompt, which begins with a capital letter and lists the tokens that an OCR system has read."""
    question = question[:1].upper() + question[1:]
    lines = [question, *([_OCR_LINE + ", ".join(tokens)] if tokens else []), SHORT_ANSWER]
    return "\n".join(lines)


def _parsed(record: Any) -> tuple[str, str, str, list[str]]:
    if not isinstance(record, dict):
        raise ValueError("not a record")
    key, image = id_of(record, keys=("question_id",)), id_of(record, keys=("image_id",))
    question, people = record.get("question"), record.get("answers")
    if not isinstance(question, str) or not question.strip():
        raise ValueError("no question")
    if not isinstance(people, list) or len(people) != NUM_PEOPLE or not all(isinstance(one, str) for one in people):
        raise ValueError(f"no {NUM_PEOPLE} answers of people")
    return key, image, question, people


def _prompts(path: Path) -> dict[tuple[str, str], str]:
    """LLaVA's own prompts by image and question; none where the file is not there."""
    if not path.is_file():
        return {}
    rows = (row.value for row in read_json_rows(read_text(path, option="--data"), name=path.name))
    usable = (row for row in rows if isinstance(row, dict) and isinstance(row.get("text"), str))
    return {(str(row.get("question_id")), question_of(row["text"]).lower()): row["text"] for row in usable}


def _ocr_tokens(path: Path) -> dict[str, tuple[str, ...]]:
    """The OCR system's tokens by image; none where the file is not there."""
    if not path.is_file():
        return {}
    records = read_json(path, option="--data", expected=dict).get("data")
    return {
        str(record["image_id"]): tuple(map(str, record["ocr_tokens"]))
        for record in (records if isinstance(records, list) else [])
        if isinstance(record, dict) and isinstance(record.get("ocr_tokens"), list) and "image_id" in record
    }
