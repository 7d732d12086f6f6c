"""How sure a figure is: bootstrap intervals, paired differences and McNemar's exact test, from values by item.

Knows arrays with one entry an item (an image, a prompt); knows nothing of answers, metrics or files. An item is what
is drawn again: where several answers belong to one image their values are added up first (`Ratio.grouped`), because
answers about one image are not independent.

Every function is deterministic in its seed and needs well under a second for 1,000 items.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

NUM_RESAMPLES = 2000
LEVEL = 0.95
_DRAWN_AT_ONCE = 2_000_000  # positions, 16 MB, however many items there are


@dataclass(frozen=True)
class Interval:
    """A figure and where it may lie.

    Attributes:
        low, high: ends of its 95 % interval; infinite where one item says nothing of the spread.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """How a figure changed on the same items, after minus before.

    Attributes:
        mean: the change of the figure itself.
        low, high: ends of its interval, of 95 % if nothing else was asked for; infinite where one item says nothing
            of the spread.
        p: two-sided; how often a change at least as large comes about if there is none.
    """

    mean: float
    low: float
    high: float
    p: float

    @property
    def is_beyond_chance(self) -> bool:
        """Whether the interval leaves out no change."""
        return self.low > 0.0 or self.high < 0.0


@dataclass(frozen=True)
class McNemar:
    """Items that are true on one side only, and the exact two-sided p of that many against so many."""

    only_before: int
    only_after: int
    p: float


@dataclass(frozen=True, eq=False)
class Ratio:
    """A figure that is a sum over items divided by another: a share, a mean, a recall, an F1.

    Attributes:
        numerators, denominators: float64 [num_items]. The denominators of a mean are ones.
    """

    numerators: np.ndarray
    denominators: np.ndarray

    def __post_init__(self) -> None:
        above, below = _floats(self.numerators), _floats(self.denominators)
        if above.shape != below.shape:
            raise ValueError(f"{above.shape[0]} numerators but {below.shape[0]} denominators; one of each an item")
        object.__setattr__(self, "numerators", above)
        object.__setattr__(self, "denominators", below)

    @classmethod
    def mean_of(cls, values: ArrayLike) -> Ratio:
        """The mean of `values` [num_items]."""
        values = _floats(values)
        return cls(values, np.ones(len(values)))

    @property
    def value(self) -> float:
        """The figure; 0.0 where there is nothing below the line."""
        below = float(self.denominators.sum())
        return float(self.numerators.sum()) / below if below else 0.0

    @property
    def is_binary(self) -> bool:
        """Whether it is the share of items for which something is true."""
        return bool((self.denominators == 1.0).all() and np.isin(self.numerators, (0.0, 1.0)).all())

    @property
    def is_share(self) -> bool:
        """Whether it lies in 0..1 whatever is drawn, as each item has at least as much below the line as above."""
        return bool(((self.numerators >= 0.0) & (self.numerators <= self.denominators)).all())

    def grouped(self, groups: Sequence[Hashable]) -> Ratio:
        """The same figure over groups of items, in order of appearance: what belongs to one image is added up.

        Raises:
            ValueError: not as many groups as items.
        """
        if len(groups) != len(self.numerators):
            raise ValueError(f"{len(groups)} groups but {len(self.numerators)} items; name the group of each item")
        positions = {group: position for position, group in enumerate(dict.fromkeys(groups))}
        index = np.array([positions[group] for group in groups], dtype=np.intp)
        return Ratio(
            np.bincount(index, weights=self.numerators, minlength=len(positions)),
            np.bincount(index, weights=self.denominators, minlength=len(positions)),
        )


