"""What the pool decides when something goes wrong: who is tried again, set aside or replaced, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from actors.pool.decisions import Decisions
from actors.pool.events import (
    Answered,
    Cancel,
    Deliver,
    Died,
    Event,
    Failed,
    Finished,
    GiveUp,
    Joined,
    Kill,
    Left,
    Ping,
    Quarantine,
    Replace,
    Replica,
    Retry,
    Send,
    Starting,
)
from actors.pool.failures import ItemLimits
from actors.pool.lives import RoleLimits

ONE, TWO = (Replica("generator", slot) for slot in range(2))
SCORER = Replica("scorer", 0)


def decisions(
    *items: str, generators: RoleLimits | None = None, scorers: RoleLimits | None = None, **limits: Any
) -> Decisions[str]:
    return Decisions(
        items,
        image_of=lambda item: item[0],
        in_flight=2,
        limits={"generator": generators or RoleLimits(), "scorer": scorers or RoleLimits()},
        item_limits=ItemLimits(**limits),
    )


def test_results_are_handed_on_after_replicas_have_new_work() -> None:
    made = decisions("a", "b", "c")
    assert made.step([Joined(ONE)], now_s=0.0) == [Send(0, ONE, "a"), Send(1, ONE, "b")]
    assert made.step([Finished(0)], now_s=1.0) == [Send(2, ONE, "c"), Deliver(0, "a")]
    assert made.step([Finished(1), Finished(0), Failed(2, "no such image")], now_s=2.0) == [
        Deliver(1, "b"),
        Quarantine(2, "c", "no such image"),
    ]
    assert made.done and made.next_deadline_s() == math.inf


def test_nothing_but_failures_ends_the_run() -> None:
    made = decisions(*"abcdef", failures_before_giving_up=3)
    actions = made.step([Joined(ONE)], now_s=0.0)
    for call in range(3):
        actions = made.step([Failed(call, "out of memory")], now_s=0.0)
    assert actions == [GiveUp("every item so far failed; the last: out of memory", call=2)]
    assert made.done and made.step([Finished(3)], now_s=1.0) == []


def test_one_success_and_failures_are_the_items_own() -> None:
    made = decisions(*"abcdef", failures_before_giving_up=2)
    made.step([Joined(ONE)], now_s=0.0)
    made.step([Finished(0)], now_s=0.0)
    for call in range(1, 6):
        assert any(isinstance(action, Quarantine) for action in made.step([Failed(call, "bad")], now_s=0.0))
    assert made.done


def test_without_restarts_a_death_that_leaves_too_few_ends_the_run_and_names_the_dead() -> None:
    made = decisions(*"abcd", generators=RoleLimits(min_replicas=2))
    made.step([Joined(ONE), Joined(TWO)], now_s=0.0)
    *_, last = made.step([Died(TWO, "signal 9")], now_s=1.0)
    assert isinstance(last, GiveUp) and last.replica == TWO
    assert last.reason.startswith("generator 1 died: signal 9 (1 of 2 generators left, 2 needed; 0 of 0 restarts")


def test_the_dead_are_replaced_and_what_they_had_is_sent_again() -> None:
    made = decisions(*"ab", generators=RoleLimits(restarts=1))
    made.step([Joined(ONE)], now_s=0.0)
    new = ONE.successor()
    died = made.step([Died(ONE, "signal 9")], now_s=1.0)
    assert Replace(ONE, new) in died and not any(isinstance(action, Send) for action in died)
    assert made.state_of(ONE) == "dead" and made.state_of(new) == "starting"
    assert made.step([Finished(0), Died(ONE, "again"), Joined(ONE)], now_s=2.0) == []  # news of the dead
    assert {action.item for action in made.step([Joined(new)], now_s=3.0)} == {"a", "b"}


def test_restarts_come_back_with_the_window() -> None:
    made = decisions(*"abcdefgh", generators=RoleLimits(restarts=1, restart_window_s=100.0))
    made.step([Joined(ONE), Joined(TWO)], now_s=0.0)
    made.step([Died(ONE, "signal 9")], now_s=10.0)
    made.step([Joined(ONE.successor())], now_s=15.0)
    made.step([Finished(0)], now_s=16.0)
    died = made.step([Died(ONE.successor(), "signal 9")], now_s=20.0)
    assert not any(isinstance(action, Replace) for action in died) and made.next_deadline_s() == 110.0
    assert made.step([], now_s=110.0) == [Replace(ONE.successor(), Replica("generator", 0, life=2))]


def test_poison_is_found_by_trying_alone_and_who_was_with_it_goes_free() -> None:
    made = decisions("a", "poison", "c", generators=RoleLimits(restarts=9))
    replica, ended = ONE, []
    actions = made.step([Joined(ONE)], now_s=0.0)
    for turn in range(1, 20):
        sends = [action for action in actions if isinstance(action, Send)]
        ended += [action for action in actions if isinstance(action, Deliver | Quarantine)]
        if made.done:
            break
        if any(send.item == "poison" for send in sends):
            actions = made.step([Died(replica, "signal 11")], now_s=float(turn))
            replica = replica.successor()
            actions += made.step([Joined(replica)], now_s=float(turn))
        else:
            actions = made.step([Finished(send.call) for send in sends], now_s=float(turn))
    assert sorted(action.item for action in ended if isinstance(action, Deliver)) == ["a", "c"]
    (poison,) = [action for action in ended if isinstance(action, Quarantine)]
    assert poison.item == "poison" and "3 replicas died with it in a row" in poison.reason and replica.life == 3


def test_one_that_fails_to_start_is_tried_again_after_a_pause_that_grows() -> None:
    made = decisions("a", generators=RoleLimits(restarts=9, first_starts=99))
    made.step([Starting(ONE)], now_s=0.0)
    replica, now_s, pauses_s = ONE, 0.0, []
    for _ in range(9):
        assert not made.step([Died(replica, "no GPU")], now_s=now_s)
        pauses_s.append(made.next_deadline_s() - now_s)
        now_s = made.next_deadline_s()
        assert made.step([], now_s=now_s) == [Replace(replica, replica.successor())]
        replica = replica.successor()
    assert all(0.5 <= pause_s / min(60.0, 2.0**number) <= 1.0 for number, pause_s in enumerate(pauses_s)), pauses_s
    (last,) = made.step([Died(replica, "no GPU")], now_s=now_s)
    assert isinstance(last, GiveUp) and "generator 0 (life 9) died: no GPU" in last.reason


def test_where_none_has_ever_served_a_few_failed_starts_are_enough() -> None:
    made = decisions("a", generators=RoleLimits(restarts=99, first_starts=2))
    made.step([Starting(ONE), Starting(TWO)], now_s=0.0)
    made.step([Died(ONE, "no GPU")], now_s=1.0)
    made.step([], now_s=made.next_deadline_s())
    (last,) = made.step([Died(ONE.successor(), "no GPU")], now_s=9.0)
    assert isinstance(last, GiveUp) and "no GPU (2 starts failed, and no generator has served yet)" in last.reason


def test_a_silent_replica_gets_nothing_new_and_is_dead_in_the_end() -> None:
    made = decisions(*"abcdefgh", generators=RoleLimits(ping_s=2.0, silent_s=10.0))
    made.step([Joined(ONE), Joined(TWO)], now_s=0.0)
    assert {Ping(ONE), Ping(TWO)} <= set(made.step([], now_s=2.0))
    made.step([Answered(ONE)], now_s=2.5)
    assert Ping(ONE) in made.step([], now_s=7.0) and made.state_of(TWO) == "suspect"
    actions = made.step([Finished(1), Answered(ONE)], now_s=7.5)  # call 1 was replica TWO's: it is heard again
    assert made.state_of(TWO) == "serving" and any(isinstance(a, Send) and a.replica == TWO for a in actions)
    assert {Ping(ONE), Ping(TWO)} <= set(made.step([], now_s=9.5))
    made.step([Answered(ONE)], now_s=9.6)
    for now_s in (14.5, 19.4):
        made.step([Answered(ONE)], now_s=now_s)
        assert made.state_of(TWO) == "suspect"
    actions = made.step([Answered(ONE)], now_s=19.5)
    assert Kill(TWO, "gave no sign of life for 10 s (silent_s)") in actions and made.state_of(TWO) == "dead"


def test_results_may_take_as_long_as_they_like_while_the_replica_answers() -> None:
    made = decisions("a", generators=RoleLimits(ping_s=2.0, silent_s=10.0))
    made.step([Joined(ONE)], now_s=0.0)
    for turn in range(1, 2000):
        (ping,) = made.step([], now_s=3.0 * turn)
        assert ping == Ping(ONE)
        assert made.step([Answered(ONE)], now_s=3.0 * turn + 0.5) == []


def test_an_engine_that_stands_still_is_dead_by_the_measure_of_its_own_steps() -> None:
    for stalled_s, longest_s, is_dead in (
        (9.0, 0.01, False),  # may have been busy with something else for a moment
        (11.0, 0.01, True),
        (50.0, 4.0, False),  # a large model on a CPU
        (81.0, 4.0, True),
        (601.0, 500.0, True),
        (599.0, None, False),  # too few steps to tell
        (601.0, None, True),
    ):
        made = decisions("a", generators=RoleLimits(hang_s=600.0, restarts=1))
        made.step([Joined(ONE)], now_s=0.0)
        actions = made.step([Answered(ONE, stalled_s, longest_s, what="its engine")], now_s=700.0)
        assert [type(action) for action in actions] == ([Kill, Retry, Replace] if is_dead else []), stalled_s
        if is_dead:
            assert actions[0].reason.startswith(f"its engine has stood still for {stalled_s:.0f} s")


def test_one_that_was_ended_for_standing_still_may_stand_still_for_twice_as_long_the_next_time() -> None:
    made = decisions("a", generators=RoleLimits(hang_s=600.0, restarts=9))
    replica = ONE
    made.step([Joined(replica)], now_s=0.0)
    for limit_s in (10.0, 20.0, 40.0, 80.0):
        assert made.step([Answered(replica, limit_s, 0.1)], now_s=0.0) == []
        assert isinstance(made.step([Answered(replica, limit_s + 1, 0.1)], now_s=0.0)[0], Kill)
        replica = replica.successor()
        made.step([Joined(replica)], now_s=0.0)


def test_one_that_does_not_start_is_given_up() -> None:
    scorers = RoleLimits(start_s=30.0, silent_s=10.0, ping_s=60.0, restarts=1)
    made = decisions("a", scorers=scorers)
    made.step([Joined(ONE), Starting(SCORER)], now_s=0.0)
    made.step([Joined(SCORER)], now_s=1.0)
    assert made.step([], now_s=61.0) == [Ping(SCORER)]
    made.step([Answered(SCORER)], now_s=62.0)
    assert made.step([], now_s=122.0) == [Ping(SCORER)]
    made.step([], now_s=127.0)
    kill, replace = made.step([], now_s=132.0)
    assert (kill, replace) == (
        Kill(SCORER, "gave no sign of life for 10 s (silent_s)"),
        Replace(SCORER, SCORER.successor()),
    )
    assert made.step([Answered(SCORER.successor())], now_s=132.0) == [], "its process has begun"
    *_, last = made.step([], now_s=162.0)
    assert isinstance(last, GiveUp)
    assert last.reason.startswith("scorer 0 (life 1) died: did not start within 30 s (start_s) (0 of 1 scorers left")


def test_one_that_is_stopped_while_it_starts_is_noticed_before_its_start_is_over() -> None:
    made = decisions("a", generators=RoleLimits(place_s=600.0, start_s=600.0, ping_s=3.0, silent_s=10.0, restarts=1))
    made.step([Starting(ONE)], now_s=0.0)
    assert made.next_deadline_s() == 600.0, "until its process is there nobody can answer"
    made.step([Answered(ONE, stalled_s=100.0)], now_s=5.0)
    assert made.state_of(ONE) == "starting" and made.step([], now_s=8.0) == [Ping(ONE)]
    made.step([], now_s=13.0)
    assert made.state_of(ONE) == "starting"
    assert [type(action) for action in made.step([], now_s=18.0)] == [Kill]


def test_one_below_which_a_process_is_stopped_while_it_starts_is_replaced() -> None:
    """A run waited for such a generator until `start_s` was over, which is half an hour by default."""
    limits = RoleLimits(place_s=600.0, start_s=600.0, ping_s=3.0, silent_s=10.0, restarts=1)
    made = decisions("a", generators=limits)
    made.step([Starting(ONE)], now_s=0.0)
    made.step([Answered(ONE)], now_s=5.0)
    assert made.step([], now_s=8.0) == [Ping(ONE)]
    engine = "a process below it, which is stopped,"
    assert made.step([Answered(ONE, 9.0, 0.0, what=engine, is_stopped=True)], now_s=9.0) == []
    (kill,) = made.step([Answered(ONE, 11.0, 0.0, what=engine, is_stopped=True)], now_s=11.0)
    assert isinstance(kill, Kill) and kill.reason.startswith(f"{engine} has stood still for 11 s")
    assert Replace(ONE, ONE.successor()) in made.step([], now_s=13.0)


def test_more_time_for_those_that_start_is_no_more_time_for_those_that_serve() -> None:
    made = decisions("a", generators=RoleLimits(start_s=600.0, ping_s=2.0, silent_s=10.0, restarts=2))
    made.step([Joined(ONE), Starting(TWO)], now_s=0.0)
    made.step([Answered(ONE), Answered(TWO)], now_s=1.0)
    made.step([], now_s=3.0)
    assert Kill(TWO, "gave no sign of life for 10 s (silent_s)") in made.step([Answered(ONE)], now_s=13.0)
    made.step([], now_s=15.0)
    assert Kill(ONE, "gave no sign of life for 10 s (silent_s)") in made.step([], now_s=25.0)


def test_prompts_that_kill_replicas_do_not_keep_the_others_from_their_turn_where_nothing_has_succeeded() -> None:
    """Two of them at the head of a file ended a run of one generator at every start."""
    made = decisions("kills", "kills too", "good", generators=RoleLimits(restarts=1000))
    replica, now_s = ONE, 0.0
    seen: list[Any] = made.step([Joined(replica)], now_s=now_s)
    out = [action for action in seen if isinstance(action, Send)]
    while not made.done:
        now_s += 1000.0  # none of them dies young
        good = [send for send in out if send.item == "good"]
        if len(good) == len(out):
            actions = made.step([Finished(send.call) for send in good], now_s=now_s)
        else:
            actions = made.step([Died(replica, "signal 11")], now_s=now_s)
            replica = replica.successor()
            actions += made.step([Joined(replica)], now_s=now_s)
            out = []
        out += [action for action in actions if isinstance(action, Send)]
        out = [send for send in out if send not in good]
        seen += actions
    assert not [action for action in seen if isinstance(action, GiveUp)]
    assert [action.item for action in seen if isinstance(action, Deliver)] == ["good"]
    assert {action.item for action in seen if isinstance(action, Quarantine)} == {"kills", "kills too"}


def test_the_next_one_that_starts_is_given_twice_the_time_to_answer() -> None:
    """Its process may load libraries from a slow disk, and cannot answer meanwhile."""
    made = decisions("a", generators=RoleLimits(start_s=600.0, ping_s=2.0, silent_s=10.0, restarts=3))
    made.step([Joined(TWO), Starting(ONE)], now_s=0.0)
    made.step([Answered(ONE)], now_s=1.0)
    made.step([], now_s=3.0)
    assert Kill(ONE, "gave no sign of life for 10 s (silent_s)") in made.step([Answered(TWO)], now_s=13.0)
    successor = ONE.successor()
    assert Replace(ONE, successor) in made.step([Answered(TWO)], now_s=15.0)
    made.step([Answered(successor), Answered(TWO)], now_s=20.0)
    made.step([Answered(TWO)], now_s=22.0)
    made.step([Answered(TWO)], now_s=41.0)
    assert made.state_of(successor) == "starting"
    assert Kill(successor, "gave no sign of life for 20 s (silent_s)") in made.step([Answered(TWO)], now_s=42.0)


def test_deaths_of_old_age_are_not_counted_against_the_others() -> None:
    """A spot cluster loses all of its nodes now and then; only what dies young, again and again, ends a run."""
    limits = RoleLimits(restarts=100, deaths_before_giving_up=2)
    for age_s, gives_up in ((1000.0, False), (1.0, True)):
        made, now_s, replica = decisions("a", generators=limits), 0.0, ONE
        last: list[object] = []
        for _ in range(6):
            made.step([Joined(replica)], now_s=now_s)
            now_s += age_s
            last = made.step([Died(replica, reason="its node is gone")], now_s=now_s)
            replica = replica.successor()
            if any(isinstance(action, GiveUp) for action in last):
                break
        assert any(isinstance(action, GiveUp) for action in last) is gives_up, age_s


def test_a_call_that_takes_too_long_is_tried_again_and_then_set_aside() -> None:
    made = decisions("a", "b", call_s=5.0, tries=2)
    made.step([Joined(ONE)], now_s=0.0)
    made.step([Finished(1)], now_s=1.0)
    assert made.step([], now_s=5.0)[::2] == [Cancel(0, ONE), Send(2, ONE, "a", is_stray=True)]
    cancel, aside = made.step([Answered(ONE)], now_s=10.0)
    assert cancel == Cancel(2, ONE) and isinstance(aside, Quarantine) and "2 of 2 times" in aside.reason
    assert aside.fault == "machine"


def test_the_machines_fault_is_tried_again_and_set_aside_only_once_something_else_succeeds() -> None:
    made = decisions("a", "b", "c", tries=2)
    made.step([Joined(ONE)], now_s=0.0)
    retried = made.step([Failed(0, "CUDA error", fault="machine")], now_s=1.0)
    assert retried == [Retry("a", "CUDA error"), Send(2, ONE, "a", is_stray=True)]
    made.step([Finished(1)], now_s=2.0)
    assert made.step([Failed(2, "CUDA error", fault="machine")], now_s=3.0) == [] and not made.done
    assert made.num_held == 2
    assert made.step([Finished(3)], now_s=4.0) == [Quarantine(2, "a", "CUDA error", "machine"), Deliver(3, "c")]
    assert made.done


def test_nothing_is_set_aside_for_what_a_broken_machine_does_to_everything() -> None:
    made = decisions(*"abcdefghijklmnopqrstuvwxyz", tries=2, errors_a_replica=99)
    actions = made.step([Joined(ONE)], now_s=0.0)
    made.step([Finished(0)], now_s=0.5)
    replica, now_s = ONE, 1.0
    while not made.done:
        calls = list(made.dispatch.calls)
        actions = made.step([Failed(call, "CUDA error", fault="machine") for call in calls], now_s=now_s)
        assert not any(isinstance(action, Quarantine | Deliver) for action in actions[:-1])
        now_s += 1.0
    assert isinstance(actions[-1], GiveUp) and actions[-1].reason.startswith("every item since the last success"), (
        actions
    )
    assert replica == ONE


def test_a_replica_that_gives_nothing_but_errors_is_replaced_and_swallows_nothing() -> None:
    made = decisions(*(f"{number}" for number in range(20)), tries=3, generators=RoleLimits(restarts=3))
    actions = made.step([Joined(ONE), Joined(TWO)], now_s=0.0)
    ended: list[Any] = []
    replaced = False
    for turn in range(1, 200):
        events: list[Any] = []
        for send in [action for action in actions if isinstance(action, Send)]:
            broken = send.replica == ONE
            events.append(Failed(send.call, "CUDA error", fault="machine") if broken else Finished(send.call))
        for new in [action.new for action in actions if isinstance(action, Replace)]:
            replaced = True
            events.append(Joined(new))
        actions = made.step(events, now_s=float(turn))
        ended += [action for action in actions if isinstance(action, Deliver | Quarantine | GiveUp)]
        if made.done:
            break
    assert replaced and len(ended) == 20 and all(isinstance(action, Deliver) for action in ended), ended


def test_a_pool_that_rests_still_replaces_and_what_it_does_next_goes_to_the_living() -> None:
    limits = {"generator": RoleLimits(ping_s=3.0, silent_s=10.0, restarts=3)}
    made: Decisions[str] = Decisions(limits=limits, is_resident=True)
    made.step([Joined(ONE), Joined(TWO)], now_s=0.0)
    assert made.done and set(made.step([], now_s=3.0)) == {Ping(ONE), Ping(TWO)}
    new = ONE.successor()
    assert made.step([Died(ONE, "signal 9"), Answered(TWO)], now_s=4.0) == [Replace(ONE, new)]
    made.begin(["a", "b", "c"], image_of=str, in_flight=1)
    assert [action for action in made.step([], now_s=5.0) if isinstance(action, Send)] == [Send(0, TWO, "a")]
    assert [action for action in made.step([Joined(new)], now_s=5.5) if isinstance(action, Send)] == [
        Send(1, new, "b")
    ]
    made.begin(["d"], image_of=str, in_flight=1)
    assert made.step([Finished(0), Finished(1)], now_s=5.6) == [Send(2, TWO, "d")]
    assert made.step([Finished(2)], now_s=5.7) == [Deliver(2, "d")] and made.done


def test_a_scorers_death_is_the_scorers_and_its_items_wait_for_the_next_one() -> None:
    made = decisions("a", "b", scorers=RoleLimits(restarts=1))
    made.step([Joined(ONE), Joined(SCORER)], now_s=0.0)
    actions = made.step([Failed(0, "actor died", SCORER, "machine")], now_s=1.0)
    assert actions == [Kill(SCORER, "actor died"), Retry("a", "actor died"), Replace(SCORER, SCORER.successor())]
    assert made.state_of(ONE) == "serving"
    assert made.step([Finished(1)], now_s=2.0) == [Deliver(1, "b")]
    assert made.step([Joined(SCORER.successor())], now_s=9.0) == [Send(2, ONE, "a")]


def test_who_blames_a_scorer_that_is_known_to_be_dead_does_not_wait_for_ever() -> None:
    made = decisions("a", scorers=RoleLimits(restarts=9), tries=2, failures_before_giving_up=4)
    actions = made.step([Joined(ONE), Joined(SCORER)], now_s=0.0)
    made.step([Died(SCORER, "signal 9")], now_s=0.0)
    made.step([Joined(SCORER.successor())], now_s=0.0)
    for turn in range(10):
        calls = [action.call for action in actions if isinstance(action, Send)]
        actions = made.step([Failed(call, "actor died", SCORER, "machine") for call in calls], now_s=float(turn))
        if made.done:
            break
    assert actions == [GiveUp("every item failed; the last: actor died", call=1)]


def played(made: Decisions[str], *, comes_to: Callable[[Send[str], Replica], Event], turns: int = 60) -> list[Any]:
    """What becomes of the items; `comes_to` says what a call comes to, given the scorer that serves.

    Whoever is replaced serves at once.
    """
    ended: list[Any] = []
    scorer = SCORER
    actions = made.step([Joined(ONE), Joined(SCORER)], now_s=0.0)
    for turn in range(1, turns):
        events: list[Event] = [comes_to(one, scorer) for one in actions if isinstance(one, Send)]
        replaced = [one.new for one in actions if isinstance(one, Replace)]
        scorer = next((one for one in replaced if one.role == "scorer"), scorer)
        actions = made.step([*map(Joined, replaced), *events], now_s=float(turn))
        ended += [one for one in actions if isinstance(one, Deliver | Quarantine | GiveUp)]
    assert made.done
    return ended


def test_a_picture_that_is_away_does_not_end_the_run_before_the_first_result() -> None:
    """Its calls fail within milliseconds, many times before the first rollout can be done."""
    made = decisions("a", "gone", "c", generators=RoleLimits(restarts=1))
    actions = made.step([Joined(ONE)], now_s=0.0)
    seen = list(actions)
    for turn in range(1, 40):
        actions = made.step(
            [Failed(call, "no such file", fault="machine") for call in _calls(actions, "gone")], now_s=float(turn)
        )
        seen += actions
    assert not any(isinstance(action, GiveUp) for action in seen) and len(_calls(seen, "gone")) == 3
    # The first result shows that the machine works, so it is tried once more; the next one sets it aside.
    actions = made.step([Finished(call) for call in _calls(seen, "a")], now_s=50.0)
    assert made.step([Failed(_calls(actions, "gone")[0], "no such file", fault="machine")], now_s=51.0) == []
    last = made.step([Finished(call) for call in _calls(seen, "c")], now_s=52.0)
    assert {(type(action), action.item) for action in last} == {(Deliver, "c"), (Quarantine, "gone")}
    assert made.done


def _calls(actions: list[Any], item: str) -> list[int]:
    return [action.call for action in actions if isinstance(action, Send) and action.item == item]


def test_a_scorers_death_alone_is_never_an_items_fault() -> None:
    made = decisions(*"abcdefgh", generators=RoleLimits(restarts=9), scorers=RoleLimits(restarts=99))
    played_to = played(
        made,
        comes_to=lambda send, scorer: (
            Failed(send.call, "actor died", scorer, "machine") if send.item == "c" else Finished(send.call)
        ),
    )
    (aside,) = [one for one in played_to if isinstance(one, Quarantine)]
    assert aside.item == "c" and aside.fault == "machine" and len(played_to) == 8


def test_what_kills_scorers_is_tried_alone_and_set_aside() -> None:
    made = decisions(*"abcd", generators=RoleLimits(restarts=9), scorers=RoleLimits(restarts=9))
    seen: list[Send[str]] = []

    def comes_to(send: Send[str], scorer: Replica) -> Event:
        seen.append(send)
        is_it = send.item == "b"
        return Failed(send.call, "two scorers died with it", scorer, "input") if is_it else Finished(send.call)

    ended = played(made, comes_to=comes_to)
    assert [send.alone for send in seen if send.item == "b"] == [False, True]
    (aside,) = [one for one in ended if isinstance(one, Quarantine)]
    assert (aside.item, aside.fault) == ("b", "machine") and len(ended) == 4


def with_control(*items: str) -> Decisions[str]:
    limits = {"generator": RoleLimits(restarts=99), "scorer": RoleLimits()}
    return Decisions(items, image_of=str, in_flight=2, limits=limits, control="known to be good")


@pytest.mark.parametrize("kills", [False, True])
def test_where_only_hopeless_items_are_left_one_that_is_good_shows_that_the_machine_works(kills: bool) -> None:
    """As at a resume: all others are done, so there is nobody whose success could speak for the machine."""

    def comes_to(send: Send[str], scorer: Replica) -> Event:
        if send.item == "known to be good":
            return Finished(send.call)
        return Died(send.replica, "signal 11") if kills else Failed(send.call, "CUDA error", fault="machine")

    ended = played(with_control("x", "y"), comes_to=comes_to)
    assert {(type(one), one.item, one.fault) for one in ended} == {
        (Quarantine, item, "input" if kills else "machine") for item in "xy"
    }


def test_if_the_control_fails_as_well_nothing_is_set_aside() -> None:
    ended = played(with_control("x"), comes_to=lambda send, _: Failed(send.call, "CUDA error", fault="machine"))
    (end,) = ended
    assert isinstance(end, GiveUp) and "also one that has succeeded before" in end.reason
    ended = played(
        with_control("x"),
        comes_to=lambda send, _: (
            Failed(send.call, "CUDA error", fault="machine") if send.item == "x" else Finished(send.call, False)
        ),
    )
    assert [type(one) for one in ended] == [GiveUp]


def test_nobody_needs_the_control_where_something_succeeds() -> None:
    seen: list[str] = []

    def comes_to(send: Send[str], scorer: Replica) -> Event:
        seen.append(send.item)
        return Finished(send.call) if send.item == "a" else Failed(send.call, "CUDA error", fault="machine")

    ended = played(with_control("a", "x"), comes_to=comes_to)
    assert [type(one) for one in ended] == [Deliver, Quarantine] and "known to be good" not in seen


def test_an_engines_death_is_its_generators() -> None:
    made = decisions("a", "b", generators=RoleLimits(restarts=1))
    made.step([Joined(ONE)], now_s=0.0)
    actions = made.step([Failed(0, "EngineDeadError", ONE), Failed(1, "EngineDeadError", ONE)], now_s=1.0)
    assert [type(action) for action in actions] == [Kill, Retry, Retry, Replace]


def test_who_leaves_on_purpose_is_not_replaced_and_strikes_nobody() -> None:
    made = decisions("a", "b", tries=1, generators=RoleLimits(restarts=9))
    made.step([Joined(ONE)], now_s=0.0)
    made.step([Joined(TWO)], now_s=0.0)
    actions = made.step([Left(ONE)], now_s=1.0)
    assert [type(action) for action in actions] == [Retry, Retry, Send, Send]


@pytest.mark.parametrize(
    "limits", [{"hang_s": 0.0}, {"silent_s": 0.0}, {"restarts": -1}, {"min_replicas": 0}, {"start_s": math.nan}]
)
def test_limits_of_a_role_that_make_no_sense_are_refused(limits: Any) -> None:
    with pytest.raises(ValueError, match=r"at least|above 0"):
        RoleLimits(**limits)
