"""The thin shell around the pool's decisions: makes the calls they ask for, and tells them what came back.

It decides nothing. What a replica is called there (`generator 1`) is here a Ray actor, a call is an object reference.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.pool.decisions import Decisions
from actors.pool.events import (
    Answered,
    Deliver,
    Died,
    Event,
    Failed,
    Finished,
    GiveUp,
    Joined,
    Kill,
    Quarantine,
    Replica,
    Retry,
    Role,
    Send,
    T,
)
from actors.pool.lives import RoleLimits
from actors.process.logs import tail
from csr_ray.errors import ActorFailure, ScorerFailure

# Results that the driver holds at once; the others stay in the object store until these are handed on.
_RESULTS_A_TURN = 256


class Shell:
    """Actors that serve already. Nobody is replaced in mid-work yet: any death is the end of the run.

    Args:
        logs: folder of the actors' logs, whose ends an error quotes.
        hang_s: a generator that has work and is silent for so long is dead.
    """

    def __init__(self, *, generators: Sequence[Any], scorers: Sequence[Any], logs: Path, hang_s: float) -> None:
        self._generators = list(generators)
        self._scorers = list(scorers)
        self._logs = logs
        self._hang_s = hang_s

    def map(
        self, items: Iterable[T], *, image_of: Callable[[T], str], submit: Callable[[Any, T], Any], in_flight: int
    ) -> Iterator[tuple[T, Any]]:
        """Each item with its result, or with the RayTaskError that is its own, as they come.

        Raises:
            ActorFailure: somebody died or hangs, or nothing but errors comes back. Says who, and ends with its log.
        """
        actors: dict[Role, list[Any]] = {"generator": self._generators, "scorer": self._scorers}
        decisions = Decisions(
            items,
            image_of=image_of,
            in_flight=in_flight,
            limits={
                "generator": RoleLimits(hang_s=self._hang_s, min_replicas=max(1, len(self._generators))),
                "scorer": RoleLimits(min_replicas=max(1, len(self._scorers))),
            },
        )
        running: dict[Any, Send[T]] = {}
        results: dict[int, Any] = {}
        events: list[Event] = [Joined(Replica(role, slot)) for role in actors for slot in range(len(actors[role]))]
        while True:
            for action in decisions.step(events, now_s=time.monotonic()):
                match action:
                    case Send(_, replica, item):
                        running[submit(self._generators[replica.slot], item)] = action
                    case Deliver(call, item) | Quarantine(call, item):
                        yield item, results.pop(call)
                    case Kill(replica):
                        ray.kill(actors[replica.role][replica.slot])
                    case GiveUp():
                        cause = None if action.call is None else results.get(action.call)
                        raise self._failure(action) from cause
                    case Retry():
                        pass
                    case _:
                        raise AssertionError(f"without restarts and limits of a call there is no {action}")
            if decisions.done:
                return
            events = self._events(running, results, until_s=decisions.next_deadline_s())

    def _events(self, running: dict[Any, Send[T]], results: dict[int, Any], *, until_s: float) -> list[Event]:
        """What came back; waits for something until then. All who answered are named, so that nobody seems silent."""
        ready, _ = ray.wait(list(running), num_returns=len(running), timeout=0.02, fetch_local=True)
        if not ready:
            wait_s = None if until_s == math.inf else max(0.0, until_s - time.monotonic())
            ready, _ = ray.wait(list(running), num_returns=1, timeout=wait_s)
        read, unread = ready[:_RESULTS_A_TURN], ready[_RESULTS_A_TURN:]
        events: list[Event] = [Answered(replica) for replica in {running[reference].replica for reference in unread}]
        return events + [self._read(reference, running.pop(reference), results) for reference in read]

    def _read(self, reference: Any, sent: Send[T], results: dict[int, Any]) -> Event:
        try:
            results[sent.call] = ray.get(reference)
        except RayTaskError as error:
            results[sent.call] = error
            if isinstance(error.cause, ScorerFailure):
                return Failed(sent.call, error.cause.reason, Replica("scorer", error.cause.index))
            return Failed(sent.call, reason_of(error))
        except RayActorError as error:
            results[sent.call] = error
            return Died(sent.replica, str(error))
        return Finished(sent.call)

    def _failure(self, action: GiveUp) -> ActorFailure:
        if action.replica is None:
            return ActorFailure(action.reason)
        log = self._logs / f"{action.replica.role}_{action.replica.slot}.log"
        return ActorFailure(f"{action.reason}\nlast lines of {log}:\n{tail(log)}")


def reason_of(error: RayTaskError) -> str:
    """The error of the task itself in one line, without the traceback."""
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}"
