"""AMBER without a judge: descriptions, and yes/no questions by dimension (Wang et al. 2023, arXiv 2311.07397).

The bookkeeping is that of the official inference.py. That script finds nouns by nltk's tagger and lemmas, and calls
two words the same if spaCy's en_core_web_lg has their vectors closer than 0.8; what stands for them here is said in
every result: words of the lexicon in singular or plural, and the vectors of a file `vectors.txt`, if there is one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np

from csr_ray.errors import ConfigError
from csr_ray.evaluation.benchmarks.base import Benchmark, Item, Items, Marks, id_of, mean
from csr_ray.evaluation.benchmarks.files import find_image, read_json, read_text
from csr_ray.judging.session import JudgeSession

SIMILARITY: Final = 0.8
GENERATIVE: Final = "generative"

_DIMENSIONS: Final = {
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "state",
    "discriminative-attribute-number": "number",
    "discriminative-attribute-action": "action",
}
_RELATION: Final = "relation"
_ATTRIBUTE: Final = ("state", "number", "action")
_VECTORS: Final = "vectors.txt"
_WORD: Final = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_IRREGULAR: Final = {
    "men": "man",
    "women": "woman",
    "children": "child",
    "feet": "foot",
    "teeth": "tooth",
    "mice": "mouse",
    "geese": "goose",
    "knives": "knife",
    "shelves": "shelf",
    "wolves": "wolf",
    "leaves": "leaf",
}
_NOUNS_NOTE: Final = (
    "Nouns are all words of the relation lexicon, in singular or plural and in lower case, whatever part of speech "
    "they are; the official script takes what nltk tags as nouns."
)
_NO_VECTORS_NOTE: Final = (
    "Near-synonyms beyond the lexicon are not recognised, so CHAIR and Hal are higher than the official script's; "
    f"with spaCy's en_core_web_lg vectors as {_VECTORS} beside annotations.json they are (docs/benchmarks.md)."
)
_EXISTENCE_NOTE: Final = (
    "All truths of the existence dimension are no, so its precision is 1 whatever is said; read its recall."
)


@dataclass(frozen=True, kw_only=True)
class AmberTruth:
    """What an image of a description holds and what is often seen in it wrongly; or the answer of a question.

    Attributes:
        kind: "generative", or the dimension of a question: existence, state, number, action or relation.
        objects, often_hallucinated: of a description, as the annotation lists them.
        answer: of a question, "yes" or "no".
    """

    kind: str
    objects: tuple[str, ...] = ()
    often_hallucinated: tuple[str, ...] = ()
    answer: str = ""


@dataclass(frozen=True, kw_only=True)
class Lexicon:
    """The words that count as objects, and which of them say the same.

    Attributes:
        related: for each object the words that may stand for it.
        safe: words that are never hallucinated.
        vectors: of words, each of length 1; empty where there is no file of them.
    """

    related: Mapping[str, Sequence[str]]
    safe: frozenset[str]
    vectors: Mapping[str, np.ndarray] = field(default_factory=dict)

    @cached_property
    def words(self) -> frozenset[str]:
        return frozenset(self.related) | {word for words in self.related.values() for word in words}

    def nouns(self, text: str) -> list[str]:
        """The lexicon's words in a text, singular, in order, repeats kept; a capital letter hides a word."""
        known = self.words
        found = []
        for word in _WORD.findall(text):
            form = next((one for one in (word, *_singulars(word)) if one in known), None)
            if form is not None:
                found.append(form)
        return found

    def names_of(self, objects: Sequence[str]) -> list[tuple[str, int]]:
        """The words that stand for some objects, each with its object's position; the lexicon's come first."""
        related = [(word, index) for index, name in enumerate(objects) for word in self.related.get(name, ())]
        return [*related, *((name, index) for index, name in enumerate(objects))]

    def are_similar(self, first: str, second: str) -> bool:
        """Whether two words' vectors are closer than `SIMILARITY`; False where one has none."""
        one, other = self.vectors.get(first), self.vectors.get(second)
        return one is not None and other is not None and float(one @ other) > SIMILARITY


