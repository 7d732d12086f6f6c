"""The one owner of generators and scorers: it has their actors and logs, puts new actors into slots, and ends them.

A slot is a place that one actor after the other may hold. Knows Ray's handles; decides nothing about work or about
failures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from actors.pool.events import Role
from actors.process.logs import tail


class Replicas:
    """Actors by role and slot.

    Args:
        generators, scorers: actors that are starting already; they end with this owner.
        logs: folder of the actors' logs, named by role and slot.
        starters: for each role that can be replaced, what starts the actor of a slot.
    """

    def __init__(
        self,
        *,
        generators: Sequence[Any],
        scorers: Sequence[Any],
        logs: Path,
        starters: Mapping[Role, Callable[[int], Any]] | None = None,
    ) -> None:
        self._actors: dict[Role, dict[int, Any]] = {
            "generator": dict(enumerate(generators)),
            "scorer": dict(enumerate(scorers)),
        }
        self._starters = dict(starters or {})
        self.logs = logs

    def adopt_registry(self, actor: Any) -> None:
        """The registry is looked after as well, but it ends with its own owner, and Ray starts it again."""
        self._actors["registry"] = {0: actor}
        self._starters["registry"] = lambda slot: actor

    def can_replace(self, role: Role) -> bool:
        return role in self._starters

    @property
    def roles(self) -> list[Role]:
        return list(self._actors)

    def actors(self, role: Role) -> list[Any]:
        """The actors of a role, in the order of their slots."""
        return [actor for _, actor in sorted(self._actors[role].items())]

    def slots(self, role: Role) -> list[int]:
        """The slots of a role that have an actor, dead or alive."""
        return sorted(self._actors[role])

    def actor(self, role: Role, slot: int) -> Any:
        return self._actors[role][slot]

    def log(self, role: Role, slot: int) -> Path:
        return self.logs / f"{role}_{slot}.log"

    def last_lines(self, role: Role, slot: int) -> str:
        """The end of an actor's log, for an error message; where its node does not see the folder, how to read it."""
        log = self.log(role, slot)
        actor = self._actors[role].get(slot)
        if actor is not None and not log.exists():
            return f"its log is with its node's: ray logs actor --id {actor._actor_id.hex()} --err"
        lines = tail(log)
        return f"last lines of {log}:\n{lines}" if lines else ""

    def kill(self, role: Role, slot: int) -> None:
        """End an actor's process, also one that hangs."""
        ray.kill(self._actors[role][slot], no_restart=role != "registry")

    def start(self, role: Role, slot: int) -> Any:
        """Start an actor in a slot that is new, or whose actor is dead; it still has to be brought up."""
        self._actors[role][slot] = self._starters[role](slot)
        return self._actors[role][slot]

    def remove(self, role: Role, slot: int) -> None:
        """End the actor of a slot, which nobody is to have after it."""
        ray.kill(self._actors[role].pop(slot))

    def close(self) -> None:
        for role in ("generator", "scorer"):
            for actor in self._actors[role].values():  # type: ignore[index]
                ray.kill(actor)
