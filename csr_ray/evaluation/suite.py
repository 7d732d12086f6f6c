"""What a policy is asked before the first round and after each one, and how its answers are marked.

With the `world` benchmark the policy describes held-out images (greedily, and once more at temperature 1) and answers
yes/no questions about them. `pope` consists of such questions alone, and `chair` of such descriptions alone, both
about photos whose objects are known. The files are read once, before anything is started.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from csr_ray.config.schema import Eval
from csr_ray.data.files import UnreadableError, open_file
from csr_ray.data.prompts import decode_text, read_json_rows
from csr_ray.errors import ConfigError
from csr_ray.evaluation.answers import label_of, marked_items, truth_names, truth_records
from csr_ray.evaluation.chair import CHAIR_METRICS, mark_captions
from csr_ray.evaluation.chair_truth import OWN_TABLE, OfficialFiles, coco_image_id, coco_truth, official_files
from csr_ray.evaluation.item_marks import MarkedItems, items_of
from csr_ray.evaluation.marks import quotients
from csr_ray.evaluation.pope import LABELS, METRICS, mark_answers
from csr_ray.evaluation.pope_splits import (
    SplitQuestion,
    has_splits,
    load_splits,
    of_split,
    run_split_sums,
    split_metrics,
    split_notes,
)
from csr_ray.evaluation.world import WorldMarking, mark_descriptions
from csr_ray.ports import Answering
from csr_ray.records import JsonDict, Mark, MarkedAnswer, Question, WayToAsk
from csr_ray.store.objects import is_url, local_path
from csr_ray.world.mentions import VOCABULARY_FILE, kinds_of
from csr_ray.world.vocabulary import KINDS

_PROMPTS_TOLD = 10
_YES_NO_TOKENS = 8
_NOTHING = (None, "")

Marking = Callable[..., dict[str, Mark]]
"""Called with descriptions by id and with `truth`, which says by id what is in each image; returns marks by id."""

# The names of POPE's metrics among those of a run's evaluation.
_OF_YES_NO = {"accuracy": "pope_acc", "f1": "pope_f1", "yes_ratio": "pope_yes_ratio"}


def mark_photos(answers: Mapping[str, str], *, truth: Mapping[str, Sequence[str]]) -> dict[str, Mark]:
    """CHAIR of descriptions of photos; `truth` has the names of each image's objects."""
    marks = mark_captions(list(answers.values()), truth=[truth[key] for key in answers])
    return dict(zip(answers, marks, strict=True))


DESCRIBED, SAMPLED, YES_NO = "describe", "describe_t1", "yes_no"

Answers = Mapping[str, Mapping[str, str]]
"""The texts of answers by asking (`Asking.name`) and id of the question."""


@dataclass(frozen=True)
class Asking:
    """Questions that are all asked in the same way.

    Attributes:
        max_tokens: of each answer, at most.
    """

    name: str
    questions: tuple[Question, ...]
    temperature: float
    max_tokens: int


