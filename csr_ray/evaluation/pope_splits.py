"""POPE's splits (random, popular, adversarial) as released: which questions there are, and whose answer is whose.

Knows the forms of POPE's label files and of LLaVA's question and answer files; `pope` parses and counts. The
published script takes the n-th answer of a split to be that to its n-th label, so an answer that is lacking moves all
that come after it. Here answers are matched by id, and LLaVA's questions, whose ids are not POPE's, by image and
question.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from csr_ray.data.prompts import decode_text, is_unicode, read_json_rows
from csr_ray.errors import ConfigError
from csr_ray.evaluation.marks import quotients
from csr_ray.evaluation.pope import LABELS
from csr_ray.records import Mark

SPLITS = ("random", "popular", "adversarial")
_NUM_OF_LLAVA = 2910


@dataclass(frozen=True, kw_only=True)
class SplitQuestion:
    """A question of one split.

    Attributes:
        id: `<split>/<question_id>`, or, of LLaVA's question file, its question_id, which is unique over all splits.
    """

    id: str
    split: str
    image: str
    text: str
    label: str


def has_splits(folder: Path) -> bool:
    """Whether a folder has label files of POPE's splits."""
    return folder.is_dir() and bool(_files(folder))


def load_splits(folder: Path, *, key: str) -> tuple[list[SplitQuestion], Counter[str]]:
    """Read the questions of a folder: a file a split, and LLaVA's question file where there is one.

    Returns:
        The questions in the order of the files, and what was left out, by reason.

    Raises:
        ConfigError: there is no file of a split, or a line of one cannot be used.
    """
    files = _files(folder)
    if not files:
        raise ConfigError(
            f"{key} {folder}: a folder with no file of a split; expected coco_pope_random.json and the like"
        )
    labels = [question for split, path in files.items() for question in _labels(path, split=split, key=key)]
    asked = _llava_questions(folder, others=files.values(), key=key)
    return (labels, Counter()) if asked is None else _joined(asked, labels=labels)


def read_split_answers(path: Path, *, questions: Iterable[SplitQuestion]) -> tuple[dict[str, str], Counter[str]]:
    """Read answers by the ids of `questions`: a folder with a file a split, or one file for all.

    In one file the id has to say the split: LLaVA's ids do, and others need the split under `category`.

    Raises:
        ConfigError: there is no such file, or its answers do not say their split.
    """
    known = {question.id for question in questions}
    by_split = any("/" in key for key in known)
    found: dict[str, str] = {}
    skipped: Counter[str] = Counter()
    files: list[tuple[str | None, Path]] = [*_files(path).items()] if path.is_dir() else [(None, path)]
    if not files:
        raise ConfigError(
            f"--answers {path}: a folder with no file of a split; name each after its split (answers_random.jsonl)"
        )
    for split, file in files:
        for record in _records(file, key="--answers", skipped=skipped):
            name, text = record.get("question_id"), record.get("text", record.get("answer"))
            if not isinstance(name, str | int) or not isinstance(text, str) or not is_unicode(text):
                skipped["malformed answer line: no question_id or no text"] += 1
                continue
            question_id = str(name)
            if by_split and "/" not in question_id:
                of = split or record.get("category")
                if of not in SPLITS:
                    raise ConfigError(
                        f"--answers {file}: question {name} does not say its split, and each split counts its "
                        "questions from 1; give a folder with a file a split, or each line its category"
                    )
                question_id = f"{of}/{question_id}"
            if question_id in found:
                skipped["second answer with this id"] += 1
            elif question_id not in known:
                skipped["no truth for this answer"] += 1
            else:
                found[question_id] = text
    skipped["no answer to this truth"] += len(known) - len(found)
    return found, skipped


def of_split(mark: Mark, *, split: str) -> Mark:
    """The mark with its metrics called by the split: random_f1."""
    return replace(mark, counts={f"{split}_{name}": counts for name, counts in mark.counts.items()})


def split_metrics(marks: Iterable[Mark]) -> dict[str, float]:
    """POPE's metrics of each split, of marks by `of_split`, behind the mean F1.

    The mean's name says of how many splits it is; published means are of three.
    """
    metrics = quotients(marks)
    sums = split_sums(metrics)
    return {
        **{name: sum(weight * metrics[part] for part, weight in parts.items()) for name, parts in sums.items()},
        **metrics,
    }


def split_sums(names: Collection[str]) -> dict[str, dict[str, float]]:
    """The mean F1 as a weighted sum of the F1 of each split among the names of some metrics; nothing without one."""
    f1 = [f"{split}_f1" for split in SPLITS if f"{split}_f1" in names]
    return {f"mean_f1_of_{len(f1)}_splits": dict.fromkeys(f1, 1.0 / len(f1))} if f1 else {}


