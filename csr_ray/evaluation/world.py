"""How far a description of an embedded-world image can be trusted, and what it leaves out.

Knows texts and the objects of an image; knows nothing of images, files or models. The formulas are CHAIR's (Rohrbach
et al. 2018, arXiv 1809.02156) over the world's ten kinds, with recall and repetition beside them: a policy that says
less, or says the same thing again, must not look better for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from csr_ray.world.mentions import mentioned_kinds, split_sentences


def describe_metrics(
    answers: Mapping[str, str], *, truth: Mapping[str, Sequence[Mapping[str, str]]]
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
        answers: one description an image id.
        truth: the objects of each image id; `kind` of each is read. More ids than answers are allowed.

    Raises:
        ValueError: an answer's id is not in the truth, or an object has no `kind`.
    """
    num_hallucinating = num_repeating = num_mentions = num_hallucinated = num_present = num_named = num_sentences = 0
    for key, text in answers.items():
        present = _present_kinds(truth, key=key)
        mentions = mentioned_kinds(text)
        hallucinated = [kind for kind in mentions if kind not in present]
        num_mentions += len(mentions)
        num_hallucinated += len(hallucinated)
        num_hallucinating += bool(hallucinated)
        num_present += len(present)
        num_named += len(present.keys() & set(mentions))
        sentences = [sentence.lower() for sentence in split_sentences(text)]
        num_sentences += len(sentences)
        too_often = any(count > max(1, present[kind]) for kind, count in Counter(mentions).items())
        num_repeating += too_often or len(set(sentences)) < len(sentences)
    return {
        "chair_s": _share(num_hallucinating, of=len(answers)),
        "chair_i": _share(num_hallucinated, of=num_mentions),
        "recall": _share(num_named, of=num_present),
        "repeat": _share(num_repeating, of=len(answers)),
        "sentences": _share(num_sentences, of=len(answers)),
    }


def _present_kinds(truth: Mapping[str, Sequence[Mapping[str, str]]], *, key: str) -> Counter[str]:
    if key not in truth:
        raise ValueError(f"answer {key!r} has no truth: the two files belong to different images")
    kinds: Counter[str] = Counter()
    for item in truth[key]:
        if "kind" not in item:
            raise ValueError(f"truth of {key!r}: object {dict(item)!r} has no 'kind'")
        kinds[item["kind"]] += 1
    return kinds


def _share(part: int, *, of: int) -> float:
    return part / of if of else 0.0
