"""The words of a caption as the published CHAIR scripts see them: split, lower case and in the singular.

Knows English words; does not know objects or files. There are two forms of the script, and each takes its words in
its own way. Neither way is linguistics, and what looks like a slip here is theirs ("canoes" become "cano", a "bus"
becomes "bu"), since a figure can be compared with published ones only if it repeats their slips:

* `original` (LisaAnne/Hallucination): NLTK 3.2.5 splits, pattern 3.6 singularises by the endings of a word.
* `lure` (LURE, SIMA and what came after): a current NLTK splits, WordNet's morphology finds the noun.

Both are written down here as rules, so that neither package nor their data have to be installed. Only words that can
become one of a synonym file matter, and for these the rules were held to the packages (docs/decisions.md).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from functools import lru_cache
from typing import Literal

Form = Literal["original", "lure"]
FORMS: tuple[Form, ...] = ("original", "lure")

_CLITICS = r"(?<=[^'\s])(?:'(?:s|m|d|ll|re|ve)?|n't)(?=\s|$)"
_SPLIT = {
    "original": r"\.{3}|--|''|``|[;@#$%&?!()\[\]{}<>\"«»“”‘’]",
    "lure": r"\.{2,}|--|''|`+|[;@#$%&?!()\[\]{}<>\"«»“”‘’„*\u2012-\u2015]",
}
"""What stands for itself wherever it is found."""

_PERIOD = re.compile(r"(?<=[^.\s])\.(?=[)\";}\]*:@'({\[!?]|\s|[\]\)}>\"'»”’ ]*$)")
"""A period that ends a sentence. (One behind an abbreviation stays with it, but no abbreviation is an object.)"""

_COMMA = re.compile(r"[:,](?=\D|$)")
_MARKS = {form: re.compile(marks) for form, marks in _SPLIT.items()}
_ENDS = re.compile(_CLITICS)
_OPENING = re.compile(r"(?<!\w)'(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)")


def words_of(caption: str, *, form: Form, nouns: Collection[str]) -> list[tuple[str, str]]:
    """Split a caption into its words, each as (lower case and singular, lower case as it stands there).

    Marks of punctuation are words of their own.

    Args:
        nouns: words that are nouns in the singular: those of the synonym file.
    """
    text = _PERIOD.sub(" . ", caption.lower())
    if form == "lure":
        text = _OPENING.sub("' ", text)
    text = _COMMA.sub(r" \g<0> ", text)
    text = _MARKS[form].sub(r" \g<0> ", text)
    text = _ENDS.sub(r" \g<0> ", text)
    if form == "original":
        return [(by_endings(word), word) for word in text.split()]
    return [(by_morphology(word, nouns=nouns), word) for word in text.split()]


# --- original: by endings ------------------------------------------------------------------------------------------

_PLURAL_ONLY = [
    "breeches",
    "britches",
    "chassis",
    "christmas",
    "clippers",
    "contretemps",
    "corps",
    "debris",
    "diabetes",
    "gallows",
    "happiness",
    "headquarters",
    "herpes",
    "high-jinks",
    "innings",
    "jackanapes",
    "mathematics",
    "measles",
    "mews",
    "mumps",
    "news",
    "pincers",
    "pliers",
    "proceedings",
    "progress",
    "rabies",
    "scissors",
    "series",
    "shears",
    "species",
    "swiss",
]
"""These, and every end of one of these ("ears" is the end of "shears"), are left as they are."""

_IE = [
    "alergie",
    "auntie",
    "beanie",
    "birdie",
    "bogie",
    "bombie",
    "collie",
    "cookie",
    "cutie",
    "doggie",
    "eyrie",
    "freebie",
    "goonie",
    "groupie",
    "hankie",
    "hippie",
    "hoagie",
    "hottie",
    "indie",
    "junkie",
    "laddie",
    "laramie",
    "lingerie",
    "meanie",
    "newbie",
    "nightie",
    "oldie",
    "pixie",
    "quickie",
    "reverie",
    "rookie",
    "softie",
    "sortie",
    "stoolie",
    "sweetie",
    "techie",
    "toughie",
    "valkyrie",
    "veggie",
    "weenie",
    "yuppie",
    "zombie",
]
"""The plural of a word that ends like these is left as it is: "collies"."""

_IRREGULAR_ENDINGS = {
    "atlantes": "atlas",
    "atlases": "atlas",
    "axes": "axe",
    "beeves": "beef",
    "brethren": "brother",
    "children": "child",
    "corpora": "corpus",
    "corpuses": "corpus",
    "ephemerides": "ephemeris",
    "feet": "foot",
    "ganglia": "ganglion",
    "geese": "goose",
    "genera": "genus",
    "genii": "genie",
    "helves": "helve",
    "kine": "cow",
    "leaves": "leaf",
    "loaves": "loaf",
    "men": "man",
    "mongooses": "mongoose",
    "monies": "money",
    "moves": "move",
    "mythoi": "mythos",
    "numena": "numen",
    "occipita": "occiput",
    "octopodes": "octopus",
    "opera": "opus",
    "opuses": "opus",
    "our": "my",
    "oxen": "ox",
    "penes": "penis",
    "penises": "penis",
    "people": "person",
    "sexes": "sex",
    "soliloquies": "soliloquy",
    "teeth": "tooth",
    "testes": "testis",
    "trilbys": "trilby",
    "turves": "turf",
    "zoa": "zoon",
}
_ENDINGS: tuple[tuple[str, int, str], ...] = (
    # (ending, letters that go, letters that come); the first that fits is taken
    ("ae", 1, ""),
    ("itis", 0, ""),
    ("eaux", 1, ""),
    ("quizzes", 3, ""),
    ("matrices", 3, "x"),
    ("apices", 4, "ex"),
    ("vertices", 4, "ex"),
    ("indices", 4, "ex"),
    ("aliases", 2, ""),
    ("statuses", 2, ""),
    *((f"{letter}i", 1, "us") for letter in "octpvir|"),
    ("crises", 2, "is"),
    ("axes", 2, "is"),
    ("testes", 2, "is"),
    ("shoes", 1, ""),
    ("oes", 2, ""),
    ("buses", 2, ""),
    ("mice", 3, "ouse"),
    ("lice", 3, "ouse"),
    ("xes", 2, ""),
    ("ches", 2, ""),
    ("sses", 2, ""),
    ("shes", 2, ""),
    ("movies", 1, ""),
    ("ombies", 1, ""),
    ("series", 0, ""),
    ("quies", 3, "y"),
    *((f"{letter}ies", 3, "y") for letter in "bcdfghjklmnpqrstvwxz'-.0123456789"),
    *((f"{letter}lves", 3, "f") for letter in "aeo"),
    *((f"{letter}eaves", 3, "f") for letter in "abcefghijklmnopqrstuvwxyz"),
    ("arves", 3, "f"),
    ("erves", 1, ""),
    *((f"{letter}ives", 3, "fe") for letter in "nlw"),
    ("lves", 3, "f"),
    ("rves", 3, "f"),
    *((f"{letter}ves", 1, "") for letter in "aeo"),
    *((f"{start}ives", 1, "") for start in "sth"),
    *((f"{letter}ves", 3, "fe") for letter in "bcdghijklmnpqrstuvwxyz"),
    *((f"{start}ses", 2, "is") for start in ("naly", "ba", "diagno", "parenthe", "progno", "synop", "the")),
    ("opses", 2, "is"),
    ("yses", 2, "is"),
    *((f"{start}oses", 1, "") for start in ("h", "d", "r", "o", "n", "b", "cl", "p")),
    *(
        (f"{start}ose", 0, "")
        for start in ["fruct", "gluc", "galact", "lact", "ket", "malt", "rib", "sacchar", "cellul"]
    ),
    ("oses", 2, "is"),
    ("ta", 1, "um"),
    ("ia", 1, "um"),
    ("news", 0, ""),
    ("s", 1, ""),
)


@lru_cache(maxsize=100_000)
def by_endings(word: str) -> str:
    """The singular of a lower-case word by its endings alone, as the `original` form takes it.

    Example:
        >>> [by_endings(word) for word in ("women", "knives", "bus", "canoes", "collies")]
        ['woman', 'knife', 'bu', 'cano', 'collies']
    """
    if any(name.endswith(word) for name in _PLURAL_ONLY) or word.endswith(tuple(f"{name}s" for name in _IE)):
        return word
    for ending, singular in _IRREGULAR_ENDINGS.items():
        if word.endswith(ending):
            return word.removesuffix(ending) + singular
    if word.startswith("oxen"):
        return "ox" + word.removeprefix("oxen")
    for ending, num_gone, coming in _ENDINGS:
        if word.endswith(ending):
            return word[: len(word) - num_gone] + coming
    return word


# --- lure: by morphology -------------------------------------------------------------------------------------------

_DETACHED = (
    ("s", ""),
    ("ses", "s"),
    ("ves", "f"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
)
_IRREGULAR_NOUNS = {
    "brethren": "brother",
    "buffaloes": "buffalo",
    "busses": "bus",
    "calves": "calf",
    "children": "child",
    "feet": "foot",
    "flamingoes": "flamingo",
    "geese": "goose",
    "grandchildren": "grandchild",
    "knives": "knife",
    "men": "man",
    "mice": "mouse",
    "oxen": "ox",
    "pocketknives": "pocketknife",
    "taxies": "taxi",
    "teeth": "tooth",
    "thieves": "thief",
    "wives": "wife",
}
_OTHER_NOUNS = frozenset(("businessmen", "men", "shear", "sport", "teeth", "vas"))
"""Nouns that no synonym file names and that are taken before one that does: "vases" are two of "vas"."""

_NOT_IN_WORDNET = frozenset(
    [
        "biker",
        "bluejay",
        "brindle",
        "children",
        "coworker",
        "firetruck",
        "glas",
        "hairdrier",
        "hairdryer",
        "hot",
        "indoor",
        "iphone",
        "jumbo",
        "knive",
        "lenovo",
        "longboard",
        "macbook",
        "netbook",
        "of",
        "paddleboat",
        "pitbull",
        "polar",
        "potted",
        "riverboat",
        "sailboard",
        "scissor",
        "shortboard",
        "skimboard",
        "skis",
        "smartphone",
        "solider",
        "sports",
        "stovetop",
        "stuffed",
        "teddybear",
        "televison",
    ]
)
"""Words of synonym files that WordNet 3.0 has not as nouns: one in the plural stays so, and is then no object."""


def by_morphology(word: str, *, nouns: Collection[str]) -> str:
    """The shortest noun that a lower-case word can be a form of, as the `lure` form takes it; else the word."""
    irregular = _IRREGULAR_NOUNS.get(word)
    forms = [irregular] if irregular else list(_without_endings(word))
    found = [noun for noun in (word, *forms) if _is_noun(noun, nouns=nouns)]
    return min(found, key=len) if found else word


def _without_endings(word: str) -> Iterator[str]:
    for ending, coming in _DETACHED:
        if word.endswith(ending):
            yield word.removesuffix(ending) + coming


def _is_noun(word: str, *, nouns: Collection[str]) -> bool:
    return word in _OTHER_NOUNS or (word in nouns and word not in _NOT_IN_WORDNET)
