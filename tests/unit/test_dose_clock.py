"""What a look at held-out pairs makes of log-probs; the training around it is in tests/ray/test_dose_training.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from fakes import preference_pair, single_answer

from actors.train import dose_clock
from actors.train.dose_clock import DoseClock
from csr_ray.records import Example
from csr_ray.training.dose import Dose, DosePlan

PAIRS = [
    preference_pair(
        id=f"p{number}",
        image="i.png",
        prompt="Describe.",
        chosen_ids=(3, number),
        rejected_ids=(4, number),
        chosen_logp=-1.0,
        rejected_logp=-1.0,
    )
    for number in range(9)
]


def look(
    sums: dict[str, float], monkeypatch: pytest.MonkeyPatch, *, examples: Sequence[Example] = tuple(PAIRS)
) -> Dose:
    """The dose after one look, at which the examples named in `sums` have these log-probs and all others -1."""
    monkeypatch.setattr(dose_clock.distributed, "get_world_size", lambda: 1)
    monkeypatch.setattr(dose_clock.distributed, "get_rank", lambda: 0)

    def now(pairs: Sequence[Example]) -> tuple[list[float], list[float]]:
        return [sums.get(pair.id, -1.0) for pair in pairs], [-2.0] * sum(pair.num_answers == 2 for pair in pairs)

    def before(pairs: Sequence[Example]) -> tuple[list[float], list[float]]:
        # Of several answers to one prompt each has a reference of its own.
        return [-1.0 - pair.preferred.token_ids[0] for pair in pairs], [-1.0] * len(now(pairs)[1])

    plan = DosePlan(margin=9.0, divergence=9.0, patience=9, lr_sum=None, steps_a_pass=9, max_steps=9, finds_rate=True)
    clock = DoseClock(
        Dose(plan),
        batch_size=8,
        beta=0.1,
        num_held_out=lambda: len(examples),
        held_out=lambda num: list(examples[:num]),
        sums=now,
        reference_sums=before,
        keep=lambda: None,
    )
    state = SimpleNamespace(global_step=4, max_steps=9, log_history=[])
    clock.on_step_end(SimpleNamespace(device="cpu"), state, SimpleNamespace(should_training_stop=False))
    return clock.dose


def test_a_look_is_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    (seen,) = look({"p1": 8.0}, monkeypatch).looks
    assert seen.num_pairs == 9 and seen.margin == pytest.approx(5.0)


def test_a_look_at_single_answers_knows_several_of_one_prompt_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [single_answer(id=f"p{number // 2}", ids=(number, 2)) for number in range(8)]
    (seen,) = look({}, monkeypatch, examples=answers).looks
    assert (seen.num_pairs, seen.rejected) == (8, None)
    assert seen.chosen == pytest.approx(3.5), "the mean of 0 to 7"
    with pytest.raises(FloatingPointError, match=r"no numbers: p3, p3\. "):
        look({"p3": math.nan}, monkeypatch, examples=answers)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_pairs_without_a_number_are_named(odd: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """No margin is ever reached by them, so the learning rate would be raised as far as it goes."""
    with pytest.raises(FloatingPointError, match=r"^step 4: .* pairs are no numbers: p2, p5\. "):
        look({"p2": odd, "p5": odd}, monkeypatch)
    with pytest.raises(FloatingPointError, match=r"no numbers: p0, p1, p2, p3, p4 and 2 more\. Lower train"):
        look({f"p{number}": odd for number in range(7)}, monkeypatch)
