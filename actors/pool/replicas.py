"""The one owner of generators and scorers: it has their actors and logs, puts new actors into slots, and ends them.

A slot is a place that one actor after the other may hold. Knows Ray's handles; decides nothing about work or about
failures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.pool.events import Role
from actors.process.logs import tail
from csr_ray.errors import ActorFailure


class Replicas:
    """Actors by role and slot.

    Args:
        generators, scorers: actors that are starting already; they end with this owner.
        logs: folder of the actors' logs, named by role and slot.
        start_generator: starts the actor for a slot; None: a generator that fails is not replaced.
    """

    def __init__(
        self,
        *,
        generators: Sequence[Any],
        scorers: Sequence[Any],
        logs: Path,
        start_generator: Callable[[int], Any] | None = None,
    ) -> None:
        self._actors: dict[Role, list[Any]] = {"generator": list(generators), "scorer": list(scorers)}
        self._logs = logs
        self._start_generator = start_generator

    def actors(self, role: Role) -> list[Any]:
        """The actors of a role, in the order of their slots."""
        return list(self._actors[role])

    def num(self, role: Role) -> int:
        return len(self._actors[role])

    def actor(self, role: Role, slot: int) -> Any:
        return self._actors[role][slot]

    def log(self, role: Role, slot: int) -> Path:
        return self._logs / f"{role}_{slot}.log"

    def last_lines(self, role: Role, slot: int) -> str:
        """The end of an actor's log, for an error message."""
        log = self.log(role, slot)
        return f"last lines of {log}:\n{tail(log)}"

    def kill(self, role: Role, slot: int) -> None:
        ray.kill(self._actors[role][slot])

    def replace_generator(self, slot: int) -> Any:
        """End the generator of a slot and start another there, which still has to be brought up."""
        if self._start_generator is None:
            raise ActorFailure(f"generator {slot} failed and cannot be replaced here")
        self.kill("generator", slot)
        self._actors["generator"][slot] = self._start_generator(slot)
        return self._actors["generator"][slot]

    def result(self, reference: Any, *, role: Role, slot: int) -> Any:
        """What a call of an actor returned.

        Raises:
            ActorFailure: the actor died; ends with its log.
        """
        try:
            return ray.get(reference)
        except RayTaskError:
            raise  # the call failed; Ray makes its error look like its cause, which may be another actor's death
        except RayActorError as error:
            raise ActorFailure(f"{role} {slot} died: {error}\n{self.last_lines(role, slot)}") from error

    def close(self) -> None:
        for actors in self._actors.values():
            for actor in actors:
                ray.kill(actor)
