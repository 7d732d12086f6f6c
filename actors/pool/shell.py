"""The thin shell around the pool's decisions: makes the calls they ask for, and tells them what came back.

It decides nothing. A replica of the decisions (`generator 1`) is a Ray actor here, and a call is an object reference.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
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
from actors.pool.replicas import Replicas
from csr_ray.errors import ActorFailure, ScorerFailure
from csr_ray.records import Rejection

# Results that the driver holds at once; the others stay in the object store until these are handed on.
_RESULTS_A_TURN = 256
_LOOK_UP_EVERY_S = 1.0


class Shell:
    """Spreads work over actors that serve already. None is replaced in mid-work yet: any death is the run's end.

    Args:
        hang_s: a generator that has work and is silent for this many seconds is dead.
    """

    def __init__(self, replicas: Replicas, *, hang_s: float) -> None:
        self._replicas = replicas
        self._hang_s = hang_s

    def map(
        self,
        items: Iterable[T],
        *,
        image_of: Callable[[T], str],
        submit: Callable[[Any, T], Any],
        in_flight: int,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[tuple[T, Any]]:
        """Yield each item with its result, or with the RayTaskError of its own call, in the order they finish.

        `stopped` is asked at least once a second, and if it returns true this ends, whatever is under way.

        Raises:
            ActorFailure: somebody died or hangs, or nothing but errors comes back. Says who, and ends with its log.
        """
        num: dict[Role, int] = {"generator": self._replicas.num("generator"), "scorer": self._replicas.num("scorer")}
        decisions = Decisions(
            items,
            image_of=image_of,
            in_flight=in_flight,
            limits={
                "generator": RoleLimits(hang_s=self._hang_s, min_replicas=max(1, num["generator"])),
                "scorer": RoleLimits(min_replicas=max(1, num["scorer"])),
            },
        )
        running: dict[Any, Send[T]] = {}
        results: dict[int, Any] = {}
        events: list[Event] = [Joined(Replica(role, slot)) for role in num for slot in range(num[role])]
        while not stopped():
            for action in decisions.step(events, now_s=time.monotonic()):
                match action:
                    case Send(_, replica, item):
                        running[submit(self._replicas.actor("generator", replica.slot), item)] = action
                    case Deliver(call, item) | Quarantine(call, item):
                        yield item, results.pop(call)
                    case Kill(replica):
                        self._replicas.kill(replica.role, replica.slot)
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
        """What came back, or nothing if nothing does until `until_s` (or for a second).

        Results beyond a number are read later, but their replicas count as heard, so that none seems silent.
        """
        ready, _ = ray.wait(list(running), num_returns=len(running), timeout=0.02, fetch_local=True)
        if not ready:
            wait_s = min(_LOOK_UP_EVERY_S, max(0.0, until_s - time.monotonic()))
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
        return Finished(sent.call, shows_health=not isinstance(results[sent.call], Rejection))

    def _failure(self, action: GiveUp) -> ActorFailure:
        if action.replica is None:
            return ActorFailure(action.reason)
        return ActorFailure(f"{action.reason}\n{self._replicas.last_lines(action.replica.role, action.replica.slot)}")


def reason_of(error: RayTaskError) -> str:
    """The error of the task itself in one line, without the traceback."""
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}"
