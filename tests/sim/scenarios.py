"""What the seeded histories of pools are like, and how one is played."""

from __future__ import annotations

import random
from dataclasses import replace

from simulated_pool import Scenario, SimulatedPool


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
        num_scorer_joiners=rng.choice((0, 0, 2)),
        num_more_generators=rng.choice((0, 0, 1, 4)),
        num_more_scorers=rng.choice((0, 0, 2)),
        idle_s=rng.choice((2.0, 20.0)),
        knows_num=rng.random() < 0.5,
        most_room=rng.choice((0, 1, 3)),
        bad_share=rng.choice((0.0, 0.05, 0.5)),
        unreadable_share=rng.choice((0.0, 0.05, 0.5)),
        num_poison=rng.choice((0, 0, 1, 2)),
        num_unscorable=rng.choice((0, 0, 0, 1)),
        num_stuck=rng.choice((0, 0, 1)),
        num_cursed=rng.choice((0, 0, 1, 3)),
        failed_start_share=rng.choice((0.0, 0.0, 0.2)),
        has_control=rng.random() < 0.5,
        stale_share=rng.choice((0.0, 0.0, 0.1, 1.0)),
        lost_share=rng.choice((0.0, 0.0, 0.003, 0.03)),
        restarts=rng.choice((0, 2, 10, 50)),
        min_replicas=rng.choice((1, 1, 1, 2)),
        tries=rng.choice((1, 2, 3, 4)),
        call_s=rng.choice((25.0, 200.0)),
    )


def play(scenario: Scenario, *, seed: int) -> SimulatedPool:
    """Play a history to its end.

    Raises:
        AssertionError: it breaks a promise; the message ends with what happened last.
    """
    try:
        pool = SimulatedPool(scenario, seed=seed)
        pool.run()
        _judge(pool, seed=seed)
        return pool
    except Exception as error:
        trace: list[str] = []
        try:
            SimulatedPool(scenario, seed=seed, trace=trace).run()
        except Exception:
            trace.append("and here it broke")
        raise AssertionError(
            "\n".join([*trace[-200:], f"{scenario}", f"seed {seed}: {type(error).__name__}: {error}"])
        ) from error


def _judge(pool: SimulatedPool, *, seed: int) -> None:
    referee = pool.referee
    if pool.scenario.calm:
        assert referee.gave_up is None and not referee.quarantined, (seed, referee.gave_up)
    referee.tally["gave up"] += referee.gave_up is not None
    referee.tally.update(f"{item.kind} quarantined" for item in referee.quarantined)
