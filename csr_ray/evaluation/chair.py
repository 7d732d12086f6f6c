"""CHAIR: which objects does a description name that are not in the image? (Rohrbach et al. 2018, arXiv 1809.02156)

Knows texts and object names; does not know files or images. The formula is the original one: in chair_i every
MENTION counts, in the numerator and in the denominator. (Some later scripts count a hallucinated word once for each
caption in the numerator but every mention in the denominator, which gives a lower chair_i.)

This is the package's own table, for people without the published files; with them `chair_official` counts as the
published scripts do. Where the own table differs from these, so that its figures stand beside no published one:

* The synonym table is this project's own (`coco_objects.json`), and other words are in it.
* Plurals are formed from the table's names and looked up; the tool singularises each word of the text with an NLP
  library, which also changes words that only look like plurals.
* Names of several words are found in the text, the longest first and never across punctuation ("It is hot. Dogs bark"
  holds no hot dog); names that contain an object's word but mean something else ("train tracks") are swallowed.
* The truth is the list the caller gives; the tool unites segmentation labels with the objects of five human captions.
* recall is over all (image, object) pairs together; the tool as first published has none.

As with the tool, a colour or verb that is spelled like an object ("an orange wall") counts as the object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType

from csr_ray.evaluation.marks import quotients
from csr_ray.records import Mark

CHAIR_METRICS = ("chair_s", "chair_i", "recall")
NO_OBJECT = ""
"""What a swallowed name stands for."""

_IRREGULAR_PLURALS = {
    "person": "persons",
    "man": "men",
    "woman": "women",
    "child": "children",
    "mouse": "mice",
    "goose": "geese",
    "sheep": "sheep",
    "knife": "knives",
    "calf": "calves",
    "wolf": "wolves",
    "ox": "oxen",
    "scarf": "scarves",
    "shelf": "shelves",
    "leaf": "leaves",
    "aircraft": "aircraft",
}
_TOKEN = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class ObjectNames:
    """What each name means: surface form, as a tuple of lower-case words, to the object's canonical name."""

    meaning: Mapping[tuple[str, ...], str]
    longest: int

    def mentions(self, text: str) -> list[str]:
        """Every mention of an object, as canonical names in order of appearance, repeats kept."""
        return [canonical for canonical, _ in self.found(text)]

    def found(self, text: str) -> list[tuple[str, str]]:
        """Every mention as (canonical name, the words that stand there), in order of appearance, repeats kept.

        Words stand there in lower case, with the hyphen that is between them, or one space.
        """
        found: list[tuple[str, str]] = []
        for part in _parts(text):
            spans = list(_TOKEN.finditer(part))
            words = [span[0] for span in spans]
            position = 0
            while position < len(words):
                length, canonical = self._mention_at(words, position=position)
                if canonical != NO_OBJECT:
                    standing = part[spans[position].start() : spans[position + length - 1].end()]
                    found.append((canonical, " ".join(standing.split())))
                position += length
        return found

    def canonical(self, name: str) -> str | None:
        """The canonical name of an object called `name`, None if the table does not have it."""
        phrases = _phrases(name)
        return self.meaning.get(tuple(phrases[0])) or None if len(phrases) == 1 else None

    def _mention_at(self, words: Sequence[str], *, position: int) -> tuple[int, str]:
        """The longest name that begins here, as (its number of words, its canonical name); one of no object else."""
        for length in range(min(self.longest, len(words) - position), 0, -1):
            canonical = self.meaning.get(tuple(words[position : position + length]))
            if canonical is not None:
                return length, canonical
        return 1, NO_OBJECT


def object_names(synonyms: Mapping[str, Sequence[str]], *, not_objects: Iterable[str] = ()) -> ObjectNames:
    """Build the table of surface forms, plurals included, from {canonical: [synonyms]}.

    Args:
        not_objects: names to swallow although a word of theirs is an object's ("train track", "hot dog stand").

    Raises:
        ValueError: one name stands for two objects, or is empty.
    """
    meaning: dict[tuple[str, ...], str] = {}
    for canonical, others in synonyms.items():
        for name in (canonical, *others):
            for form in _forms(name):
                if meaning.setdefault(form, canonical) != canonical:
                    raise ValueError(f"object name {name!r} stands for {meaning[form]!r} and for {canonical!r}")
    for name in not_objects:
        for form in _forms(name):
            meaning.setdefault(form, NO_OBJECT)
    return _names(meaning)


@cache
def coco_synonyms() -> tuple[Mapping[str, tuple[str, ...]], tuple[str, ...]]:
    """The 80 COCO classes with their synonyms, and the names to swallow, as this package ships them."""
    table = json.loads(resources.files("csr_ray.evaluation").joinpath("coco_objects.json").read_text("utf-8"))
    synonyms = {canonical: tuple(others) for canonical, others in table["objects"].items()}
    return MappingProxyType(synonyms), tuple(table["not_objects"])