@dataclass(frozen=True, kw_only=True)
class Described:
    """How many nouns a description has, which of them are hallucinated, and which objects it names."""

    num_nouns: int
    hallucinated: tuple[str, ...]
    covered: frozenset[int]
    often_hallucinated: frozenset[int]


def describe_marks(nouns: Sequence[str], *, truth: AmberTruth, lexicon: Lexicon) -> Described:
    """Sort a description's nouns by the official rules.

    A safe word is left alone; a word for an object in the image covers it (the first object it may stand for); any
    other is compared with the objects that are often hallucinated, then with those in the image, and is hallucinated
    unless it is similar to one of the latter.
    """
    there = lexicon.names_of(truth.objects)
    absent = lexicon.names_of(truth.often_hallucinated)
    covered: set[int] = set()
    often: set[int] = set()
    hallucinated: list[str] = []
    for noun in nouns:
        if noun in lexicon.safe:
            continue
        if (index := _first(there, noun)) is not None:
            covered.add(index)
            continue
        if (index := _first(absent, noun)) is not None:
            often.add(index)
        if (index := _first_similar(absent, noun, lexicon=lexicon)) is not None:
            often.add(index)
        if (index := _first_similar(there, noun, lexicon=lexicon)) is not None:
            covered.add(index)
            continue
        hallucinated.append(noun)
    return Described(
        num_nouns=len(nouns),
        hallucinated=tuple(hallucinated),
        covered=frozenset(covered),
        often_hallucinated=frozenset(often),
    )


def build() -> Benchmark:
    return Amber()


class Amber(Benchmark):
    """See the module. `Items.shared` is the `Lexicon`."""

    name = "amber"
    title = "AMBER: descriptions (CHAIR, Cover, Hal, Cog) and yes/no questions by dimension; without a judge"
    source = "Wang et al. 2023, arXiv 2311.07397; inference.py"
    metrics_are = "fractions of 1; chair, hal and cog: less is better; cover, accuracy and f1 (of no): more is better"
    data = f"annotations.json, relation.json, safe_words.txt, query/query_all.json, image/; {_VECTORS} if you have it"
    id_keys = ("id", "question_id")
    text_keys = ("response", "text")
    max_tokens = 512

    def load(self, path: Path, *, unpack: Path | None = None) -> Items:
        folder = path if path.is_dir() else path.parent
        if (folder / "data" / "annotations.json").is_file():
            folder = folder / "data"
        lacking = [name for name in ("annotations.json", "relation.json") if not (folder / name).is_file()]
        if lacking:
            raise ConfigError(f"--data {path}: no {lacking[0]} there; it takes {self.data}")
        annotations = read_json(folder / "annotations.json", option="--data", expected=list)
        queries = _queries(folder)
        if unpack is not None and not queries:
            raise ConfigError(f"--data {path}: no query/query_all.json there; it takes {self.data}")
        by_id: dict[str, Item] = {}
        skipped: Counter[str] = Counter()
        for record in annotations:
            try:
                key, truth = _parsed(record)
            except ValueError as error:
                skipped[f"malformed annotation: {error}"] += 1
                continue
            query = queries.get(key, {})
            if unpack is not None and not isinstance(query.get("query"), str):
                skipped["an annotation without a query"] += 1
                continue
            name = str(query.get("image") or "")
            image = find_image(folder, name, places=("image", "images", "../image", "")) if name else ""
            choices = ("Yes", "No") if truth.answer else ()
            by_id[key] = Item(id=key, text=str(query.get("query", "")), image=image, truth=truth, choices=choices)
        if not by_id:
            raise ConfigError(f"--data {path}: no annotation of amber; put the benchmark's own file there")
        return Items(by_id=by_id, skipped=skipped, shared=_lexicon(folder))

    def mark(self, said: Mapping[str, str], *, items: Items, judge: JudgeSession | None = None) -> Marks:
        lexicon: Lexicon = items.shared
        described: dict[str, Described] = {}
        answered: dict[str, tuple[AmberTruth, str]] = {}
        for key, text in said.items():
            truth: AmberTruth = items.by_id[key].truth
            if truth.kind == GENERATIVE:
                described[key] = describe_marks(lexicon.nouns(text), truth=truth, lexicon=lexicon)
            else:
                answered[key] = (truth, text)
        truths = {key: items.by_id[key].truth for key in described}
        metrics = _generative(described, truths=truths) | _discriminative(list(answered.values()))
        counts = {key: _counts_described(found, truth=truths[key]) for key, found in described.items()}
        counts |= {key: _counts_answered(truth, text) for key, (truth, text) in answered.items()}
        outcomes = {key: float(not found.hallucinated) for key, found in described.items()}
        outcomes |= {key: float(_is_right(truth, text)) for key, (truth, text) in answered.items()}
        notes: list[str] = []
        if described:
            notes += [_NOUNS_NOTE, *([] if lexicon.vectors else [_NO_VECTORS_NOTE])]
        if any(truth.kind == "existence" for truth, _ in answered.values()):
            notes.append(_EXISTENCE_NOTE)
        return Marks(metrics=metrics, outcomes=outcomes, counts=counts, notes=tuple(notes))


