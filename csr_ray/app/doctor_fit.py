"""Whether the run of a config fits the cluster there is now: who sits where, whose GPU is too small, what is missing.

Pure, on what the cluster has said of itself; `csr_ray.app.commands.doctor_config` asks it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from csr_ray.app.doctor import Check
from csr_ray.config.schema import Config
from csr_ray.errors import ConfigError
from csr_ray.machine.choices import memory_of, too_large
from csr_ray.machine.fit import Free, Node, Seating, check_fit, num_that_fit, seating
from csr_ray.machine.kinds import gpu_kind
from csr_ray.machine.layout import in_words, lay_out
from csr_ray.machine.model_shape import ModelShape
from csr_ray.machine.placement import demands_of
from csr_ray.machine.roofline import Machine


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a cluster says of itself.

    Attributes:
        address: by which it was reached; "": a private Ray of this machine, whose CPUs are slots.
        nodes: all that it has.
        free: what of it nobody holds now.
        pending: what is on its way, in words.
        faults: of its nodes, a line each: versions, models, temporary folder, clock.
    """

    address: str
    nodes: Sequence[Node]
    free: Sequence[Free] = ()
    pending: str = ""
    faults: Sequence[str] = ()


def fit_checks(
    config: Config,
    *,
    cluster: Cluster,
    needs_scorer: bool,
    engine_needs_gpu: bool,
    shape: ModelShape | None,
    num_weights: int = 0,
) -> Iterator[Check]:
    """The checks of a config on a cluster.

    Args:
        engine_needs_gpu: the installed engine serves on GPUs only.
        shape: of the policy; None: not known, and memory is not compared.
        num_weights: of the policy, as `lay_out` takes it.
    """
    where = cluster.address or "this machine"
    yield Check(name="nodes", state="ok" if cluster.nodes else "missing", fact=f"{where}: {_there(cluster)}")
    if cluster.pending:
        yield Check(name="on its way", state="ok", fact=cluster.pending)
    for fault in cluster.faults:
        yield Check(name="a node", state="missing", fact=fault)
    if not cluster.faults and cluster.address:
        yield Check(name="every node", state="ok", fact="has the same versions, the policy, and some disk left")
    try:
        config = lay_out(
            config,
            nodes=cluster.nodes,
            needs_scorer=needs_scorer,
            engine_needs_gpu=engine_needs_gpu,
            num_weights=num_weights,
        )
    except ConfigError as error:
        yield Check(name="layout", state="missing", fact=str(error))
        return
    demands = demands_of(config, needs_scorer=needs_scorer)
    yield Check(name="asked for", state="ok", fact=in_words(config, needs_scorer=needs_scorer))
    if config.cluster.autoscales:
        fact = "cluster.autoscales = true: what has no place is waited for, and nothing is compared"
        yield Check(name="places", state="ok", fact=fact)
        return
    try:
        check_fit(demands, nodes=cluster.nodes, config=config)
    except ConfigError as error:
        fact, _, remedy = str(error).rpartition("; ")
        yield Check(name="places", state="missing", fact=fact, remedy=remedy)
        return
    seated = seating(demands, nodes=cluster.nodes)
    yield Check(name="places", state="ok", fact=_who_sits_where(seated))
    yield from _waits(config, cluster=cluster, needs_scorer=needs_scorer)
    if shape is not None:
        yield from _memory(config, cluster=cluster, seated=seated, shape=shape)


def _there(cluster: Cluster) -> str:
    """What a private Ray has of CPUs are slots, so they are not said."""
    if not cluster.nodes:
        return "no node"
    if not cluster.address:
        one = cluster.nodes[0]
        return f"a private Ray is started here; {_gpus(cluster.nodes) if one.gpus else 'no GPU'}"
    num = len(cluster.nodes)
    cpus = sum(node.cpus for node in cluster.nodes)
    return f"{num} node{'s' * (num > 1)}, {cpus:g} CPUs, {_gpus(cluster.nodes)}"


def _gpus(nodes: Sequence[Node]) -> str:
    nums: Counter[str] = Counter()
    for node in nodes:
        nums[node.accelerator_type] += node.gpus
    words = [f"{num} {kind or 'GPU of an unknown kind'}" for kind, num in sorted(nums.items()) if num]
    return ", ".join(words) or "no GPU"


def _who_sits_where(seated: Seating) -> str:
    by_node: dict[str, Counter[str]] = {}
    for seat in seated.seats:
        by_node.setdefault(seat.node, Counter())[seat.role] += 1
    return "; ".join(
        f"{node}: " + ", ".join(f"{num} {role}{'s' * (num > 1)}" for role, num in roles.items())
        for node, roles in by_node.items()
    )


def _waits(config: Config, *, cluster: Cluster, needs_scorer: bool) -> Iterator[Check]:
    """Who would have no place at this moment, because others hold it."""
    if not cluster.free:
        return
    now = [Node(name=free.name, cpus=free.cpus, gpus=int(free.gpus), accelerator_type=free.accelerator_type)
           for free in cluster.free]  # fmt: skip
    demands = demands_of(config, needs_scorer=needs_scorer)
    if not seating(demands, nodes=now).standing:
        return
    waiting = [demand for demand in demands if num_that_fit(demand, nodes=cluster.free) < demand.num]
    who = ", ".join(dict.fromkeys(demand.role for demand in waiting)) or "some of the actors"
    free = "; ".join(f"{node.name}: {node.cpus:g} CPU and {node.gpus:g} GPU free" for node in cluster.free)
    yield Check(
        name="now",
        state="warn",
        fact=f"others hold the place of {who} ({free}); a run waits for it up to {config.cluster.wait_s:g} s",
        remedy="wait, or a longer cluster.wait_s",
    )


def _memory(config: Config, *, cluster: Cluster, seated: Seating, shape: ModelShape) -> Iterator[Check]:
    """Whether the policy fits the smallest GPU that somebody of the run sits on, part by part."""
    kinds = {node.name: node.accelerator_type for node in cluster.nodes}
    used = {kinds[seat.node] for seat in seated.seats if seat.gpus}
    known = {name: kind for name in used if (kind := gpu_kind(name, given=config.cluster.gpu_kinds)) is not None}
    sizes = {name: kind.memory_gb for name, kind in known.items() if kind.memory_gb is not None}
    if not sizes:
        if used:
            fact = f"of {', '.join(sorted(used)) or 'the GPUs'} it is not known, so it is not compared"
            yield Check(name="GPU memory", state="warn", fact=fact, remedy="cluster.gpu_kinds.NAME.memory_gb=...")
        return
    name = min(sizes, key=lambda kind: sizes[kind])
    machine = Machine(name=name, kind=known[name], num_gpus=1)
    memory = memory_of(config, shape=shape)
    if reason := too_large(config, memory=memory, machine=machine):
        remedy = "csr-ray plan CONFIG --gpus N --gpu NAME shows layouts that fit"
        yield Check(name="GPU memory", state="warn", fact=f"by arithmetic, on {name}: {reason}", remedy=remedy)
        return
    needed = max(sum(parts.values()) for parts in memory.values())
    yield Check(name="GPU memory", state="ok", fact=f"by arithmetic {needed / 2**30:.0f} GiB at most of an {name}")
