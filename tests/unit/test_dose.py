"""How much is trained: what the held-out pairs say, and what follows from it."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable

import pytest

from csr_ray.config.schema import Train
from csr_ray.evaluation.health import compare_preferences
from csr_ray.training.dose import (
    MOST_HELD_OUT,
    Dose,
    DosePlan,
    Look,
    divergence_of_phase,
    has_taught,
    held_out_share,
    is_held_out,
    look_at,
    margin_of_round,
    rule_learning_rate,
    steps_between_looks,
)

PLAN = DosePlan(margin=2.0, divergence=3.0, patience=2, lr_sum=None, steps_a_pass=20, max_steps=60, finds_rate=False)


def _plan(**changes: object) -> DosePlan:
    return DosePlan(**{**PLAN.__dict__, **changes})  # type: ignore[arg-type]


def _look(step: int, margin: float, *, lr: float = 1e-4, chosen: float | None = None) -> Look:
    chosen = margin / 4 if chosen is None else chosen
    return look_at([chosen], rejected=[chosen - margin], step=step, lr_sum=step * lr, beta=0.1)


def _train(dose: Dose, margin_at: Callable[[int], float], *, interval: int = 6) -> int:
    """Train until the dose is enough; returns the last step."""
    for step in range(1, 1000):
        if dose.is_due(step, interval=interval) or step == 60:
            dose.observe(_look(step, margin_at(step)))
            if dose.reason:
                return step
    raise AssertionError("it never ended")


def test_weights_that_went_farther_than_their_margin_are_not_taken() -> None:
    """Looks of a run: variant 8, seed 0, third round. Both answers lose, and recall lost 7.8 points after step 21.

    (Step, chosen, rejected, loss); the margin that was asked is 0.3125 nats.
    """
    seen = [
        (4, 0.0282, -0.0395, 0.68982),
        (8, 0.0276, -0.1039, 0.68679),
        (12, -0.2445, -0.2797, 0.69269),
        (16, -0.5486, -0.7398, 0.68562),
        (17, -0.5126, -0.7091, 0.68558),
        (21, -0.5300, -0.8675, 0.67972),
    ]
    for divergence, ends, taken in ((2.5, 21, 21), (divergence_of_phase(0.3125), 16, 8)):
        dose = Dose(_plan(margin=0.3125, divergence=divergence, steps_a_pass=19, max_steps=114))
        for step, chosen, rejected, loss in seen:
            figures = {"margin": chosen - rejected, "margin_se": 0.4, "accuracy": 0.7, "num_pairs": 10}
            look = Look(step=step, lr_sum=2e-4 * step, chosen=chosen, rejected=rejected, loss=loss, **figures)  # type: ignore[arg-type]
            dose.observe(look)
            if dose.reason:
                break
        assert (dose.looks[-1].step, dose.best_step) == (ends, taken)
    assert "the policy went 0.64 nats from its reference (at most: 0.3125)" in dose.reason


def test_a_limit_of_divergence_that_is_near_is_looked_at_soon() -> None:
    dose = Dose(_plan(margin=9.0, divergence=0.5))
    dose.observe(_look(6, 0.2, chosen=-0.1))  # 0.2 nats from the reference
    assert next(step for step in range(7, 13) if dose.is_due(step, interval=6)) < 12
    far = Dose(_plan(margin=9.0, divergence=5.0))
    far.observe(_look(6, 0.2, chosen=-0.1))
    assert [step for step in range(7, 13) if far.is_due(step, interval=6)] == [12]


def test_a_phase_may_go_as_far_as_its_margin_and_an_imitation_as_far_as_ever() -> None:
    assert divergence_of_phase(0.625) == 0.625
    assert divergence_of_phase(None) == 2.5


def test_the_figures_of_a_look_are_those_of_its_pairs() -> None:
    look = look_at([1.0, 0.0, -0.5], rejected=[-1.0, 0.5, -2.0], step=7, lr_sum=0.1, beta=0.1)
    margins = [2.0, -0.5, 1.5]
    assert look.margin == pytest.approx(1.0)
    assert look.margin_se == pytest.approx(math.sqrt((1.0 + 2.25 + 0.25) / 2 / 3))
    assert look.accuracy == pytest.approx(2 / 3)
    assert (look.chosen, look.rejected) == (pytest.approx(0.5 / 3), pytest.approx(-2.5 / 3))
    assert look.loss == pytest.approx(sum(-math.log(1 / (1 + math.exp(-0.1 * m))) for m in margins) / 3)
    assert look.divergence == pytest.approx((2.5 - 0.5) / 6)
    assert Look.from_plain(look.to_plain()) == look


def test_a_look_at_far_margins_stays_a_number() -> None:
    look = look_at([1e5, -1e5], rejected=[-1e5, 1e5], step=1, lr_sum=1.0, beta=10)
    assert look.loss == pytest.approx(1e6)


@pytest.mark.parametrize("pace", [0.02, 0.04, 0.1, 0.5])
def test_it_ends_where_the_margin_is_reached_whatever_the_pace(pace: float) -> None:
    dose = Dose(PLAN)
    last_step = _train(dose, lambda step: pace * step**1.5)
    asked_at = (2.0 / pace) ** (2 / 3)
    assert "the held-out margin came to" in dose.reason and dose.best_step == last_step
    # At a known growth it is met to the step; before the first look nobody knows any.
    assert asked_at <= last_step <= max(asked_at + 1, 6)


def test_a_policy_that_leaves_its_reference_is_stopped() -> None:
    dose = Dose(PLAN)
    dose.observe(_look(6, 1.0, chosen=-2.0))  # rejected at -3.0
    assert not dose.reason
    dose.observe(_look(12, 1.5, chosen=-2.4))
    assert "went 3.15 nats from its reference (at most: 3)" in dose.reason


def test_it_ends_with_the_weights_of_the_best_look_when_nothing_more_is_learned() -> None:
    dose = Dose(PLAN)
    for step, margin in ((6, 0.4), (12, 0.9), (18, 0.7)):
        dose.observe(_look(step, margin))
    assert not dose.reason
    dose.observe(_look(24, 0.8))
    assert dose.reason == "the held-out loss was lowest after step 12" and dose.best_step == 12


def test_pairs_that_teach_nothing_end_with_the_weights_of_the_start() -> None:
    dose = Dose(PLAN)
    dose.observe(_look(6, -0.1))
    dose.observe(_look(12, 0.0))
    assert dose.reason == "the held-out loss was lowest after step 0" and dose.best_step == 0


def test_a_later_round_goes_no_farther_than_the_first() -> None:
    dose = Dose(_plan(lr_sum=14 * 1e-4))
    last_step = _train(dose, lambda step: 0.01 * step)
    assert (last_step, dose.reason) == (14, "it was trained as far as an earlier round or attempt allows")


def test_a_phase_without_rejected_answers_goes_by_the_chosen_ones() -> None:
    """With the objective sft both may become likelier, the rejected ones a little more."""

    def train(chosen_at: Callable[[int], float]) -> Dose:
        dose = Dose(_plan(margin=None, patience=2))
        for step in range(6, 61, 6):
            dose.observe(
                look_at([chosen_at(step)], rejected=[1.2 * chosen_at(step)], step=step, lr_sum=1.0, beta=0.1)
            )
            if dose.reason:
                break
        return dose

    rising = train(lambda step: 0.1 * step)
    assert (rising.looks[-1].step, rising.best_step) == (60, 60)
    turning = train(lambda step: 3.0 - abs(step - 24) / 8)
    assert turning.reason == "the held-out loss was lowest after step 24" and turning.looks[-1].step == 36


def test_single_answers_go_by_how_likely_they_have_become() -> None:
    seen = look_at([3.0, 1.0, -1.0], rejected=[], step=6, lr_sum=1e-3, beta=0.1)
    assert (seen.margin, seen.chosen, seen.rejected, seen.loss) == (1.0, 1.0, None, -1.0)
    assert seen.accuracy == pytest.approx(2 / 3) and seen.divergence == -1.0
    assert Look.from_plain(json.loads(json.dumps(seen.to_plain()))) == seen
    dose = Dose(_plan(margin=None, patience=2))
    for step, gain in ((6, 1.0), (12, 2.0), (18, 1.5), (24, 1.8)):
        dose.observe(look_at([gain] * 9, rejected=[], step=step, lr_sum=1.0, beta=0.1))
    assert dose.reason == "the held-out loss was lowest after step 12" and dose.factor == 1.0
    assert has_taught(dose.to_plain(learning_rate=1e-4))
    short = Dose(_plan(margin=None, max_steps=6))
    short.observe(look_at([1.0] * 9, rejected=[], step=6, lr_sum=1.0, beta=0.1))
    assert short.reason == "train.max_epochs was reached; held-out answers are 1.00 nats likelier"


def test_pairs_that_are_all_alike_are_numbers_like_any_others() -> None:
    """Answers that do not differ teach nothing, and pairs that differ alike have no spread."""
    dose = Dose(_plan(patience=2))
    _train(dose, lambda step: 0.0)
    assert (dose.reason, dose.best_step) == ("the held-out loss was lowest after step 0", 0)
    same = look_at([1.0] * 9, rejected=[0.5] * 9, step=3, lr_sum=1e-3, beta=0.1)
    assert (same.margin, same.margin_se, same.accuracy) == (0.5, 0.0, 1.0)
    assert compare_preferences([50.0] * 9, rejected=[50.0] * 9, seed=0)[0].fault == ""
    assert compare_preferences([40.0] * 9, rejected=[50.0] * 9, seed=0)[0].fault


def test_a_margin_that_cannot_be_reached_is_said() -> None:
    dose = Dose(PLAN)
    last_step = _train(dose, lambda step: 0.01 * step)
    assert (last_step, dose.reason) == (60, "train.max_epochs was reached at a held-out margin of 0.60 of 2 nats")


def test_a_training_that_ends_by_itself_says_why() -> None:
    """A stream may end before the steps that were planned for it."""
    dose = Dose(PLAN)
    dose.observe(_look(10, margin=0.4))
    assert not dose.reason
    dose.close()
    assert dose.reason == "train.max_epochs was reached at a held-out margin of 0.40 of 2 nats"
    dose.close()
    assert dose.to_plain(learning_rate=1e-4)["target_margin"] == 2.0


def test_the_learning_rate_is_doubled_where_nearly_nothing_moves_and_halved_where_all_is_over_at_once() -> None:
    slow = Dose(_plan(finds_rate=True))
    slow.observe(_look(6, 0.01))
    assert slow.factor == 2
    slow.observe(_look(12, 0.03))
    assert slow.factor == 4
    slow.observe(_look(18, 0.9))  # about 31 steps: less than two passes of 20
    assert slow.factor == 4
    fast = Dose(_plan(finds_rate=True))
    fast.observe(_look(3, 1.9))
    assert fast.factor == 0.5
    given = Dose(PLAN)
    given.observe(_look(6, 0.01))
    assert given.factor == 1


def test_the_learning_rate_is_sought_within_bounds_and_in_the_first_pass_alone() -> None:
    dose = Dose(_plan(finds_rate=True, patience=100, max_steps=600))
    for step in range(2, 60, 2):
        dose.observe(_look(step, 1e-6 * step))
    assert dose.factor == 16  # ten looks in the pass, four doublings
    late = Dose(_plan(finds_rate=True))
    late.observe(_look(21, 0.01))
    assert late.factor == 1


def test_the_same_looks_lead_to_the_same_end() -> None:
    """Which is how a training that was killed goes on."""
    rng = random.Random(0)
    for _ in range(50):
        dose = Dose(_plan(finds_rate=True))
        while not dose.reason:
            step = dose.looks[-1].step + 3 if dose.looks else 3
            dose.observe(_look(step, rng.gauss(0.1 * step**0.5, 0.3), chosen=rng.gauss(0, 1)))
        again = Dose(_plan(finds_rate=True))
        for look in dose.looks:
            again.observe(Look.from_plain(look.to_plain()))
        assert (again.factor, again.reason, again.best_step) == (dose.factor, dose.reason, dose.best_step)
        assert again.to_plain(learning_rate=1e-4) == dose.to_plain(learning_rate=1e-4)


def test_about_the_share_is_held_out_by_the_ids_alone() -> None:
    ids = [f"prompt-{index}" for index in range(10_000)]
    held = {name for name in ids if is_held_out(name, seed=0, share=0.1)}
    assert 900 < len(held) < 1100
    assert held == {name for name in reversed(ids) if is_held_out(name, seed=0, share=0.1)}
    assert held != {name for name in ids if is_held_out(name, seed=1, share=0.1)}
    # A larger share keeps what a smaller one has.
    assert held < {name for name in ids if is_held_out(name, seed=0, share=0.2)}


def test_too_few_examples_hold_none_out_and_very_many_no_more_than_are_looked_at() -> None:
    assert held_out_share(79, share=0.1) is None
    assert held_out_share(80, share=0.1) == 0.1
    assert held_out_share(100_000, share=0.1) == MOST_HELD_OUT / 100_000


def test_looks_take_a_bounded_part_of_the_training() -> None:
    assert steps_between_looks(3, batch_size=8) == 2
    assert steps_between_looks(16, batch_size=8) == 4
    assert steps_between_looks(17, batch_size=8) == 6
    assert steps_between_looks(10**6, batch_size=8) == 2 * MOST_HELD_OUT // 8


def test_the_rule_of_the_learning_rate_knows_alpha_and_layers() -> None:
    assert rule_learning_rate(lora_alpha=32, num_layers=4) == pytest.approx(2e-4)
    # LLaVA-1.5-7B with the released code's LoRA.
    assert rule_learning_rate(lora_alpha=256, num_layers=32) == pytest.approx(3.125e-6)


def test_epochs_alone_name_a_fixed_dose() -> None:
    assert (Train().dose, Train().epochs) == ("auto", None)
    assert (Train(epochs=3).dose, Train(epochs=3).epochs) == ("epochs", 3)
    assert (Train(dose="epochs").dose, Train(dose="epochs").epochs) == ("epochs", 1)
    assert Train.model_validate(Train(epochs=2).model_dump()) == Train(epochs=2)
    assert Train.model_validate(Train().model_dump()) == Train()
    with pytest.raises(
        ValueError, match="epochs = 3 contradicts dose = auto: leave epochs out, or set dose = epochs"
    ):
        Train(dose="auto", epochs=3)


def test_a_margin_that_grows_ever_faster_is_not_overrun() -> None:
    """As seen on a variant of the world: 0.17, 0.37, 0.61, 1.14 and 3.14 nats after 6, 12, 18, 24 and 32 steps."""
    seen = {6: 0.173, 12: 0.372, 18: 0.605, 24: 1.142, 32: 3.137}

    def margin_at(step: int) -> float:
        steps = sorted(seen)
        before = max(known for known in (0, *steps) if known <= step)
        after = min(known for known in (*steps, 10**6) if known >= step)
        low, high = seen.get(before, 0.0), seen.get(after, 3.137)
        return low if before == after else low + (high - low) * (step - before) / (after - before)

    dose = Dose(PLAN)
    last_step = _train(dose, margin_at)
    assert last_step < 32 and 2.0 <= dose.looks[-1].margin < 2.5


def test_a_run_of_many_rounds_does_not_drift() -> None:
    margins = [margin_of_round(1.75, round_index=index, decay=0.5) for index in range(100)]
    assert margins[:3] == [1.75, 0.875, 0.4375] and sum(margins) <= 3.5
