"""Collects what generators and scorers have recorded for a trace, and waits for nobody for long."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any, Final

import ray
from ray.exceptions import RayError

from actors.pool.replicas import Replicas
from csr_ray.spans import Recorded

_MOST_S: Final = 2.0


class Tracing:
    """The records of all traced actors."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas
        self._open: dict[Any, tuple[str, Any]] = {}  # actors that are asked: who they are, and the open call

    def take(self) -> list[Recorded]:
        """What was recorded since the last call.

        What a silent actor has comes with a later call; what one that died had not handed over is lost.
        """
        asked = set(self._open)
        for role in ("generator", "scorer"):
            for slot in self._replicas.slots(role):
                with contextlib.suppress(KeyError):  # let go meanwhile
                    actor = self._replicas.actor(role, slot)
                    if actor not in self._open:
                        self._open[actor] = (f"{role} {slot}", actor.spans.remote())
        fresh = [reference for actor, (_, reference) in self._open.items() if actor not in asked]
        if fresh:
            ray.wait(fresh, num_returns=len(fresh), timeout=_MOST_S)
        found = []
        for actor, (who, reference) in list(self._open.items()):
            if ray.wait([reference], timeout=0)[0]:
                del self._open[actor]
                with contextlib.suppress(RayError):
                    found.append(replace(ray.get(reference), who=who))
        return found
