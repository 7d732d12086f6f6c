"""What becomes of an item that went wrong: it is tried again, set aside, or taken as a sign that the run should stop.

It is told what happened to a piece of work and returns a verdict. It knows neither replicas (`lives`) nor who gets
the item next (`dispatch`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from actors.pool.seats import Work

Verdict = Literal["retry", "retry alone", "quarantine", "give up"]


@dataclass(frozen=True, kw_only=True)
class ItemLimits:
    """When an item is set aside, and when so many are that something else must be wrong.

    Attributes:
        tries: an item is quarantined when so many replicas died with it in a row, the last one working on nothing
            else, or when it ran out of time so often.
        call_s: a call that takes longer is cancelled.
        failures_before_giving_up: so many items failing before a single one succeeds is no bad data but a broken
            engine.
    """

    tries: int = 3
    call_s: float = math.inf
    failures_before_giving_up: int = 16

    def __post_init__(self) -> None:
        if self.tries < 1 or self.failures_before_giving_up < 1 or not self.call_s > 0:
            raise ValueError(f"{self}: tries and failures_before_giving_up are at least 1, call_s is above 0")


class Failures:
    """Verdicts on work that went wrong.

    Items that are in flight beside one that kills replicas are lost with it, again and again. So no item is set aside
    for a death on suspicion: its last try is alone on a replica, and an innocent item comes out of that with its
    result.
    """

    def __init__(self, limits: ItemLimits) -> None:
        self._limits = limits
        self._num_succeeded = 0
        self._num_failed = 0

    def succeeded(self) -> None:
        self._num_succeeded += 1

    def own_error(self) -> Verdict:
        """The item itself is at fault, and would be if it were tried again."""
        self._num_failed += 1
        if self._num_succeeded == 0 and self._num_failed >= self._limits.failures_before_giving_up:
            return "give up"
        return "quarantine"

    def died_with(self, work: Work[Any], *, alone: bool) -> Verdict:
        """A replica died while it worked on this; `alone` if it worked on nothing else."""
        work.num_deaths += 1
        if work.num_deaths < self._limits.tries - 1:
            return "retry"
        if work.num_deaths < self._limits.tries or not alone:
            return "retry alone"
        verdict = self.own_error()
        # While nothing has ever succeeded the machine is as good a suspect as the item.
        return "retry alone" if verdict == "quarantine" and self._num_succeeded == 0 else verdict

    def ran_out_of_time(self, work: Work[Any]) -> Verdict:
        """A call for this was cancelled, because it took longer than `call_s`."""
        work.num_timeouts += 1
        return "retry" if work.num_timeouts < self._limits.tries else self.own_error()
