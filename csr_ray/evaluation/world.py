"""How far a description of an embedded-world image can be trusted, and what it leaves out.

Knows texts and the objects of an image; knows nothing of images, files or models. Hallucination and recall are
counted by `csr_ray/evaluation/chair.py` over the world's kinds. Repetition and length are measured beside them,
because a policy that says less, or says the same thing again, must not look better for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from csr_ray.evaluation.chair import CHAIR_METRICS, chair_counts
from csr_ray.evaluation.marks import quotients
from csr_ray.records import Mark
from csr_ray.world.mentions import mentioned_kinds, split_sentences
from csr_ray.world.vocabulary import KINDS

METRICS = (*CHAIR_METRICS, "repeat", "sentences")


def describe_metrics(
    answers: Mapping[str, str], *, truth: Mapping[str, Sequence[Mapping[str, str]]], kinds: Sequence[str] = KINDS
) -> dict[str, float]:
    """Return chair_s, chair_i, recall and repeat (fractions of 1) and sentences (a mean count).

    chair_s = answers that name a kind that is not in the image / answers (an empty answer is an answer);
    chair_i = mentions of kinds that are not in the image / mentions of kinds;
    recall = (image, kind) pairs that are named / (image, kind) pairs that exist;
    repeat = answers that name a kind more often than the image holds it (an absent one: more than once), or that say
    the same sentence twice / answers;
    sentences = sentences / answers.
    A quotient with nothing below the line is 0.0. Colours and places are not looked at.

    Args:
        answers: one description for each image id.
        truth: the objects in the image of each id, of which `kind` is read. It may have more ids than `answers`.
        kinds: the words that are looked for, in lower case; by default the kinds of the demo's world.

    Raises:
        ValueError: an answer's id is not in the truth, or an object has no `kind`.
    """
    return quotients(mark_descriptions(answers, truth=truth, kinds=kinds).values(), names=METRICS)


def mark_descriptions(
    answers: Mapping[str, str], *, truth: Mapping[str, Sequence[Mapping[str, str]]], kinds: Sequence[str] = KINDS
) -> dict[str, Mark]:
    """The mark of each answer by its id, of which `describe_metrics` makes its figures; it raises the same."""
    return {key: _mark(text, present=_present_kinds(truth, key=key), kinds=kinds) for key, text in answers.items()}


@dataclass(frozen=True)
class WorldMarking:
    """`mark_descriptions` for the kinds of one world. Two of the same kinds are equal, so suites can be compared."""

    kinds: tuple[str, ...]

    def __call__(
        self, answers: Mapping[str, str], *, truth: Mapping[str, Sequence[Mapping[str, str]]]
    ) -> dict[str, Mark]:
        return mark_descriptions(answers, truth=truth, kinds=self.kinds)


def _mark(text: str, *, present: Counter[str], kinds: Sequence[str]) -> Mark:
    mentioned = mentioned_kinds(text, kinds=kinds)
    sentences = [sentence.lower() for sentence in split_sentences(text)]
    too_often = any(count > max(1, present[kind]) for kind, count in Counter(mentioned).items())
    is_repeating = too_often or len(set(sentences)) < len(sentences)
    counts = {
        **chair_counts(mentioned, present=present.keys()),
        "repeat": (float(is_repeating), 1.0),
        "sentences": (float(len(sentences)), 1.0),
    }
    absent = tuple(dict.fromkeys(kind for kind in mentioned if kind not in present))
    return Mark(counts=counts, absent=absent, missed=tuple(kind for kind in present if kind not in mentioned))


def _present_kinds(truth: Mapping[str, Sequence[Mapping[str, str]]], *, key: str) -> Counter[str]:
    if key not in truth:
        raise ValueError(f"answer {key!r} has no truth: the two files belong to different images")
    kinds: Counter[str] = Counter()
    for item in truth[key]:
        if "kind" not in item:
            raise ValueError(f"truth of {key!r}: object {dict(item)!r} has no 'kind'")
        kinds[item["kind"]] += 1
    return kinds
