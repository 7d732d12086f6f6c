"""How long a rollout takes: the distribution of a real run, drawn from by a seed and stretched to other hardware.

A run with `run.unit=1` commits every prompt in a unit of its own, so its journal tells the seconds of each rollout.
`LatencyModel.measure` makes the table of it that lies in `latency.json`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

_TABLE = Path(__file__).with_name("latency.json")
_WARM_UP = 128  # twice the prompts that one generator has in flight
_SHARES = (0.0, 0.01, 0.05, *(tenth / 10 for tenth in range(1, 10)), 0.95, 0.99, 1.0)


@dataclass(frozen=True, kw_only=True)
class LatencyModel:
    """Seconds of a rollout.

    Attributes:
        source: what was measured.
        num: rollouts that were measured.
        mean_s: their mean, in seconds.
        nodes: their mean number of candidates.
        shares, by_mean: quantiles: for each share of the rollouts, the seconds that so many of them stay below, in
            multiples of the mean.
    """

    source: str
    num: int
    mean_s: float
    nodes: float
    shares: tuple[float, ...]
    by_mean: tuple[float, ...]

    @classmethod
    def measured(cls) -> LatencyModel:
        """The one in `latency.json`."""
        plain = json.loads(_TABLE.read_text())
        return cls(**{**plain, "shares": tuple(plain["shares"]), "by_mean": tuple(plain["by_mean"])})

    @classmethod
    def measure(cls, run_dir: Path) -> LatencyModel:
        """Of a run's first round, without the prompts that it begins with: they wait for what is done once.

        Raises:
            SystemExit: the run has units of more than one prompt, whose seconds are only known as a sum.
        """
        import numpy as np

        lines = [json.loads(line) for line in (run_dir / "journal.jsonl").open("rb")]
        units = [line for line in lines if line["kind"] == "rollout" and line["round"] == 0 and line["prompts"]]
        if not units or any(line["prompts"] + line["failed"] > 1 for line in units):
            raise SystemExit(f"{run_dir}: no units of one prompt; run it with run.unit=1")
        units = [line for line in units if line["position"] >= _WARM_UP]
        seconds = np.array([line["rollout_s"] for line in units])
        mean_s = float(seconds.mean())
        return cls(
            source=f"rollouts of {run_dir.name}, from the prompt {_WARM_UP} on",
            num=len(units),
            mean_s=round(mean_s, 3),
            nodes=round(sum(line["nodes"] for line in units) / len(units), 1),
            shares=_SHARES,
            by_mean=tuple(round(float(value), 3) for value in np.quantile(seconds, _SHARES) / mean_s),
        )

    def plain(self) -> str:
        """As `latency.json` holds it."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def draw(self, random: random.Random) -> float:
        """Seconds of one rollout, in multiples of the mean."""
        return _interpolated(random.random(), self.shares, self.by_mean)


@dataclass(frozen=True, kw_only=True)
class Weather:
    """What happens to the generators. Assumptions, but for the shape of the latencies.

    Attributes:
        rate_per_s: prompts that a generator finishes in a second with all its places taken.
        straggler_share, straggler_factor: of the rollouts, and how much longer they take than drawn.
        slow_every, slow_factor: one in so many generators is slow, and how much longer it takes for everything.
        hours_between_deaths: of one generator, on average.
        late_share: of the generators, those that find room in the cluster only while the round goes on.
        late_s: within so many seconds.
        start_s: from the start of a generator until it serves.
    """

    rate_per_s: float = 2.0
    straggler_share: float = 0.01
    straggler_factor: float = 2.0
    slow_every: int = 64
    slow_factor: float = 1.25
    hours_between_deaths: float = 10.0
    late_share: float = 0.125
    late_s: float = 60.0
    start_s: float = 60.0

    def slowness(self, slot: int) -> float:
        """How much longer the generator in this slot takes."""
        return self.slow_factor if slot % self.slow_every == self.slow_every - 1 else 1.0


def times_of(prompt_id: str, *, latency: LatencyModel, weather: Weather, seed: int) -> float:
    """How long a prompt's rollout takes, in multiples of the mean: always the same, here and on real Ray."""
    drawn = random.Random(f"{seed} {prompt_id}")
    is_straggler = drawn.random() < weather.straggler_share
    return latency.draw(drawn) * (weather.straggler_factor if is_straggler else 1.0)


def _interpolated(share: float, shares: Sequence[float], values: Sequence[float]) -> float:
    for right in range(1, len(shares)):
        if share <= shares[right]:
            left = right - 1
            part = (share - shares[left]) / (shares[right] - shares[left])
            return values[left] + part * (values[right] - values[left])
    return values[-1]
