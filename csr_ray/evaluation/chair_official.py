"""CHAIR as the published scripts count it, by their synonym file, so that a figure can stand beside published ones.

Knows captions and the lines of a synonym file; does not know images or annotations (`chair_truth` does). The file is
not part of this package: it is `data/synonyms.txt` of LisaAnne/Hallucination, a line a class, the class first, the
names apart by a comma and a space.

There are two forms, and a figure of one must not be compared with a figure of the other:

* `original` (LisaAnne/Hallucination, utils/chair.py): every mention of an absent object counts.
* `lure` (LURE, and SIMA's tool/chair.py): a word that names an absent object counts once a caption, while all
  mentions stand below the line, so its chair_i is lower. Its words are taken in another way, too (`chair_words`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from types import MappingProxyType

from csr_ray.errors import ConfigError
from csr_ray.evaluation.chair_words import Form, words_of
from csr_ray.records import Mark

_ANIMALS = ["bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub"]
_PAIRS: Mapping[str, str] = MappingProxyType(
    {
        **{
            pair: pair
            for pair in [
                "motor bike",
                "motor cycle",
                "air plane",
                "traffic light",
                "street light",
                "traffic signal",
                "stop light",
                "fire hydrant",
                "stop sign",
                "parking meter",
                "suit case",
                "sports ball",
                "baseball bat",
                "baseball glove",
                "tennis racket",
                "wine glass",
                "hot dog",
                "cell phone",
                "mobile phone",
                "teddy bear",
                "hair drier",
                "potted plant",
                "laptop computer",
                "home plate",
                "train track",
            ]
        },
        **{f"{age} {animal}": animal for age in ("baby", "adult") for animal in _ANIMALS},
        **{f"passenger {vehicle}": vehicle for vehicle in ("jet", "train")},
        "bow tie": "tie",
        "toilet seat": "toilet",
        "wine glas": "wine glass",
    }
)
"""Two words that are read as one name, and as which. A pair that is in no line of the synonym file ("home plate",
"train track") is then no object, although a word of it is. Longer names of the file are never found in a caption."""


@dataclass(frozen=True)
class OfficialChair:
    """One form of the metric with one synonym file.

    Attributes:
        canonical: the class of every name of the file; of a name in several lines the last.
    """

    canonical: Mapping[str, str]
    form: Form
    nouns: frozenset[str]

    def mentions(self, caption: str) -> list[tuple[str, str]]:
        """Every mention of an object in order, as (the name as it stands in the file, its class)."""
        return [mention for mention, _ in self._found(caption)]

    def objects(self, caption: str) -> set[str]:
        """The classes that a caption names."""
        return {kind for _, kind in self.mentions(caption)}

    def hallucinated(self, caption: str, *, present: Set[str]) -> list[tuple[str, str]]:
        """The mentions of objects that are not in the image, as this form counts them."""
        return self._counted([mention for mention in self.mentions(caption) if mention[1] not in present])

    def marks(self, answers: Mapping[str, str], *, truth: Mapping[str, Sequence[str]]) -> dict[str, Mark]:
        """The mark of each caption, by id: chair_s, chair_i, and recall, which the published scripts lack.

        recall is objects of the images that their captions name / objects of the images.

        Args:
            truth: the classes in each image, by the same ids.
        """
        return {key: self._mark(caption, present=truth[key]) for key, caption in answers.items()}

    def _mark(self, caption: str, *, present: Sequence[str]) -> Mark:
        objects = set(present)
        found = self._found(caption)
        kinds = [kind for (_, kind), _ in found]
        wrong = self._counted([mention for mention, _ in found if mention[1] not in objects])
        return Mark(
            counts={
                "chair_s": (float(bool(wrong)), 1.0),
                "chair_i": (float(len(wrong)), float(len(kinds))),
                "recall": (float(len(objects & set(kinds))), float(len(objects))),
            },
            absent=tuple(dict.fromkeys(standing for (_, kind), standing in found if kind not in objects)),
            missed=tuple(kind for kind in present if kind not in kinds),
        )

    def _found(self, caption: str) -> list[tuple[tuple[str, str], str]]:
        """Every mention in order, each with the words that stand there, lower-case and with one space between."""
        names = _names(words_of(caption, form=self.form, nouns=self.nouns))
        if any(name == "toilet" for name, _ in names):
            names = [found for found in names if found[0] != "seat"]  # "the seat of the toilet" is no chair
        return [((name, self.canonical[name]), standing) for name, standing in names if name in self.canonical]

    def _counted(self, wrong: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        return list(wrong) if self.form == "original" else list(dict.fromkeys(wrong))


def _names(words: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Words, or two where these are one name, as (the name, the words that stand there)."""
    names: list[tuple[str, str]] = []
    position = 0
    while position < len(words):
        two = words[position : position + 2]
        pair = " ".join(singular for singular, _ in two)
        if pair in _PAIRS:
            names.append((_PAIRS[pair], " ".join(standing for _, standing in two)))
        else:
            names.append(words[position])
        position += 2 if pair in _PAIRS else 1
    return names


def official_chair(synonyms: str, *, form: Form, key: str) -> OfficialChair:
    """Build the metric from the text of a synonym file.

    The text is read as the published scripts read it: a name with a second space before it keeps that space and is
    then never found in a caption. ("motor bike" in the published file.)

    Args:
        key: how the user named the file, for what is said of it.

    Raises:
        ConfigError: the text is no synonym file.
    """
    rows = [line.strip().split(", ") for line in synonyms.splitlines() if line.strip()]
    if not any(len(row) > 1 for row in rows):
        raise ConfigError(
            f"{key}: no synonym file: no line has two names apart by a comma and a space; take data/synonyms.txt of "
            "LisaAnne/Hallucination"
        )
    canonical = {name: row[0] for row in rows for name in row}
    nouns = frozenset(word for name in (*canonical, *_PAIRS) for word in name.split())
    return OfficialChair(canonical=MappingProxyType(canonical), form=form, nouns=nouns)
