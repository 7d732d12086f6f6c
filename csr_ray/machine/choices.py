"""The layouts that the same GPUs can have, and whether a run fits them: who sits where, and memory part by part.

as given         what the config says
disaggregated    engines over 1, 2, 4 or 8 GPUs, so many train workers, a scorer beside one of them
colocated        engines and train workers in turns on all GPUs
shared           one GPU that an engine, a scorer and a train worker have at the same time

Where a train worker does not fit as the config has it, it is tried with smaller micro batches, with activations
computed again, and with ZeRO-3, in this order; each of these is among the overrides then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from csr_ray.config.schema import Config
from csr_ray.machine.fit import Node, seating
from csr_ray.machine.model_shape import ModelShape
from csr_ray.machine.needs import engine_bytes, train_worker_bytes
from csr_ray.machine.placement import demands_of
from csr_ray.machine.roofline import Machine

GPUS_A_NODE = 8
_GIB = 2**30
_MANY_CPUS = 10_000
_SCORER_GPUS = 0.1
# A CLIP of half a billion weights in float32, its batch, and CUDA.
_SCORER_BYTES = 3 * _GIB
# Of a GPU that is used in turns, an engine may have this much, and a train worker what drivers leave.
_TURNS_MEMORY, _MOST_MEMORY = 0.8, 0.97
_LARGEST_SPLIT = 8

Overrides = Mapping[str, str | int | float | bool]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A layout.

    Attributes:
        overrides: what makes it of the config that was given; empty: that config.
        reason: why it cannot be had; "": it fits.
        memory: bytes of a GPU by part, of an engine and of a train worker.
    """

    name: str
    config: Config
    overrides: Overrides
    reason: str = ""
    memory: Mapping[str, Mapping[str, int]]


def nodes_of(num_gpus: int, *, gpus_a_node: int, kind: str) -> list[Node]:
    """Nodes with so many GPUs in all, the last with what is left; CPUs are taken to be enough."""
    sizes = [min(gpus_a_node, num_gpus - begun) for begun in range(0, num_gpus, gpus_a_node)]
    return [
        Node(name=f"node {number}", cpus=_MANY_CPUS, gpus=size, accelerator_type=kind)
        for number, size in enumerate(sizes)
    ]


def choices(
    config: Config,
    *,
    shape: ModelShape,
    machine: Machine,
    nodes: Sequence[Node],
    needs_scorer: bool,
) -> list[Choice]:
    """Every layout of these nodes that differs from the others, those that do not fit with the reason."""
    found: dict[str, Choice] = {}
    for name, keys, said in _tried(config, nodes=nodes, needs_scorer=needs_scorer):
        choice = _fitted(
            name, _with(config, keys), said=said, shape=shape, machine=machine, nodes=nodes, needs_scorer=needs_scorer
        )
        found.setdefault(_who(choice.config), choice)
    return list(found.values())


def _who(config: Config) -> str:
    generators, train, scorers = config.generators, config.train, config.scorers
    return str(
        (
            generators.min,
            generators.gpus,
            scorers.gpus,
            train.workers,
            train.gpus_per_worker,
            config.cluster.layout == "colocated",
        )
    )