@dataclass(frozen=True, eq=False)
class WeightedSum:
    """A figure that is a sum of ratios over the same items: MME's points, the mean F1 of POPE's splits.

    Attributes:
        parts: weight and ratio of each; an item that a part says nothing of has zeros there.
    """

    parts: tuple[tuple[float, Ratio], ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("a sum of no ratios; name at least one")
        sizes = {len(ratio.numerators) for _, ratio in self.parts}
        if len(sizes) > 1:
            raise ValueError(f"ratios of {' and '.join(map(str, sorted(sizes)))} items; all have to be over the same")

    @property
    def value(self) -> float:
        return sum(weight * ratio.value for weight, ratio in self.parts)

    @property
    def is_share(self) -> bool:
        """Whether it lies in 0..1 whatever is drawn: a weighted mean of shares."""
        are_weights = all(weight >= 0.0 for weight, _ in self.parts)
        total = sum(weight for weight, _ in self.parts)
        return are_weights and total <= 1.0 + 1e-9 and all(ratio.is_share for _, ratio in self.parts)

    def grouped(self, groups: Sequence[Hashable]) -> WeightedSum:
        """The same figure over groups of items (`Ratio.grouped`)."""
        return WeightedSum(tuple((weight, ratio.grouped(groups)) for weight, ratio in self.parts))


def sum_interval(figure: WeightedSum, *, seed: int, num_resamples: int = NUM_RESAMPLES) -> Interval:
    """A sum with its 95 % bootstrap interval.

    Parts that share an item are computed of the same draws. Parts that share none (MME's subtasks, each with images
    of its own) are drawn each by itself, so that every draw has as many items of each as there are. Where every part
    is a share whose items are all alike, the exact bounds of `interval` are added up.

    Raises:
        ValueError: a part has no item.
    """
    blocks = _blocks(figure, seed=seed)
    value = figure.value
    if all(ratio.is_share and ratio.value in (0.0, 1.0) for _, ratio in figure.parts):
        known = [(weight, _all_alike(ratio)) for weight, ratio in figure.parts]
        ends = [(weight * one.low, weight * one.high) for weight, one in known]
        return Interval(value, sum(map(min, ends)), sum(map(max, ends)))
    if min(len(items) for items, _ in blocks) == 1:
        return Interval(value, -math.inf, math.inf)
    low, high = _ends(_sums(figure, blocks=blocks, num=num_resamples))
    return Interval(value, low, high)


def sum_difference(
    before: WeightedSum, *, after: WeightedSum, seed: int, num_resamples: int = NUM_RESAMPLES
) -> Difference:
    """How a sum changed on the same items: both sides are computed of the same draws, as in `difference`.

    Raises:
        ValueError: a part has no item, or the sides have other items or parts.
    """
    if [weight for weight, _ in before.parts] != [weight for weight, _ in after.parts]:
        raise ValueError("the sums have other parts before than after; compare the same figure")
    if len(before.parts[0][1].numerators) != len(after.parts[0][1].numerators):
        raise ValueError("another number of items before than after; pair the same items, in order")
    pairs = [(first, second) for (_, first), (_, second) in zip(before.parts, after.parts, strict=True)]
    is_changed = np.any([_is_changed(first, after=second) for first, second in pairs], axis=0)
    if not is_changed.any():
        return Difference(0.0, 0.0, 0.0, 1.0)
    change = after.value - before.value
    blocks = _blocks(before, after, seed=seed)
    if min(len(items) for items, _ in blocks) == 1:
        return Difference(change, -math.inf, math.inf, 1.0)
    drawn = _sums(after, blocks=blocks, num=num_resamples) - _sums(before, blocks=blocks, num=num_resamples)
    return _difference(change, drawn=drawn, num_changed=int(is_changed.sum()))


def interval(ratio: Ratio, *, seed: int, num_resamples: int = NUM_RESAMPLES) -> Interval:
    """The figure with its 95 % bootstrap interval: percentiles over draws of as many items, with replacement.

    Where all items of a share are alike every draw is, too, and the interval would be a point. Clopper and Pearson's
    exact bound for none or all of so many items is given then: 0 of 300 is 0 to 1.2 %. Items with nothing below the
    line do not count there: a precision of one "yes" among 300 answers is 2.5 to 100 %.

    Raises:
        ValueError: there is no item.
    """
    num_items = _num_items(ratio)
    value = ratio.value
    if ratio.is_share and value in (0.0, 1.0):
        return _all_alike(ratio)
    if num_items == 1:
        return Interval(value, -math.inf, math.inf)
    drawn = np.concatenate(
        [_values(ratio, positions=positions) for positions in _draws(num_items, seed=seed, num=num_resamples)]
    )
    low, high = _ends(drawn)
    return Interval(value, low, high)


def mean_interval(values: ArrayLike, *, seed: int, num_resamples: int = NUM_RESAMPLES) -> Interval:
    """The mean of `values` [num_items] with its 95 % bootstrap interval (`interval`)."""
    return interval(Ratio.mean_of(values), seed=seed, num_resamples=num_resamples)


def ratio_interval(
    numerators: ArrayLike, *, denominators: ArrayLike, seed: int, num_resamples: int = NUM_RESAMPLES
) -> Interval:
    """The sum of `numerators` over that of `denominators`, both [num_items], with its interval (`interval`)."""
    return interval(Ratio(_floats(numerators), _floats(denominators)), seed=seed, num_resamples=num_resamples)


def difference(
    before: Ratio, *, after: Ratio, seed: int, num_resamples: int = NUM_RESAMPLES, level: float = LEVEL
) -> Difference:
    """How a figure changed on the same items: both sides are computed of the same draws (a paired bootstrap).

    `p` is the smallest level at which the interval leaves out no change, and never less than 2 / (draws + 1), nor
    than what a coin for each item that changed could say: where fewer than six did, the interval holds no change.
    (Of four items that all changed one way a bootstrap alone would be sure, and the sign test's p is 0.125.)

    Args:
        level: of the interval, between 0 and 1; higher where several figures are looked at at once.

    Raises:
        ValueError: there is no item, or another number of them after than before.
    """
    num_items = _num_items(before)
    if len(after.numerators) != num_items:
        raise ValueError(f"{num_items} items before but {len(after.numerators)} after; pair the same items, in order")
    change = after.value - before.value
    same = np.array_equal(before.numerators, after.numerators) and np.array_equal(
        before.denominators, after.denominators
    )
    if same:
        return Difference(0.0, 0.0, 0.0, 1.0)
    if num_items == 1:
        return Difference(change, -math.inf, math.inf, 1.0)
    drawn = np.concatenate(
        [
            _values(after, positions=positions) - _values(before, positions=positions)
            for positions in _draws(num_items, seed=seed, num=num_resamples)
        ]
    )
    return _difference(change, drawn=drawn, num_changed=int(_is_changed(before, after=after).sum()), level=level)


def paired_difference(
    before: ArrayLike, *, after: ArrayLike, seed: int, num_resamples: int = NUM_RESAMPLES, level: float = LEVEL
) -> Difference:
    """How a mean changed on the same items, with its interval of that level and p (`difference`).

    Args:
        before, after: one value an item, [num_items] each, in the same order.

    Raises:
        ValueError: there is no item, a value is not finite, or another number of them after than before.
    """
    first, second = Ratio.mean_of(before), Ratio.mean_of(after)
    return difference(first, after=second, seed=seed, num_resamples=num_resamples, level=level)


def mcnemar(before: ArrayLike, *, after: ArrayLike) -> McNemar:
    """Whether what is true or false of each item changed by more than chance: McNemar's test, exact and two-sided.

    Only the items that changed count: if there were no change, each would have gone either way with probability 1/2.

    Args:
        before, after: 0 or 1 (or False, True), [num_items] each, in the same order.

    Raises:
        ValueError: another number of items after than before, or a value that is neither 0 nor 1.
    """
    first, second = _floats(before), _floats(after)
    if len(first) != len(second):
        raise ValueError(f"{len(first)} items before but {len(second)} after; pair the same items, in order")
    if not np.isin(np.concatenate([first, second]), (0.0, 1.0)).all():
        raise ValueError("McNemar's test compares what is true or false: expected values of 0 and 1 only")
    only_before, only_after = int(((first == 1) & (second == 0)).sum()), int(((first == 0) & (second == 1)).sum())
    return McNemar(only_before, only_after, _two_sided_coin(only_before, num_tosses=only_before + only_after))


def _two_sided_coin(num_heads: int, *, num_tosses: int) -> float:
    """How often a fair coin gives a split at least as uneven; in whole numbers, so that it is exact."""
    term = tail = 1
    for k in range(min(num_heads, num_tosses - num_heads)):
        term = term * (num_tosses - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / 2**num_tosses)


def _difference(change: float, *, drawn: np.ndarray, num_changed: int, level: float = LEVEL) -> Difference:
    """The interval and p of a change, out of what the draws gave."""
    low, high = _ends(drawn, level=level)
    # Of a change of exactly zero half of the draws count for either side.
    as_low = float((drawn < 0).sum()) + 0.5 * float((drawn == 0).sum())
    as_high = len(drawn) - as_low
    by_coins = 2.0 ** (1 - num_changed)
    p = min(1.0, max(by_coins, 2.0 * (min(as_low, as_high) + 1.0) / (len(drawn) + 1.0)))
    if by_coins > 1.0 - level:
        low, high = min(low, 0.0), max(high, 0.0)
    return Difference(change, low, high, p)


def _is_changed(before: Ratio, *, after: Ratio) -> np.ndarray:
    changed: np.ndarray = (before.numerators != after.numerators) | (before.denominators != after.denominators)
    return changed


Seed = int | list[int]


def _blocks(*sums: WeightedSum, seed: int) -> list[tuple[np.ndarray, Seed]]:
    """For each part the items that are drawn for it and the seed of that; parts with an item in common share both."""
    supports = [
        np.any([(ratio.numerators != 0.0) | (ratio.denominators != 0.0) for _, ratio in parts], axis=0)
        for parts in zip(*(one.parts for one in sums), strict=True)
    ]
    if not all(support.any() for support in supports):
        raise ValueError("no items; an interval needs at least one")
    together: list[np.ndarray] = []
    for support in supports:
        joined = [block for block in together if (block & support).any()]
        together = [block for block in together if not (block & support).any()]
        together.append(np.any([support, *joined], axis=0))
    found: list[tuple[np.ndarray, Seed]] = []
    for support in supports:
        place = next(place for place, block in enumerate(together) if (block & support).any())
        found.append((np.flatnonzero(together[place]), [seed, place]))
    return found


def _sums(figure: WeightedSum, *, blocks: Sequence[tuple[np.ndarray, Seed]], num: int) -> np.ndarray:
    """The sum of each draw, [num]; the same blocks give the same draws."""
    total = np.zeros(num)
    for (weight, ratio), (items, seed) in zip(figure.parts, blocks, strict=True):
        part = Ratio(ratio.numerators[items], ratio.denominators[items])
        drawn = [_values(part, positions=positions) for positions in _draws(len(items), seed=seed, num=num)]
        total += weight * np.concatenate(drawn)
    return total


def _all_alike(ratio: Ratio) -> Interval:
    """The exact bound of a share that is 0 or 1; an item with nothing below the line (an answer that is not "yes", of
    a precision) is no trial, and a share without any may be anything."""
    value, num_trials = ratio.value, int((ratio.denominators > 0.0).sum())
    bound = ((1.0 - LEVEL) / 2.0) ** (1.0 / num_trials) if num_trials else 0.0
    return Interval(value, 0.0, 1.0 - bound) if value == 0.0 else Interval(value, bound, 1.0)


def _draws(num_items: int, *, seed: Seed, num: int) -> Iterator[np.ndarray]:
    """Positions [some, num_items] of items drawn with replacement, `num` rows in all."""
    generator = np.random.default_rng(seed)
    rows = max(1, _DRAWN_AT_ONCE // num_items)
    for start in range(0, num, rows):
        yield generator.integers(0, num_items, size=(min(rows, num - start), num_items))


def _values(ratio: Ratio, *, positions: np.ndarray) -> np.ndarray:
    """The figure of each draw: [rows] of positions [rows, num_items]."""
    above = ratio.numerators[positions].sum(axis=1)
    if (ratio.denominators == 1.0).all():
        return above / positions.shape[1]
    below = ratio.denominators[positions].sum(axis=1)
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)


def _ends(drawn: np.ndarray, *, level: float = LEVEL) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)


def _num_items(ratio: Ratio) -> int:
    if not len(ratio.numerators):
        raise ValueError("no items; an interval needs at least one")
    return len(ratio.numerators)


def _floats(values: ArrayLike) -> np.ndarray:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or not np.isfinite(found).all():
        raise ValueError(f"expected finite numbers, one an item; got an array of shape {list(found.shape)}")
    return found
