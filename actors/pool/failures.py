"""What becomes of an item that went wrong: it is tried again, set aside, or taken as a sign that the run should stop.

It is told what happened to a piece of work and returns a verdict. It knows neither replicas (`lives`) nor who gets
the item next (`dispatch`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from actors.pool.events import Replica
from actors.pool.seats import Work

Verdict = Literal["retry", "retry alone", "quarantine", "give up"]


@dataclass(frozen=True, kw_only=True)
class ItemLimits:
    """When an item is set aside, and when so many are that something else must be wrong.

    Attributes:
        tries: an item is quarantined when so many replicas died with it in a row, the last one working on nothing
            else, or when it ran out of time or failed by the machine's fault so often.
        call_s: a call that takes longer is cancelled.
        failures_before_giving_up: so many items that would be set aside before a single one succeeds is no bad data
            but a broken engine, and so many by the machine's fault since the last success a broken machine.
        errors_a_replica: a replica that gives so many errors by the machine's fault in a row is replaced.
    """

    tries: int = 3
    call_s: float = math.inf
    failures_before_giving_up: int = 16
    errors_a_replica: int = 8

    def __post_init__(self) -> None:
        counts = (self.tries, self.failures_before_giving_up, self.errors_a_replica)
        if min(counts) < 1 or not self.call_s > 0:
            raise ValueError(f"{self}: counts are at least 1, call_s is above 0")


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
        self._errors_in_a_row: dict[Replica, int] = {}

    @property
    def has_succeeded(self) -> bool:
        """Whether any item has: until then the machine is as good a suspect as the items."""
        return self._num_succeeded > 0

    def succeeded(self, replica: Replica) -> None:
        self._num_succeeded += 1
        self._errors_in_a_row.pop(replica, None)

    def gone(self, replica: Replica) -> None:
        """The replica will not be heard of again."""
        self._errors_in_a_row.pop(replica, None)

    def own_error(self) -> Verdict:
        """The item itself is at fault, and would be if it were tried again."""
        self._num_failed += 1
        if self._num_succeeded == 0 and self._num_failed >= self._limits.failures_before_giving_up:
            return "give up"
        return "quarantine"

    def machines_error(self, work: Work[Any], *, replica: Replica | None) -> tuple[Verdict, bool]:
        """A call failed, and not by the item's fault; also returns whether the replica should be replaced for it.

        It should if it gave many errors in a row, like a GPU after its first fault, while items have succeeded
        elsewhere or before. Where nothing has ever succeeded, a new replica would not do better. `replica` is None
        for an error that says nothing of the one that worked on it.
        """
        work.num_errors += 1
        verdict = "retry" if work.num_errors < self._limits.tries else self.own_error()
        if replica is None:
            return verdict, False
        in_a_row = self._errors_in_a_row[replica] = self._errors_in_a_row.get(replica, 0) + 1
        return verdict, self.has_succeeded and in_a_row >= self._limits.errors_a_replica

    def once_more(self, work: Work[Any]) -> None:
        """What failed while nothing had ever succeeded may be tried once more."""
        most = self._limits.tries - 1
        work.num_errors, work.num_timeouts = min(work.num_errors, most), min(work.num_timeouts, most)

    def died_with(self, work: Work[Any], *, alone: bool) -> Verdict:
        """A replica died while it worked on this; `alone` if it worked on nothing else."""
        work.num_deaths += 1
        if work.num_deaths < self._limits.tries - 1:
            return "retry"
        if work.num_deaths < self._limits.tries or not alone:
            return "retry alone"
        return self.own_error()

    def killed_scorers(self, work: Work[Any], *, alone: bool) -> Verdict:
        """Scorers died with what it asked of them, one after the other. Others may have asked them, too."""
        work.kills_scorers = True
        return self.own_error() if alone else "retry alone"

    def ran_out_of_time(self, work: Work[Any]) -> Verdict:
        """A call for this was cancelled, because it took longer than `call_s`."""
        work.num_timeouts += 1
        return "retry" if work.num_timeouts < self._limits.tries else self.own_error()