def run_split_sums(names: Collection[str]) -> dict[str, dict[str, float]]:
    """`split_sums` by the names of a run's metrics: pope_f1_random."""
    f1 = [f"pope_f1_{split}" for split in SPLITS if f"pope_f1_{split}" in names]
    return {f"pope_mean_f1_of_{len(f1)}_splits": dict.fromkeys(f1, 1.0 / len(f1))} if f1 else {}


def split_notes(split_of: Mapping[str, str], *, answered: Collection[str]) -> dict[str, Any]:
    """What a result says besides its metrics: answered questions of each split, and which random split it is.

    Args:
        split_of: the split of each question, by id.
    """
    sizes = Counter(split_of.values())
    num = Counter(split for key, split in split_of.items() if key in answered)
    notes = ["An answer counts as yes unless a word of its first sentence is No, not or no; an empty one is a yes."]
    if sizes["random"] == _NUM_OF_LLAVA:
        notes.append("The random split is LLaVA's of 2,910 questions; POPE's own has 3,000.")
    return {"num_answers": dict(num), "num_questions": dict(sizes), "notes": notes}


def _files(folder: Path) -> dict[str, Path]:
    """The file of each split, in the order of `SPLITS`."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        split = next((name for name in SPLITS if path.stem.lower().endswith(name)), None)
        if split is None or path.suffix not in (".json", ".jsonl") or not path.is_file():
            continue
        if split in found:
            raise ConfigError(f"{folder}: {found[split].name} and {path.name} are both of {split}; leave one there")
        found[split] = path
    return {split: found[split] for split in SPLITS if split in found}


def _labels(path: Path, *, split: str, key: str) -> Iterator[SplitQuestion]:
    seen: set[str] = set()
    problems: Counter[str] = Counter()
    for number, record in enumerate(_records(path, key=key, skipped=problems), 1):
        label = str(record.get("label")).strip().lower()
        name, image, text = record.get("question_id"), record.get("image"), record.get("text")
        where = f"{key} {path}: question {number}"
        if label not in LABELS:
            raise ConfigError(f"{where}: label = {record.get('label')!r}: neither yes nor no")
        if not isinstance(name, str | int) or not isinstance(image, str) or not isinstance(text, str):
            raise ConfigError(f"{where}: no question_id, image or text; put POPE's own file there")
        if str(name) in seen:
            raise ConfigError(f"{where}: question_id = {name!r} comes again; give each one of its own")
        seen.add(str(name))
        yield SplitQuestion(id=f"{split}/{name}", split=split, image=image, text=text, label=label)
    if problems:
        raise ConfigError(f"{key} {path}: {next(iter(problems))}; put POPE's own file there")


def _llava_questions(folder: Path, *, others: Iterable[Path], key: str) -> list[dict[str, Any]] | None:
    """The lines of LLaVA's question file (llava_pope_test.jsonl), which are of all splits; None if there is none."""
    taken = set(others)
    for path in sorted(folder.glob("*.jsonl")):
        if path in taken:
            continue
        rows = [row.value for row in read_json_rows(_text(path, key=key), name=path.name) if row.problem is None]
        if rows and all(isinstance(row, dict) and row.get("category") in SPLITS for row in rows):
            return rows
    return None


def _joined(
    asked: Iterable[dict[str, Any]], *, labels: Iterable[SplitQuestion]
) -> tuple[list[SplitQuestion], Counter[str]]:
    """LLaVA's questions with POPE's labels; of a question that comes twice in a split the n-th has the n-th label."""
    waiting: dict[tuple[str, str, str], deque[SplitQuestion]] = defaultdict(deque)
    for question in labels:
        waiting[question.split, question.image, _first_line(question.text)].append(question)
    found: dict[str, SplitQuestion] = {}
    skipped: Counter[str] = Counter()
    for row in asked:
        text, name = str(row.get("text")), str(row.get("question_id"))
        same = waiting.get((row["category"], str(row.get("image")), _first_line(text)))
        if name in found:
            raise ConfigError(f"question_id = {name} comes again in LLaVA's question file; put its own file there")
        if not same:
            skipped["no label for this question"] += 1
            continue
        found[name] = replace(same.popleft(), id=name, text=text)
    skipped["label without a question"] += sum(map(len, waiting.values()))
    return list(found.values()), skipped


def _first_line(text: str) -> str:
    return text.split("\n", 1)[0].strip()


def _records(path: Path, *, key: str, skipped: Counter[str]) -> Iterator[dict[str, Any]]:
    for row in read_json_rows(_text(path, key=key), name=path.name):
        if row.problem is None and isinstance(row.value, dict):
            yield row.value
        else:
            skipped["malformed line: not a record"] += 1


def _text(path: Path, *, key: str) -> str:
    try:
        return decode_text(path.read_bytes())
    except FileNotFoundError as error:
        raise ConfigError(f"{key} {path}: no such file") from error
    except OSError as error:
        raise ConfigError(f"{key} {path}: cannot be read: {error.strerror}") from error
