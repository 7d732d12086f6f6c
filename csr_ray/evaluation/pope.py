"""POPE: does the policy say yes to objects that are not there? (Li et al. 2023, arXiv 2305.10355)

Knows answers and labels as text; does not know files or images.
"""

from __future__ import annotations

from collections.abc import Sequence

from csr_ray.evaluation.marks import quotients
from csr_ray.records import Mark

LABELS = ("yes", "no")
METRICS = ("accuracy", "precision", "recall", "f1", "yes_ratio")


def parse_yes_no(text: str) -> bool:
    """Return True for yes, by POPE's own rule to the letter.

    First sentence (up to the first period), commas dropped, split on single spaces: no if one of the words is `No`,
    `not` or `no`, else yes. So an empty or odd answer counts as yes, and so does "NO" or "No!".

    Example:
        >>> parse_yes_no("No, there is no dog. Yes."), parse_yes_no("I cannot tell"), parse_yes_no("")
        (False, True, True)
    """
    words = text.split(".", 1)[0].replace(",", "").split(" ")
    return not any(word in ("No", "not", "no") for word in words)


def pope_metrics(answers: Sequence[str], *, labels: Sequence[str]) -> dict[str, float]:
    """Return accuracy, precision, recall, f1 (yes is the positive class) and yes_ratio, as fractions of 1.

    A quotient with nothing below the line is 0.0.

    Args:
        labels: "yes" or "no", one an answer, in the same order.

    Raises:
        ValueError: another label, or another number of labels than answers.
    """
    return quotients(mark_answers(answers, labels=labels), names=METRICS)


def mark_answers(answers: Sequence[str], *, labels: Sequence[str]) -> list[Mark]:
    """The mark of each answer, of which `pope_metrics` makes its figures; takes and raises what that does."""
    if len(answers) != len(labels):
        raise ValueError(f"{len(answers)} answers but {len(labels)} labels")
    unknown = sorted(set(labels) - set(LABELS))
    if unknown:
        raise ValueError(f"label {unknown[0]!r}: POPE's labels are yes and no")
    return [_mark(parse_yes_no(answer), label == "yes") for answer, label in zip(answers, labels, strict=True)]


def _mark(said: bool, true: bool) -> Mark:
    both = float(said and true)
    counts = {
        "accuracy": (float(said == true), 1.0),
        "precision": (both, float(said)),
        "recall": (both, float(true)),
        # The harmonic mean of the two above is twice the right yeses over all yeses said and all that are true.
        "f1": (2.0 * both, float(said) + float(true)),
        "yes_ratio": (float(said), 1.0),
    }
    return Mark(counts=counts)
