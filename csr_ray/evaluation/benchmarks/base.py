"""What a benchmark is: its questions with their truth, how answers are read from a file, and how they are marked.

Knows nothing of models, and opens no image. Answers and truth are matched by id, never by order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from csr_ray.data.prompts import is_unicode, read_json_rows
from csr_ray.errors import NoDataError
from csr_ray.evaluation.benchmarks.files import read_text
from csr_ray.evaluation.item_marks import IMAGES
from csr_ray.judging.session import JudgeSession
from csr_ray.records import JsonDict

# The suffixes of LLaVA's evaluation protocol.
SHORT_ANSWER = "Answer the question using a single word or phrase."
LETTER_ANSWER = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question of a benchmark.

    Attributes:
        id: unique within the benchmark; as text, whatever the release has.
        text: as it is put to a model, the protocol's suffix included. The chat template is added where it is served.
        image: the image's path; where only marking is asked for it may be relative and lead nowhere.
        truth: what the benchmark needs to mark an answer; a type of its own.
        choices: the answers that there are, such as the options' letters; empty: any.
    """

    id: str
    text: str
    image: str
    truth: Any
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Items:
    """What a benchmark's files hold.

    Attributes:
        by_id: the questions, in the order of the release.
        skipped: how many of the release's questions cannot be used, by reason.
        shared: what all questions share and marking needs (a lexicon, say); a type of the benchmark's own.
    """

    by_id: Mapping[str, Item]
    skipped: Mapping[str, int] = field(default_factory=dict)
    shared: Any = None


@dataclass(frozen=True, kw_only=True)
class Said:
    """The answers of a file, by the id of the item that each answers; and the lines that are none, by reason."""

    by_id: Mapping[str, str]
    skipped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Marks:
    """How answers were marked.

    Attributes:
        metrics: by name; in the unit that the benchmark publishes, which its `metrics_are` says.
        outcomes: of each thing that is counted (an answer, or all rotations of a question), a number in 0..1, more is
            better, by its id; two models' outcomes on the same ids are a pair.
        counts: by item and metric, what its answer adds above and below the line; the metrics follow from these, and
            so do their intervals. Only what is a mere number of answers (`counted`) is not in there.
        sums: metrics that are weighted sums of quotients, with the weight of each; these may have names of their own,
            with a slash in them, which are no metrics.
        counted: metrics that are numbers of answers, and so have no interval.
        skipped: what could not be marked though it was answered, by reason.
        notes: whole sentences on how this deviates from the official script, and what it has not seen.
        more: further keys of the result ("judge": its name).
    """

    metrics: dict[str, float]
    outcomes: dict[str, float]
    counts: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    sums: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    counted: tuple[str, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    more: JsonDict = field(default_factory=dict)


class Benchmark(ABC):
    """A benchmark. Subclasses fill in the words, `load` and `mark`; the answers' form may be their own, too.

    Attributes:
        name: as on the command line.
        title: a few words on what is asked and what is measured, for --help.
        source: paper and official script.
        metrics_are: the unit of the metrics, and which direction is better.
        data: the files that `load` expects, for --help and for the error when one is missing.
        max_tokens: of an answer, at most.
        needs_judge: whether `mark` asks a judge.
        unit: what items that are not independent of each other have in common (`unit_of`), for people.
        id_keys, text_keys: the keys of an answer's record, of which the first that is there counts.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    metrics_are: ClassVar[str] = "fractions of 1, more is better"
    data: ClassVar[str]
    max_tokens: ClassVar[int] = 128
    needs_judge: ClassVar[bool] = False
    unit: ClassVar[str] = IMAGES
    id_keys: ClassVar[tuple[str, ...]] = ("question_id", "id")
    text_keys: ClassVar[tuple[str, ...]] = ("text", "prediction", "response", "answer")

    @abstractmethod
    def load(self, path: Path, *, unpack: Path | None = None) -> Items:
        """Read the benchmark's files.

        Args:
            path: the folder of the release, or the one file of it that has the truth.
            unpack: folder to write the images to that the release holds inside of a file; None: they are not needed.

        Raises:
            ConfigError: a file is missing or not what the release has; names the file and the remedy.
        """

    @abstractmethod
    def mark(self, said: Mapping[str, str], *, items: Items, judge: JudgeSession | None = None) -> Marks:
        """Mark answers by the ids of their items; there is at least one, and each id is an item's.

        Args:
            judge: where `needs_judge` (`csr_ray.evaluation.benchmarks.judged`).

        Raises:
            NoDataError: no answer counts for any figure. A single figure that rests on nothing is left out.
        """

    def unit_of(self, item: Item) -> str:
        """What an item is drawn again with: its image, or itself where that is not known."""
        return item.image or item.id

    def read_answers(self, path: Path, *, items: Items) -> Said:
        """Read a file of answers, JSONL or a JSON list. Of several answers to one question the first counts.

        Raises:
            ConfigError: the file cannot be read, or is neither.
        """
        found: dict[str, str] = {}
        skipped: Counter[str] = Counter()
        for row in read_json_rows(read_text(path, option="--answers"), name=path.name):
            try:
                if row.problem is not None or not isinstance(row.value, dict):
                    raise ValueError("not a record")
                key = self.key_of(row.value, items=items)
                text = next((row.value[name] for name in self.text_keys if name in row.value), None)
                if not isinstance(text, str) or not is_unicode(text):
                    raise ValueError("no text")
            except ValueError as error:
                skipped[f"malformed answer line: {error}"] += 1
                continue
            if key in found:
                skipped["second answer with this id"] += 1
                continue
            found[key] = text
        return Said(by_id=found, skipped=skipped)

    def key_of(self, record: Mapping[str, Any], *, items: Items) -> str:
        """The id of the item that a record answers.

        Raises:
            ValueError: it names none; says what is missing.
        """
        return id_of(record, keys=self.id_keys)


def id_of(record: Mapping[str, Any], *, keys: Sequence[str]) -> str:
    """The first id that a record has, as text.

    Raises:
        ValueError: it has none.
    """
    value = next((record[key] for key in keys if record.get(key) is not None), None)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise ValueError(f"no {' or '.join(keys)}")
    return str(value).strip()


def counts_of(
    outcomes: Mapping[str, float], *, metric: str = "accuracy"
) -> dict[str, dict[str, tuple[float, float]]]:
    """The counts of a metric that is the mean of all outcomes, by item; more metrics may be added to each."""
    return {key: {metric: (value, 1.0)} for key, value in outcomes.items()}


def nothing_counts(name: str, *, skipped: Mapping[str, int]) -> NoDataError:
    """The error of a benchmark whose answers all count for nothing, with the reasons."""
    reasons = ", ".join(f"{reason}: {number}" for reason, number in skipped.items() if number)
    return NoDataError(f"{name}: no answer counts ({reasons}); answer the questions that belong together")


def mean(values: Sequence[float]) -> float:
    """The mean; 0.0 of nothing."""
    return sum(values) / len(values) if values else 0.0
