"""Who of a train group is taken for dead, and how often the group starts again."""

from __future__ import annotations

import random

import pytest

from actors.train.deaths import Restarts, Silences, silent_worker, waits_for
from actors.train.messages import Beat, LastBeat

LIMITS = {"start_s": 60.0, "silence_s": 10.0, "hang_s": 100.0}


def _beat(*, number: int = 7, doing: str = "step 3", doing_s: float = 1.0, is_waiting: bool = False) -> LastBeat:
    return LastBeat(beat=Beat(doing=doing, doing_s=doing_s, is_waiting=is_waiting), number=number)


def test_all_is_well_in_a_long_step_and_a_long_wait() -> None:
    beats = {0: _beat(doing_s=99.0), 1: _beat(doing="its wait for an order", doing_s=9e5, is_waiting=True)}
    assert silent_worker(beats, silent_s={0: 9.0, 1: 9.0}, spawned_for_s={0: 1e6, 1: 1e6}, **LIMITS) is None
    assert silent_worker({}, silent_s={}, spawned_for_s={}, **LIMITS) is None, "Ray may look for a place for long"


def test_the_one_that_fell_silent_first_is_dead() -> None:
    beats = {0: _beat(), 1: _beat(doing="step 4"), 2: _beat()}
    death = silent_worker(beats, silent_s={0: 11.0, 1: 12.6, 2: 0.5}, spawned_for_s={}, **LIMITS)
    assert death is not None and death.rank == 1
    assert str(death) == "train worker 1 has said nothing for 13 s, while it was at step 4"


def test_a_process_that_never_began_to_speak_is_dead() -> None:
    assert silent_worker({0: _beat()}, silent_s={0: 0.5}, spawned_for_s={0: 59.0, 1: 59.0}, **LIMITS) is None
    death = silent_worker({0: _beat()}, silent_s={0: 0.5}, spawned_for_s={0: 61.0, 1: 61.0}, **LIMITS)
    assert death is not None and death.rank == 1
    assert str(death) == "train worker 1 has said nothing in the 61 s since its process began"


def test_one_that_lives_but_gets_no_further_is_dead_and_all_are_told() -> None:
    beats = {0: _beat(doing_s=50.0, doing="step 4"), 1: _beat(doing_s=101.0)}
    death = silent_worker(beats, silent_s={0: 0.5, 1: 0.5}, spawned_for_s={}, **LIMITS)
    assert death is not None and death.rank == 1
    assert str(death).endswith("for 101 s (train.hang_s): worker 0 is at step 4; worker 1 is at step 3")


def test_silence_is_counted_from_beat_to_beat_and_a_machine_that_stood_still_counts_little() -> None:
    silences = Silences()
    assert silences.hear({0: _beat(number=1), 1: _beat(number=1)}, now_s=0.0) == {0: 0.0, 1: 0.0}
    assert silences.hear({0: _beat(number=2), 1: _beat(number=1)}, now_s=1.0) == {0: 0.0, 1: 1.0}
    assert silences.hear({0: _beat(number=2), 1: _beat(number=1)}, now_s=100.0) == {0: 2.0, 1: 3.0}
    assert silences.hear({0: _beat(number=2), 1: _beat(number=2)}, now_s=101.0) == {0: 3.0, 1: 0.0}


def test_after_each_death_the_next_attempt_may_be_silent_for_twice_as_long() -> None:
    """On a busy machine seven groups ended each other's workers by starting again, and none ever began."""
    restarts = Restarts(most=9, rng=random.Random(0))
    seen = []
    for _ in range(5):
        seen.append(restarts.patience)
        restarts.take()
    assert seen == [1.0, 2.0, 4.0, 4.0, 4.0]
    restarts.give_back()
    assert restarts.patience == 1.0


def test_a_driver_that_waits_says_for_what() -> None:
    assert waits_for({}, num_workers=2) == "Ray to start 2 train workers (0 there)"
    waiting = _beat(doing="its wait for files of examples", doing_s=500.0, is_waiting=True)
    told = waits_for({0: waiting, 1: _beat(doing_s=42.0)}, num_workers=2)
    assert told == "train worker 1, which is at step 3 for 42 s"


def test_restarts_are_bounded_in_a_cycle_and_each_waits_longer() -> None:
    restarts = Restarts(most=3, rng=random.Random(0))
    waits_s = [restarts.take() for _ in range(4)]
    assert waits_s[:3] == [pytest.approx(expected, rel=0.25) for expected in (1, 2, 4)]
    assert waits_s[3] is None
    restarts.give_back()
    assert restarts.take() == pytest.approx(1, rel=0.25)
    assert Restarts(most=0, rng=random.Random(0)).take() is None
