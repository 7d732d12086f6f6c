"""Who has held how much of the cluster, for how long, and for how much of that there was work: what a run pays for.

Pure but for `kind_of_node`. An actor is counted from its first sign of life on, a few seconds behind the moment from
which Ray keeps its place, until it is known to be gone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

from csr_ray.counters import Usage


@dataclass(frozen=True, kw_only=True)
class Place:
    """What Ray keeps for one actor of a role."""

    gpus: float
    cpus: float


@dataclass
class _Holder:
    role: str
    node: str
    kind: str
    counted_s: float  # until when it was taken into account
    worked_s: float = 0.0  # of its own count
    busy_s: float = 0.0  # since the last call of `take`


class Ledger:
    """Actors that hold places.

    Args:
        places: by role; an actor of another role is not counted.
        kind_of: the kind of GPU of a node, by its id; "" where there is none.
    """

    def __init__(self, places: Mapping[str, Place], *, kind_of: Callable[[str], str]) -> None:
        self._places = dict(places)
        self._kind_of = kind_of
        self._kinds: dict[str, str] = {}
        self._holders: dict[Hashable, _Holder] = {}
        self._held_s: dict[tuple[str, str], float] = {}
        self._busy_s: dict[tuple[str, str], float] = {}

    def begin(self, who: Hashable, *, role: str, node: str, now_s: float) -> None:
        """An actor is there; it may be said again."""
        if who in self._holders or role not in self._places:
            return
        if node not in self._kinds:
            self._kinds[node] = self._kind_of(node) if self._places[role].gpus else ""
        self._holders[who] = _Holder(role=role, node=node, kind=self._kinds[node], counted_s=now_s)

    def worked(self, who: Hashable, *, seconds: float) -> None:
        """For how long an actor has had work so far, all in all, by its own count."""
        if holder := self._holders.get(who):
            holder.busy_s += max(0.0, seconds - holder.worked_s)
            holder.worked_s = max(seconds, holder.worked_s)

    def add_work(self, who: Hashable, *, seconds: float) -> None:
        """An actor has had work for so long since this was last said of it."""
        if holder := self._holders.get(who):
            holder.busy_s += seconds

    def end(self, who: Hashable, *, now_s: float) -> None:
        """An actor is gone; it may be said of one that never was."""
        if holder := self._holders.pop(who, None):
            self._count(holder, now_s=now_s)

    def gpus_by_node(self) -> dict[tuple[str, str], float]:
        """GPUs that are held now, by node and kind."""
        found: dict[tuple[str, str], float] = {}
        for holder in self._holders.values():
            if gpus := self._places[holder.role].gpus:
                found[holder.node, holder.kind] = found.get((holder.node, holder.kind), 0.0) + gpus
        return found

    def take(self, *, now_s: float) -> list[Usage]:
        """What was held since the last call, by role and kind of GPU."""
        for holder in self._holders.values():
            self._count(holder, now_s=now_s)
        # Work that was said late may be more than was held since, and then a part of it belongs to the next time.
        late_s = {
            key: busy_s - held_s
            for key, busy_s in self._busy_s.items()
            if busy_s > (held_s := self._held_s.get(key, 0.0))
        }
        rows = [
            Usage(
                role=role,
                kind=kind,
                gpus=self._places[role].gpus,
                cpus=self._places[role].cpus,
                held_s=held_s,
                busy_s=min(held_s, self._busy_s.get((role, kind), 0.0)),
            )
            for (role, kind), held_s in self._held_s.items()
            if held_s
        ]
        self._held_s, self._busy_s = {}, late_s
        return rows

    def _count(self, holder: _Holder, *, now_s: float) -> None:
        key = (holder.role, holder.kind)
        self._held_s[key] = self._held_s.get(key, 0.0) + max(0.0, now_s - holder.counted_s)
        self._busy_s[key] = self._busy_s.get(key, 0.0) + holder.busy_s
        holder.counted_s, holder.busy_s = now_s, 0.0


class Unused:
    """What is left of GPUs of which actors hold a part: nobody else can have it, and it is paid for.

    What is held when it is read counts for all of the time since it was read before.
    """

    def __init__(self, *, now_s: float) -> None:
        self._read_s = now_s

    def take(self, *held: Mapping[tuple[str, str], float], now_s: float) -> list[Usage]:
        """The rest since the last call, by kind of GPU.

        Args:
            held: GPUs by node and kind, as `Ledger.gpus_by_node` gives them; of one node they are added up.
        """
        seconds, self._read_s = now_s - self._read_s, now_s
        nodes: dict[tuple[str, str], float] = {}
        for one in held:
            for node, gpus in one.items():
                nodes[node] = nodes.get(node, 0.0) + gpus
        rests: dict[str, float] = {}
        for (_, kind), gpus in nodes.items():
            rests[kind] = rests.get(kind, 0.0) + math.ceil(gpus - 1e-6) - gpus
        return [
            Usage(role="unused", kind=kind, gpus=1.0, cpus=0.0, held_s=rest * seconds, busy_s=0.0)
            for kind, rest in rests.items()
            if rest > 1e-6
        ]


def kind_of_node(node: str) -> str:
    """What Ray says of the GPUs of a node, by its id."""
    import ray

    from csr_ray.machine.kinds import kind_of

    try:
        return next((kind_of(one["Resources"]) for one in ray.nodes() if one["NodeID"] == node), "")
    except Exception:  # a run is not to end for a price
        return ""
