"""From what a benchmark says of each answer to its figures: every metric is a quotient of two sums over answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from csr_ray.records import Mark


def quotients(marks: Iterable[Mark], *, names: Sequence[str] = ()) -> dict[str, float]:
    """The figures of some marks, by metric in the order of their first mention; 0.0 with nothing below the line.

    Args:
        names: metrics that are given in any case, first and in this order.
    """
    above = dict.fromkeys(names, 0.0)
    below = dict.fromkeys(names, 0.0)
    for mark in marks:
        for name, (numerator, denominator) in mark.counts.items():
            above[name] = above.get(name, 0.0) + numerator
            below[name] = below.get(name, 0.0) + denominator
    return {name: share(above[name], of=below[name]) for name in above}


def share(part: float, *, of: float) -> float:
    """A quotient, 0.0 where there is nothing below the line."""
    return part / of if of else 0.0
