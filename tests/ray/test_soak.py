"""The soak itself, short: the real program with a Ray of its own makes a round, and nothing of it is left."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "chaos"))

from soak import Sample, soak, trends_of


def _samples(values: list[float]) -> list[Sample]:
    return [Sample(at_s=10.0 * index, num_rounds=3, values={"x.bytes": value}) for index, value in enumerate(values)]


def test_what_it_takes_for_growth() -> None:
    mib = 2.0**20
    steady = [100 * mib + (index % 7) * mib for index in range(60)]
    leaking = [value + 0.1 * mib * index for index, value in enumerate(steady)]  # 36 MiB an hour
    warming = [value + mib * min(index, 25) for index, value in enumerate(steady)]
    verdicts = [[trend.grows for trend in trends_of(_samples(values))] for values in (steady, leaking, warming)]
    assert verdicts == [[False], [True], [False]]
    assert trends_of(_samples(steady[:10])) == [], "too short"


def test_the_driver_may_remember_its_journal_and_no_more() -> None:
    def grows(bytes_a_round: int) -> bool:
        samples = [
            Sample(
                at_s=10.0 * index,
                num_rounds=3 + index,
                values={
                    "driver.own_bytes": 400e6 + bytes_a_round * index,
                    "run folder.journal_bytes": 8e3 * index,
                },
            )
            for index in range(60)
        ]
        return {trend.name: trend.grows for trend in trends_of(samples)}["driver.own_bytes"]

    assert [grows(60_000), grows(2_000_000)] == [False, True]


@pytest.mark.long
def test_nothing_is_left_of_a_whole_run() -> None:
    done = soak(until_s=time.monotonic() + 550, every_s=2.0, overrides=["run.rounds=1"])
    assert done.exit_code == 0, "\n".join(done.last_lines)
    assert done.num_rounds == 1
    seen = {name for sample in done.samples for name in sample.values}
    assert {f"{role}.files" for role in ("driver", "engine", "generator", "scorer", "train worker")} < seen
    assert [name for name in done.left if not name.startswith("/dev/shm/")] == []  # other tests have theirs there
