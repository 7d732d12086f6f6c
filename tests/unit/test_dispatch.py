"""Which replica gets which item, and where an image lives."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.pool.dispatch import Dispatch
from actors.pool.events import Replica, Send

ONE, TWO, THREE = (Replica("generator", slot) for slot in range(3))


def dispatch(
    *items: str, in_flight: int = 1, replicas: tuple[Replica, ...] = (ONE, TWO), **more: int
) -> Dispatch[str]:
    made = Dispatch(items, image_of=lambda item: item[0], in_flight=in_flight, **more)
    for replica in replicas:
        made.join(replica)
    return made


def sent(made: Dispatch[str]) -> list[tuple[Replica, str]]:
    return [(send.replica, send.item) for send in made.sends(now_s=0.0)]


def end(made: Dispatch[str], *items: str) -> None:
    number_of = {call.work.item: number for number, call in made.calls.items()}
    for item in items:
        made.end(number_of[item])


def test_replicas_with_room_take_turns() -> None:
    assert sent(dispatch("a", "b", "c", "d", "e", in_flight=2)) == [(ONE, "a"), (TWO, "b"), (ONE, "c"), (TWO, "d")]


def test_an_image_stays_with_the_replica_that_took_its_first_item() -> None:
    made = dispatch("a1", "a2", "b1", "a3", "c1")
    assert sent(made) == [(ONE, "a1"), (TWO, "b1")]
    end(made, "b1")
    assert sent(made) == [(TWO, "c1")]  # not a3
    end(made, "a1", "c1")
    assert sent(made) == [(ONE, "a2")]
    end(made, "a2")
    assert sent(made) == [(ONE, "a3")]
    end(made, "a3")
    assert sent(made) == [] and made.done


def test_a_home_is_remembered_while_nothing_is_asked_about_its_image() -> None:
    made = dispatch("a1", "b1", "c1", "d1", "a2", "b2")
    assert sent(made) == [(ONE, "a1"), (TWO, "b1")]
    end(made, "b1", "a1")
    assert sent(made) == [(TWO, "c1"), (ONE, "d1")]
    end(made, "d1", "c1")
    assert sorted(sent(made)) == [(ONE, "a2"), (TWO, "b2")]


def test_and_forgotten_when_others_came_after_it() -> None:
    made = dispatch("a1", "b1", "c1", "d1", "a2", remembered=1)
    assert sent(made) == [(ONE, "a1"), (TWO, "b1")]
    end(made, "b1", "a1")
    assert sent(made) == [(TWO, "c1"), (ONE, "d1")]
    end(made, "c1", "d1")
    assert sent(made) == [(TWO, "a2")]


def test_who_has_nothing_to_do_takes_over_an_image_that_nobody_has_begun() -> None:
    made = dispatch("a1", "b1", "a2", "a3")
    assert sent(made) == [(ONE, "a1"), (TWO, "b1")]
    end(made, "b1")
    assert sent(made) == []  # the image is in progress: it is not served in two places
    made.pause(ONE, paused=True)
    end(made, "a1")
    assert sent(made) == [(TWO, "a2")]
    made.pause(ONE, paused=False)
    assert sent(made) == []  # it has moved for good


def test_images_of_a_replica_that_left_find_a_new_home_together() -> None:
    made = dispatch("a1", "b1", "a2", "a3")
    sent(made)
    end(made, "b1")
    assert sent(made) == []
    (lost,) = made.leave(ONE)
    made.again(lost.work)
    made.join(THREE)
    assert sent(made) == [(TWO, "a1")]
    end(made, "a1")
    assert sent(made) == [(TWO, "a2")]


def test_what_is_tried_alone_is_alone() -> None:
    made = dispatch("a1", "b1", "c1", "d1", "e1", in_flight=2, replicas=(ONE,))
    sent(made)
    (lost, _) = made.leave(ONE)
    made.join(TWO)
    assert sent(made) == [(TWO, "c1"), (TWO, "d1")]
    made.again(lost.work, alone=True)
    end(made, "c1")
    assert sent(made) == []  # it is being emptied
    end(made, "d1")
    assert made.sends(now_s=0.0) == [Send(call=4, replica=TWO, item="a1", alone=True, is_stray=True)]
    assert sent(made) == []
    end(made, "a1")
    assert sent(made) == [(TWO, "e1")]


def test_nobody_looks_further_than_the_look_ahead() -> None:
    made = dispatch("a1", "a2", "a3", "a4", "b1", look_ahead=2)
    assert sent(made) == [(ONE, "a1")] and made.num_held == 3
    assert sent(dispatch("a1", "a2", "a3", "a4", "b1", look_ahead=4)) == [(ONE, "a1"), (TWO, "b1")]


def test_a_call_that_ended_or_was_lost_ends_once() -> None:
    made = dispatch("a1", "b1")
    sent(made)
    assert made.end(0) is not None and made.end(0) is None
    made.leave(TWO)
    assert made.end(1) is None and made.leave(TWO) == []


@pytest.mark.parametrize("limits", [{"in_flight": 0}, {"look_ahead": 0}, {"remembered": -1}])
def test_limits_that_make_no_sense_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="too small"):
        dispatch("a", **limits)


@given(st.lists(st.text(st.sampled_from("abcde"), min_size=1, max_size=3)), st.lists(st.integers(0, 9), max_size=200))
def test_every_item_is_taken_once_and_no_image_is_in_two_places(items: list[str], picks: list[int]) -> None:
    made = dispatch(*items, in_flight=2, replicas=(ONE, TWO, THREE))
    taken = []
    places: dict[str, set[Replica]] = defaultdict(set)
    for pick in [*picks, *[0] * (len(items) + 1)]:
        taken += [item for _, item in sent(made)]
        places.clear()
        for call in made.calls.values():
            places[call.work.image].add(call.replica)
        assert all(len(replicas) == 1 for replicas in places.values())
        if made.calls:
            made.end(list(made.calls)[pick % len(made.calls)])
    assert sorted(taken) == sorted(items)
