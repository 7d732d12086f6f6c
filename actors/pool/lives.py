"""The lives of one role's replicas: who serves, who is silent for too long, who is replaced, when too few are left.

A replica is starting, serving, suspect (silent for so long that it gets nothing new), or dead and forgotten. Who has
not been heard for a while is asked for a sign of life, whether it has work or not: a result may take an hour, an
answer to that question takes a moment. This is a state machine: it is told what was heard and what time it is. It
knows nothing of items or of who gets them.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import OrderedDict, deque
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from actors.pool.events import Replica, Role
from actors.pool.signs import SignsOfLife, first_late

State = Literal["starting", "serving", "suspect", "dead"]
# A replica whose work stands still for so many times as long as its longest step so far is dead, and for so many
# seconds at least. The least doubles with every replica that was ended for it, in case it was only slow.
_STALL_FACTOR = 20.0
_LEAST_STALL_S = 10.0
# A replica that died before it served is replaced after a pause, which doubles from one failed start to the next.
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
_YOUNG_S = 120.0


@dataclass(frozen=True, kw_only=True)
class RoleLimits:
    """How much trouble with the replicas of one role is borne, and for how long one is waited for (in seconds).

    Attributes:
        place_s: a replica for which the cluster has no place for so long is dead; its process has not begun.
        start_s: a replica whose process takes longer to start is dead.
        ping_s: a replica that was not heard for so long is asked for a sign of life.
        silent_s: one that does not answer that for so long is dead.
        hang_s: one that answers, but whose work stands still for so long, is dead, too; sooner where its steps have
            been short (`_STALL_FACTOR`).
        restarts: how often the replica of one slot is replaced within `restart_window_s`; then its place stays empty
            until the window allows it.
        min_replicas: with fewer replicas that serve or start, the run gives up.
        first_starts: while no replica has ever served, the run gives up after so many failed starts of one slot.
        deaths_before_giving_up: the run gives up after this many young deaths (`_YOUNG_S`), beyond one for every
            replica, without one success in between: whatever kills them will kill the next one too.
    """

    place_s: float = math.inf
    start_s: float = math.inf
    ping_s: float = math.inf
    silent_s: float = math.inf
    hang_s: float = math.inf
    restarts: int = 0
    restart_window_s: float = 3600.0
    min_replicas: int = 1
    first_starts: int = 3
    deaths_before_giving_up: int = 16

    def __post_init__(self) -> None:
        times_s = (self.place_s, self.start_s, self.ping_s, self.silent_s, self.hang_s, self.restart_window_s)
        if not all(time_s > 0 for time_s in times_s):
            raise ValueError(f"{self}: times are above 0")
        if self.restarts < 0 or min(self.min_replicas, self.first_starts, self.deaths_before_giving_up) < 1:
            raise ValueError(f"{self}: restarts is at least 0, the other counts at least 1")


class Lives:
    """The replicas of one role by condition.

    The starting ones are ordered by deadline, so to find who is late only the first of them are looked at.
    """

    def __init__(self, role: Role, limits: RoleLimits) -> None:
        self._role = role
        self._limits = limits
        # Since when. Whoever has not given the first sign of life may still be without a place in the cluster.
        self._unplaced: OrderedDict[Replica, float] = OrderedDict()
        self._starting: OrderedDict[Replica, float] = OrderedDict()
        # Of these, the ones with which the run begins. It waits for all of them, so nothing may begin without one;
        # once anything has worked, the others can do without it.
        self._begins_with: set[Replica] = set()
        self._homeless: Replica | None = None  # who has waited for a place in vain, so that the run cannot go on
        # A replica is in one of these from its first sign of life on.
        self._signs_starting = SignsOfLife(ping_s=limits.ping_s, silent_s=limits.silent_s)
        self._signs_serving = SignsOfLife(ping_s=limits.ping_s, silent_s=limits.silent_s)
        self._serving: dict[Replica, float] = {}  # since when
        self._dead_lives: dict[int, int] = {}  # slot: how many lives of it are over
        self._to_replace: list[tuple[float, Replica]] = []  # a heap of who may be replaced from when on
        self._restarted_s: dict[int, deque[float]] = {}  # by slot
        self._failed_starts: dict[int, int] = {}  # by slot, in a row
        self._least_stall_s = _LEAST_STALL_S
        self._has_served = False
        self._most = 0
        self._deaths_in_a_row = 0
        self._last_death: tuple[Replica, str] | None = None

    def __len__(self) -> int:
        return len(self._unplaced) + len(self._starting) + len(self._serving)

    @property
    def serving(self) -> list[Replica]:
        """Those that serve, suspect ones included, in the order in which they joined."""
        return list(self._serving)

    @property
    def starting_since(self) -> dict[Replica, float]:
        return {**self._unplaced, **self._starting}

    @property
    def unplaced_since(self) -> dict[Replica, float]:
        """Those of the starting ones that have not been heard yet."""
        return dict(self._unplaced)

    @property
    def lacks_room(self) -> bool:
        """Whether `reason_to_give_up` is that the cluster has no room."""
        return self._homeless is not None

    def serving_since(self, replica: Replica) -> float:
        return self._serving[replica]

    def newcomer(self) -> Replica:
        """A replica that is not there yet, in the lowest slot that is free and waits for no replacement."""
        taken = {replica.slot for replica in (*self._unplaced, *self._starting, *self._serving)}
        taken |= {replica.slot for _, replica in self._to_replace}
        slot = next(slot for slot in range(len(taken) + 1) if slot not in taken)
        return Replica(self._role, slot, self._dead_lives.get(slot, 0))

    def num_expected(self, *, now_s: float) -> int:
        """Those that serve or start, and those that will be replaced after a pause."""
        return len(self) + self._num_pausing(now_s)

    def is_expecting(self, *, now_s: float) -> bool:
        """Whether a replica is starting, or will after a pause, so that whoever waits for one may go on waiting."""
        return bool(self._unplaced or self._starting) or self._num_pausing(now_s) > 0

    def state_of(self, replica: Replica) -> State:
        if replica in self._unplaced or replica in self._starting:
            return "starting"
        if replica not in self._serving:
            return "dead"
        return "suspect" if self._signs_serving.is_suspect(replica) else "serving"

    def starting(self, replica: Replica, *, now_s: float, begins: bool = False) -> None:
        """The replica is being started.

        Args:
            begins: the run begins with it, so without a place for it nothing ever would.
        """
        assert self.state_of(replica) == "dead" and not self._is_over(replica), replica
        self._unplaced[replica] = now_s
        if begins:
            self._begins_with.add(replica)
        self._most = max(self._most, len(self))

    def joined(self, replica: Replica, *, now_s: float) -> bool:
        """The replica is ready. Returns whether it serves from now on; not if it was given up before."""
        if self._is_over(replica):
            return False
        assert self.state_of(replica) in ("starting", "dead"), replica
        self._unplaced.pop(replica, None)
        self._starting.pop(replica, None)
        self._signs_starting.forget(replica)
        self._serving[replica] = now_s
        self._has_served = True
        self._failed_starts.pop(replica.slot, None)
        self._signs_serving.heard(replica, now_s=now_s)
        self._most = max(self._most, len(self))
        return True

    def left(self, replica: Replica) -> bool:
        """The replica was taken out on purpose. Returns whether it was alive."""
        return self._end(replica, reason="left")

    def died(self, replica: Replica, *, reason: str, now_s: float) -> bool:
        """The replica is dead. Returns whether it was alive; if so its slot waits for `replacements`."""
        served_since_s = self._serving.get(replica)
        if not self._end(replica, reason=f"died: {reason}"):
            return False
        pause_s = 0.0
        if served_since_s is None:
            failed = self._failed_starts[replica.slot] = self._failed_starts.get(replica.slot, 0) + 1
            # Many that failed together, as on a node that was lost, should not come back in the same instant.
            jitter = random.Random(f"{replica}").uniform(0.5, 1.0)
            pause_s = jitter * min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(failed - 1, 30))
        from_s = max(now_s + pause_s, self._restart_free_s(replica.slot, now_s=now_s))
        heapq.heappush(self._to_replace, (from_s, replica))
        # Who has served for a while shows that replicas can; a death of old age must not count against the others.
        self._deaths_in_a_row += served_since_s is None or now_s - served_since_s < _YOUNG_S
        return True

    def _restart_free_s(self, slot: int, *, now_s: float) -> float:
        """From when on `restarts` and its window allow that the replica of this slot is replaced once more."""
        restarted_s = self._restarted_s.setdefault(slot, deque())
        while restarted_s and restarted_s[0] + self._limits.restart_window_s <= now_s:
            restarted_s.popleft()
        if len(restarted_s) < self._limits.restarts:
            return now_s
        return restarted_s[0] + self._limits.restart_window_s if restarted_s else math.inf

    def worked(self) -> None:
        """A replica of this role did what it is for."""
        self._deaths_in_a_row = 0
        self._begins_with.clear()

    def heard(self, replica: Replica, *, now_s: float) -> bool:
        """A sign of life. Returns whether the replica serves and had been suspect."""
        state = self.state_of(replica)
        if state == "dead":
            return False
        if self._unplaced.pop(replica, None) is not None:
            self._starting[replica] = now_s
        signs = self._signs_starting if state == "starting" else self._signs_serving
        signs.heard(replica, now_s=now_s)
        return state == "suspect"

    def stalls(self, *, stalled_s: float, longest_s: float | None) -> str | None:
        """Why a replica whose work has stood still for `stalled_s` counts as dead; None: it does not.

        Args:
            longest_s: the longest that one step of it has taken so far; None: not known, so `hang_s` is the limit.
        """
        limit_s = self._limits.hang_s
        if longest_s is not None:
            limit_s = min(limit_s, max(self._least_stall_s, _STALL_FACTOR * longest_s))
        if stalled_s <= limit_s:
            return None
        self._least_stall_s = min(2 * self._least_stall_s, self._limits.hang_s)
        before = "" if longest_s is None else f"; its longest step before took {longest_s:.2g} s"
        return f"for {stalled_s:.0f} s (at most {limit_s:.0f} s are waited for{before})"

    def overdue(self, *, now_s: float) -> list[tuple[Replica, str]]:
        """Who has to be killed, and why. The caller reports each as `died`."""
        start_s, place_s = self._limits.start_s, self._limits.place_s
        no_place = f"found no place in the cluster within {place_s:g} s"
        late = dict.fromkeys(first_late(self._unplaced, place_s, now_s=now_s), no_place)
        nobody_is_left = not self._serving and not self._starting
        self._homeless = next((one for one in late if nobody_is_left or one in self._begins_with), None)
        slow = f"did not start within {start_s:g} s (start_s)"
        late |= dict.fromkeys(first_late(self._starting, start_s, now_s=now_s), slow)
        for signs in (self._signs_starting, self._signs_serving):
            silent = signs.late(now_s=now_s)
            for replica in silent:
                late.setdefault(replica, f"gave no sign of life for {signs.silent_s:g} s (silent_s)")
            if silent and signs is self._signs_starting:
                # A process that loads libraries from a slow disk cannot answer either, so the next get more time.
                signs.silent_s = min(2 * signs.silent_s, start_s)
        return list(late.items())

    def newly_suspect(self, *, now_s: float) -> list[Replica]:
        """Those that serve and should get nothing new, because they have not answered for a while."""
        self._signs_starting.newly_suspect(now_s=now_s)
        return self._signs_serving.newly_suspect(now_s=now_s)

    def to_ping(self, *, now_s: float) -> list[Replica]:
        """Replicas that have not been heard for a while and are asked for a sign of life now."""
        return [*self._signs_serving.to_ping(now_s=now_s), *self._signs_starting.to_ping(now_s=now_s)]

    def replacements(self, *, now_s: float) -> list[tuple[Replica, Replica]]:
        """(dead, successor) of those that are replaced now; the successors are starting."""
        replaced = []
        while self._to_replace and self._to_replace[0][0] <= now_s:
            _, dead = heapq.heappop(self._to_replace)
            self._restarted_s[dead.slot].append(now_s)
            self.starting(dead.successor(), now_s=now_s, begins=dead in self._begins_with)
            replaced.append((dead, dead.successor()))
        return replaced

    def reason_to_give_up(self, *, now_s: float) -> tuple[str, Replica] | None:
        """Why the run cannot go on, and the replica whose end decided it. Asked after `replacements`."""
        limits = self._limits
        if self._homeless is not None:
            return f"{self._homeless} found no place in the cluster within {limits.place_s:g} s", self._homeless
        if self._last_death is None:
            return None
        replica, how = self._last_death
        if len(self) + self._num_pausing(now_s) < limits.min_replicas:
            left = f"{len(self)} of {self._most} {self._role}s left, {limits.min_replicas} needed"
            spent = f"{len(self._restarted_s.get(replica.slot, ()))} of {limits.restarts} restarts used"
            return f"{replica} {how} ({left}; {spent} in {limits.restart_window_s:g} s)", replica
        if not self._has_served and (failed := self._failed_starts.get(replica.slot, 0)) >= limits.first_starts:
            return f"{replica} {how} ({failed} starts failed, and no {self._role} has served yet)", replica
        if self._deaths_in_a_row >= limits.deaths_before_giving_up + self._most:
            return f"{self._deaths_in_a_row} {self._role}s in a row died without a success; {replica} {how}", replica
        return None

    def next_deadline_s(self) -> float:
        """When a look at the clock will have something new to say, if nothing is heard until then."""
        heads = [self._signs_starting.next_deadline_s(), self._signs_serving.next_deadline_s()]
        heads += [since_s + self._limits.place_s for since_s in islice(self._unplaced.values(), 1)]
        heads += [since_s + self._limits.start_s for since_s in islice(self._starting.values(), 1)]
        return min(heads + [from_s for from_s, _ in self._to_replace[:1]])

    def _num_pausing(self, now_s: float) -> int:
        """Those on their way back after a pause; whoever has used its restarts up is not."""
        return sum(from_s <= now_s + _LONGEST_PAUSE_S for from_s, _ in self._to_replace)

    def _is_over(self, replica: Replica) -> bool:
        return replica.life < self._dead_lives.get(replica.slot, 0)

    def _end(self, replica: Replica, *, reason: str) -> bool:
        if self.state_of(replica) == "dead":
            return False
        self._serving.pop(replica, None)
        self._unplaced.pop(replica, None)
        self._starting.pop(replica, None)
        self._signs_starting.forget(replica)
        self._signs_serving.forget(replica)
        self._dead_lives[replica.slot] = replica.life + 1
        self._last_death = (replica, reason)
        return True
