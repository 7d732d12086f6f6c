"""The page's part on how much was trained."""

from __future__ import annotations

from typing import Any

import pytest

from csr_ray.report.dose import MOST_SHOWN, dose_rows, verdict_rows
from csr_ray.training.dose import Dose, DosePlan, look_at


def _dose(margins: dict[int, float], *, margin: float | None = 2.0) -> dict[str, Any]:
    dose = Dose(
        DosePlan(
            margin=margin, divergence=9.0, patience=1, lr_sum=None, steps_a_pass=9, max_steps=99, finds_rate=False
        )
    )
    for step, value in margins.items():
        dose.observe(look_at([value], rejected=[0.0], step=step, lr_sum=step * 1e-4, beta=0.1))
    return dose.to_plain(learning_rate=1e-4)


def _summary(*doses: dict[str, Any]) -> dict[str, Any]:
    return {"rounds": [{"train": {"dose": dose}} for dose in doses]}


def test_a_row_says_why_a_phase_ended_and_what_its_weights_are_worth() -> None:
    (row,) = dose_rows(_summary(_dose({4: 0.5, 8: 2.25})), target_margin=2.0, margin_decay=0.5)
    assert (row.label, row.num_steps, row.num_pairs, row.margin, row.accuracy) == ("Round 1", 8, 1, 2.25, 1.0)
    assert row.reason == "the held-out margin came to 2.25 nats (asked: 2)" and row.learning_rate == "0.0001"
    assert "margin, step 8: 2.25" in row.nats and "divergence, step 8: -1.12" in row.nats
    assert "accuracy, step 4: 1" in row.shares and "loss, step 4: 0.668" in row.shares


def test_the_dashed_line_is_what_was_asked_of_the_round() -> None:
    def heights(target_margin: float, margin_decay: float) -> list[str]:
        old = {name: value for name, value in _dose({4: 0.1}).items() if name != "target_margin"}
        rows = dose_rows(_summary(old, old), target_margin=target_margin, margin_decay=margin_decay)
        return [str(row.nats) for row in rows]

    halved, same = heights(8.0, 0.5), heights(8.0, 1.0)
    assert halved[0] == same[0] and same[1] == same[0].replace("Round 1", "Round 2")
    assert halved[1] == heights(4.0, 1.0)[1] != same[1]


def test_the_dashed_line_of_a_phase_that_was_refused_before_is_what_was_asked_of_it() -> None:
    def drawn(target_margin: float) -> str:
        dose = {**_dose({4: 0.1}), "target_margin": target_margin}
        (row,) = dose_rows(_summary(dose), target_margin=8.0, margin_decay=0.5)
        return str(row.nats)

    old = {name: value for name, value in _dose({4: 0.1}).items() if name != "target_margin"}
    (as_before,) = dose_rows(_summary(old), target_margin=4.0, margin_decay=0.5)
    assert drawn(4.0) == as_before.nats != drawn(8.0)


def test_a_phase_that_taught_nothing_says_so() -> None:
    (row,) = dose_rows(_summary(_dose({4: -0.5})), target_margin=2.0, margin_decay=0.5)
    assert row.margin is None and row.reason == "the held-out loss was lowest after step 0"


def test_phases_of_a_round_have_their_names_and_many_rounds_are_cut_in_the_middle() -> None:
    phases = [{"phase": name, "train": {"dose": _dose({4: 0.5})}} for name in ("main", "infused")]
    assert [
        row.label for row in dose_rows({"rounds": [{"phases": phases}]}, target_margin=None, margin_decay=None)
    ] == [
        "Round 1, main",
        "Round 1, infused",
    ]
    many = dose_rows(_summary(*[_dose({4: 0.5})] * 20), target_margin=None, margin_decay=None)
    assert [row.label for row in many] == [f"Round {number}" for number in (1, 2, 3, 18, 19, 20)]
    assert len(many) == MOST_SHOWN


@pytest.mark.parametrize(
    "summary",
    [
        {},
        {"rounds": None},
        {"rounds": [None, {"train": None}, {"train": {}}, {"phases": [None]}]},
        _summary({}, {"looks": []}, {"looks": [None, {"step": 1}]}, {"looks": [{"step": "x", "margin": None}]}),
        {"rounds": [{"train": {"dose": {"looks": "none"}}}]},
    ],
)
def test_a_summary_without_doses_or_a_damaged_one_has_no_rows(summary: dict[str, Any]) -> None:
    assert dose_rows(summary, target_margin=None, margin_decay=None) == []


def test_verdicts_are_listed_with_what_spoke_for_them() -> None:
    finding = {
        "name": "reward",
        "before": 51.25,
        "after": 20.0,
        "difference": {"mean": -31.25, "low": -33.0, "high": -29.5, "p": 0.001},
        "fault": "the reward fell",
    }
    refused = {"accepted": False, "attempt": 1, "faults": ["the reward fell"], "findings": [finding]}
    accepted = {"accepted": True, "attempt": 2, "faults": [], "findings": []}
    first, second = verdict_rows({"rounds": [{"train": {"verdicts": [refused, accepted]}}]})
    assert (first.label, first.is_accepted, first.faults) == ("Round 1", False, "the reward fell")
    assert first.figures == (("mean reward", "51.2", "20", "−33 to −29.5"),)
    assert (second.label, second.is_accepted, second.figures) == ("Round 1, attempt 2", True, ())


@pytest.mark.parametrize(
    "verdicts", [None, "x", [None], [{}], [{"faults": 1, "findings": [None, {}, {"before": 1, "after": "x"}]}]]
)
def test_damaged_verdicts_are_no_traceback(verdicts: Any) -> None:
    rows = verdict_rows({"rounds": [{"train": {"verdicts": verdicts}}]})
    assert all(row.figures == () and not row.is_accepted for row in rows)
