"""How many replicas of one role there should be, between a least and a most number: as many as the work is for.

Generators follow the queue: another one is started while there is more left to do than those that are there can hold
twice, and while it would be ready before they are done. Scorers follow their own load: another one is started when
all of them compute nearly all of the time. Whoever has had nothing to do for a while is let go, down to the least
number, so that an autoscaler may take its node away. A pure state machine: it is told numbers and what time it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from actors.pool.events import Replica

# A replica that does not know yet how long its kind takes to start is thought to take so long.
_FIRST_START_S = 30.0
# What a generator should find to do when it comes, in multiples of what it works on at once.
_HELPINGS = 2
_BUSY_SHARE = 0.9
_BUSY_FOR_S = 20.0
# Those that are left after one is let go should still be idle for a part of the time.
_SPARE_SHARE = 0.5
# One that was started because there was room, and has none by now, is taken back after so long.
_NO_ROOM_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The least and the most number of replicas, and after how many idle seconds one beyond the least is let go."""

    min: int = 1
    max: int = 1
    idle_s: float = math.inf

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.max or not self.idle_s > 0:
            raise ValueError(f"{self}: 1 <= min <= max, and idle_s is above 0")

    @property
    def is_elastic(self) -> bool:
        return self.max > self.min


@dataclass(frozen=True, kw_only=True)
class Queue:
    """What generators have before them.

    Attributes:
        num_left: items without a result; infinity: nobody knows, but there are more than are drawn.
        num_each: items that a replica works on at once.
        rate_per_s: items that a replica finishes in a second; 0.0: not known yet.
    """

    num_left: float
    num_each: int
    rate_per_s: float = 0.0


class Scaling:
    """Says who is too many, and how many are too few. Asked now and then, with everything it needs to know."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self._idle_since_s: dict[Replica, float] = {}
        self._busy_since_s: float | None = None
        self._spare_since_s: float | None = None
        self._longest_start_s = 0.0

    def started(self, *, seconds: float) -> None:
        """A replica took so long from its start until it served."""
        self._longest_start_s = max(self._longest_start_s, seconds)

    def num_for_queue(self, queue: Queue, *, num_alive: int, num_room: float) -> int:
        """How many more replicas the queue is worth.

        Args:
            num_alive: those that serve or start.
            num_room: how many more the cluster has room for.
        """
        start_s = self._longest_start_s or _FIRST_START_S
        if queue.rate_per_s:
            # So many that each has still something to do when those that are started now begin to serve.
            wanted = queue.num_left / (queue.rate_per_s * 2 * start_s)
        else:
            wanted = queue.num_left / (_HELPINGS * queue.num_each)
        return max(0, int(min(self.bounds.max, num_alive + num_room, wanted)) - num_alive)

    def num_for_load(self, busy: Mapping[Replica, float], *, num_alive: int, num_room: float, now_s: float) -> int:
        """How many more replicas their load is worth: one at a time, and none while one is starting.

        Args:
            busy: of each that serves, the share of the last seconds in which it computed.
        """
        is_busy = len(busy) == num_alive > 0 and min(busy.values()) >= _BUSY_SHARE
        self._busy_since_s = (now_s if self._busy_since_s is None else self._busy_since_s) if is_busy else None
        if self._busy_since_s is None or now_s - self._busy_since_s < _BUSY_FOR_S:
            return 0
        self._busy_since_s = None
        return int(num_alive < self.bounds.max and num_room > 0)

    def idle(self, idle: Sequence[Replica], *, num_alive: int, now_s: float) -> list[Replica]:
        """Who is let go of those that have nothing to do, the ones that came last first."""
        self._idle_since_s = {replica: self._idle_since_s.get(replica, now_s) for replica in idle}
        spare = [replica for replica, since_s in self._idle_since_s.items() if now_s - since_s >= self.bounds.idle_s]
        return sorted(spare, reverse=True)[: max(0, num_alive - self.bounds.min)]

    def least_loaded(self, busy: Mapping[Replica, float], *, num_alive: int, now_s: float) -> list[Replica]:
        """Who is let go because the others can do its work as well: the one that came last, if anyone."""
        num = len(busy)
        is_spare = self.bounds.min <= num - 1 and sum(busy.values()) <= _SPARE_SHARE * (num - 1) and num == num_alive
        self._spare_since_s = (now_s if self._spare_since_s is None else self._spare_since_s) if is_spare else None
        if self._spare_since_s is None or now_s - self._spare_since_s < self.bounds.idle_s:
            return []
        self._spare_since_s = None
        return [max(busy)]

    def without_room(
        self, unplaced_since_s: Mapping[Replica, float], *, num_alive: int, num_room: float, now_s: float
    ) -> list[Replica]:
        """Who is taken back of those that were started and found no place in the cluster.

        Not where an autoscaler makes room (`num_room` is infinity). What room there seemed to be otherwise may have
        been another's, or may lie in pieces that are too small.
        """
        if num_room == math.inf:
            return []
        waiting = [replica for replica, since_s in unplaced_since_s.items() if now_s - since_s >= _NO_ROOM_S]
        return sorted(waiting, reverse=True)[: max(0, num_alive - self.bounds.min)]
