"""What room there is in the cluster for more actors, and what it says of those that have no place yet."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import ray
from ray._private.state import available_resources_per_node

from csr_ray.errors import ConfigError
from csr_ray.machine.fit import Free, num_that_fit
from csr_ray.machine.kinds import kind_of
from csr_ray.machine.placement import Demand

_SAY_EVERY_S: Final = 30.0
_LOOK_EVERY_S: Final = 1  # Ray takes whole seconds: of less it makes none


class ClusterRoom:
    """Asks Ray what is free now.

    Args:
        demands: what an actor of each role asks for of which more may be started later.
        autoscales: whether an autoscaler adds nodes for what has no place (`cluster.autoscales`).
    """

    def __init__(self, demands: Sequence[Demand], *, autoscales: bool) -> None:
        self._demands = {demand.role: demand for demand in demands}
        self._autoscales = autoscales
        self._kept: Demand | None = None
        self._is_placed: Callable[[], bool] = lambda: True

    def keep_for(self, demand: Demand, *, until: Callable[[], bool]) -> None:
        """Count the room of these actors as taken for as long as they have no place themselves."""
        self._kept, self._is_placed = demand, until

    def num(self, role: str) -> float:
        """For how many more actors of a role there is room; infinity where an autoscaler makes room."""
        if self._autoscales:
            return math.inf
        kept = None if self._is_placed() else self._kept
        return num_that_fit(self._demands[role], nodes=free_now(), kept=kept)

    def pending(self) -> str:
        """What is being done for those without a place, in words."""
        if self._autoscales and (words := _launches()):
            return words
        free = [f"{node.name}: {node.cpus:g} CPU and {node.gpus:g} GPU free" for node in free_now()]
        waits = "the autoscaler has not said what it does; " if self._autoscales else ""
        return waits + "; ".join(free)


def wait_for_place(
    demand: Demand, *, wait_s: float, key: str, what_is_pending: Callable[[], str], say: Callable[[str], None]
) -> None:
    """Block until one of these actors would have a place; every half minute a line says what is waited for.

    Args:
        key: what `wait_s` is called where the user says it.

    Raises:
        ConfigError: there has been no place for `wait_s` seconds.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    bundle = {name: amount for name, amount in (("CPU", demand.cpus), ("GPU", demand.gpus)) if amount}
    if not bundle:
        return
    group = placement_group([bundle])
    try:
        begun_s = said_s = time.monotonic()
        while not group.wait(timeout_seconds=_LOOK_EVERY_S):
            now_s = time.monotonic()
            waits = f"a {demand.role} has no place in the cluster"
            if now_s - begun_s >= wait_s:
                raise ConfigError(
                    f"{key} = {wait_s:g}: {waits} for so many seconds ({_known(what_is_pending)}); ask for less of a "
                    f"node, let the cluster add such nodes, or raise {key}"
                )
            if now_s - said_s >= _SAY_EVERY_S:
                said_s = now_s
                say(f"waiting: {waits} ({_known(what_is_pending)})")
    finally:
        remove_placement_group(group)


def _known(what_is_pending: Callable[[], str]) -> str:
    return what_is_pending() or "the cluster says nothing of it"


def free_now() -> list[Free]:
    """What nobody holds of the nodes of the Ray that this process uses."""
    by_id = available_resources_per_node()
    return [
        Free(
            name=f"node {number} ({node['NodeManagerAddress']})",
            cpus=by_id.get(node["NodeID"], {}).get("CPU", 0.0),
            gpus=by_id.get(node["NodeID"], {}).get("GPU", 0.0),
            accelerator_type=kind_of(node["Resources"]),
        )
        for number, node in enumerate(node for node in ray.nodes() if node["Alive"])
    ]


def _launches() -> str:
    """What the autoscaler (its second version) says of nodes that are on their way, or do not come."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    with contextlib.suppress(Exception):  # the first version does not answer, and what it is good for is a message
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        coming = Counter(node.ray_node_type_name for node in status.pending_nodes)
        for launch in status.pending_launches:
            coming[launch.ray_node_type_name] += launch.count
        words = [f"{num} node{'s' * (num > 1)} of type {name} on the way" for name, num in coming.items()]
        words += [
            f"a node of type {launch.ray_node_type_name} could not be had: {launch.details or 'no reason given'}"
            for launch in status.failed_launches[-1:]
        ]
        return ", ".join(words)
    return ""
