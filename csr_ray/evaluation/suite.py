"""What a policy is asked after each round, and what its answers are worth.

The `world` benchmark describes held-out images (greedy, and once more at temperature 1) and answers yes/no questions;
`pope` is the questions alone. Files are read once, before anything is started.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from csr_ray.config import Eval
from csr_ray.errors import ConfigError
from csr_ray.evaluation.pope import pope_metrics
from csr_ray.evaluation.world import describe_metrics
from csr_ray.ports import Generators
from csr_ray.types import Question

_YES_NO_TOKENS = 8


@dataclass(frozen=True)
class Suite:
    """The questions of a run's benchmarks, with what is needed to mark the answers."""

    describe: tuple[Question, ...] = ()
    truth: Mapping[str, Sequence[Mapping[str, str]]] = field(default_factory=dict)
    yes_no: tuple[Question, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    sampled: bool = False
    max_tokens: int = 256

    @property
    def is_empty(self) -> bool:
        return not self.describe and not self.yes_no

    @property
    def num_items(self) -> int:
        """Images described, or questions where there are no descriptions."""
        return len(self.describe) or len(self.yes_no)

    @property
    def num_answers(self) -> int:
        return len(self.describe) * (2 if self.sampled else 1) + len(self.yes_no)

    def measure(
        self, generators: Generators, *, seed: int, on_answer: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """Ask everything of the policy that is served now; fractions in 0..1."""

        def ask(questions: Sequence[Question], *, temperature: float, max_tokens: int) -> dict[str, str]:
            texts = {}
            answers = generators.answer(questions, temperature=temperature, max_tokens=max_tokens, seed=seed)
            for answer in answers:
                texts[answer.id] = answer.text
                on_answer()
            return texts

        metrics: dict[str, float] = {"num_images": self.num_items}
        if self.describe:
            greedy = ask(self.describe, temperature=0.0, max_tokens=self.max_tokens)
            metrics |= describe_metrics(greedy, truth=self.truth)
            if self.sampled:
                sampled = ask(self.describe, temperature=1.0, max_tokens=self.max_tokens)
                values = describe_metrics(sampled, truth=self.truth)
                metrics |= {f"{name}_t1": value for name, value in values.items()}
        if self.yes_no:
            answers = ask(self.yes_no, temperature=0.0, max_tokens=_YES_NO_TOKENS)
            ids = [question.id for question in self.yes_no]
            values = pope_metrics([answers[key] for key in ids], labels=[self.labels[key] for key in ids])
            metrics |= {
                "pope_acc": values["accuracy"],
                "pope_f1": values["f1"],
                "pope_yes_ratio": values["yes_ratio"],
            }
        return metrics


def load_suite(config: Eval) -> Suite:
    """Read the benchmark's files.

    Raises:
        ConfigError: `eval.data` lacks a file the benchmarks need.
    """
    if not config.benchmarks:
        return Suite()
    folder = Path(str(config.data))
    describe: list[Question] = []
    truth: dict[str, Sequence[Mapping[str, str]]] = {}
    if "world" in config.benchmarks:
        rows = _rows(folder / "prompts.jsonl")[: config.limit]
        describe = [Question(id=row["id"], image=str(folder / row["image"]), text=row["prompt"]) for row in rows]
        objects = {row["id"]: row["objects"] for row in _rows(folder / "truth.jsonl")}
        truth = {question.id: objects[question.id] for question in describe}
    images = {question.image for question in describe}
    questions = [
        (str(row["question_id"]), str(folder / row["image"]), row["text"], row["label"])
        for row in _rows(folder / "questions.jsonl")
    ]
    if config.limit is not None:
        kept = images or set(list(dict.fromkeys(image for _, image, _, _ in questions))[: config.limit])
        questions = [row for row in questions if row[1] in kept]
    return Suite(
        describe=tuple(describe),
        truth=truth,
        yes_no=tuple(Question(id=f"q{key}", image=image, text=text) for key, image, text, _ in questions),
        labels={f"q{key}": label for key, _, _, label in questions},
        sampled=config.sampled and bool(describe),
        max_tokens=config.max_tokens,
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise ConfigError(f"eval.data = {str(path.parent)!r}: it has no {path.name}")
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
