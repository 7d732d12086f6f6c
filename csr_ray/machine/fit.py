"""Whether what a run asks for fits the nodes there are, and if not, what would. Pure functions on numbers.

Ray waits for ever for what no node has, and says nothing. So this is asked before anything starts. The rules are
Ray's: an actor sits on one node; a fraction of a GPU lies on one GPU, on the fullest that still has room for it; two
or more GPUs are whole and free ones of one node.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from csr_ray.config.schema import Config
from csr_ray.errors import ConfigError
from csr_ray.machine.placement import Demand

ANY_NUMBER: Final = 10**6
"""CPUs of a machine on which the program starts a Ray of its own, which has as many slots as are asked for."""
# Ray counts in steps of 1/10,000, so that 0.4 + 0.2 + 0.4 is exactly 1.
_UNIT = 10_000
# Actors that ask for nothing.
_MOST_ON_A_NODE = 1000
# Shares of a GPU that a smaller form of a run may give a model: two large ones fit on one, three do not.
_SHARES = tuple(number / 10 for number in range(9, 3, -1))
_SMALL_SCORER_GPUS = 0.1


@dataclass(frozen=True, kw_only=True)
class Node:
    """What Ray may give away on one node; `accelerator_type` is the kind of its GPUs, "" where it is not known."""

    name: str
    cpus: float
    gpus: int
    accelerator_type: str = ""

    def __str__(self) -> str:
        kind = f" ({self.accelerator_type})" if self.accelerator_type and self.gpus else ""
        cpus = "any number of CPUs" if self.cpus >= ANY_NUMBER else f"{self.cpus:g} CPU"
        return f"{self.name}: {cpus} and {self.gpus} GPU{kind}"


@dataclass(frozen=True, kw_only=True)
class Free:
    """What is left on one node for now."""

    name: str
    cpus: float
    gpus: float
    accelerator_type: str = ""


@dataclass(frozen=True, kw_only=True)
class Seat:
    """Where an actor sits; `gpus` are the numbers of its GPUs on that node."""

    role: str
    node: str
    gpus: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Seating:
    """Who finds a place.

    Attributes:
        seats: one for each actor that has a place, in the order of starting.
        standing: roles of those that have none, one entry for each actor.
        free_gpus: what is left of each GPU, by node.
    """

    seats: tuple[Seat, ...]
    standing: tuple[str, ...]
    free_gpus: Mapping[str, tuple[float, ...]]


class _Room:
    """A node while it fills up, in Ray's units."""

    def __init__(self, node: Node) -> None:
        self.name = node.name
        self._accelerator_type = node.accelerator_type
        self.cpus = _units(node.cpus)
        self.gpus = [_UNIT] * node.gpus

    def choice(self, demand: Demand, *, taken: set[int]) -> tuple[int, ...] | None:
        """The GPUs that Ray would give an actor here; None if it cannot sit here.

        Args:
            taken: GPUs with another actor of a role that may not share one.
        """
        if _units(demand.cpus) > self.cpus or not _is_of_kind(self._accelerator_type, demand=demand):
            return None
        need = _units(demand.gpus)
        if need == 0:
            return ()
        if need < _UNIT:
            fitting = [number for number, free in enumerate(self.gpus) if free >= need]
            best = min(fitting, key=lambda number: self.gpus[number], default=None)
            return None if best is None or best in taken else (best,)
        whole = [number for number, free in enumerate(self.gpus) if free == _UNIT]
        return tuple(whole[: need // _UNIT]) if len(whole) * _UNIT >= need else None

    def take(self, demand: Demand, *, gpus: Sequence[int]) -> None:
        self.cpus -= _units(demand.cpus)
        for number in gpus:
            self.gpus[number] -= min(_UNIT, _units(demand.gpus))


def seating(demands: Sequence[Demand], *, nodes: Sequence[Node]) -> Seating:
    """Seat every actor in the order of starting, as Ray would; on several nodes, where the least is left unused."""
    rooms = [_Room(node) for node in nodes]
    seats: list[Seat] = []
    standing: list[str] = []
    for demand in demands:
        taken: dict[str, set[int]] = {room.name: set() for room in rooms}
        for _ in range(demand.num):
            choices = [
                (room, gpus)
                for room in rooms
                if (gpus := room.choice(demand, taken=set() if demand.may_share_gpus else taken[room.name]))
                is not None
            ]
            if not choices:
                standing.append(demand.role)
                continue
            room, gpus = min(choices, key=lambda choice: (sum(choice[0].gpus), choice[0].cpus, choice[0].name))
            room.take(demand, gpus=gpus)
            taken[room.name].update(gpus)
            seats.append(Seat(role=demand.role, node=room.name, gpus=gpus))
    free = {room.name: tuple(units / _UNIT for units in room.gpus) for room in rooms}
    return Seating(seats=tuple(seats), standing=tuple(standing), free_gpus=free)


def num_that_fit(demand: Demand, *, nodes: Sequence[Free], kept: Demand | None = None) -> int:
    """How many more actors of a role the cluster has room for.

    Ray does not say how what is free of GPUs lies on them, so of fractions this may be too many.

    Args:
        kept: actors that have no place yet and come first.
    """
    num = 0
    for node in _without(kept, nodes=nodes) if kept is not None else nodes:
        if not _is_of_kind(node.accelerator_type, demand=demand):
            continue
        each = [
            _units(free) // _units(need)
            for free, need in ((node.cpus, demand.cpus), (node.gpus, demand.gpus))
            if need > 0
        ]
        num += min(each, default=_MOST_ON_A_NODE)
    return num


def _without(demand: Demand, *, nodes: Sequence[Free]) -> list[Free]:
    """What is left when these actors have found a place, each on the fullest node that has one."""
    left = list(nodes)
    for _ in range(demand.num):
        fitting = [
            node
            for node in left
            if node.cpus >= demand.cpus
            and node.gpus >= demand.gpus
            and _is_of_kind(node.accelerator_type, demand=demand)
        ]
        if fitting:
            node = min(fitting, key=lambda one: (one.gpus, one.cpus))
            left[left.index(node)] = replace(node, cpus=node.cpus - demand.cpus, gpus=node.gpus - demand.gpus)
    return left


def gpus_needed(demands: Sequence[Demand]) -> int:
    """The GPUs that one machine with enough CPUs must have to seat everybody, whatever their kind."""
    demands = [replace(demand, accelerator_type=None) for demand in demands]
    most = sum(demand.num * max(1, int(demand.gpus)) for demand in demands if demand.gpus)
    cpus = sum(demand.num * demand.cpus for demand in demands)
    fits = (
        number
        for number in range(most + 1)
        if not seating(demands, nodes=[Node(name="-", cpus=cpus, gpus=number)]).standing
    )
    return next(fits, most)


def check_fit(demands: Sequence[Demand], *, nodes: Sequence[Node], config: Config | None = None) -> None:
    """Refuse a run for which there is no room.

    What other users of a cluster hold is not counted: that is waited for.

    Args:
        config: the run's, to find the smallest change that fits; None: none is looked for.

    Raises:
        ConfigError: says what is asked for, what is there and who is left without a place.
    """
    for demand in demands:
        if demand.gpus > 1 and not float(demand.gpus).is_integer():
            raise ConfigError(f"{demand.gpus:g} GPUs for a {demand.role}: more than one GPU have to be whole ones")
    standing = seating(demands, nodes=nodes).standing
    if not standing:
        return
    left_out = ", ".join(
        f"{standing.count(role)} {role}{_s(standing.count(role))}" for role in dict.fromkeys(standing)
    )
    wanted = ", ".join(
        f"{demand.num} {demand.role}{_s(demand.num)} with {demand.cpus:g} CPU and {demand.gpus:g} GPU"
        f"{f' ({demand.accelerator_type})' if demand.accelerator_type else ''} each"
        for demand in demands
        if demand.num
    )
    there = "; ".join(map(str, nodes)) or "no node"
    change = smallest_change(config, demands=demands, nodes=nodes) if config is not None else None
    if change:
        remedy = "the smallest change that fits: " + " ".join(f"{key}={value:g}" for key, value in change.items())
    elif kinds := sorted({demand.accelerator_type for demand in demands if demand.accelerator_type}):
        remedy = (
            f"there has to be more of the kinds that are asked for ({', '.join(kinds)}), or other ones asked for by "
            "train.accelerator_type, scorers.accelerator_type and generators.accelerator_types"
        )
    else:
        gpus, cpus = gpus_needed(demands), sum(demand.num * demand.cpus for demand in demands)
        remedy = f"on one machine it takes {gpus} GPU{_s(gpus)} and {cpus:g} CPUs"
    raise ConfigError(f"no room for {left_out} (asked for: {wanted}; there is: {there}); {remedy}")


def smallest_change(config: Config, *, demands: Sequence[Demand], nodes: Sequence[Node]) -> dict[str, float] | None:
    """The overrides with which a run fits.

    Those with the fewest keys, of these the ones that leave a model the largest share of its GPU, then those that
    take away the fewest actors and GPUs, and rather generators than train workers, which share a model's memory
    (ZeRO).

    Whether a model fits into what an actor has left is not looked at.

    Returns:
        Values by key, empty if it fits as it is; None if nothing smaller fits either.
    """
    if any(demand.gpus for demand in demands) and not any(node.gpus for node in nodes):
        return None
    if len({demand.role for demand in demands}) < len(demands):  # engines of several kinds, which no key counts alone
        return None
    alternatives = _alternatives(config, needs_scorer=any(demand.role == "scorer" for demand in demands))
    before = _weight(demands)
    for num_keys in range(len(alternatives) + 1):
        found = []
        for keys in itertools.combinations(alternatives, num_keys):
            for values in itertools.product(*(alternatives[key] for key in keys)):
                change = dict(zip(keys, values, strict=True))
                changed = _changed(demands, change=change)
                if not seating(changed, nodes=nodes).standing:
                    actors, gpus = _weight(changed)
                    shares = [demand.gpus for demand in changed if demand.gpus and demand.role != "scorer"]
                    lost = (before[0] - actors, before[1] - gpus, -changed[-1].num)
                    found.append(((-min(shares, default=0.0), *lost), change))
        if found:
            return _with_memory(min(found, key=lambda entry: entry[0])[1], config=config)
    return None


def _alternatives(config: Config, *, needs_scorer: bool) -> dict[str, tuple[float, ...]]:
    """The smaller values that each key may be given, in the order in which they are preferred."""
    train, generators = config.train, config.generators
    found: dict[str, tuple[float, ...]] = {
        "generators.gpus": _less_gpus(generators.gpus),
        "train.gpus_per_worker": _less_gpus(train.gpus_per_worker),
    }
    if needs_scorer and config.scorers.gpus > _SMALL_SCORER_GPUS:
        found["scorers.gpus"] = (_SMALL_SCORER_GPUS,)
    found["generators.min"] = _fewer(generators.min)
    micro = train.micro_batch_size or 1
    found["train.workers"] = tuple(
        number
        for number in range(train.workers - 1, 0, -1)
        if train.batch_size % number == 0 and train.batch_size // number % micro == 0
    )
    return found


def _less_gpus(gpus: float) -> tuple[float, ...]:
    whole = tuple(float(number) for number in range(int(gpus) - 1, 0, -1)) if gpus > 1 else ()
    return (*whole, *(share for share in _SHARES if share < gpus))


def _fewer(number: int) -> tuple[int, ...]:
    """All smaller numbers, or of a large one its halves: each is tried."""
    if number <= 8:
        return tuple(range(number - 1, 0, -1))
    return (number // 2, *_fewer(number // 2))


def _changed(demands: Sequence[Demand], *, change: Mapping[str, float]) -> tuple[Demand, ...]:
    keys = {
        "generator": ("generators.min", "generators.gpus"),
        "scorer": ("scorers.min", "scorers.gpus"),
        "train worker": ("train.workers", "train.gpus_per_worker"),
    }
    return tuple(
        replace(
            demand,
            num=int(change.get(keys[demand.role][0], demand.num)),
            gpus=change.get(keys[demand.role][1], demand.gpus),
        )
        for demand in demands
    )


def _with_memory(change: dict[str, float], *, config: Config) -> dict[str, float]:
    """The engine's share of a GPU's memory shrinks with its share of the GPU."""
    gpus = change.get("generators.gpus", 1.0)
    if gpus < min(1.0, config.generators.gpu_memory_utilization):
        change["generators.gpu_memory_utilization"] = round(0.9 * gpus, 3)
    return change


def _is_of_kind(accelerator_type: str, *, demand: Demand) -> bool:
    return demand.accelerator_type in (None, accelerator_type)


def _weight(demands: Sequence[Demand]) -> tuple[int, float]:
    return sum(demand.num for demand in demands), sum(demand.num * _units(demand.gpus) for demand in demands) / _UNIT


def _units(amount: float) -> int:
    return round(amount * _UNIT)


def _s(number: int) -> str:
    return "" if number == 1 else "s"