def _generative(described: Mapping[str, Described], *, truths: Mapping[str, AmberTruth]) -> dict[str, float]:
    if not described:
        return {}
    num_nouns = sum(found.num_nouns for found in described.values())
    num_objects = sum(len(truth.objects) for truth in truths.values())
    num_often = sum(len(truth.often_hallucinated) for truth in truths.values())
    return {
        "chair": _share(sum(len(found.hallucinated) for found in described.values()), of=num_nouns),
        "cover": _share(sum(len(found.covered) for found in described.values()), of=num_objects),
        "hal": mean([float(bool(found.hallucinated)) for found in described.values()]),
        "cog": _share(sum(len(found.often_hallucinated) for found in described.values()), of=num_often),
    }


def _discriminative(answered: Sequence[tuple[AmberTruth, str]]) -> dict[str, float]:
    """Accuracy, and precision, recall and F1 with no as the positive class; over all, and by dimension."""
    if not answered:
        return {}
    groups: dict[str, list[tuple[AmberTruth, str]]] = {"": list(answered)}
    for truth, text in answered:
        groups.setdefault(f"{truth.kind}_", []).append((truth, text))
        if truth.kind in _ATTRIBUTE:
            groups.setdefault("attribute_", []).append((truth, text))
    metrics: dict[str, float] = {}
    for prefix, rows in groups.items():
        num_said_no = sum(text == "No" for _, text in rows)
        num_no = sum(truth.answer == "no" for truth, _ in rows)
        num_both = sum(truth.answer == "no" and text == "No" for truth, text in rows)
        precision, recall = _share(num_both, of=num_said_no), _share(num_both, of=num_no)
        metrics |= {
            f"{prefix}accuracy": mean([float(_is_right(truth, text)) for truth, text in rows]),
            f"{prefix}precision": precision,
            f"{prefix}recall": recall,
            f"{prefix}f1": _share(2 * precision * recall, of=precision + recall),
        }
    num_other = sum(text not in ("Yes", "No") for _, text in answered)
    return {**metrics, "other_rate": num_other / len(answered)}


def _counts_described(found: Described, *, truth: AmberTruth) -> dict[str, tuple[float, float]]:
    return {
        "chair": (float(len(found.hallucinated)), float(found.num_nouns)),
        "cover": (float(len(found.covered)), float(len(truth.objects))),
        "hal": (float(bool(found.hallucinated)), 1.0),
        "cog": (float(len(found.often_hallucinated)), float(len(truth.often_hallucinated))),
    }


def _counts_answered(truth: AmberTruth, text: str) -> dict[str, tuple[float, float]]:
    said_no, is_no = float(text == "No"), float(truth.answer == "no")
    both = said_no * is_no
    counts = {"other_rate": (float(text not in ("Yes", "No")), 1.0)}
    for prefix in ("", f"{truth.kind}_", *(("attribute_",) if truth.kind in _ATTRIBUTE else ())):
        counts |= {
            f"{prefix}accuracy": (float(_is_right(truth, text)), 1.0),
            f"{prefix}precision": (both, said_no),
            f"{prefix}recall": (both, is_no),
            # The harmonic mean of the two above.
            f"{prefix}f1": (2.0 * both, said_no + is_no),
        }
    return counts


