"""How long a run takes and what it costs: its workload at its rates, added up. Arithmetic, and nothing else.

    T = start + E(0) + G + sum over rounds r of [ phases x (R + B + P + G) + E(r + 1) ] + end

R rollout, B train, P publish of one cycle, G the gate's answers of one policy version, E(v) the evaluation of policy
version v (docs/plan.md has every symbol). No phase is taken to be refused.
With `train.streaming` a cycle takes the longer of R and B. The first round's training also waits for the train group,
if that is still starting when the first rollout has ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from csr_ray.machine.rates import STAGES, Rates
from csr_ray.machine.workload import Workload

_HOUR_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A run's time and money.

    Attributes:
        stages: seconds of the whole run by stage, in the order of `csr_ray.machine.rates.STAGES`.
        num_gpus: that are paid for all of the time, whether they work or not.
        usd_per_hour: of all of them and of the CPUs that have a price; None: no price is known.
    """

    stages: Mapping[str, float]
    num_gpus: int
    usd_per_hour: float | None

    @property
    def seconds(self) -> float:
        return sum(self.stages.values())

    @property
    def hours(self) -> float:
        return self.seconds / _HOUR_S

    @property
    def gpu_hours(self) -> float:
        return self.num_gpus * self.hours

    @property
    def usd(self) -> float | None:
        return None if self.usd_per_hour is None else self.usd_per_hour * self.hours


def forecast(
    work: Workload, *, rates: Rates, num_gpus: int = 0, usd_per_hour: float | None = None, is_streaming: bool = False
) -> Forecast:
    """Add up a run.

    Args:
        is_streaming: pairs are trained on while other prompts are rolled out (`train.streaming`), on hardware of
            their own.
    """
    stages = dict.fromkeys(STAGES, 0.0)
    stages["start"] = rates.start.seconds()
    for version, asked in enumerate(work.evaluations):
        stages["evaluate"] += rates.evaluate.seconds(asked.answers, is_first=version == 0)
    for version in range(work.gate_looks):
        stages["gate"] += rates.gate.seconds(work.gate_answers, is_first=version == 0)
    for cycle in range(work.rounds * work.phases):
        is_first = cycle == 0
        rollout = rates.rollout.seconds(work.prompts, is_first=is_first)
        train = rates.train.seconds(work.trained, is_first=is_first)
        stages["rollout"] += rollout
        stages["train"] += max(0.0, train - rollout) if is_streaming else train
        stages["publish"] += rates.publish.seconds(is_first=is_first)
    stages["end"] = rates.end.seconds()
    return Forecast(stages=stages, num_gpus=num_gpus, usd_per_hour=usd_per_hour)
