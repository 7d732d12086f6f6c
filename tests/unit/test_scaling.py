"""How many replicas there are: as many as the queue or the load is for, between the least and the most."""

from __future__ import annotations

import math
from typing import Any

import pytest

from actors.pool.decisions import Decisions
from actors.pool.events import (
    Answered,
    Died,
    Event,
    Finished,
    GiveUp,
    Grow,
    Joined,
    Replica,
    Room,
    Send,
    Shrink,
    Starting,
)
from actors.pool.lives import RoleLimits
from actors.pool.scaling import Bounds, Queue, Scaling

ONE, TWO, THREE = (Replica("generator", slot) for slot in range(3))


@pytest.mark.parametrize(
    ("num_left", "rate_per_s", "num_alive", "num_room", "more"),
    [
        # Nothing is known of the pace: two helpings of 4 for each, within the bounds and the room.
        (100, 0.0, 1, 9, 4),
        (100, 0.0, 1, 2, 2),
        (100, 0.0, 1, 0, 0),
        (100, 0.0, 5, 9, 0),
        (24, 0.0, 1, 9, 2),
        (8, 0.0, 1, 9, 0),
        (math.inf, 0.0, 1, 9, 4),
        # One takes 30 s to start. At 1 a second, one that is there has done 40 before it would help.
        (40, 1.0, 1, 9, 0),
        (130, 1.0, 1, 9, 1),
        (10_000, 1.0, 1, 9, 4),
        # There may be more than are wanted; they go when they have nothing to do.
        (8, 0.0, 4, 9, 0),
    ],
)
def test_generators_follow_the_queue(
    num_left: float, rate_per_s: float, num_alive: int, num_room: int, more: int
) -> None:
    scaling = Scaling(Bounds(min=1, max=5, idle_s=60.0))
    queue = Queue(num_left=num_left, num_each=4, rate_per_s=rate_per_s)
    assert scaling.num_for_queue(queue, num_alive=num_alive, num_room=num_room) == more


def test_who_takes_long_to_start_is_started_for_more_work() -> None:
    scaling = Scaling(Bounds(min=1, max=5))
    queue = Queue(num_left=500.0, num_each=4, rate_per_s=1.0)
    assert scaling.num_for_queue(queue, num_alive=1, num_room=9) == 4
    scaling.started(seconds=240.0)
    assert scaling.num_for_queue(queue, num_alive=1, num_room=9) == 0


def test_scorers_follow_their_load_one_at_a_time() -> None:
    scaling = Scaling(Bounds(min=1, max=3, idle_s=60.0))
    first, second = Replica("scorer", 0), Replica("scorer", 1)

    def more(busy: dict[Replica, float], *, now_s: float, num_alive: int = 1, num_room: int = 9) -> int:
        return scaling.num_for_load(busy, num_alive=num_alive, num_room=num_room, now_s=now_s)

    assert more({first: 1.0}, now_s=0.0) == 0
    assert more({first: 0.5}, now_s=10.0) == 0, "a pause: it begins anew"
    assert more({first: 1.0}, now_s=15.0) == 0
    assert more({first: 1.0}, now_s=35.0) == 1
    assert more({first: 1.0}, now_s=70.0, num_alive=2) == 0, "the second is starting"
    assert more({first: 1.0, second: 0.2}, now_s=100.0, num_alive=2) == 0
    assert scaling.least_loaded({first: 0.3, second: 0.1}, num_alive=2, now_s=100.0) == []
    assert scaling.least_loaded({first: 0.3, second: 0.1}, num_alive=2, now_s=160.0) == [second]
    assert scaling.least_loaded({first: 0.3}, num_alive=1, now_s=400.0) == []


def test_who_is_idle_goes_the_last_first_but_never_below_the_least() -> None:
    scaling = Scaling(Bounds(min=2, max=5, idle_s=60.0))
    assert scaling.idle([ONE, TWO, THREE], num_alive=3, now_s=0.0) == []
    assert scaling.idle([ONE, THREE], num_alive=3, now_s=59.0) == []
    assert scaling.idle([ONE, TWO, THREE], num_alive=3, now_s=60.0) == [THREE]
    assert scaling.idle([ONE, TWO], num_alive=2, now_s=600.0) == []