def _is_right(truth: AmberTruth, text: str) -> bool:
    """Exactly Yes or No, capital letter and all: "yes" and "No." are wrong."""
    return text == ("Yes" if truth.answer == "yes" else "No")


def _share(part: float, *, of: float) -> float:
    return part / of if of else 0.0


def _first(names: Sequence[tuple[str, int]], noun: str) -> int | None:
    return next((index for name, index in names if name == noun), None)


def _first_similar(names: Sequence[tuple[str, int]], noun: str, *, lexicon: Lexicon) -> int | None:
    return next((index for name, index in names if lexicon.are_similar(noun, name)), None)


def _singulars(word: str) -> tuple[str, ...]:
    """What a word may be the plural of."""
    if word in _IRREGULAR:
        return (_IRREGULAR[word],)
    if word.endswith("ies"):
        return (word[:-3] + "y", word[:-1])
    if word.endswith(("ses", "xes", "zes", "ches", "shes", "oes")):
        return (word[:-2], word[:-1])
    return (word[:-1],) if word.endswith("s") and not word.endswith("ss") else ()


def _parsed(record: Any) -> tuple[str, AmberTruth]:
    if not isinstance(record, dict):
        raise ValueError("not a record")
    key, kind, truth = id_of(record, keys=("id",)), record.get("type"), record.get("truth")
    if not isinstance(kind, str):
        raise ValueError("no type")
    if kind != GENERATIVE:
        if truth not in ("yes", "no"):
            raise ValueError("truth is neither yes nor no")
        return key, AmberTruth(kind=_DIMENSIONS.get(kind, _RELATION), answer=truth)
    often = record.get("hallu")
    if not isinstance(truth, list) or not isinstance(often, list):
        raise ValueError("no lists truth and hallu")
    return key, AmberTruth(kind=GENERATIVE, objects=tuple(map(str, truth)), often_hallucinated=tuple(map(str, often)))


def _queries(folder: Path) -> dict[str, dict[str, Any]]:
    """The questions by id; none where there is no file of them."""
    places = (folder / "query" / "query_all.json", folder / "query_all.json")
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        return {}
    records = read_json(file, option="--data", expected=list)
    return {str(record["id"]): record for record in records if isinstance(record, dict) and "id" in record}


def _lexicon(folder: Path) -> Lexicon:
    related = read_json(folder / "relation.json", option="--data", expected=dict)
    if not all(isinstance(others, list) for others in related.values()):
        raise ConfigError(
            f"--data {folder / 'relation.json'}: a word without a list of words; put the benchmark's own file there"
        )
    safe = folder / "safe_words.txt"
    words = read_text(safe, option="--data").split("\n") if safe.is_file() else []
    found = Lexicon(
        related={str(name): [str(word) for word in others] for name, others in related.items()},
        safe=frozenset(word for word in words if word),
    )
    if not (folder / _VECTORS).is_file():
        return found
    vectors = _read_vectors(folder / _VECTORS, words=found.words)
    return Lexicon(related=found.related, safe=found.safe, vectors=vectors)


def _read_vectors(path: Path, *, words: frozenset[str]) -> dict[str, np.ndarray]:
    """The vectors of some words, scaled to length 1, out of a text file: a word a line, its numbers behind it.

    Raises:
        ConfigError: a line of one of the words has no numbers, or another number of them than the first.
    """
    found: dict[str, np.ndarray] = {}
    for number, line in enumerate(read_text(path, option="--data").split("\n"), 1):
        word, _, rest = line.partition(" ")
        if word not in words:
            continue
        try:
            vector = np.array(rest.split(), dtype=np.float64)
        except ValueError:
            vector = np.zeros(0)
        if not vector.size or any(vector.shape != other.shape for other in found.values()):
            raise ConfigError(f"--data {path}:{number}: no vector of {word!r}; expected the word and its numbers")
        length = float(np.linalg.norm(vector))
        if length:
            found[word] = vector / length
    return found
