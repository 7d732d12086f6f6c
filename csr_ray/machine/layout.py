"""Who gets how many GPUs, worked out from the nodes there are (`cluster.layout`). Pure functions on numbers.

given           as the config's generators, scorers and train sections say
cpu             nobody has a GPU
disaggregated   engines and train workers have GPUs of their own; a scorer shares one with an engine
colocated       engines and train workers have the same GPUs and use them in turns: while the policy is trained the
                engines sleep (their weights wait in main memory, their cache is given up), and while they generate
                the train workers have nothing on the GPU
auto            cpu without a GPU, colocated on one, disaggregated on more
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from csr_ray.config.schema import Config
from csr_ray.errors import ConfigError
from csr_ray.machine.fit import Node, seating
from csr_ray.machine.placement import demands_of

# A scorer's share of a GPU. One ViT-L on a tenth of a large GPU scores for many engines (docs/gpus.md).
_SCORER_GPUS = 0.1
# Of GPUs that engines and train workers have for themselves, one in so many is for training: a tree is some hundred
# sentences to generate, and what is made of it is one pair to train on.
_GPUS_A_TRAINER = 4
# Ray's books of a GPU that is used in turns; they only have to keep others away.
_TURNS = {"generator": 0.6, "trainer": 0.3}
# What engines take of a GPU whose train worker is away but for its CUDA context, beside a scorer.
_TURNS_MEMORY = 0.8


def lay_out(config: Config, *, nodes: Sequence[Node], needs_scorer: bool, engine_needs_gpu: bool) -> Config:
    """The config with the numbers of actors and their shares of GPUs for these nodes.

    Where GPUs are used in turns its `cluster.layout` is `colocated`, whatever it was.

    Args:
        engine_needs_gpu: the installed engine serves on GPUs only.

    Raises:
        ConfigError: this layout is not to be had on these nodes; says why, and what would be.
    """
    wanted = config.cluster.layout
    if wanted == "given":
        return config
    num_gpus = sum(node.gpus for node in nodes)
    if wanted == "cpu" or (wanted == "auto" and num_gpus == 0):
        if engine_needs_gpu:
            raise _refused(config, "the installed engine (vllm) serves on GPUs only; install the one for CPUs")
        return _changed(
            config,
            generators={"gpus": 0.0},
            scorers={"gpus": 0.0},
            train={"gpus_per_worker": 0.0},
            cluster={"layout": "cpu"},
        )
    if num_gpus == 0:
        raise _refused(config, "there is no GPU; set cluster.layout=cpu")
    if wanted == "colocated" or (wanted == "auto" and num_gpus == 1):
        return _colocated(config, nodes=nodes, needs_scorer=needs_scorer)
    return _disaggregated(config, nodes=nodes, needs_scorer=needs_scorer)


def in_words(config: Config, *, needs_scorer: bool) -> str:
    """Who there is and with how many GPUs, in a line."""
    demands = demands_of(config, needs_scorer=needs_scorer)
    parts = [
        f"{one.num} {one.role}{'s' * (one.num > 1)}"
        + (f" with {one.gpus:g} GPU{'s' * (one.gpus > 1)}{' each' * (one.num > 1)}" if one.gpus else "")
        for one in demands
    ]
    turns = "; engines and train workers use their GPUs in turns" if config.cluster.layout == "colocated" else ""
    return f"{', '.join(parts)}{turns}"


def _disaggregated(config: Config, *, nodes: Sequence[Node], needs_scorer: bool) -> Config:
    split = max(1, int(config.generators.gpus))
    shares = needs_scorer and split == 1
    num_gpus = sum(node.gpus for node in nodes)
    for workers in _numbers_of_workers(config, most=max(1, num_gpus // _GPUS_A_TRAINER)):
        most = (num_gpus - workers) // split
        for engines in range(most, 0, -1):
            gpus = 1 - _SCORER_GPUS if shares else float(split)
            memory = config.generators.gpu_memory_utilization
            changed = _changed(
                config,
                generators={
                    "min": engines,
                    "max": engines,
                    "gpus": gpus,
                    "gpu_memory_utilization": min(memory, round(0.9 * gpus, 3)) if shares else memory,
                },
                scorers={"min": 1, "max": 1, "gpus": _SCORER_GPUS},
                train={
                    "workers": workers,
                    # An engine over several GPUs has them whole, so the scorer sits beside a train worker.
                    "gpus_per_worker": 1 - _SCORER_GPUS if needs_scorer and not shares else 1.0,
                },
                cluster={"layout": "disaggregated"},
            )
            if _fits(changed, nodes=nodes, needs_scorer=needs_scorer):
                return changed
    least = split + 1
    raise _refused(
        config,
        f"{_there(nodes)}, and an engine over {split} GPU{'s' * (split > 1)} of one node beside a train worker takes "
        f"{least} and a CPU for each actor; set cluster.layout=colocated, or a smaller generators.gpus",
    )


def _colocated(config: Config, *, nodes: Sequence[Node], needs_scorer: bool) -> Config:
    if config.train.streaming:
        raise _refused(
            config, "GPUs are used in turns, which contradicts train.streaming = true; set train.streaming=false"
        )
    if config.generators.gpus > 1:
        raise _refused(
            config,
            f"an engine over {config.generators.gpus:g} GPUs has them whole, so that nobody can share them; set "
            "generators.gpus=1, or cluster.layout=disaggregated",
        )
    num_gpus = sum(node.gpus for node in nodes)
    for workers in _numbers_of_workers(config, most=num_gpus):
        changed = _changed(
            config,
            generators={
                "min": num_gpus,
                "max": num_gpus,
                "gpus": _TURNS["generator"],
                "gpu_memory_utilization": min(config.generators.gpu_memory_utilization, _TURNS_MEMORY),
            },
            scorers={"min": 1, "max": 1, "gpus": _SCORER_GPUS},
            train={"workers": workers, "gpus_per_worker": _TURNS["trainer"]},
            cluster={"layout": "colocated"},
        )
        if _fits(changed, nodes=nodes, needs_scorer=needs_scorer):
            return changed
    raise _refused(config, f"{_there(nodes)}, and each GPU takes a CPU for an engine, a train worker and a scorer")


def _numbers_of_workers(config: Config, *, most: int) -> list[int]:
    """How many train workers there may be, so that the batch divides among them; the largest number first."""
    train = config.train
    micro = train.micro_batch_size or 1
    return [
        number
        for number in range(most, 0, -1)
        if train.batch_size % number == 0 and train.batch_size // number % micro == 0
    ]


def _fits(config: Config, *, nodes: Sequence[Node], needs_scorer: bool) -> bool:
    return not seating(demands_of(config, needs_scorer=needs_scorer), nodes=nodes).standing


def _changed(config: Config, **sections: dict[str, Any]) -> Config:
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=keys) for name, keys in sections.items()}
    )


def _there(nodes: Sequence[Node]) -> str:
    return "there is " + ", ".join(f"{node.name}: {node.cpus:g} CPU and {node.gpus} GPU" for node in nodes)


def _refused(config: Config, reason: str) -> ConfigError:
    return ConfigError(f"cluster.layout = {config.cluster.layout!r}: {reason}")
