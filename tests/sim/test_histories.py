"""Thousands of seeded histories of deaths, hangs, stragglers and joiners, played on the pool's real decisions.

The referee holds every step of every history to the promises: each item ends exactly once, nothing is sent to who is
dead or not yet there, nobody has more in flight than it may, an image is not in two living places at once, what is
held is bounded, and nothing waits for ever. A history that breaks one is named by its seed and printed.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from operator import length_hint

import pytest
from simulated_pool import Scenario, SimulatedPool

from actors.pool.decisions import Decisions
from actors.pool.events import Finished, Joined, Replica, Send

NUM_HISTORIES = 2000
NUM_PARTS = 20


def scenario_of(seed: int) -> Scenario:
    """Mostly small pools with a bit of everything going wrong; every eighth is calm."""
    rng = random.Random(f"scenario {seed}")
    num_items = rng.choice((0, 1, 5, 20, 60, 120))
    calm = Scenario(
        num_generators=rng.choice((1, 1, 2, 3, 5, 9)),
        num_scorers=rng.choice((0, 1, 2, 3)),
        num_items=num_items,
        num_images=max(1, num_items // rng.choice((1, 2, 6))),
        in_flight=rng.choice((1, 2, 4, 8)),
        look_ahead=rng.choice((None, 1, 5, 20)),
        remembered=rng.choice((0, 2, 16)),
    )
    if seed % 8 == 0:
        return calm
    return replace(
        calm,
        deaths_per_s=rng.choice((0.0, 0.002, 0.01, 0.05)),
        hangs_per_s=rng.choice((0.0, 0.0, 0.002, 0.01)),
        stalls_per_s=rng.choice((0.0, 0.0, 0.002, 0.01)),
        breaks_per_s=rng.choice((0.0, 0.0, 0.002, 0.01)),
        num_joiners=rng.choice((0, 0, 2)),
        num_leavers=rng.choice((0, 0, 2)),
        bad_share=rng.choice((0.0, 0.05, 0.5)),
        num_poison=rng.choice((0, 0, 1, 2)),
        num_stuck=rng.choice((0, 0, 1)),
        num_cursed=rng.choice((0, 0, 1, 3)),
        failed_start_share=rng.choice((0.0, 0.0, 0.2)),
        stale_share=rng.choice((0.0, 0.0, 0.1, 1.0)),
        restarts=rng.choice((0, 2, 10, 50)),
        min_replicas=rng.choice((1, 1, 1, 2)),
        tries=rng.choice((1, 2, 3, 4)),
        call_s=rng.choice((25.0, 200.0)),
    )


def play(scenario: Scenario, *, seed: int) -> SimulatedPool:
    try:
        pool = SimulatedPool(scenario, seed=seed)
        pool.run()
        return pool
    except AssertionError as error:
        trace: list[str] = []
        with pytest.raises(AssertionError):
            SimulatedPool(scenario, seed=seed, trace=trace).run()
        raise AssertionError("\n".join([*trace[-200:], f"{scenario}", f"seed {seed}: {error}"])) from error


@pytest.fixture(scope="module")
def seen() -> Counter[str]:
    """What all histories together were made of."""
    return Counter()


@pytest.mark.parametrize("part", range(NUM_PARTS))
def test_every_history_keeps_the_promises(part: int, seen: Counter[str]) -> None:
    for seed in range(part, NUM_HISTORIES, NUM_PARTS):
        scenario = scenario_of(seed)
        pool = play(scenario, seed=seed)
        referee = pool.referee
        if scenario.calm:
            assert referee.gave_up is None and not referee.quarantined, (seed, referee.gave_up)
        seen.update(referee.tally)
        seen["histories"] += 1
        seen["gave up"] += referee.gave_up is not None
        seen.update(f"{item.kind} quarantined" for item in referee.quarantined)
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
        "Cancel",
        "Ping",
        "Retry",
        "alone",
        "elsewhere",
    ):
        assert seen[what] > 100, (what, seen)
    for what in ("late messages", "moved from the dead", "moved from the living"):
        assert seen[what] > 100, (what, seen)
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
