"""The lives of one role's replicas: who serves, who is silent for too long, who is replaced, when too few are left.

A replica is starting, serving (with work, or quiet without), suspect (silent for so long that it gets nothing new),
or dead and forgotten. This is a state machine: it is told what was heard and what time it is. It knows nothing of
items or of who gets them.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Literal

from actors.pool.events import Replica, Role

State = Literal["starting", "serving", "suspect", "dead"]
# A replica that has been silent for this share of `hang_s` gets no new work until it is heard again.
_SUSPECT_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class RoleLimits:
    """How much trouble with the replicas of one role is borne, and for how long one is waited for (in seconds).

    Attributes:
        start_s: a replica that takes longer to start is dead.
        hang_s: a replica that has work and is silent for so long is dead.
        ping_s: a replica without work from here that is silent for so long is asked for a sign of life.
        restarts: how many dead replicas are replaced within `restart_window_s`; more wait until the window allows it.
        min_replicas: with fewer replicas that serve or start, the run gives up.
        deaths_before_giving_up: the run gives up after this many deaths, beyond one for every replica, without one
            success in between: whatever kills them will kill the next one too.
    """

    start_s: float = math.inf
    hang_s: float = math.inf
    ping_s: float = math.inf
    restarts: int = 0
    restart_window_s: float = 3600.0
    min_replicas: int = 1
    deaths_before_giving_up: int = 16

    def __post_init__(self) -> None:
        if not (self.start_s > 0 and self.hang_s > 0 and self.ping_s > 0 and self.restart_window_s > 0):
            raise ValueError(f"{self}: times are above 0")
        if self.restarts < 0 or self.min_replicas < 1 or self.deaths_before_giving_up < 1:
            raise ValueError(f"{self}: restarts is at least 0, the other counts at least 1")


class Lives:
    """The replicas of one role by condition.

    Each dict is ordered by deadline, so to find who is late only the first replicas of each are looked at.
    """

    def __init__(self, role: Role, limits: RoleLimits) -> None:
        self._role = role
        self._limits = limits
        self._starting: OrderedDict[Replica, float] = OrderedDict()  # since when
        self._awaited: OrderedDict[Replica, float] = OrderedDict()  # has work; last heard, or work given, when
        self._suspect: OrderedDict[Replica, float] = OrderedDict()  # the same
        self._quiet: OrderedDict[Replica, float] = OrderedDict()  # serves and has no work; last heard when
        self._dead_lives: dict[int, int] = {}  # slot: how many lives of it are over
        self._to_replace: deque[Replica] = deque()
        self._restarted_s: deque[float] = deque()
        self._most = 0
        self._deaths_in_a_row = 0
        self._last_death: tuple[Replica, str] | None = None

    def __len__(self) -> int:
        return len(self._starting) + len(self._awaited) + len(self._suspect) + len(self._quiet)

    @property
    def has_vacancy(self) -> bool:
        """Whether a replica is starting, so that whoever waits for one of this role does not wait in vain."""
        return bool(self._starting)

    def state_of(self, replica: Replica) -> State:
        if replica in self._starting:
            return "starting"
        if replica in self._suspect:
            return "suspect"
        return "serving" if replica in self._awaited or replica in self._quiet else "dead"

    def starting(self, replica: Replica, *, now_s: float) -> None:
        assert self.state_of(replica) == "dead" and not self._is_over(replica), replica
        self._starting[replica] = now_s
        self._most = max(self._most, len(self))

    def joined(self, replica: Replica, *, now_s: float) -> bool:
        """The replica is ready. Returns whether it serves from now on; not if it was given up before."""
        if self._is_over(replica):
            return False
        assert self.state_of(replica) in ("starting", "dead"), replica
        self._starting.pop(replica, None)
        self._quiet[replica] = now_s
        self._most = max(self._most, len(self))
        return True

    def left(self, replica: Replica) -> bool:
        """The replica was taken out on purpose. Returns whether it was alive."""
        return self._end(replica, reason="left")

    def died(self, replica: Replica, *, reason: str) -> bool:
        """The replica is dead. Returns whether it was alive; if so its slot waits for `replacements`."""
        if not self._end(replica, reason=f"died: {reason}"):
            return False
        self._to_replace.append(replica)
        self._deaths_in_a_row += 1
        return True

    def worked(self) -> None:
        """A replica of this role did what it is for."""
        self._deaths_in_a_row = 0

    def has_work(self, replica: Replica, *, now_s: float) -> None:
        if self._quiet.pop(replica, None) is not None:
            self._awaited[replica] = now_s

    def heard(self, replica: Replica, *, has_work: bool, now_s: float) -> bool:
        """A sign of life. Returns whether the replica had been suspect."""
        if self.state_of(replica) in ("dead", "starting"):
            return False
        was_suspect = self._suspect.pop(replica, None) is not None
        self._awaited.pop(replica, None)
        self._quiet.pop(replica, None)
        (self._awaited if has_work else self._quiet)[replica] = now_s
        return was_suspect

    def overdue(self, *, now_s: float) -> list[tuple[Replica, str]]:
        """Who has to be killed, and why. The caller reports each as `died`."""
        limits = self._limits
        late = [
            (replica, f"did not start within {limits.start_s:g} s (start_s)")
            for replica in self._late("starting", now_s)
        ]
        return late + [
            (replica, f"had work and was silent for {limits.hang_s:g} s (hang_s)")
            for replica in self._late("suspect", now_s)
        ]

    def newly_suspect(self, *, now_s: float) -> list[Replica]:
        late = self._late("awaited", now_s)
        for replica in late:
            self._suspect[replica] = self._awaited.pop(replica)
        return late

    def to_ping(self, *, now_s: float) -> list[Replica]:
        """Replicas that have been quiet for long and are asked for a sign of life now.

        The question counts as work, so a replica that does not answer it is dead after `hang_s`.
        """
        late = self._late("quiet", now_s)
        for replica in late:
            self.has_work(replica, now_s=now_s)
        return late

    def replacements(self, *, now_s: float) -> list[tuple[Replica, Replica]]:
        """(dead, successor) of those that are replaced now; the successors are starting."""
        while self._restarted_s and self._restarted_s[0] + self._limits.restart_window_s <= now_s:
            self._restarted_s.popleft()
        replaced = []
        while self._to_replace and len(self._restarted_s) < self._limits.restarts:
            dead = self._to_replace.popleft()
            self._restarted_s.append(now_s)
            self.starting(dead.successor(), now_s=now_s)
            replaced.append((dead, dead.successor()))
        return replaced

    def reason_to_give_up(self) -> tuple[str, Replica] | None:
        """Why the run cannot go on, and the replica whose end decided it. Asked after `replacements`."""
        limits = self._limits
        if self._last_death is None:
            return None
        replica, how = self._last_death
        if len(self) < limits.min_replicas:
            left = f"{len(self)} of {self._most} {self._role}s left, {limits.min_replicas} needed"
            spent = f"{len(self._restarted_s)} of {limits.restarts} restarts used in {limits.restart_window_s:g} s"
            return f"{replica} {how} ({left}; {spent})", replica
        if self._deaths_in_a_row >= limits.deaths_before_giving_up + self._most:
            return f"{self._deaths_in_a_row} {self._role}s in a row died without a success; {replica} {how}", replica
        return None

    def next_deadline_s(self) -> float:
        """When a look at the clock will have something new to say, if nothing is heard until then."""
        heads = [self._due_s(name) for name in ("starting", "awaited", "suspect", "quiet")]
        if self._to_replace and self._limits.restarts:
            heads.append(self._restarted_s[0] + self._limits.restart_window_s if self._restarted_s else -math.inf)
        return min(heads)

    def _is_over(self, replica: Replica) -> bool:
        return replica.life < self._dead_lives.get(replica.slot, 0)

    def _end(self, replica: Replica, *, reason: str) -> bool:
        if self.state_of(replica) == "dead":
            return False
        for replicas in (self._starting, self._awaited, self._suspect, self._quiet):
            replicas.pop(replica, None)
        self._dead_lives[replica.slot] = replica.life + 1
        self._last_death = (replica, reason)
        return True

    def _in(self, name: str) -> tuple[OrderedDict[Replica, float], float]:
        """Replicas of one condition and how long each may last."""
        limits = self._limits
        return {
            "starting": (self._starting, limits.start_s),
            "awaited": (self._awaited, limits.hang_s * _SUSPECT_SHARE),
            "suspect": (self._suspect, limits.hang_s),
            "quiet": (self._quiet, limits.ping_s),
        }[name]

    def _due_s(self, name: str) -> float:
        replicas, limit_s = self._in(name)
        return next(iter(replicas.values())) + limit_s if replicas else math.inf

    def _late(self, name: str, now_s: float) -> list[Replica]:
        replicas, limit_s = self._in(name)
        late = []
        for replica, since_s in replicas.items():
            if since_s + limit_s > now_s:
                break
            late.append(replica)
        return late