def _tried(
    config: Config, *, nodes: Sequence[Node], needs_scorer: bool
) -> Iterator[tuple[str, Overrides, Overrides]]:
    """Names of layouts, the keys that each sets, and by which overrides a user sets them."""
    num_gpus = sum(node.gpus for node in nodes)
    if config.cluster.layout == "given":
        yield "as given", {}, {}
    for split in (1, 2, 4, 8):
        if split <= min(_LARGEST_SPLIT, max(node.gpus for node in nodes)):
            for workers in _workers(config, most=num_gpus - split):
                engines = sum(node.gpus // split for node in nodes)
                while engines and engines * split + workers > num_gpus:
                    engines -= 1
                keys = _disaggregated(
                    config, engines=engines, split=split, workers=workers, needs_scorer=needs_scorer
                )
                yield (
                    f"{engines} engine{'s' * (engines > 1)}{f' of {split} GPUs' if split > 1 else ''}, "
                    f"{workers} train worker{'s' * (workers > 1)}",
                    keys,
                    keys,
                )
    most = _workers(config, most=num_gpus)
    if not config.train.streaming and most:
        yield (
            f"in turns, {num_gpus} engine{'s' * (num_gpus > 1)}, {most[0]} train worker{'s' * (most[0] > 1)}",
            _colocated(config, engines=num_gpus, workers=most[0]),
            # The layout sets the rest itself (`csr_ray.machine.layout`), and takes no engine over several GPUs.
            {"cluster.layout": "colocated", **({"generators.gpus": 1} if config.generators.gpus > 1 else {})},
        )
    if num_gpus == 1:
        keys = _shared(config, needs_scorer=needs_scorer)
        yield "shared at the same time", keys, keys


def _workers(config: Config, *, most: int) -> list[int]:
    """Numbers of train workers among which the batch divides, the largest first."""
    micro = config.train.micro_batch_size or 1
    batch = config.train.batch_size
    return [number for number in range(most, 0, -1) if batch % number == 0 and batch // number % micro == 0]


def _disaggregated(config: Config, *, engines: int, split: int, workers: int, needs_scorer: bool) -> Overrides:
    beside = needs_scorer and split == 1
    gpus: float = round(1 - _SCORER_GPUS, 3) if beside else split
    memory = config.generators.gpu_memory_utilization
    return {
        **_given(config),
        "generators.min": engines,
        "generators.max": engines,
        "generators.gpus": gpus,
        "generators.gpu_memory_utilization": min(memory, round(0.9 * gpus, 3)) if beside else memory,
        "scorers.gpus": _SCORER_GPUS if needs_scorer else 0.0,
        "train.workers": workers,
        "train.gpus_per_worker": round(1 - _SCORER_GPUS, 3) if needs_scorer and not beside else 1.0,
    }


def _given(config: Config) -> Overrides:
    return {} if config.cluster.layout == "given" else {"cluster.layout": "given"}


def _colocated(config: Config, *, engines: int, workers: int) -> Overrides:
    return {
        "cluster.layout": "colocated",
        "generators.min": engines,
        "generators.max": engines,
        "generators.gpus": 0.6,
        "generators.gpu_memory_utilization": min(config.generators.gpu_memory_utilization, _TURNS_MEMORY),
        "scorers.gpus": _SCORER_GPUS,
        "train.workers": workers,
        "train.gpus_per_worker": 0.3,
    }


def _shared(config: Config, *, needs_scorer: bool) -> Overrides:
    return {
        **_given(config),
        "generators.min": 1,
        "generators.max": 1,
        "generators.gpus": 0.5,
        "generators.gpu_memory_utilization": 0.45,
        "scorers.gpus": _SCORER_GPUS if needs_scorer else 0.0,
        "train.workers": 1,
        "train.gpus_per_worker": 0.4,
    }


def _fitted(
    name: str,
    changed: Config,
    *,
    said: Overrides,
    shape: ModelShape,
    machine: Machine,
    nodes: Sequence[Node],
    needs_scorer: bool,
) -> Choice:
    """The layout with the first of the ways to save memory with which it fits, or else with its reason."""
    memory = memory_of(changed, shape=shape)
    standing = seating(demands_of(changed, needs_scorer=needs_scorer), nodes=nodes).standing
    if standing:
        reason = f"no GPU for {standing.count(standing[0])} {standing[0]}{'s' * (standing.count(standing[0]) > 1)}"
        return Choice(name=name, config=changed, overrides=said, reason=reason, memory=memory)
    reason = too_large(changed, memory=memory, machine=machine)
    if refused := refused_by_engine(changed, shape=shape, machine=machine):
        return Choice(name=name, config=changed, overrides=said, reason=reason or refused, memory=memory)
    if not reason:
        return Choice(name=name, config=changed, overrides=said, memory=memory)
    if said:  # a config as given is told what is wrong with it
        for saving in _savings(changed):
            saved = _with(changed, saving)
            saved_memory = memory_of(saved, shape=shape)
            if not too_large(saved, memory=saved_memory, machine=machine):
                return Choice(name=name, config=saved, overrides={**said, **saving}, memory=saved_memory)
    return Choice(name=name, config=changed, overrides=said, reason=reason, memory=memory)


def _savings(config: Config) -> Iterator[Overrides]:
    """Ways to save a train worker's memory, the cheapest first."""
    saving: dict[str, str | int | float | bool] = {}
    if config.train.micro_batch_size != 1:
        saving["train.micro_batch_size"] = 1
        yield dict(saving)
    if not config.train.gradient_checkpointing:
        saving["train.gradient_checkpointing"] = True
        yield dict(saving)
    if config.train.workers > 1 and config.train.deepspeed_stage != 3:
        saving["train.deepspeed_stage"] = 3
        yield dict(saving)


def memory_of(config: Config, *, shape: ModelShape) -> Mapping[str, Mapping[str, int]]:
    """Bytes of a GPU by part, of an engine and of a train worker."""
    return {
        "an engine": engine_bytes(config, shape=shape),
        "a train worker": train_worker_bytes(config, shape=shape),
    }


def refused_by_engine(config: Config, *, shape: ModelShape, machine: Machine) -> str:
    """Why vLLM would not start such an engine; "" if it would.

    It splits attention by heads, and takes bfloat16 from compute capability 8.0 on.
    """
    if machine.kind.lacks_bfloat16 and "bfloat16" in (config.policy.dtype, config.train.dtype):
        return "no bfloat16 on this kind of GPU; set policy.dtype=float32 train.dtype=float32"
    split = max(1, int(config.generators.gpus))
    if shape.heads % split:
        return f"an engine of {split} GPUs cannot split {shape.heads} attention heads"
    return ""


def too_large(config: Config, *, memory: Mapping[str, Mapping[str, int]], machine: Machine) -> str:
    """Who needs more memory than there is, and the largest part of it; "" if all fit."""
    generators, train = config.generators, config.train
    there = machine.memory_bytes
    turns = config.cluster.layout == "colocated"
    engine = there * generators.gpu_memory_utilization
    left = there * _MOST_MEMORY
    if not turns and train.gpus_per_worker < 1:  # somebody lies beside it
        shares_with_engine = generators.gpus < 1 and generators.gpus + train.gpus_per_worker <= 1
        left -= (engine if shares_with_engine else 0.0) + (_SCORER_BYTES if config.scorers.gpus < 1 else 0.0)
    for who, most in (("an engine", engine), ("a train worker", left)):
        parts = memory[who]
        needed = sum(parts.values())
        if needed > most:
            largest = max(parts, key=lambda part: parts[part])
            return (
                f"{who} takes {needed / _GIB:.0f} GiB of a GPU and may have {max(0.0, most) / _GIB:.0f}; its largest "
                f"part is {parts[largest] / _GIB:.0f} GiB of {largest}"
            )
    return ""


def _with(config: Config, overrides: Overrides) -> Config:
    """The config with these keys, which fit together by how they were made."""
    sections: dict[str, dict[str, object]] = {}
    for key, value in overrides.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=values) for name, values in sections.items()}
    )