@dataclass(frozen=True)
class Suite:
    """The questions of a run's benchmarks, with what is needed to mark the answers."""

    describe: tuple[Question, ...] = ()
    truth: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    mark: Marking = mark_descriptions
    named: Mapping[str, str] = field(default_factory=dict)
    yes_no: tuple[Question, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    split_of: Mapping[str, str] = field(default_factory=dict)
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

    @property
    def images(self) -> list[str]:
        """Each image once, in the order of the questions."""
        return list(dict.fromkeys(item.image for item in (*self.describe, *self.yes_no)))

    def first(self, num_images: int) -> Suite:
        """The same benchmarks on the first `num_images` images only."""
        images = set(self.images[:num_images])
        return replace(
            self,
            describe=tuple(question for question in self.describe if question.image in images),
            yes_no=tuple(question for question in self.yes_no if question.image in images),
        )

    def in_way(self, way: WayToAsk) -> Suite:
        """The same questions, asked in another way."""
        return replace(
            self,
            describe=tuple(replace(question, way=way) for question in self.describe),
            yes_no=tuple(replace(question, way=way) for question in self.yes_no),
        )

    def askings(self) -> tuple[Asking, ...]:
        """Everything that is asked of a policy."""
        askings = []
        if self.describe:
            greedy = Asking(DESCRIBED, self.describe, temperature=0.0, max_tokens=self.max_tokens)
            askings.append(greedy)
            if self.sampled:
                askings.append(replace(greedy, name=SAMPLED, temperature=1.0))
        if self.yes_no:
            askings.append(Asking(YES_NO, self.yes_no, temperature=0.0, max_tokens=_YES_NO_TOKENS))
        return tuple(askings)

    def measure(
        self, generators: Answering, *, seed: int, on_answer: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """Ask everything of the policy that is served now, and return the metrics (`marks`)."""
        return self.marks(self.ask(generators, seed=seed, on_answer=on_answer))

    def ask(self, generators: Answering, *, seed: int, on_answer: Callable[[], None] = lambda: None) -> Answers:
        """Ask everything of the policy that is served now."""

        def ask(asking: Asking) -> dict[str, str]:
            texts = {}
            for answer in generators.answer(
                asking.questions, temperature=asking.temperature, max_tokens=asking.max_tokens, seed=seed
            ):
                texts[answer.id] = answer.text
                on_answer()
            return texts

        return {asking.name: ask(asking) for asking in self.askings()}

    def marked(self, answers: Answers) -> list[MarkedAnswer]:
        """The answers that there are, each with its mark, whose counts go by the names of the run's metrics."""
        found = []
        for asking in self.askings():
            said = answers.get(asking.name, {})
            questions = [question for question in asking.questions if question.id in said]
            texts = {question.id: said[question.id] for question in questions}
            if asking.name == YES_NO:
                truth: Mapping[str, Any] = self.labels
                labels = [self.labels[key] for key in texts]
                marks = dict(zip(texts, mark_answers(list(texts.values()), labels=labels), strict=True))
            else:
                truth, marks = self.truth, self.mark(texts, truth=self.truth)
            found += [
                MarkedAnswer(
                    asked_as=asking.name,
                    id=question.id,
                    image=question.image,
                    question=question.text,
                    answer=texts[question.id],
                    truth=json.dumps(truth[question.id], sort_keys=True),
                    mark=_named(marks[question.id], asking=asking.name, split=self.split_of.get(question.id)),
                )
                for question in questions
            ]
        return found

    def num_marked(self, answers: Answers) -> int:
        """Images whose description is there, or answered questions where there are no descriptions."""
        questions, name = (self.describe, DESCRIBED) if self.describe else (self.yes_no, YES_NO)
        said = answers.get(name, {})
        return sum(question.id in said for question in questions)

    def marks(self, answers: Answers) -> dict[str, float]:
        """The metrics of a run's evaluation, of the answers that there are.

        They are fractions in 0..1, but for `num_images` and the mean number of `sentences`. Of an asking without any
        answer there are none. Of POPE's splits there are figures of each (`pope_acc_random`), and the mean F1.
        """
        values = run_items(self.marked(answers)).values()
        return {"num_images": self.num_marked(answers), **values}

    def yes_no_marks(self, answers: Answers) -> dict[str, float]:
        """POPE's own metrics (`csr_ray.evaluation.pope.pope_metrics`) of the answers that there are.

        Of splits they are of each, with the mean F1 (`csr_ray.evaluation.pope_splits.split_metrics`).
        """
        marks = self._yes_no_counts(answers).values()
        return split_metrics(marks) if self.split_of else quotients(marks, names=METRICS)

    def _yes_no_counts(self, answers: Answers) -> dict[str, Mark]:
        """The marks of the yes/no answers by id, with POPE's own names for the metrics."""
        said = answers.get(YES_NO, {})
        ids = [question.id for question in self.yes_no if question.id in said]
        marks = mark_answers([said[key] for key in ids], labels=[self.labels[key] for key in ids])
        if not self.split_of:
            return dict(zip(ids, marks, strict=True))
        return {key: of_split(mark, split=self.split_of[key]) for key, mark in zip(ids, marks, strict=True)}

    def chair(self) -> JsonDict:
        """What two figures of CHAIR have to share before they may be compared; nothing where CHAIR is not measured.

        None of it is standard between papers: the table of names and the form, which images are described (their
        number, and a digest of their names), the prompts (at most ten of them) and how long an answer may be.
        """
        if not self.named:
            return {}
        names = sorted({question.image.rpartition("/")[2] for question in self.describe})
        prompts = list(dict.fromkeys(question.text for question in self.describe))
        return {
            **self.named,
            "num_described": len(self.describe),
            "images": hashlib.sha256("\n".join(names).encode()).hexdigest()[:16],
            "prompts": prompts[:_PROMPTS_TOLD],
            "num_prompts": len(prompts),
            "max_tokens": self.max_tokens,
        }

    def says(self, answers: Answers) -> JsonDict:
        """What a result says besides its figures: how CHAIR was asked (`chair`), and what POPE's splits hold."""
        if not self.split_of:
            return self.chair()
        split_of = {question.id: self.split_of[question.id] for question in self.yes_no}
        return {**self.chair(), **split_notes(split_of, answered=answers.get(YES_NO, {}))}

    def benchmark_items(self, benchmark: str, *, answers: Answers) -> MarkedItems:
        """What a result keeps of each answer: the counts of the metrics of `benchmark_marks`.

        Ids are those of the benchmark's files; of `world`, whose questions come from two of them, those of the
        sampled descriptions end with "at T = 1" and those of the questions begin with q.
        """
        marked = self.marked(answers)
        if benchmark == "pope":
            counts = self._yes_no_counts(answers)
            marked = [
                replace(one, id=one.id.removeprefix("q"), mark=counts[one.id])
                for one in marked
                if one.asked_as == YES_NO
            ]
        elif benchmark == "chair":
            marked = [one for one in marked if one.asked_as == DESCRIBED]
        else:
            marked = [replace(one, id=f"{one.id} at T = 1") if one.asked_as == SAMPLED else one for one in marked]
        return marked_items(marked)

    def benchmark_marks(self, benchmark: str, *, answers: Answers) -> dict[str, float]:
        """The metrics of one benchmark, by the names that `csr-ray score-answers` gives them where it knows it.

        Those of `world` are a run's own (`marks`), since it consists of descriptions and questions.
        """
        if benchmark == "pope":
            return self.yes_no_marks(answers)
        if benchmark == "chair":
            return quotients(self.mark(answers.get(DESCRIBED, {}), truth=self.truth).values(), names=CHAIR_METRICS)
        return self.marks(answers)


def run_items(answers: Sequence[MarkedAnswer]) -> MarkedItems:
    """A run's marked answers as items, from which its figures follow."""
    names = {name for answer in answers for name in answer.mark.counts}
    return MarkedItems(items=items_of(answers), sums=run_split_sums(names))


def _named(mark: Mark, *, asking: str, split: str | None) -> Mark:
    """The mark with its metrics called as a run's evaluation calls them; what that leaves out is left out.

    Args:
        split: of a question of one of POPE's splits: it counts for the figures of that, too.
    """
    if asking == DESCRIBED:
        return mark
    if asking == YES_NO:
        counts = {new: mark.counts[old] for old, new in _OF_YES_NO.items()}
        of_its_split = {f"{name}_{split}": pair for name, pair in counts.items()} if split else {}
        return replace(mark, counts={**counts, **of_its_split})
    return replace(mark, counts={f"{name}_t1": counts for name, counts in mark.counts.items()})


def load_suite(config: Eval) -> Suite:
    """Read the benchmark's files.

    Raises:
        ConfigError: `eval.data` lacks a file the benchmarks need, or one has a line that cannot be used. A benchmark
            without it would be another one, so nothing is left out.
    """
    if not config.benchmarks:
        return Suite()
    folder = str(config.data)
    files = _official_files(config)
    if files is None:
        describe, truth, mark = _descriptions(folder, benchmarks=config.benchmarks)
    else:
        describe, truth, mark = _official_descriptions(folder, files=files)
    questions = _questions(folder, benchmarks=config.benchmarks)
    suite = Suite(
        describe=tuple(describe),
        truth=truth,
        mark=mark,
        named=(OWN_TABLE if files is None else files.named) if "chair" in config.benchmarks else {},
        yes_no=tuple(Question(id=f"q{row.id}", image=row.image, text=row.text, choices=LABELS) for row in questions),
        labels={f"q{row.id}": row.label for row in questions},
        split_of={f"q{row.id}": row.split for row in questions if row.split},
        sampled=config.sampled and bool(describe),
        max_tokens=config.max_tokens,
    )
    return suite if config.limit is None else suite.first(config.limit)


def _descriptions(
    folder: str, *, benchmarks: Sequence[str]
) -> tuple[list[Question], Mapping[str, Sequence[Any]], Marking]:
    """The images to describe, what is in them, and how descriptions of them are marked."""
    if not {"world", "chair"} & set(benchmarks):
        return [], {}, mark_descriptions
    rows = _rows(folder, "prompts.jsonl", ids=("id",), texts=("image", "prompt"))
    truth_keys = ("objects",) if "world" in benchmarks else ()
    truth_rows = _rows(folder, "truth.jsonl", ids=("id", "image_id"), keys=truth_keys)
    lacking = [row["id"] for key, row in rows.items() if key not in truth_rows]
    if lacking:
        raise ConfigError(f"eval.data = {folder!r}: truth.jsonl has no line for image {lacking[0]!r}")
    describe = [Question(id=key, image=_image(folder, row["image"]), text=row["prompt"]) for key, row in rows.items()]
    parse: Callable[[dict[str, Any]], Sequence[Any]]
    mark: Marking
    if "world" in benchmarks:
        parse, mark = truth_records, WorldMarking(kinds=tuple(_kinds(folder)))
    else:
        parse, mark = truth_names, mark_photos
    try:
        return describe, {question.id: parse(truth_rows[question.id]) for question in describe}, mark
    except ValueError as error:
        raise ConfigError(f"eval.data = {folder!r}: truth.jsonl: {error}") from error


def _official_files(config: Eval) -> OfficialFiles | None:
    files = official_files(
        synonyms=config.chair_synonyms,
        instances=config.chair_instances,
        captions=config.chair_captions,
        form=config.chair_form,
        keys=("eval.chair_synonyms", "eval.chair_instances", "eval.chair_captions", "eval.chair_form"),
    )
    if files is not None and "chair" not in config.benchmarks:
        raise ConfigError("eval.chair_synonyms: of chair only, which eval.benchmarks does not name")
    return files


def _official_descriptions(
    folder: str, *, files: OfficialFiles
) -> tuple[list[Question], Mapping[str, Sequence[Any]], Marking]:
    """The same as `_descriptions`, of COCO's images and by COCO's annotations; there is no truth.jsonl."""
    rows = _rows(folder, "prompts.jsonl", ids=("id",), texts=("image", "prompt"))
    numbers: dict[str, str] = {}
    for key, row in rows.items():
        try:
            numbers[key] = coco_image_id(str(row.get("image_id", row["image"])))
        except ValueError as error:
            raise ConfigError(f"eval.data = {folder!r}: prompts.jsonl: image = {row['image']!r}: {error}") from error
    chair = files.chair()
    present = coco_truth(set(numbers.values()), files=files, chair=chair)
    lacking = [key for key, number in numbers.items() if number not in present]
    if lacking:
        raise ConfigError(
            f"eval.data = {folder!r}: prompts.jsonl: {len(lacking)} images are not in {files.keys[1]} and "
            f"{files.keys[2]}, the first of them {rows[lacking[0]]['image']!r}; name the files of train and of val"
        )
    describe = [Question(id=key, image=_image(folder, row["image"]), text=row["prompt"]) for key, row in rows.items()]
    return describe, {key: present[number] for key, number in numbers.items()}, chair.marks


def _questions(folder: str, *, benchmarks: Sequence[str]) -> list[SplitQuestion]:
    """The yes/no questions; those of questions.jsonl are of no split."""
    if not {"world", "pope"} & set(benchmarks):
        return []
    path = local_path(folder)
    if not is_url(folder) and "pope" in benchmarks and not (path / "questions.jsonl").exists() and has_splits(path):
        questions, skipped = load_splits(path, key="eval.data")
        if skipped.total():
            raise ConfigError(
                f"eval.data = {folder!r}: "
                + ", ".join(f"{reason}: {number}" for reason, number in skipped.items() if number)
                + "; LLaVA's question file and the label files do not belong together: put those of one release there"
            )
        return [replace(question, image=_image(folder, question.image)) for question in questions]
    rows = _rows(folder, "questions.jsonl", ids=("question_id",), texts=("image", "text"), labels=True)
    return [
        SplitQuestion(id=key, split="", image=_image(folder, row["image"]), text=row["text"], label=label_of(row))
        for key, row in rows.items()
    ]


def _image(folder: str, name: str) -> str:
    """Where an image of the benchmark is: a path, or a URL in a folder at a URL."""
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else str(local_path(folder) / name)


def _kinds(folder: str) -> Sequence[str]:
    """What the world's kinds are called; a folder that does not say is one of the demo's."""
    content = _read_if_there(folder, VOCABULARY_FILE)
    if content is None:
        return KINDS
    try:
        return kinds_of(content)
    except ValueError as error:
        raise ConfigError(f"eval.data = {folder!r}: {VOCABULARY_FILE}: {error}") from error


def _read(folder: str, name: str) -> bytes:
    """The content of one of the benchmark's files; where the folder is at a URL, as any file of the data there."""
    content = _read_if_there(folder, name)
    if content is None:
        raise ConfigError(f"eval.data = {folder!r}: it has no {name}")
    return content


def _read_if_there(folder: str, name: str) -> bytes | None:
    where = f"eval.data = {folder!r}"
    try:
        if is_url(folder):
            with open_file(f"{folder.rstrip('/')}/{name}") as file:
                return file.read()
        path = local_path(folder) / name
        if path.is_file():
            return path.read_bytes()
    except UnreadableError as error:
        if error.fault == "machine":
            raise ConfigError(f"{where}: {name}: {error}") from error
    except OSError as error:
        raise ConfigError(f"{where}: {name} cannot be read: {error.strerror}") from error
    return None


def _rows(
    folder: str,
    name: str,
    *,
    ids: Sequence[str],
    keys: Sequence[str] = (),
    texts: Sequence[str] = (),
    labels: bool = False,
) -> dict[str, dict[str, Any]]:
    """The lines of a file by their ids, each a record, in the order of the file.

    Args:
        ids: the keys that may have a record's id, of which the first that is there counts.
        keys: that a record has to have.
        texts: keys that have to have a text.
        labels: whether a record has to have one of POPE's labels.

    Raises:
        ConfigError: a line that is no such record, or has the id of one before it.
    """
    records: dict[str, dict[str, Any]] = {}
    sources: dict[str, str] = {}
    for row in read_json_rows(decode_text(_read(folder, name)), name=name):
        record, where = row.value, f"eval.data = {folder!r}: {row.source}"
        problem = row.problem
        if problem is None and not isinstance(record, dict):
            problem = "not a record"
        if problem is None:
            problem = _problem(record, ids=ids, keys=keys, texts=texts, labels=labels)
        if problem is not None:
            raise ConfigError(f"{where}: {problem}; put the benchmark's own file back")
        key = next(key for key in ids if record.get(key) not in _NOTHING)
        record_id = str(record[key])
        if record_id in records:
            raise ConfigError(
                f"{where}: {key} = {record[key]!r} is that of {sources[record_id]}, too; give each an id of its own, "
                "or, where this file was put together of several, give each of them a folder of its own"
            )
        records[record_id], sources[record_id] = record, row.source
    return records


def _problem(
    record: Mapping[str, Any], *, ids: Sequence[str], keys: Sequence[str], texts: Sequence[str], labels: bool
) -> str | None:
    """Why a record cannot be used; None if it can."""
    if all(record.get(key) in _NOTHING for key in ids):
        return f"no {' or '.join(map(repr, ids))}"
    for key in (*keys, *texts, *(("label",) if labels else ())):
        if record.get(key) in _NOTHING:
            return f"no {key!r}"
    for key in texts:
        if not isinstance(record[key], str):
            return f"{key} = {record[key]!r}: not a text"
    if labels:
        try:
            label_of(record)
        except ValueError:
            return f"label = {record['label']!r}: neither yes nor no"
    return None
