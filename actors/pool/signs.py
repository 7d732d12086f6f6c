"""Signs of life: who was heard when, who is asked for a sign now, and who has been silent for too long."""

from __future__ import annotations

import math
from collections import OrderedDict

from actors.pool.events import Replica

# A replica that has not answered for this share of `silent_s` gets no new work until it is heard again.
_SUSPECT_SHARE = 0.5


class SignsOfLife:
    """Those of replicas that are given the same time to answer in.

    A replica that was heard is quiet after that, then asked, then suspect, then late. Each dict is ordered by
    deadline, so to find who is late only the first replicas of each are looked at.

    Args:
        ping_s: one that has not been heard for so long is asked.
        silent_s: one that has not answered for so long is late.
    """

    def __init__(self, *, ping_s: float, silent_s: float) -> None:
        self.silent_s = silent_s
        self._ping_s = ping_s
        self._quiet: OrderedDict[Replica, float] = OrderedDict()  # last heard when
        self._asked: OrderedDict[Replica, float] = OrderedDict()  # asked when
        self._suspect: OrderedDict[Replica, float] = OrderedDict()  # asked when

    def heard(self, replica: Replica, *, now_s: float) -> None:
        self.forget(replica)
        self._quiet[replica] = now_s

    def forget(self, replica: Replica) -> None:
        for replicas in (self._quiet, self._asked, self._suspect):
            replicas.pop(replica, None)

    def is_suspect(self, replica: Replica) -> bool:
        return replica in self._suspect

    def to_ping(self, *, now_s: float) -> list[Replica]:
        """Replicas that have not been heard for a while and are asked for a sign of life now."""
        late = first_late(self._quiet, self._ping_s, now_s=now_s)
        for replica in late:
            del self._quiet[replica]
            self._asked[replica] = now_s
        return late

    def newly_suspect(self, *, now_s: float) -> list[Replica]:
        late = first_late(self._asked, self.silent_s * _SUSPECT_SHARE, now_s=now_s)
        for replica in late:
            self._suspect[replica] = self._asked.pop(replica)
        return late

    def late(self, *, now_s: float) -> list[Replica]:
        return first_late(self._suspect, self.silent_s, now_s=now_s)

    def next_deadline_s(self) -> float:
        return min(
            _first_due_s(self._quiet, self._ping_s),
            _first_due_s(self._asked, self.silent_s * _SUSPECT_SHARE),
            _first_due_s(self._suspect, self.silent_s),
        )


def first_late(replicas: OrderedDict[Replica, float], limit_s: float, *, now_s: float) -> list[Replica]:
    """Those of the first replicas, ordered by since when, for which `limit_s` is over."""
    late = []
    for replica, since_s in replicas.items():
        if since_s + limit_s > now_s:
            break
        late.append(replica)
    return late


def _first_due_s(replicas: OrderedDict[Replica, float], limit_s: float) -> float:
    return next(iter(replicas.values())) + limit_s if replicas else math.inf
