"""Thousands of seeded histories of deaths, hangs, stragglers, joiners and lost messages, on the real decisions.

The referee holds every step of every history to the promises: each item ends exactly once, nothing is sent to who is
dead or not yet there, nobody has more in flight than it may, an image is not in two living places at once, what is
held is bounded, and nothing waits for ever. A history that breaks one is named by its seed and printed.
"""

from __future__ import annotations

from collections import Counter
from operator import length_hint

import pytest
from scenarios import play, scenario_of
from simulated_pool import Scenario

from actors.pool.decisions import Decisions
from actors.pool.events import Finished, Joined, Replica, Send
from actors.pool.failures import ItemLimits

NUM_HISTORIES = 2000
NUM_PARTS = 20


@pytest.fixture(scope="module")
def seen() -> Counter[str]:
    """What all histories together were made of."""
    return Counter()


@pytest.mark.parametrize("part", range(NUM_PARTS))
def test_every_history_keeps_the_promises(part: int, seen: Counter[str]) -> None:
    for seed in range(part, NUM_HISTORIES, NUM_PARTS):
        seen.update(play(scenario_of(seed), seed=seed).referee.tally)
        seen["histories"] += 1
    if part == NUM_PARTS - 1 and seen["histories"] == NUM_HISTORIES:
        the_histories_were_not_idle(seen)


def the_histories_were_not_idle(seen: Counter[str]) -> None:
    """Promises are easily kept where nothing happens."""
    print(dict(seen))
    assert seen["gave up"] < NUM_HISTORIES / 2
    for what in (
        "generator died",
        "scorer died",
        "generator left",
        "Kill",
        "Replace",
        "Grow",
        "Shrink",
        "Cancel",
        "Ping",
        "Retry",
        "alone",
        "elsewhere",
    ):
        assert seen[what] > 100, (what, seen)
    for what in ("late messages", "moved from the dead", "moved from the living", "replaced after a pause"):
        assert seen[what] > 100, (what, seen)
    for what in ("that a replica is ready", "what a call came to", "the answer to a ping"):
        assert seen[f"lost: {what}"] > 20, (what, seen)
    for kind in ("bad", "poison", "stuck", "cursed"):
        assert seen[f"{kind} quarantined"] > 50, (kind, seen)


LARGE = Scenario(
    num_generators=3000,
    num_scorers=60,
    num_items=20_000,
    num_images=5_000,
    in_flight=4,
    deaths_per_s=0.002,
    hangs_per_s=0.0005,
    stalls_per_s=0.0005,
    breaks_per_s=0.0005,
    num_joiners=200,
    num_leavers=100,
    bad_share=0.01,
    num_poison=5,
    num_stuck=5,
    num_cursed=5,
    failed_start_share=0.05,
    restarts=5_000,
)


@pytest.mark.parametrize("seed", [1, 2])
def test_thousands_of_replicas_keep_them_too(seed: int) -> None:
    referee = play(LARGE, seed=seed).referee
    assert referee.gave_up is None
    assert referee.tally["generator died"] > 100 and referee.tally["Replace"] > 100
    innocent = [item for item in referee.quarantined if item.kind == "good"]
    assert len(innocent) < LARGE.num_items / 500, innocent


def test_the_cost_of_an_item_grows_neither_with_the_items_nor_with_the_pool() -> None:
    """Counted in steps of the dispatcher, which are the same on every machine."""
    costs = {}
    for num_generators, num_items in ((4, 1_000), (4, 10_000), (256, 10_000), (2_000, 10_000)):
        scenario = Scenario(
            num_generators=num_generators, num_scorers=0, num_items=num_items, num_images=num_items // 4, in_flight=4
        )
        costs[num_generators, num_items] = play(scenario, seed=0).referee.steps_per_event
    assert max(costs.values()) < 1.2 * costs[4, 1_000] < 3, costs


def test_a_pool_with_nothing_to_give_costs_nothing_to_ask() -> None:
    """One busy replica is the home of all that waits; 255 idle ones are not offered that again and again."""
    decisions: Decisions[int] = Decisions(range(10**9), image_of=lambda item: "one image", in_flight=1)
    decisions.step([Joined(Replica("generator", slot)) for slot in range(256)], now_s=0.0)
    before = decisions.dispatch.num_steps
    for second in range(1000):
        assert decisions.step([], now_s=float(second)) == []
    assert decisions.dispatch.num_steps - before <= 1000


def test_a_million_items_are_not_listed() -> None:
    items = iter(range(10**6))
    decisions = Decisions(items, image_of=lambda item: f"image {item // 2}", in_flight=64)
    actions = decisions.step([Joined(Replica("generator", slot)) for slot in range(4)], now_s=0.0)
    for turn in range(200):
        calls = [action.call for action in actions if isinstance(action, Send)]
        actions = decisions.step([Finished(call) for call in calls], now_s=float(turn))
        assert decisions.num_held <= 4 * 64 * 3
        assert decisions.dispatch.num_names <= 4 * 64 * 3 + 4 * (1 + 256)
    assert 10**6 - length_hint(items) >= 200 * 4 * 64


def test_a_pool_gives_up_once_however_many_calls_run_out_of_time_together() -> None:
    items = ItemLimits(tries=1, call_s=10.0, failures_before_giving_up=2)
    decisions: Decisions[int] = Decisions(range(6), in_flight=6, item_limits=items)
    decisions.step([Joined(Replica("generator", 0))], now_s=0.0)
    ends = [type(action).__name__ for action in decisions.step([], now_s=11.0)]
    assert ends == ["Cancel"] * 6 + ["GiveUp"]