def names_for(truth: Iterable[Iterable[str]]) -> ObjectNames:
    """The COCO table, widened by every name of `truth` that it lacks (each in the singular; it stands for itself).

    Raises:
        ValueError: a name has punctuation in it or no letter.
    """
    synonyms, not_objects = coco_synonyms()
    table = object_names(synonyms, not_objects=not_objects)
    lacking = {name for names in truth for name in names if table.canonical(name) is None}
    meaning = {form: canonical for form, canonical in table.meaning.items() if canonical != NO_OBJECT}
    # Shortest first, so that "stars" beside "star" is its plural and not a second object.
    for name in sorted(lacking, key=lambda name: (len(name), name)):
        for form in _forms(name):
            meaning.setdefault(form, name.lower())
    return _names({**dict.fromkeys(table.meaning, NO_OBJECT), **meaning})


def chair_metrics(
    answers: Sequence[str], *, truth: Sequence[Sequence[str]], names: ObjectNames | None = None
) -> dict[str, float]:
    """Return chair_s, chair_i and recall, as fractions of 1. A quotient with nothing below the line is 0.0.

    chair_s = answers with at least one hallucinated object / answers (an empty answer is an answer);
    chair_i = mentions of objects that are not in the image / mentions of objects;
    recall = objects of the images that their answers name / objects of the images.

    Args:
        truth: the objects of each answer's image, by any of their names.
        names: the objects that are looked for; None: `names_for(truth)`.

    Raises:
        ValueError: another number of truths than answers, or a truth that `names` does not have.
    """
    return quotients(mark_captions(answers, truth=truth, names=names), names=CHAIR_METRICS)


def mark_captions(
    answers: Sequence[str], *, truth: Sequence[Sequence[str]], names: ObjectNames | None = None
) -> list[Mark]:
    """The mark of each answer, of which `chair_metrics` makes its figures; takes and raises what that does."""
    if len(answers) != len(truth):
        raise ValueError(f"{len(answers)} answers but {len(truth)} truths")
    names = names_for(truth) if names is None else names
    marks = []
    for answer, objects in zip(answers, truth, strict=True):
        present = {_canonical(name, names=names): None for name in objects}
        found = names.found(answer)
        mentioned = [canonical for canonical, _ in found]
        marks.append(
            Mark(
                counts=chair_counts(mentioned, present=present.keys()),
                absent=tuple(dict.fromkeys(surface for canonical, surface in found if canonical not in present)),
                missed=tuple(canonical for canonical in present if canonical not in mentioned),
            )
        )
    return marks


def chair_counts(mentioned: Sequence[str], *, present: Set[str]) -> dict[str, tuple[float, float]]:
    """What one answer adds above and below the line of each of `CHAIR_METRICS`.

    Args:
        mentioned: the objects that it mentions, repeats kept.
        present: the objects of its image.
    """
    num_hallucinated = sum(mention not in present for mention in mentioned)
    return {
        "chair_s": (float(num_hallucinated > 0), 1.0),
        "chair_i": (float(num_hallucinated), float(len(mentioned))),
        "recall": (float(len(present & set(mentioned))), float(len(present))),
    }


def _canonical(name: str, *, names: ObjectNames) -> str:
    canonical = names.canonical(name)
    if canonical is None:
        raise ValueError(f"object {name!r} is not in the synonym table; add it there")
    return canonical


def is_object_name(name: str) -> bool:
    """Whether a name can be looked for: words without punctuation."""
    return len(_phrases(name)) == 1


def _names(meaning: dict[tuple[str, ...], str]) -> ObjectNames:
    return ObjectNames(meaning=MappingProxyType(meaning), longest=max(map(len, meaning), default=0))


def _phrases(text: str) -> list[list[str]]:
    """The words of each of a text's parts that has any."""
    return [words for part in _parts(text) if (words := _TOKEN.findall(part))]


def _parts(text: str) -> list[str]:
    """What is between punctuation, lower-case; a hyphen or underscore joins the words of one part, 's is dropped."""
    text = re.sub(r"['\u2019]s\b", "", text.lower())
    return re.split(r"[^\w \t-]+|(?<!\w)-+|-+(?!\w)", text)


def _forms(name: str) -> set[tuple[str, ...]]:
    """A name's words, and the same with the last word in its plural."""
    phrases = _phrases(name)
    if len(phrases) != 1:
        raise ValueError(f"object name {name!r}: expected words without punctuation")
    *first, last = phrases[0]
    return {(*first, form) for form in (last, *_plurals(last))}


def _plurals(word: str) -> tuple[str, ...]:
    for singular, plural in _IRREGULAR_PLURALS.items():
        # policeman, sportswoman, grandchild, but not "human" nor "german"
        if word == singular or (word.endswith(singular) and singular in ("woman", "child")):
            return (word.removesuffix(singular) + plural,)
    if word.endswith("man") and word not in ("human", "german", "roman"):
        return (word[:-2] + "en",)
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return (word + "es",)
    if word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        return (word[:-1] + "ies",)
    if word.endswith("o"):
        return (word + "s", word + "es")
    return (word + "s",)