@pytest.mark.parametrize("bad", [{"min": 0}, {"min": 3, "max": 2}, {"idle_s": 0.0}])
def test_bounds_that_contradict_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="1 <= min <= max"):
        Bounds(**bad)


class Pool:
    """The decisions of a pool of generators that may grow, told what a test says."""

    def __init__(self, *, num: int, least: int = 1, most: int = 3, idle_s: float = 60.0, **limits: float) -> None:
        self.decisions: Decisions[int] = Decisions(
            range(num),
            image_of=str,
            in_flight=4,
            limits={"generator": RoleLimits(**limits)},  # type: ignore[arg-type]
            bounds={"generator": Bounds(min=least, max=most, idle_s=idle_s)},
            num=num,
            is_resident=True,
        )
        self.calls: dict[int, Replica] = {}

    def step(self, *events: Event, now_s: float) -> list[Any]:
        actions = self.decisions.step(events, now_s=now_s)
        self.calls |= {action.call: action.replica for action in actions if isinstance(action, Send)}
        return [action for action in actions if isinstance(action, Grow | Shrink | GiveUp)]

    def finish(self, replica: Replica, *, now_s: float) -> list[Any]:
        """All that the replica has ends well."""
        done = [call for call, one in self.calls.items() if one == replica]
        for call in done:
            del self.calls[call]
        return self.step(*(Finished(call) for call in done), now_s=now_s)


def test_a_pool_grows_when_there_is_room_and_shrinks_when_the_work_is_done() -> None:
    pool = Pool(num=40)
    assert pool.step(Starting(ONE), Joined(ONE), now_s=0.0) == []
    assert pool.step(now_s=2.0) == [], "no room is known of"
    assert pool.step(Room("generator", 1), now_s=4.0) == [Grow(TWO)]
    assert pool.step(Room("generator", 0), now_s=6.0) == []
    pool.step(Answered(TWO), Joined(TWO), now_s=8.0)
    assert set(pool.calls.values()) == {ONE, TWO}
    now_s = 8.0
    while pool.calls:
        now_s += 1.0
        assert pool.finish(ONE, now_s=now_s) + pool.finish(TWO, now_s=now_s) == []
    assert pool.decisions.done
    (shrunk,) = [action for at_s in range(70) for action in pool.step(now_s=now_s + at_s)]
    assert shrunk.reason == "nothing to do for 60 s"
    assert pool.decisions.serving("generator") == [TWO if shrunk.replica == ONE else ONE]


@pytest.mark.parametrize(("start_s", "grows"), [(5.0, True), (60.0, False)])
def test_how_long_the_first_took_to_start_says_whether_another_is_worth_it(start_s: float, grows: bool) -> None:
    pool = Pool(num=40)
    pool.step(Starting(ONE), now_s=0.0)
    pool.step(now_s=start_s - 1.0)
    pool.step(Joined(ONE), now_s=start_s)
    assert pool.finish(ONE, now_s=start_s + 4.0) == [], "no room is known of"
    # One item a second: another one would be ready after the 36 that are left are half done, or when they all are.
    assert bool(pool.step(Room("generator", 9), now_s=start_s + 5.0)) == grows


def test_a_pool_that_was_given_no_work_does_not_grow() -> None:
    pool = Pool(num=0)
    pool.step(Starting(ONE), Room("generator", 9), now_s=0.0)
    assert pool.step(now_s=5.0) == []
    assert pool.step(Answered(ONE), Joined(ONE), now_s=10.0) == []
    assert pool.step(now_s=15.0) == []


def test_one_that_will_be_replaced_is_not_replaced_by_another_slot_as_well() -> None:
    pool = Pool(num=1000, most=2, restarts=3)
    pool.step(Starting(ONE), Joined(ONE), Starting(TWO), Joined(TWO), Room("generator", 9), now_s=0.0)
    assert pool.step(Died(TWO, "its node is gone"), now_s=5.0) == []
    pool.step(Died(TWO.successor(), "its node is gone, too"), now_s=6.0)
    assert pool.step(now_s=6.1) == [], "it is replaced after a pause"
    assert pool.decisions.unplaced("generator") == []


