"""What the driver costs a round, in small: the benchmark's own simulation (docs/scale.md), and that it can say no."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from latency_model import LatencyModel, Weather, times_of
from sim_scale import RAY, play
from simulated_cluster import Account, Costs

from csr_ray.store.journal import Journal

NUM_PROMPTS = 5_000
NUM_GENERATORS = 64
# So few that the round is 80 rollouts long, as that of a million prompts with 256 generators of 64 is 60.
IN_FLIGHT = 1
ROUGH = Weather(rate_per_s=0.25, straggler_share=0.0, hours_between_deaths=0.5, late_s=20.0, start_s=20.0)


def played(folder: Path, *, costs: Costs) -> Account:
    account, results_s = play(
        NUM_PROMPTS,
        num_generators=NUM_GENERATORS,
        folder=folder,
        num_nodes=5,
        weather=ROUGH,
        in_flight=IN_FLIGHT,
        costs=costs,
    )
    assert len(results_s) == NUM_PROMPTS
    return account


def test_a_round_with_deaths_and_joins_loses_nothing_and_waits_for_nobody(tmp_path: Path) -> None:
    account = played(tmp_path / "round", costs=RAY)
    assert account.num["deaths"] >= 3 and account.num["joins"] >= 4, account.num
    units = Journal(tmp_path / "round/run/journal.jsonl").units(round=0, phase="main")
    assert units.total("prompts") == NUM_PROMPTS and units.index().num_ids == NUM_PROMPTS
    assert len(set(units.names)) == len(units.names)
    journal = Journal(tmp_path / "round/run/journal.jsonl")
    (verdict,) = journal.all("verdict")
    assert [look["prompts"] for look in journal.all("probe")] == [64, 64] and len(verdict["findings"]) == 7
    assert account.gate_s > 0
    assert account.overhead_share < 0.05 and account.tail_share < 0.05 and account.busy_share < 0.25, account


def test_a_driver_that_is_slow_is_seen(tmp_path: Path) -> None:
    """The generators could do 16 prompts a second, and its calls take a tenth of a second each."""
    slow = played(tmp_path / "round", costs=Costs(call_s=0.1))
    assert slow.overhead_share > 0.2 and slow.busy_share > 0.9, slow


@pytest.mark.parametrize("seed", [1, 2])
def test_a_prompt_takes_the_same_time_wherever_it_is_asked(seed: int) -> None:
    latency, weather = LatencyModel.measured(), Weather(straggler_share=0.5)
    times = [[times_of(f"{at}", latency=latency, weather=weather, seed=seed) for at in range(200)] for _ in range(2)]
    assert times[0] == times[1]
    assert min(times[0]) >= latency.by_mean[0] and max(times[0]) > latency.by_mean[-1]
    other = times_of("0", latency=latency, weather=weather, seed=seed + 10)
    assert other != times[0][0]
