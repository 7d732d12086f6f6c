"""A judge that reads the truth: five attributes of an answer by a rule, where a true description is known.

It stands in for a strong model on the embedded world, whose tiny policy cannot judge. It counts named things and
sentences, and sees no colours and places.
"""

from __future__ import annotations

from collections.abc import Sequence

from csr_ray.judging.attributes import HIGHEST
from csr_ray.world.mentions import mentioned_kinds, split_sentences


def attributes_by_truth(answer: str, *, truth: str, objects: Sequence[str]) -> dict[str, float]:
    """The five attributes, 0 to 4 each.

    Correctness loses two points for each thing that the answer names and the truth does not, helpfulness two for each
    that only the truth names, coherence two for each sentence that repeats one before it; an empty answer helps
    nobody and is not coherent. Complexity counts the named things, verbosity the sentences, up to 4.

    Args:
        objects: names of things in lower case, singular; plurals in -s count.
    """
    named, there = (set(mentioned_kinds(text, kinds=objects)) for text in (answer, truth))
    sentences = split_sentences(answer)
    num_repeated = len(sentences) - len(set(sentences))
    return {
        "helpfulness": _points(len(there - named)) if sentences else 0.0,
        "correctness": _points(len(named - there)),
        "coherence": _points(num_repeated) if sentences else 0.0,
        "complexity": float(min(HIGHEST, len(named))),
        "verbosity": float(min(HIGHEST, len(sentences))),
    }


def _points(num_faults: int) -> float:
    return float(max(0, HIGHEST - 2 * num_faults))
