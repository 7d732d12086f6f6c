"""Intervals and tests against closed forms, scipy where it is installed, and what they promise: coverage."""

import math
import time

import numpy as np
import pytest

from csr_ray.evaluation.statistics import (
    Ratio,
    WeightedSum,
    difference,
    interval,
    mcnemar,
    mean_interval,
    paired_difference,
    ratio_interval,
    sum_interval,
)


def test_the_interval_of_a_mean_is_the_normal_one_where_that_holds() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, size=1000)
    found = mean_interval(values, seed=0)
    half = 1.96 * values.std(ddof=1) / math.sqrt(1000)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_the_interval_of_a_ratio_is_that_of_the_delta_method() -> None:
    random = np.random.default_rng(2)
    below = random.poisson(4.0, size=1000) + 1.0
    above = random.binomial(below.astype(int), 0.2).astype(float)
    found = ratio_interval(above, denominators=below, seed=0)
    ratio = above.sum() / below.sum()
    half = 1.96 * (above - ratio * below).std(ddof=1) / below.mean() / math.sqrt(1000)
    assert found.value == pytest.approx(ratio)
    assert (found.low, found.high) == pytest.approx((ratio - half, ratio + half), abs=0.1 * half)


def test_the_same_seed_gives_the_same_interval_and_another_seed_nearly_the_same() -> None:
    values = np.random.default_rng(3).normal(size=300)
    assert mean_interval(values, seed=5) == mean_interval(values, seed=5)
    first, second = mean_interval(values, seed=5), mean_interval(values, seed=6)
    assert first != second
    assert first.low == pytest.approx(second.low, abs=0.02)


def test_the_draws_do_not_depend_on_how_many_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).normal(size=300)
    whole = mean_interval(values, seed=5)
    monkeypatch.setattr("csr_ray.evaluation.statistics._DRAWN_AT_ONCE", 700)
    assert mean_interval(values, seed=5) == whole


def test_1000_items_and_2000_draws_take_well_under_a_second() -> None:
    random = np.random.default_rng(0)
    above, below = random.random(1000), random.random(1000) + 1.0
    started_s = time.process_time()
    difference(Ratio(above, below), after=Ratio(below, above + 1.0), seed=0)
    assert time.process_time() - started_s < 0.8


@pytest.mark.parametrize("kind", ["mean", "share", "ratio"])
def test_95_percent_of_the_intervals_hold_the_truth(kind: str) -> None:
    random = np.random.default_rng(7)
    num_trials, num_covering = 600, 0
    for trial in range(num_trials):
        if kind == "mean":
            truth, found = 1.0, mean_interval(random.exponential(1.0, size=300), seed=trial, num_resamples=500)
        elif kind == "share":
            truth, found = 0.3, mean_interval(random.random(300) < 0.3, seed=trial, num_resamples=500)
        else:
            below = random.poisson(3.0, size=300) + 1.0
            truth = 0.1
            above = random.binomial(below.astype(int), truth)
            found = ratio_interval(above, denominators=below, seed=trial, num_resamples=500)
        num_covering += found.low <= truth <= found.high
    # Two standard errors of 600 trials are 0.018; a percentile bootstrap of 300 items falls short by about 0.005.
    assert 0.925 <= num_covering / num_trials <= 0.972


def test_95_percent_of_the_paired_intervals_hold_the_change_and_5_percent_of_no_changes_look_like_one() -> None:
    random = np.random.default_rng(8)
    num_trials, num_covering, num_alarms = 600, 0, 0
    for trial in range(num_trials):
        shared = random.normal(size=200)
        before, after = shared + random.normal(size=200), shared + random.normal(size=200)
        found = paired_difference(before, after=after + 0.3, seed=trial, num_resamples=500)
        num_covering += found.low <= 0.3 <= found.high
        num_alarms += paired_difference(before, after=after, seed=trial, num_resamples=500).p < 0.05
    assert 0.925 <= num_covering / num_trials <= 0.972
    assert 0.03 <= num_alarms / num_trials <= 0.075


def test_pairing_makes_the_interval_narrower_than_two_groups_would_have() -> None:
    random = np.random.default_rng(9)
    shared = random.normal(0.0, 5.0, size=500)
    found = paired_difference(shared, after=shared + random.normal(0.2, 0.5, size=500), seed=0)
    assert found.is_beyond_chance
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(500), rel=0.15)
    assert found.p < 0.002


def test_the_change_of_a_ratio_is_that_of_the_figures() -> None:
    before = Ratio(np.array([1.0, 0.0, 2.0]), np.array([2.0, 1.0, 3.0]))
    after = Ratio(np.array([0.0, 0.0, 1.0]), np.array([1.0, 1.0, 3.0]))
    assert difference(before, after=after, seed=0).mean == pytest.approx(1 / 5 - 3 / 6)


def test_no_change_at_all_is_none() -> None:
    found = paired_difference([1.0, 2.0, 3.0], after=[1.0, 2.0, 3.0], seed=0)
    assert (found.mean, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)
    assert not found.is_beyond_chance


