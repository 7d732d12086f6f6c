"""How sure the figures of an evaluation are, and what changed between two evaluations of the same questions.

Works on answers with their marks; knows nothing of benchmarks, files or runs. Images are what is drawn again: the
questions about one image are not independent of each other.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from csr_ray.evaluation.statistics import Difference, Interval, Ratio, difference, interval, mcnemar
from csr_ray.records import JsonDict, MarkedAnswer


@dataclass(frozen=True, kw_only=True)
class Change:
    """How one figure changed on the questions that both sides answered.

    Attributes:
        before, after: the figure on these questions, each with its interval.
        difference: after minus before, with its 95 % interval by a paired bootstrap over images. Its `p` is that of
            `test`.
        test: "mcnemar" (exact) where each image is once true or false, else "paired bootstrap".
        only_before, only_after: answers of which the figure counts one side only; None if it is no share of answers.
        num_images: what the intervals and the test rest on.
        is_share: whether the figure lies in 0..1.
    """

    before: Interval
    after: Interval
    difference: Difference
    test: str
    only_before: int | None
    only_after: int | None
    num_images: int
    is_share: bool

    def to_plain(self) -> JsonDict:
        """What the journal and summary.json say of the change since the base model."""
        return {
            "difference": self.difference.mean,
            "low": self.difference.low,
            "high": self.difference.high,
            "p": self.difference.p,
            "test": self.test,
            "only_before": self.only_before,
            "only_after": self.only_after,
            "num_images": self.num_images,
        }


@dataclass(frozen=True)
class Shared:
    """Two sides' answers to the same questions, in the same order, and how many questions only one side has."""

    before: tuple[MarkedAnswer, ...]
    after: tuple[MarkedAnswer, ...]
    num_only_before: int
    num_only_after: int

    @property
    def are_all(self) -> bool:
        return not self.num_only_before and not self.num_only_after


def intervals(answers: Sequence[MarkedAnswer], *, seed: int) -> dict[str, Interval]:
    """Every figure with its 95 % interval, by metric; without those of which one image says nothing of the spread."""
    found = {}
    for name in _metrics(answers):
        ratio, images = _ratio(answers, metric=name)
        known = interval(ratio.grouped(images), seed=seed)
        if math.isfinite(known.low):
            found[name] = known
    return found


def shared(before: Sequence[MarkedAnswer], *, after: Sequence[MarkedAnswer]) -> Shared:
    """Pair the answers to the same questions: of the same id, text and truth, about an image of the same name."""
    first = {_question(answer): answer for answer in before}
    second = {_question(answer): answer for answer in after}
    keys = [key for key in first if key in second]
    return Shared(
        before=tuple(first[key] for key in keys),
        after=tuple(second[key] for key in keys),
        num_only_before=len(first) - len(keys),
        num_only_after=len(second) - len(keys),
    )


def changes(pairs: Shared, *, seed: int) -> dict[str, Change]:
    """What changed, by metric; without those of which one image says nothing of the spread."""
    found = {}
    for name in _metrics(pairs.before):
        if any(name in answer.mark.counts for answer in pairs.after):
            change = _change(pairs, metric=name, seed=seed)
            if math.isfinite(change.difference.low):
                found[name] = change
    return found


def _change(pairs: Shared, *, metric: str, seed: int) -> Change:
    before, images = _ratio(pairs.before, metric=metric)
    after, _ = _ratio(pairs.after, metric=metric)
    first, second = before.grouped(images), after.grouped(images)
    change = difference(first, after=second, seed=seed)
    test, only_before, only_after = "paired bootstrap", None, None
    if before.is_binary and after.is_binary:
        counted = mcnemar(before.numerators, after=after.numerators)
        only_before, only_after = counted.only_before, counted.only_after
        if max(Counter(images).values()) == 1:
            test = "mcnemar"
            change = Difference(change.mean, change.low, change.high, counted.p)
    return Change(
        before=interval(first, seed=seed),
        after=interval(second, seed=seed),
        difference=change,
        test=test,
        only_before=only_before,
        only_after=only_after,
        num_images=len(first.numerators),
        is_share=before.is_share and after.is_share,
    )


def _metrics(answers: Iterable[MarkedAnswer]) -> list[str]:
    return list(dict.fromkeys(name for answer in answers for name in answer.mark.counts))


def _ratio(answers: Sequence[MarkedAnswer], *, metric: str) -> tuple[Ratio, list[str]]:
    """A figure by answer, and the image of each."""
    counted = [answer for answer in answers if metric in answer.mark.counts]
    counts = np.array([answer.mark.counts[metric] for answer in counted], dtype=np.float64)
    return Ratio(counts[:, 0], counts[:, 1]), [answer.image for answer in counted]


def _question(answer: MarkedAnswer) -> Hashable:
    # Two machines have the same image in different folders.
    name = PurePosixPath(answer.image.replace("\\", "/")).name
    return answer.asked_as, answer.id, answer.question, name, answer.truth