def test_who_was_let_go_may_be_started_again_as_another_life() -> None:
    pool = Pool(num=8, idle_s=5.0)
    pool.step(Joined(ONE), Joined(TWO), now_s=0.0)
    pool.finish(ONE, now_s=1.0)
    pool.finish(TWO, now_s=1.0)
    pool.step(now_s=2.0)
    assert pool.step(Room("generator", 9), now_s=8.0) == [Shrink(TWO, "nothing to do for 5 s")]
    pool.decisions.begin(range(100), image_of=str, in_flight=4, num=100)
    grown = pool.step(now_s=10.0)
    assert grown == [Grow(TWO.successor()), Grow(THREE)]


def test_who_finds_no_place_is_taken_back_unless_it_is_needed() -> None:
    pool = Pool(num=1000, place_s=300.0)
    pool.step(Starting(ONE), Room("generator", 2), now_s=0.0)
    pool.step(Answered(ONE), Joined(ONE), now_s=1.0)
    assert pool.decisions.unplaced("generator") == [TWO, THREE]
    assert pool.step(Room("generator", 0), now_s=30.0) == []
    gone = pool.step(now_s=62.0)
    assert gone == [Shrink(THREE, "the cluster has no room for it"), Shrink(TWO, "the cluster has no room for it")]
    alone = Pool(num=1000, place_s=300.0)
    alone.step(Starting(ONE), now_s=0.0)
    assert alone.step(Room("generator", 0), now_s=299.0) == []
    (end,) = alone.step(now_s=300.0)
    assert isinstance(end, GiveUp) and end.lacks_room
    assert "found no place in the cluster within 300 s" in end.reason


def test_a_run_does_not_begin_with_fewer_than_the_least_and_ends_where_one_of_them_has_no_place() -> None:
    pool = Pool(num=1000, least=2, place_s=300.0, restarts=3)
    pool.step(Starting(ONE), Starting(TWO), now_s=0.0)
    pool.step(Answered(ONE), Joined(ONE), now_s=20.0)
    (end,) = [action for at_s in range(21, 301) for action in pool.step(now_s=float(at_s))]
    assert isinstance(end, GiveUp) and end.lacks_room and end.replica == TWO


def test_who_takes_the_place_of_one_that_died_while_the_run_began_is_waited_for_no_longer() -> None:
    pool = Pool(num=0, least=2, place_s=300.0, start_s=900.0, restarts=8)
    pool.step(Starting(ONE), Starting(TWO), now_s=0.0)
    pool.step(Answered(ONE), Joined(ONE), Answered(TWO), now_s=20.0)
    assert pool.step(Died(TWO, "its node is gone"), now_s=30.0) == []
    (end,) = [action for at_s in range(31, 400) for action in pool.step(now_s=float(at_s))]
    assert isinstance(end, GiveUp) and end.lacks_room and end.replica == TWO.successor()


def test_room_is_given_away_once_and_what_only_seemed_to_be_room_is_given_back() -> None:
    """Two halves of two GPUs look like room for one that needs a whole one."""
    pool = Pool(num=1000)
    assert pool.step(Joined(ONE), Room("generator", 1), now_s=0.0) == [Grow(TWO)]
    assert pool.step(now_s=1.5) == [], "the room was asked for before it was given away"
    assert pool.step(Room("generator", 1), now_s=3.0) == []
    assert pool.step(Room("generator", 1), now_s=61.0) == [Shrink(TWO, "the cluster has no room for it")]


def test_what_has_no_place_asks_for_none_when_the_work_is_done() -> None:
    """An autoscaler would go on adding nodes for it."""
    pool = Pool(num=40)
    pool.step(Joined(ONE), Room("generator", 9), now_s=0.0)
    assert pool.decisions.unplaced("generator") == [TWO, THREE]
    now_s = 1.0
    while pool.calls:
        now_s += 0.01
        pool.finish(ONE, now_s=now_s)
    assert pool.step(now_s=now_s + 1.0) == [
        Shrink(THREE, "there is no work left for it"),
        Shrink(TWO, "there is no work left for it"),
    ]
