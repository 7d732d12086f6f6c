"""How sure the figures of an evaluation are, and what changed between two evaluations of the same questions.

Works on items with their counts (`csr_ray.evaluation.item_marks`); knows nothing of benchmarks, files or runs. Units
are what is drawn again, as a rule images: the questions about one image are not independent of each other.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from csr_ray.evaluation.item_marks import MarkedItem, MarkedItems, figure_of, items_of
from csr_ray.evaluation.statistics import (
    Difference,
    Interval,
    Ratio,
    WeightedSum,
    difference,
    interval,
    mcnemar,
    sum_difference,
    sum_interval,
)
from csr_ray.records import JsonDict, MarkedAnswer

Item = MarkedItem | MarkedAnswer
Sums = Mapping[str, Mapping[str, float]]
_NO_SUMS: Final[Sums] = MappingProxyType({})
SEED: Final = 0  # of what is drawn for a result that no run's seed belongs to


@dataclass(frozen=True, kw_only=True)
class Change:
    """How one figure changed on the questions that both sides answered.

    Attributes:
        before, after: the figure on these questions, each with its interval.
        difference: after minus before, with its 95 % interval by a paired bootstrap over images. Its `p` is that of
            `test`.
        test: "mcnemar" (exact) where each image is once true or false, else "paired bootstrap".
        only_before, only_after: answers of which the figure counts one side only; None if it is no share of answers.
        num_images: what the intervals and the test rest on; of items with other units, so many of those.
        num_left_out: shared questions for which this figure counts one side's answer only, and which it leaves out.
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
    num_left_out: int = 0

    def to_plain(self) -> JsonDict:
        """What the journal and summary.json say of the change since the base model."""
        return {
            "before": self.before.value,
            "after": self.after.value,
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
    """Two sides' answers to the same questions, in the same order, and how many questions only one side has.

    Attributes:
        num_other_image, num_other_question: questions of one id on both sides, about an image of another name, or
            with other words or another truth; they count as questions of either side alone, too.
    """

    before: tuple[MarkedItem, ...]
    after: tuple[MarkedItem, ...]
    num_only_before: int
    num_only_after: int
    num_other_image: int = 0
    num_other_question: int = 0

    @property
    def are_all(self) -> bool:
        return not self.num_only_before and not self.num_only_after


def intervals(
    answers: Sequence[Item], *, seed: int, sums: Sums = _NO_SUMS, names: Sequence[str] | None = None
) -> dict[str, Interval]:
    """Every figure with its 95 % interval, by metric; without those of which one image says nothing of the spread.

    Args:
        sums: figures that are weighted sums of others (`csr_ray.evaluation.item_marks.MarkedItems`).
        names: the metrics that are asked for, in order; None: all, sums last.
    """
    items = _items(answers)
    found = {}
    for name in _metrics(items, sums=sums) if names is None else names:
        figure = figure_of(items, metric=name, sums=sums)
        if figure is None:
            continue
        known = _interval(figure[0].grouped(figure[1]), seed=seed)
        if math.isfinite(known.low):
            found[name] = known
    return found


def certainty(items: MarkedItems, *, metrics: Mapping[str, float], counted: Sequence[str] = ()) -> JsonDict:
    """What a result says of how sure its figures are: `intervals` by metric, `resampled`, `sums` and `items`.

    Args:
        metrics: the result's figures.
        counted: those that are numbers of answers, and have no interval.
    """
    values = items.values()
    for name, value in metrics.items():
        assert name not in values or math.isclose(values[name], value, rel_tol=1e-9, abs_tol=1e-9), (
            f"{name} is {value}, but its counts say {values[name]}"
        )
    known = intervals(
        items.items, seed=SEED, sums=items.sums, names=[name for name in metrics if name not in counted]
    )
    return {"intervals": {name: [one.low, one.high] for name, one in known.items()}, **items.to_plain()}


def shared(before: Sequence[Item], *, after: Sequence[Item]) -> Shared:
    """Pair the answers to the same questions: of the same id, text and truth, about an image of the same name.

    What is not known of one side (the words of a question, say) is taken to be as on the other.
    """
    first = {item.id: item for item in _items(before)}
    second = {item.id: item for item in _items(after)}
    both = [key for key in first if key in second]
    other_image = [key for key in both if not _agree(first[key].image, second[key].image)]
    other_question = [
        key
        for key in set(both) - set(other_image)
        if not _agree(first[key].question, second[key].question) or not _agree(first[key].truth, second[key].truth)
    ]
    unlike = {*other_image, *other_question}
    keys = [key for key in both if key not in unlike]
    return Shared(
        before=tuple(first[key] for key in keys),
        after=tuple(second[key] for key in keys),
        num_only_before=len(first) - len(keys),
        num_only_after=len(second) - len(keys),
        num_other_image=len(other_image),
        num_other_question=len(other_question),
    )


def changes(
    pairs: Shared, *, seed: int, sums: Sums = _NO_SUMS, names: Sequence[str] | None = None
) -> dict[str, Change]:
    """What changed, by metric; without those of which one image says nothing of the spread.

    Args:
        sums, names: as for `intervals`.
    """
    found = {}
    for name in _metrics(pairs.before, sums=sums) if names is None else names:
        change = _change(pairs, metric=name, seed=seed, sums=sums)
        if change is not None and math.isfinite(change.difference.low):
            found[name] = change
    return found


def _change(pairs: Shared, *, metric: str, seed: int, sums: Sums) -> Change | None:
    parts = sums.get(metric)
    names = {metric} if parts is None else set(parts)

    def counted(item: MarkedItem) -> set[str]:
        return names & item.counts.keys()

    # An answer may count for a figure on one side only: MME leaves out an image of which one answer is lacking.
    kept = [
        (one, other)
        for one, other in zip(pairs.before, pairs.after, strict=True)
        if counted(one) and counted(one) == counted(other)
    ]
    num_left_out = sum(counted(one) != counted(other) for one, other in zip(pairs.before, pairs.after, strict=True))
    found = [figure_of([pair[place] for pair in kept], metric=metric, sums=sums) for place in (0, 1)]
    if found[0] is None or found[1] is None:
        return None
    (before, units), (after, _) = found[0], found[1]
    first, second = before.grouped(units), after.grouped(units)
    change = _difference(first, after=second, seed=seed)
    test, only_before, only_after = "paired bootstrap", None, None
    if isinstance(before, Ratio) and isinstance(after, Ratio) and before.is_binary and after.is_binary:
        counts = mcnemar(before.numerators, after=after.numerators)
        only_before, only_after = counts.only_before, counts.only_after
        if max(Counter(units).values()) == 1:
            test = "mcnemar"
            change = Difference(change.mean, change.low, change.high, counts.p)
    return Change(
        before=_interval(first, seed=seed),
        after=_interval(second, seed=seed),
        difference=change,
        test=test,
        only_before=only_before,
        only_after=only_after,
        num_images=len(set(units)),
        is_share=before.is_share and after.is_share,
        num_left_out=num_left_out,
    )


def _items(answers: Iterable[Item]) -> list[MarkedItem]:
    return [one if isinstance(one, MarkedItem) else items_of([one])[0] for one in answers]


def _metrics(items: Iterable[MarkedItem], *, sums: Sums) -> list[str]:
    return list(dict.fromkeys([*(name for item in items for name in item.counts), *sums]))


def _interval(figure: Ratio | WeightedSum, *, seed: int) -> Interval:
    return interval(figure, seed=seed) if isinstance(figure, Ratio) else sum_interval(figure, seed=seed)


def _difference(before: Ratio | WeightedSum, *, after: Ratio | WeightedSum, seed: int) -> Difference:
    if isinstance(before, Ratio) and isinstance(after, Ratio):
        return difference(before, after=after, seed=seed)
    assert isinstance(before, WeightedSum) and isinstance(after, WeightedSum), "one figure is a sum on both sides"
    return sum_difference(before, after=after, seed=seed)


def _agree(first: str, second: str) -> bool:
    return first == second or not first or not second
