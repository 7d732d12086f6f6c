"""ScienceQA-IMG: the questions with an image (Lu et al. 2022, arXiv 2209.09513); marked as LLaVA does."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csr_ray.errors import ConfigError
from csr_ray.evaluation.benchmarks.base import LETTER_ANSWER, Benchmark, Item, Items, Marks, id_of, mean
from csr_ray.evaluation.benchmarks.files import find_image, read_json
from csr_ray.evaluation.benchmarks.letters import LETTERS, choice_prompt
from csr_ray.judging.session import JudgeSession

_PROMPTS = "llava_test_CQM-A.json"
# Any one character has to follow the letter, since the official pattern's last period is no escaped one.
_THE_ANSWER_IS = re.compile(r"The answer is ([A-Z]).")
_DRIFT = (
    "Figures of one model drift by some points between prompts and library versions: for LLaVA-1.5-7B 63.91 to 69.51 "
    "were measured where 66.8 was published."
)
_OWN_PROMPTS = (
    f"Asked with context, question and an option a line, since {_PROMPTS} is not beside problems.json; LLaVA's own "
    "prompts are in that file."
)


@dataclass(frozen=True, kw_only=True)
class ScienceTruth:
    """The right option's position and how many there are."""

    answer: int
    num_options: int


@dataclass(frozen=True, kw_only=True)
class Shared:
    """Ids of the split's questions without an image, and a note on the prompts."""

    without_image: Collection[str]
    note: str | None


def build() -> Benchmark:
    return ScienceQa()


def parse_letter(text: str) -> str | None:
    """The letter that an answer names, None where it fails.

    The bare letter; or the letter, a period and a blank in front; or "The answer is X" with one more character behind
    it, said exactly once.
    """
    if text in tuple(LETTERS):
        return text
    if len(text) >= 3 and text[0] in LETTERS and text[1:3] == ". ":
        return text[0]
    found = _THE_ANSWER_IS.findall(text)
    return found[0] if len(found) == 1 else None


class ScienceQa(Benchmark):
    """See the module. `Items.shared` is a `Shared`."""

    name = "scienceqa"
    title = "ScienceQA-IMG: multiple choice on school science, the test questions with an image; accuracy"
    source = "Lu et al. 2022, arXiv 2209.09513; LLaVA's eval_science_qa.py"
    data = f"problems.json, pid_splits.json, images/test/ID/, {_PROMPTS} (LLaVA's prompts)"

    def load(self, path: Path, *, unpack: Path | None = None) -> Items:
        folder = path if path.is_dir() else path.parent
        if not (folder / "problems.json").is_file() or not (folder / "pid_splits.json").is_file():
            raise ConfigError(
                f"--data {path}: problems.json and pid_splits.json are not both there; it takes {self.data}"
            )
        problems = read_json(folder / "problems.json", option="--data", expected=dict)
        split = read_json(folder / "pid_splits.json", option="--data", expected=dict).get("test")
        if not isinstance(split, list):
            raise ConfigError(
                f"--data {folder / 'pid_splits.json'}: no split 'test'; put the benchmark's own file there"
            )
        prompts = _prompts(folder / _PROMPTS)
        by_id: dict[str, Item] = {}
        without_image: set[str] = set()
        skipped: Counter[str] = Counter()
        for key in map(str, split):
            try:
                problem = _checked(problems.get(key))
            except ValueError as error:
                skipped[f"malformed question: {error}"] += 1
                continue
            if problem["image"] is None:
                without_image.add(key)
                continue
            place = find_image(folder, f"{key}/{problem['image']}", places=("images/test", "test", "images", ""))
            truth = ScienceTruth(answer=problem["answer"], num_options=len(problem["choices"]))
            choices = tuple(LETTERS[: truth.num_options])
            text = prompts.get(key) or _asked(problem)
            by_id[key] = Item(id=key, text=text, image=place, truth=truth, choices=choices)
        if not by_id:
            raise ConfigError(f"--data {folder}: no test question with an image; put the benchmark's own files there")
        note = _OWN_PROMPTS if unpack is not None and not prompts else None
        return Items(by_id=by_id, skipped=skipped, shared=Shared(without_image=without_image, note=note))

    def key_of(self, record: Mapping[str, Any], *, items: Items) -> str:
        key = id_of(record, keys=self.id_keys)
        if key in items.shared.without_image:
            raise ValueError("the question has no image")
        return key

    def mark(self, said: Mapping[str, str], *, items: Items, judge: JudgeSession | None = None) -> Marks:
        outcomes: dict[str, float] = {}
        counts: dict[str, dict[str, tuple[float, float]]] = {}
        num_failed = 0
        for key, text in said.items():
            truth: ScienceTruth = items.by_id[key].truth
            letter = parse_letter(text)
            num_failed += letter is None
            options = LETTERS[: truth.num_options]
            outcomes[key] = float(letter is not None and letter in options and options.index(letter) == truth.answer)
            counts[key] = {"img_accuracy": (outcomes[key], 1.0), "failed_rate": (float(letter is None), 1.0)}
        metrics = {"img_accuracy": mean(list(outcomes.values())), "failed_rate": num_failed / len(said)}
        notes = (_DRIFT, *(() if items.shared.note is None else (items.shared.note,)))
        return Marks(metrics=metrics, outcomes=outcomes, counts=counts, notes=notes)


def _checked(problem: Any) -> dict[str, Any]:
    if not isinstance(problem, dict):
        raise ValueError("not in problems.json")
    choices, answer = problem.get("choices"), problem.get("answer")
    if not isinstance(problem.get("question"), str):
        raise ValueError("no question")
    if not isinstance(choices, list) or not 0 < len(choices) <= len(LETTERS):
        raise ValueError(f"no choices, or more than {len(LETTERS)}")
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise ValueError("answer is no position among the choices")
    return {"hint": "", "image": None, **problem}


def _asked(problem: Mapping[str, Any]) -> str:
    context = f"Context: {problem['hint']}\n" if problem["hint"] else ""
    return choice_prompt(f"{context}{problem['question']}", options=[str(choice) for choice in problem["choices"]])


def _prompts(path: Path) -> dict[str, str]:
    """LLaVA's own prompts by id; none where the file is not there."""
    if not path.is_file():
        return {}
    found: dict[str, str] = {}
    for record in read_json(path, option="--data", expected=list):
        try:
            asked = record["conversations"][0]["value"]
            found[str(record["id"])] = f"{asked.replace('<image>', '').strip()}\n{LETTER_ANSWER}"
        except (KeyError, IndexError, TypeError, AttributeError):
            continue
    return found
