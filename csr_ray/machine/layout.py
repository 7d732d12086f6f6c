"""Who gets how many GPUs, worked out from the nodes there are (`cluster.layout`). Pure functions on numbers.

given           as the config's generators, scorers and train sections say
cpu             nobody has a GPU
disaggregated   engines and train workers have GPUs of their own; a scorer shares one with an engine
colocated       engines and train workers have the same GPUs and use them in turns: while the policy is trained the
                engines sleep (their weights wait in main memory, their cache is given up), and while they generate
                the train workers have nothing on the GPU
auto            cpu without a GPU, colocated on one, disaggregated on more

Where there is more than one kind of GPU, all train workers have GPUs of one kind: a data-parallel group goes at the
pace of its slowest member, and ZeRO gives each of them as much. They get the kind with the most memory, and engines
what is left of every kind that holds their weights; each actor is told its kind, so that Ray gives nobody a GPU that
is meant for another. An engine over several GPUs sits on one node, which has one kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from csr_ray.config.schema import Config
from csr_ray.errors import ConfigError
from csr_ray.machine.fit import Node, seating
from csr_ray.machine.kinds import GB, gpu_memory_bytes
from csr_ray.machine.memory import BYTES_OF
from csr_ray.machine.placement import Demand, demands_of, generator_demand, train_demand
from csr_ray.records import JsonDict

# A scorer's share of a GPU. One ViT-L on a tenth of a large GPU scores for many engines (docs/gpus.md).
_SCORER_GPUS = 0.1
# Of GPUs that engines and train workers have for themselves, one in so many is for training: a tree is some hundred
# sentences to generate, and what is made of it is one pair to train on.
_GPUS_A_TRAINER = 4
# Ray's books of a GPU that is used in turns; they only have to keep others away.
_TURNS = {"generator": 0.6, "trainer": 0.3}
# What engines take of a GPU whose train worker is away but for its CUDA context, beside a scorer.
_TURNS_MEMORY = 0.8


# What a layout sets, by section.
_SET = {
    "generators": ("min", "gpus", "gpu_memory_utilization"),
    "scorers": ("min", "gpus"),
    "train": ("workers", "gpus_per_worker"),
}


def seats_of(config: Config) -> JsonDict:
    """Who has how much in this config, which is laid out already; for the run's own records."""
    return {name: {key: getattr(getattr(config, name), key) for key in keys} for name, keys in _SET.items()}


def seated(config: Config, *, seats: Mapping[str, Mapping[str, Any]]) -> Config:
    """The config as it was laid out when its run started."""
    changed = {name: getattr(config, name).model_copy(update=dict(seats[name])) for name in _SET if name in seats}
    return config.model_copy(update=changed)


def lay_out(
    config: Config, *, nodes: Sequence[Node], needs_scorer: bool, engine_needs_gpu: bool, num_weights: int = 0
) -> Config:
    """The config with the numbers of actors and their shares of GPUs for these nodes.

    Where GPUs are used in turns its `cluster.layout` is `colocated`, whatever it was.

    Args:
        engine_needs_gpu: the installed engine serves on GPUs only.
        num_weights: of the policy, by which kinds of GPU are ruled out that cannot hold them; 0: not known.

    Raises:
        ConfigError: this layout is not to be had on these nodes; says why, and what would be.
    """
    wanted = config.cluster.layout
    if wanted == "given":
        return config
    config = _changed(
        config,
        generators={"accelerator_types": ()},
        scorers={"accelerator_type": None},
        train={"accelerator_type": None},
    )
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
    takes_turns = wanted == "colocated" or (wanted == "auto" and num_gpus == 1)
    lay = _colocated if takes_turns else _disaggregated
    return lay(config, nodes=nodes, needs_scorer=needs_scorer, num_weights=num_weights)


def in_words(config: Config, *, needs_scorer: bool) -> str:
    """Who there is and with how many GPUs, in a line."""
    by_role: dict[str, list[Demand]] = {}
    for demand in demands_of(config, needs_scorer=needs_scorer):
        by_role.setdefault(demand.role, []).append(demand)
    turns = "; engines and train workers use their GPUs in turns" if config.cluster.layout == "colocated" else ""
    return f"{', '.join(map(_role_in_words, by_role.values()))}{turns}"


def _role_in_words(demands: Sequence[Demand]) -> str:
    """The actors of a role, which differ in nothing but their kind of GPU."""
    num, one = sum(demand.num for demand in demands), demands[0]
    words = f"{num} {one.role}{'s' * (num > 1)}"
    if not one.gpus:
        return words
    words += f" with {one.gpus:g} GPU{'s' * (one.gpus > 1)}{' each' * (num > 1)}"
    if not one.accelerator_type:
        return words
    kinds = ", ".join(f"{demand.num} on {demand.accelerator_type}" for demand in demands)
    return f"{words} ({kinds if len(demands) > 1 else one.accelerator_type})"


