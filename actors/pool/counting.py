"""Collects the counters of all actors, and waits for nobody for long."""

from __future__ import annotations

import contextlib
from typing import Any

import ray
from ray.exceptions import RayActorError

from actors.pool.replicas import Replicas
from csr_ray.counters import Counters

_MOST_S = 2.0


class Counting:
    """What generators and scorers have counted."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas
        self._open: dict[Any, Any] = {}  # actors that are asked for their counters, and the open calls

    def take(self) -> Counters:
        """The counts since the last call.

        The count of an actor that is silent comes with a later call, and what one that died had counted since the
        last call is lost.
        """
        asked = set(self._open)
        actors = (*self._replicas.actors("generator"), *self._replicas.actors("scorer"))
        for actor in actors:
            if actor not in self._open:
                self._open[actor] = actor.counters.remote()
        # Who has not answered the last time, as one that is starting, is not waited for again.
        fresh = [reference for actor, reference in self._open.items() if actor not in asked]
        if fresh:
            ray.wait(fresh, num_returns=len(fresh), timeout=_MOST_S)
        ready, _ = ray.wait(list(self._open.values()), num_returns=len(self._open), timeout=0)
        counted = []
        for actor in [actor for actor, reference in self._open.items() if reference in ready or actor not in actors]:
            reference = self._open.pop(actor)
            with contextlib.suppress(RayActorError):
                counted += [ray.get(reference)] if reference in ready else []
        return Counters.sum(counted)
