"""Asks every node of a cluster whether it is fit, before any model is loaded anywhere.

One small task a node, all at once; what a node has not in its cache yet is fetched there, also all at once, and the
actors of a node share it. Nodes that join later are looked at by the actors that start there
(`actors.process.fitness.check_this_node`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.process.fitness import Look, Part, Wanted, faults, fetch_models, look, refuse
from csr_ray.machine.kinds import kind_of
from csr_ray.machine.placement import Demand

# A task of a node that is well answers within two seconds, most of which is the start of a process.
_ANSWER_S = 60.0
_SAY_EVERY_S = 30.0
# A node that goes away is no fault of those that stay: whether these are enough is for whoever starts actors there.
_LEAVING = (ray.exceptions.NodeDiedError, ray.exceptions.TaskUnschedulableError)
_LEFT = "left while it was looked at; the start goes on without it"


def faults_of_nodes(
    wanted: Wanted, *, demands: Sequence[Demand], answer_s: float = _ANSWER_S, say: Callable[[str], None]
) -> list[str]:
    """What is wrong with the nodes of the Ray that this process uses, a line each. Fetches nothing, and asks no GPU.

    Args:
        demands, say: as for `check_nodes`.
        answer_s: how long a node has for its answer.
    """
    parts = {node: replace(part, num_gpus=0.0) for node, part in _parts(demands).items()}
    own = parts.pop(_own_node(), None)
    # A process for a task takes seconds to start, and on this node there is one already.
    here = [] if own is None else faults(own, seen=look(wanted, roles=own.roles), wanted=wanted)
    looked = _look_at(parts, wanted=wanted, answer_s=answer_s, say=say)
    return here + [fault for found in looked.values() if not isinstance(found, Look) for fault in found]


def _own_node() -> str:
    """The node that this process is on; "" behind a proxy of Ray's (`ray://`), which says the head's."""
    return "" if ray.util.client.ray.is_connected() else ray.get_runtime_context().get_node_id()


def _parts(demands: Sequence[Demand]) -> dict[str, Part]:
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    return {
        node_id: part_of(node["Resources"], name=f"node {number} ({node['NodeManagerAddress']})", demands=demands)
        for number, (node_id, node) in enumerate(nodes.items())
    }


def check_nodes(wanted: Wanted, *, demands: Sequence[Demand], say: Callable[[str], None]) -> None:
    """Look at every node of the Ray that this process uses, and let each fetch the models that it will need.

    Args:
        demands: of the run's actors; a node is asked only about what it has room for.
        say: is told in one line, now and then, what is being fetched.

    Raises:
        ConfigError: a node is not fit; names the node, the first fault with its remedy, and how many more there are.
    """
    parts = _parts(demands)
    looked = _look_at(parts, wanted=wanted, say=say)
    refuse([fault for found in looked.values() if not isinstance(found, Look) for fault in found])
    lacking = {node: parts[node] for node, seen in looked.items() if isinstance(seen, Look) and not seen.has_models}
    refuse(_fetch_on(lacking, wanted=wanted, say=say))


def part_of(resources: Mapping[str, float], *, name: str, demands: Sequence[Demand]) -> Part:
    """What a node with these resources may have to do, were it empty."""
    cpus, gpus, kind = resources.get("CPU", 0.0), resources.get("GPU", 0.0), kind_of(resources)
    roles = {
        demand.role
        for demand in demands
        if demand.cpus <= cpus and demand.gpus <= gpus and demand.accelerator_type in (None, kind)
    }
    return Part(name=name, roles=frozenset(roles), num_gpus=gpus)


def skew_s(at_s: float, *, asked_s: float, answered_s: float) -> float:
    """By how much a clock that showed `at_s` between two moments of ours is at least ahead; below 0: behind."""
    if at_s > answered_s:
        return at_s - answered_s
    return min(0.0, at_s - asked_s)


def _look_at(
    parts: Mapping[str, Part], *, wanted: Wanted, say: Callable[[str], None], answer_s: float = _ANSWER_S
) -> dict[str, Look | list[str]]:
    """What each node has found, or what is wrong with it; nothing of a node that leaves meanwhile."""
    asked_s = time.time()
    references = {
        _on(node, look).remote(wanted, roles=part.roles, num_gpus=part.num_gpus): node for node, part in parts.items()
    }
    found: dict[str, Look | list[str]] = {}
    waiting, until_s = list(references), time.monotonic() + answer_s
    while waiting and (left_s := until_s - time.monotonic()) > 0:
        ready, waiting = ray.wait(waiting, timeout=left_s)
        for reference in ready:
            node = references[reference]
            seen, fault = _answer(reference)
            if fault == _LEFT:
                say(f"{parts[node].name} {_LEFT}")
                continue
            if fault:
                found[node] = [f"{parts[node].name}: {fault}"]
                continue
            skew = skew_s(seen.at_s, asked_s=asked_s, answered_s=time.time())
            found[node] = faults(parts[node], seen=seen, wanted=wanted, skew_s=skew) or seen
    for reference in waiting:
        name = parts[references[reference]].name
        found[references[reference]] = [
            f"{name}: has not answered within {answer_s:.0f} s; see whether it is overloaded or cut off"
        ]
    return found


def _fetch_on(parts: Mapping[str, Part], *, wanted: Wanted, say: Callable[[str], None]) -> list[str]:
    """Let these nodes fetch what they lack; returns what is wrong, a line a node."""
    references = {_on(node, fetch_models).remote(wanted, roles=part.roles): part for node, part in parts.items()}
    found, waiting, begun_s = [], list(references), time.monotonic()
    while waiting:
        ready, waiting = ray.wait(waiting, timeout=_SAY_EVERY_S)
        for reference in ready:
            unfetched, fault = _answer(reference)
            if fault == _LEFT:
                say(f"{references[reference].name} {_LEFT}")
            elif fault := fault or unfetched:
                found.append(f"{references[reference].name}: {fault}")
        if waiting and not ready:
            names = ", ".join(references[reference].name for reference in waiting[:3])
            more = f" and {len(waiting) - 3} more" if len(waiting) > 3 else ""
            say(f"models are being fetched on {names}{more}, {time.monotonic() - begun_s:.0f} s so far")
    return found


def _on(node: str, function: Callable[..., Any]) -> Any:
    here = NodeAffinitySchedulingStrategy(node, soft=False)
    # One call a process, which may have imported a library of a gigabyte for it.
    return ray.remote(num_cpus=0, max_retries=0, max_calls=1)(function).options(scheduling_strategy=here)


def _answer(reference: Any) -> tuple[Any, str]:
    """What a task has returned, and what is wrong with the node if it has returned nothing, in words."""
    try:
        return ray.get(reference), ""
    except _LEAVING:
        return None, _LEFT
    except ray.exceptions.RayTaskError as error:
        reason = f"{type(error.cause).__name__}: {error.cause}"
    except ray.exceptions.RayError as error:
        reason = str(error)
    reason = " ".join(reason.split())[:300]
    return None, f"cannot be looked at ({reason}); is csr_ray installed there, as it is here?"
