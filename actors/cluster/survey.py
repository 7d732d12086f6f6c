"""What a cluster says of itself, for `csr-ray doctor --config`. Starts no actor and no Ray.

Imports neither Ray Train nor Ray Data, which take seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ray

from actors.cluster.connect import Connection, this_machine
from actors.cluster.nodes import faults_of_nodes
from actors.cluster.room import ClusterRoom, free_now
from actors.process.fitness import Wanted
from csr_ray.machine.fit import Free, Node
from csr_ray.machine.kinds import kind_of
from csr_ray.machine.placement import Demand
from csr_ray.machine.private_ray import cluster_address

_LOOK_S = 6.0


def nodes_there() -> list[Node]:
    """The nodes of the Ray that this process uses."""
    return [
        Node(
            name=f"node {number} ({node['NodeManagerAddress']})",
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=int(node["Resources"].get("GPU", 0.0)),
            accelerator_type=kind_of(node["Resources"]),
        )
        for number, node in enumerate(node for node in ray.nodes() if node["Alive"])
    ]


def look_at_cluster(
    demands: Sequence[Demand],
    *,
    policy: str,
    autoscales: bool,
    say: Callable[[str], None],
    on_ray_lost: Callable[[str], None],
) -> tuple[list[Node], list[Free], str, list[str]]:
    """What the cluster says of itself that a run would join; without one, this machine.

    Args:
        demands: of the run; a node is asked only about what it has room for.
        policy: a reference of the base model that this machine has; "": nodes are not asked for it.
        autoscales: an autoscaler is asked what it does.
        say, on_ray_lost: see `Connection`, whose `end` the latter is.

    Returns:
        Nodes, what of them is free now, what is on its way in words, and what is wrong with a node, a line each.

    Raises:
        ConfigError: RAY_ADDRESS names a cluster that cannot be joined.
    """
    if not cluster_address():
        return [this_machine()], [], "", []
    connection = Connection(say=say, end=on_ray_lost, num_cpus_needed=1)
    try:
        wanted = Wanted.here(policy=policy, scorer=None)
        faults = faults_of_nodes(wanted, demands=demands, answer_s=_LOOK_S, say=say)
        pending = ClusterRoom(demands, autoscales=True).pending() if autoscales else ""
        return nodes_there(), free_now(), pending, faults
    finally:
        connection.close()
