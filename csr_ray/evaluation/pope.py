"""POPE: does the policy say yes to objects that are not there? (Li et al. 2023, arXiv 2305.10355)

Knows answers and labels as text; does not know files or images.
"""

from __future__ import annotations

from collections.abc import Sequence

LABELS = ("yes", "no")


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
    if len(answers) != len(labels):
        raise ValueError(f"{len(answers)} answers but {len(labels)} labels")
    unknown = sorted(set(labels) - set(LABELS))
    if unknown:
        raise ValueError(f"label {unknown[0]!r}: POPE's labels are yes and no")
    said = [parse_yes_no(answer) for answer in answers]
    true = [label == "yes" for label in labels]
    num_said_yes, num_true_yes = sum(said), sum(true)
    num_both_yes = sum(a and b for a, b in zip(said, true, strict=True))
    num_right = sum(a == b for a, b in zip(said, true, strict=True))
    precision = _quotient(num_both_yes, by=num_said_yes)
    recall = _quotient(num_both_yes, by=num_true_yes)
    return {
        "accuracy": _quotient(num_right, by=len(answers)),
        "precision": precision,
        "recall": recall,
        "f1": _quotient(2 * precision * recall, by=precision + recall),
        "yes_ratio": _quotient(num_said_yes, by=len(answers)),
    }


def _quotient(number: float, *, by: float) -> float:
    return number / by if by else 0.0