def _disaggregated(config: Config, *, nodes: Sequence[Node], needs_scorer: bool, num_weights: int) -> Config:
    split = max(1, int(config.generators.gpus))
    shares = needs_scorer and split == 1
    gpus = 1 - _SCORER_GPUS if shares else float(split)
    memory = config.generators.gpu_memory_utilization
    num_gpus = sum(node.gpus for node in nodes)
    given = _changed(
        config,
        generators={"gpus": gpus, "gpu_memory_utilization": min(memory, round(0.9 * gpus, 3)) if shares else memory},
        scorers={"min": 1, "max": 1, "gpus": _SCORER_GPUS},
        # An engine over several GPUs has them whole, so the scorer sits beside a train worker.
        train={"gpus_per_worker": 1 - _SCORER_GPUS if needs_scorer and not shares else 1.0},
        cluster={"layout": "disaggregated"},
    )
    most = max(1, num_gpus // _GPUS_A_TRAINER)
    for trained in _trained(given, nodes=nodes, most=most, num_weights=num_weights):
        found = _kinds_of_engines(trained, nodes=nodes, num_weights=num_weights)
        for num in range(len(found), 0, -1):
            changed = _with_engines(trained, kinds=found[:num])
            scorer = _kind_of_scorer(changed) if shares else changed.train.accelerator_type
            changed = _changed(changed, scorers={"accelerator_type": scorer})
            if _fits(changed, nodes=nodes, needs_scorer=needs_scorer):
                return changed
    raise _refused(
        config,
        _too_small(given, nodes=nodes, most=most, num_weights=num_weights)
        or f"{_there(nodes)}, and an engine over {split} GPU{'s' * (split > 1)} of one node beside a train worker "
        f"takes {split + 1} and a CPU for each actor{_left_out(given, nodes=nodes, num_weights=num_weights)}; set "
        "cluster.layout=colocated, or a smaller generators.gpus",
    )


def _colocated(config: Config, *, nodes: Sequence[Node], needs_scorer: bool, num_weights: int) -> Config:
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
    given = _changed(
        config,
        generators={
            "gpus": _TURNS["generator"],
            "gpu_memory_utilization": min(config.generators.gpu_memory_utilization, _TURNS_MEMORY),
        },
        scorers={"min": 1, "max": 1, "gpus": _SCORER_GPUS},
        train={"gpus_per_worker": _TURNS["trainer"]},
        cluster={"layout": "colocated"},
    )
    num_gpus = sum(node.gpus for node in nodes)
    num = sum(node.gpus for node in nodes if _holds_engine(node, config=given, num_weights=num_weights))
    for trained in _trained(given, nodes=nodes, most=num_gpus, num_weights=num_weights):
        found = _kinds_of_engines(trained, nodes=nodes, num_weights=num_weights)
        changed = _with_engines(trained, kinds=found)
        if len(found) == num > 0 and _fits(changed, nodes=nodes, needs_scorer=needs_scorer):
            return changed
    raise _refused(
        config,
        _too_small(given, nodes=nodes, most=num_gpus, num_weights=num_weights)
        or f"{_there(nodes)}, and each GPU takes a CPU for an engine, a train worker and a scorer",
    )


def _kinds(nodes: Sequence[Node]) -> list[str]:
    """The kinds of GPU there are: the one with the most memory first, of as much the one with more GPUs.

    Where there is a GPU whose kind nobody knows, Ray cannot keep anybody off it, so all count as of one kind, "".
    """
    nums: Counter[str] = Counter()
    for node in nodes:
        if node.gpus:
            nums[node.accelerator_type] += node.gpus
    if "" in nums:
        return [""]
    return sorted(nums, key=lambda kind: (-(gpu_memory_bytes(kind) or 0), -nums[kind], kind))


def _trained(config: Config, *, nodes: Sequence[Node], most: int, num_weights: int) -> Iterator[Config]:
    """The config with train workers that hold their weights, the best choice first: of kinds, then of numbers."""
    kinds = _kinds(nodes)
    for kind in kinds:
        num_gpus = sum(node.gpus for node in nodes if kind in ("", node.accelerator_type))
        for workers in _numbers_of_workers(config, most=min(most, num_gpus)):
            if _holds(kind, num_bytes=_train_bytes(config, workers=workers, num_weights=num_weights)):
                pinned = kind if len(kinds) > 1 else None
                yield _changed(config, train={"workers": workers, "accelerator_type": pinned})


def _kinds_of_engines(trained: Config, *, nodes: Sequence[Node], num_weights: int) -> list[str]:
    """The kind of each engine that has a place beside these train workers, the kind with the most memory first."""
    holding = [node for node in nodes if node.gpus and _holds_engine(node, config=trained, num_weights=num_weights)]
    takes = max(1, int(trained.generators.gpus))
    workers, engine = train_demand(trained.train), replace(generator_demand(trained.generators), num=1)
    found = []
    for kind in _kinds(holding):
        there = [node for node in holding if kind in ("", node.accelerator_type)]
        train_here = [workers] if workers.accelerator_type in (None, kind) else []
        most = sum(node.gpus // takes for node in there)
        # Engines start first; workers need not sit where an engine would fit, if their kind is any.
        beside = there if workers.accelerator_type else nodes
        nums = (
            num
            for num in range(most, 0, -1)
            if not seating([replace(engine, num=num), *train_here], nodes=beside).standing
        )
        found += [kind] * next(nums, 0)
    return found


def _with_engines(config: Config, *, kinds: Sequence[str]) -> Config:
    """The config with an engine for each of these kinds, which are told to it where there is more than one."""
    types = tuple(kinds) if config.train.accelerator_type else ()
    return _changed(config, generators={"min": len(kinds), "max": len(kinds), "accelerator_types": types})


def _kind_of_scorer(config: Config) -> str | None:
    """Beside an engine, and where it can be where nobody trains, who needs whole GPUs there; on the smallest kind."""
    kinds = config.generators.accelerator_types
    others = [kind for kind in kinds if kind != config.train.accelerator_type] or kinds
    return others[-1] if others else None


def _train_bytes(config: Config, *, workers: int, num_weights: int) -> float:
    """What the policy's weights take of a train worker's GPU; ZeRO-3 gives each worker a part."""
    parts = workers if config.train.deepspeed_stage == 3 else 1
    return num_weights * BYTES_OF[config.train.dtype] / parts


def _engine_bytes(config: Config, *, num_weights: int) -> float:
    """What the policy's weights take of each GPU of an engine."""
    return num_weights * BYTES_OF[config.policy.dtype] / max(1, int(config.generators.gpus))


def _holds_engine(node: Node, *, config: Config, num_weights: int) -> bool:
    num_bytes = _engine_bytes(config, num_weights=num_weights) / config.generators.gpu_memory_utilization
    return _holds(node.accelerator_type, num_bytes=num_bytes)


def _holds(kind: str, *, num_bytes: float) -> bool:
    memory = gpu_memory_bytes(kind)
    return memory is None or num_bytes <= memory


def _too_small(config: Config, *, nodes: Sequence[Node], most: int, num_weights: int) -> str:
    """Whose weights no GPU holds, or "" if it is not that."""
    kinds = _kinds(nodes)
    remedy = "or a smaller policy.model"
    if next(_trained(config, nodes=nodes, most=most, num_weights=num_weights), None) is None:
        num_bytes = _train_bytes(config, workers=1, num_weights=num_weights)
        return (
            f"a train worker's weights take {num_bytes / GB:.0f} GB, and a GPU has at most "
            f"{_sizes(kinds, share=1.0)}; take GPUs with more memory, set train.deepspeed_stage=3 where there are "
            f"several, {remedy}"
        )
    if any(_holds_engine(node, config=config, num_weights=num_weights) for node in nodes if node.gpus):
        return ""
    num_bytes, share = _engine_bytes(config, num_weights=num_weights), config.generators.gpu_memory_utilization
    return (
        f"an engine's weights take {num_bytes / GB:.0f} GB a GPU, and of a GPU it may have at most "
        f"{_sizes(kinds, share=share)}; set a larger generators.gpus, {remedy}"
    )


def _left_out(config: Config, *, nodes: Sequence[Node], num_weights: int) -> str:
    """Which kinds hold no engine, in words; "" if all do."""
    small = [node for node in nodes if node.gpus and not _holds_engine(node, config=config, num_weights=num_weights)]
    if not small:
        return ""
    num_bytes, share = _engine_bytes(config, num_weights=num_weights), config.generators.gpu_memory_utilization
    return (
        f", and its weights take {num_bytes / GB:.0f} GB a GPU, more than it may have of a GPU: "
        f"{_sizes(_kinds(small), share=share)}"
    )


def _sizes(kinds: Sequence[str], *, share: float) -> str:
    return ", ".join(f"{share * (gpu_memory_bytes(kind) or 0) / GB:.0f} GB ({kind})" for kind in kinds)


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
    return "there is " + ", ".join(map(str, nodes))


def _refused(config: Config, reason: str) -> ConfigError:
    return ConfigError(f"cluster.layout = {config.cluster.layout!r}: {reason}")
