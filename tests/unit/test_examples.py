"""What an example and a phase may be: pairs, or single answers that are imitated, and nothing in between."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes import preference_pair, single_answer

from csr_ray.records import IMITATIONS, Phase

PAIR = preference_pair(id="a", chosen_ids=(1, 2), rejected_ids=(3, 2))
SINGLE = single_answer(id="a", ids=(1, 2), weight=0.5)


def test_the_preferred_answer_is_the_chosen_or_the_only_one() -> None:
    assert PAIR.preferred is PAIR.chosen and PAIR.num_answers == 2 and PAIR.margin == 1.0
    assert SINGLE.preferred.role == "answer" and SINGLE.num_answers == 1
    unrated = replace(PAIR, targets=(replace(PAIR.chosen, reward=None), PAIR.rejected))
    assert unrated.margin is None


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_a_weight_is_a_positive_number(weight: float) -> None:
    with pytest.raises(AssertionError, match="weight"):
        replace(SINGLE, weight=weight)


def test_a_pair_has_no_weight_and_no_answer_stands_alone_under_another_role() -> None:
    with pytest.raises(AssertionError, match=r"a pair of weight 0\.5"):
        replace(PAIR, weight=0.5)
    with pytest.raises(AssertionError, match="a pair or one answer"):
        replace(PAIR, targets=(PAIR.chosen,))
    with pytest.raises(AssertionError, match="a pair or one answer"):
        replace(SINGLE, targets=(SINGLE.preferred, SINGLE.preferred))


@pytest.mark.parametrize("objective", [None, "sigmoid", "ipo"])
def test_single_answers_cannot_be_preferred(objective: str | None) -> None:
    with pytest.raises(AssertionError, match="needs pairs"):
        Phase(objective=objective, num_answers=1)


@pytest.mark.parametrize("objective", IMITATIONS)
def test_an_imitation_takes_single_answers_or_pairs(objective: str) -> None:
    assert [Phase(objective=objective, num_answers=num).num_answers for num in (1, 2)] == [1, 2]  # type: ignore[arg-type]