@pytest.mark.parametrize(("num_changed", "is_sure"), [(1, False), (4, False), (5, False), (6, True), (30, True)])
def test_a_few_items_that_all_changed_one_way_may_have_done_so_by_chance(num_changed: int, is_sure: bool) -> None:
    before, after = np.zeros(1000), np.zeros(1000)
    after[:num_changed] = 1.0
    found = paired_difference(before, after=after, seed=0)
    assert found.is_beyond_chance == is_sure == (found.p < 0.05)
    assert found.p >= 2 / 2**num_changed  # the sign test's
    assert not num_changed < 6 or found.low == 0.0


def test_the_interval_and_p_agree_on_whether_something_changed() -> None:
    random = np.random.default_rng(10)
    for trial in range(100):
        before = random.normal(size=60)
        found = paired_difference(before, after=before + random.normal(0.25, 1.0, size=60), seed=trial)
        if not 0.04 < found.p < 0.06:
            assert found.is_beyond_chance == (found.p < 0.05)


def test_none_of_300_is_not_zero_for_sure() -> None:
    found = mean_interval(np.zeros(300), seed=0)
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 300))  # Clopper and Pearson
    found = mean_interval(np.ones(10), seed=0)
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.025 ** (1 / 10))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_items_with_nothing_below_the_line_are_no_trials_of_an_exact_bound(value: float) -> None:
    """One "yes" of 300 questions, and right: of that precision one trial is known, and not 300."""
    above, below = np.zeros(300), np.zeros(300)
    above[7], below[7] = value, 1.0
    found = ratio_interval(above, denominators=below, seed=0)
    one = mean_interval([value], seed=0)
    assert found == one and found.high - found.low == pytest.approx(0.975)  # 2.5 to 100 %, or 0 to 97.5
    summed = sum_interval(WeightedSum(((0.5, Ratio(above, below)), (0.5, Ratio(above, below)))), seed=0)
    assert (summed.low, summed.high) == pytest.approx((found.low, found.high))


def test_a_share_of_nothing_may_be_anything() -> None:
    found = ratio_interval(np.zeros(300), denominators=np.zeros(300), seed=0)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 1.0)


def test_one_item_says_nothing_of_the_spread() -> None:
    assert mean_interval([2.5], seed=0).high == math.inf
    found = paired_difference([2.5], after=[0.0], seed=0)
    assert (found.mean, found.low, found.high, found.p) == (-2.5, -math.inf, math.inf, 1.0)


def test_answers_about_one_image_are_drawn_together() -> None:
    # Ten images of which all questions are right or all wrong: 100 questions know no more than 10.
    right = np.repeat([1.0] * 7 + [0.0] * 3, 10)
    images = np.repeat(np.arange(10), 10).tolist()
    alone, together = interval(Ratio.mean_of(right), seed=0), interval(Ratio.mean_of(right).grouped(images), seed=0)
    assert alone.value == together.value == 0.7
    assert together.high - together.low > 2.5 * (alone.high - alone.low)


@pytest.mark.parametrize(
    ("only_before", "only_after", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (10, 2, 2 * (1 + 12 + 66) / 2**12), (0, 10, 2 / 2**10), (1, 0, 1.0)],
)
def test_mcnemar_is_the_exact_binomial_of_the_discordant_items(only_before: int, only_after: int, p: float) -> None:
    before = [1] * only_before + [0] * only_after + [1, 0] * 20
    after = [0] * only_before + [1] * only_after + [1, 0] * 20
    found = mcnemar(before, after=after)
    assert (found.only_before, found.only_after) == (only_before, only_after)
    assert found.p == pytest.approx(p, rel=1e-12)


def test_mcnemar_of_many_items_neither_overflows_nor_takes_long() -> None:
    before = np.repeat([1, 0], [9_000, 10_000])
    found = mcnemar(before, after=1 - before)
    normal = math.erfc((10_000 - 9_000 - 1) / math.sqrt(19_000) / math.sqrt(2))
    assert found.p == pytest.approx(normal, rel=0.05)


def test_scipy_agrees_with_mcnemar_and_with_the_intervals() -> None:
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(11)
    before, after = random.random(400) < 0.4, random.random(400) < 0.3
    found = mcnemar(before, after=after)
    expected = stats.binomtest(found.only_before, found.only_before + found.only_after).pvalue
    assert found.p == pytest.approx(expected, rel=1e-9)
    ours = mean_interval(before, seed=0, num_resamples=20_000)
    theirs = stats.bootstrap((before,), np.mean, n_resamples=20_000, method="percentile").confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.0051)
    exact = stats.binomtest(0, 300).proportion_ci(method="exact")
    assert mean_interval(np.zeros(300), seed=0).high == pytest.approx(exact.high)


def test_what_is_no_array_of_values_by_item_is_refused() -> None:
    with pytest.raises(ValueError, match="no items"):
        mean_interval([], seed=0)
    with pytest.raises(ValueError, match="2 items before but 1 after"):
        paired_difference([1.0, 2.0], after=[1.0], seed=0)
    with pytest.raises(ValueError, match="finite"):
        paired_difference([1.0, math.nan], after=[1.0, 1.0], seed=0)
    with pytest.raises(ValueError, match="0 and 1 only"):
        mcnemar([0.5], after=[1.0])
    with pytest.raises(ValueError, match="2 numerators but 1 denominators"):
        Ratio(np.ones(2), np.ones(1))
    with pytest.raises(ValueError, match="1 groups but 2 items"):
        Ratio.mean_of([1.0, 2.0]).grouped(["a"])
