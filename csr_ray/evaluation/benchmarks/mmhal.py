"""MMHal-Bench: does an answer to an adversarial question hallucinate? Rated by a judge (Sun et al. 2023).

The judge reads what is in the image, the question, a person's answer and the model's, and rates from 0 to 6; from 3
on there is no hallucination. An answer of the judge with no rating or with several counts as 0, and so
as hallucinated. A question's type is its place in the release's order, mod 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from csr_ray.errors import ConfigError
from csr_ray.evaluation.benchmarks.base import Benchmark, Item, Items, Marks, mean
from csr_ray.evaluation.benchmarks.files import find_file, find_image, read_json
from csr_ray.evaluation.benchmarks.judged import about_the_judge, session_of
from csr_ray.judging.session import JudgeSession
from csr_ray.judging.template import Template
from csr_ray.ports import Judge

TYPES = ("attribute", "adversarial", "comparison", "counting", "relation", "environment", "holistic", "other")
_HIGHEST = 6
_NO_HALLUCINATION = 3
_TEMPERATURE = 0.0
_MAX_TOKENS = 1024
_PROMPT = Path(__file__).parent / "prompts" / "mmhal.txt"


@dataclass(frozen=True, kw_only=True)
class MmhalTruth:
    """A question with its image's name on the web, its type, what is in its image, and a person's answer."""

    question: str
    image: str
    kind: str
    context: str
    answer: str


def build() -> Benchmark:
    return Mmhal()


def parse_rating(text: str) -> int | None:
    """The one rating that a judge's answer has, by the official script's rule; None if it has none or several.

    `rating: N` in any case, wherever it stands, for N from 0 to 6. So "Rating: 10" is a 1, as it is there.

    Example:
        >>> parse_rating("No. Rating: 6"), parse_rating("rating: 3, or rating: 4"), parse_rating("6 of 6")
        (6, None, None)
    """
    found = [number for number in range(_HIGHEST + 1) if f"rating: {number}" in text.lower()]
    return found[0] if len(found) == 1 else None


class Mmhal(Benchmark):
    """See the module."""

    name = "mmhal"
    title = "MMHal-Bench: hallucinations in answers to adversarial questions, rated by a judge"
    source = "Sun et al. 2023, arXiv 2309.14525; LLaVA-RLHF Eval/eval_gpt_mmhal.py"
    metrics_are = "mean rating from 0 to 6, more is better; hallucination_rate as a fraction of 1, less is better"
    data = "response_template.json in its own order, and images/ with the files that its URLs name"
    max_tokens = 1024
    needs_judge = True
    id_keys = ("question_id", "id")
    text_keys = ("model_answer", "text", "prediction", "response", "answer")

    def load(self, path: Path, *, unpack: Path | None = None) -> Items:
        file = find_file(
            path,
            patterns=("response_template.json", "*.json"),
            benchmark=self.name,
            remedy=f"expected {self.data}",
        )
        rows = read_json(file, option="--data", expected=list)
        by_id = {str(place): _item(place, row, file=file) for place, row in enumerate(rows)}
        if not by_id:
            raise ConfigError(f"--data {file}: no question of mmhal; expected {self.data}")
        kinds = [row.get("question_type") for row in rows]
        num_moved = sum(kind != before for kind, before in zip(kinds[len(TYPES) :], kinds, strict=False))
        return Items(by_id=by_id, shared=num_moved)

    def key_of(self, record: Mapping[str, Any], *, items: Items) -> str:
        """The place of a question in the release, under question_id or id.

        The official form, the release's records with the answers put in, has none; there the words are the key.
        """
        if any(record.get(name) is not None for name in self.id_keys):
            return super().key_of(record, items=items)
        asked = (_image_name(record), record.get("question"))
        keys = [key for key, item in items.by_id.items() if asked == (item.truth.image, item.truth.question)]
        if len(keys) != 1:
            raise ValueError("no question_id, and not a question of the release with its image")
        return keys[0]

    def mark(self, said: Mapping[str, str], *, items: Items, judge: JudgeSession | None = None) -> Marks:
        session = session_of(self, judge)
        template = session.template(_PROMPT, needs=("context", "question", "truth", "answer"))
        found, failed = session.each(
            {
                key: partial(_rating, template=template, truth=items.by_id[key].truth, answer=answer)
                for key, answer in said.items()
            }
        )
        num_none = sum(rating is None for rating in found.values())
        ratings = {key: rating or 0 for key, rating in found.items()}
        metrics = {
            "score": mean(list(ratings.values())),
            "hallucination_rate": mean([float(rating < _NO_HALLUCINATION) for rating in ratings.values()]),
        }
        for kind in TYPES:
            if of_kind := [rating for key, rating in ratings.items() if items.by_id[key].truth.kind == kind]:
                metrics[kind] = mean(of_kind)
        notes = [f"Rated 0, and so hallucinated, because the judge gave not exactly one rating: {num_none}."]
        if items.shared:
            notes.append(
                f"The types follow the order of the records, as in the official script, but {items.shared} of them "
                "are of another question_type than the one eight places before; put them back in the release's order."
            )
        return about_the_judge(
            Marks(
                metrics={**metrics, "unrated": float(num_none)},
                outcomes={key: rating / _HIGHEST for key, rating in ratings.items()},
                counts={
                    key: {
                        "score/rating": (rating / _HIGHEST, 1.0),
                        f"{items.by_id[key].truth.kind}/rating": (rating / _HIGHEST, 1.0),
                        "hallucination_rate": (float(rating < _NO_HALLUCINATION), 1.0),
                    }
                    for key, rating in ratings.items()
                },
                sums={name: {f"{name}/rating": float(_HIGHEST)} for name in ("score", *TYPES) if name in metrics},
                counted=("unrated",),
                skipped=failed,
                notes=tuple(notes),
            ),
            benchmark=self,
            session=session,
            template=template,
            papers_judge="gpt-4-0314 (RLAIF-V: gpt-4-1106-preview)",
        )


async def _rating(judge: Judge, *, template: Template, truth: MmhalTruth, answer: str) -> int | None:
    messages = template.messages(
        {"context": truth.context, "question": truth.question, "truth": truth.answer, "answer": answer}
    )
    return parse_rating(await judge.reply(messages, temperature=_TEMPERATURE, max_tokens=_MAX_TOKENS))


def _item(place: int, row: Any, *, file: Path) -> Item:
    kind, where = TYPES[place % len(TYPES)], f"--data {file}: record {place + 1}"
    try:
        content = row["image_content"]
        context = content if isinstance(content, str) else ", ".join(content)
        question, answer, name = row["question"], row["gt_answer"], _image_name(row)
        if not all(isinstance(text, str) and text for text in (question, answer, name)):
            raise TypeError
    except (TypeError, KeyError) as error:
        raise ConfigError(
            f"{where}: not a record of image_src, image_content, question and gt_answer; put the benchmark's own "
            "file there"
        ) from error
    truth = MmhalTruth(question=question, image=name, kind=kind, context=context, answer=answer)
    image = find_image(file.parent, name, places=("images", ""))
    return Item(id=str(place), text=question, image=image, truth=truth)


def _image_name(row: Mapping[str, Any]) -> str:
    """The file that a record's URL names; images are fetched beforehand, for a benchmark asks no web page."""
    source = row.get("image_src")
    return PurePosixPath(unquote(urlsplit(source).path)).name if isinstance(source, str) else ""
