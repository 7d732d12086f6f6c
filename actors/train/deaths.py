"""Who of a train group has died or hangs, and whether the group starts again. Pure: no Ray, and no time of day."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from actors.train.messages import LastBeat

_FIRST_BACK_OFF_S = 1.0
_MOST_BACK_OFF_S = 30.0
_MOST_PATIENCE = 4.0
_MOST_A_LOOK_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Death:
    """What ended an attempt of the group.

    Attributes:
        who: the process, in words.
        of: what it died of, in words.
        rank: of the worker whose log tells more, if it is one.
    """

    who: str
    of: str
    rank: int | None = None

    def __str__(self) -> str:
        return f"{self.who} {self.of}"


def worker_death(rank: int, of: str) -> Death:
    return Death(who=f"train worker {rank}", of=of, rank=rank)


class PatientClock:
    """Counts a wait that is looked at often. A machine that stood still meanwhile, or had no time for the one who
    looks, had none for the one who is waited for either, so one look counts for little, however long it took.
    """

    def __init__(self, *, now_s: float) -> None:
        self.seconds = 0.0
        self._looked_s = now_s

    def look(self, *, now_s: float) -> float:
        """Seconds so far."""
        self.seconds += min(_MOST_A_LOOK_S, now_s - self._looked_s)
        self._looked_s = now_s
        return self.seconds


class Silences:
    """How long each worker of an attempt has been silent, by rank."""

    def __init__(self) -> None:
        self._heard: dict[int, tuple[int, PatientClock]] = {}

    def hear(self, beats: Mapping[int, LastBeat], *, now_s: float) -> dict[int, float]:
        """Take the last beats as they are now."""
        for rank, last in beats.items():
            if rank not in self._heard or self._heard[rank][0] != last.number:
                self._heard[rank] = (last.number, PatientClock(now_s=now_s))
        return {rank: clock.look(now_s=now_s) for rank, (_, clock) in self._heard.items()}


def silent_worker(
    beats: Mapping[int, LastBeat],
    *,
    silent_s: Mapping[int, float],
    spawned_for_s: Mapping[int, float],
    start_s: float,
    silence_s: float,
    hang_s: float,
) -> Death | None:
    """The worker that is to be taken for dead: one that says nothing, or one whose training gets no further.

    Args:
        beats: by rank.
        silent_s: of those that have begun to beat, by rank.
        spawned_for_s: how long each worker's process has been there, by rank.
        start_s: how long a process may take to its first beat.
        silence_s: how long the next beat may take.
        hang_s: how long a worker may be at the same, if it does not wait for the driver.
    """
    for rank, seconds in spawned_for_s.items():
        if rank not in beats and seconds > start_s:
            return worker_death(rank, f"has said nothing in the {seconds:.0f} s since its process began")
    # Of several that are silent the one that fell silent first.
    quiet = max(silent_s, key=lambda rank: silent_s[rank], default=None)
    if quiet is not None and silent_s[quiet] > silence_s:
        doing = beats[quiet].beat.doing
        return worker_death(quiet, f"has said nothing for {silent_s[quiet]:.0f} s, while it was at {doing}")
    working = {rank: last.beat for rank, last in beats.items() if not last.beat.is_waiting}
    stuck = {rank: beat for rank, beat in working.items() if beat.doing_s > hang_s}
    if not stuck:
        return None
    # All wait for the one that hangs, which came to where it is before or after the others: nobody can tell.
    places = "; ".join(f"worker {rank} is at {last.beat.doing}" for rank, last in sorted(beats.items()))
    first = min(stuck)
    return worker_death(first, f"has got no further for {stuck[first].doing_s:.0f} s (train.hang_s): {places}")


def waits_for(beats: Mapping[int, LastBeat], *, num_workers: int) -> str:
    """What a driver that waits for the group waits for, in words."""
    if len(beats) < num_workers:
        return f"Ray to start {num_workers} train workers ({len(beats)} there)"
    rank, last = max(beats.items(), key=lambda item: (not item[1].beat.is_waiting, item[1].beat.doing_s))
    return f"train worker {rank}, which is at {last.beat.doing} for {last.beat.doing_s:.0f} s"


class Restarts:
    """How often the group may start again: so often in a cycle, for a finished cycle shows that the group works.

    Not so often in an hour: a model whose start takes half of one could then die at every start for ever.
    """

    def __init__(self, *, most: int, rng: random.Random) -> None:
        self.most = most
        self.used = 0
        self._rng = rng

    def take(self) -> float | None:
        """Seconds to wait before the next start, longer each time; None: there is none left."""
        if self.used >= self.most:
            return None
        back_off_s = min(_MOST_BACK_OFF_S, _FIRST_BACK_OFF_S * 2**self.used)
        self.used += 1
        return back_off_s * self._rng.uniform(0.75, 1.25)

    @property
    def patience(self) -> float:
        """How many times as long the next attempt may be silent as the first: twice as long after each death.

        On a machine that has no time for it every process is silent, and ending it makes only more to do.
        """
        return min(_MOST_PATIENCE, 2.0**self.used)

    def give_back(self) -> None:
        """A cycle has been finished."""
        self.used = 0
