"""Which model a machine can improve, with which settings, and why: the choice behind `csr-ray init`.

Arithmetic on what the machine says of itself, by the same functions that plan and check a run. Reads no files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from csr_ray.config.load import parse_config
from csr_ray.config.schema import Config
from csr_ray.errors import ConfigError
from csr_ray.machine.choices import memory_of, refused_by_engine, too_large
from csr_ray.machine.fit import Node
from csr_ray.machine.here import Place
from csr_ray.machine.kinds import GB, GpuKind
from csr_ray.machine.layout import in_words, lay_out
from csr_ray.machine.model_shape import ModelShape, shape_of_model
from csr_ray.machine.roofline import Machine
from csr_ray.world.vocabulary import DESCRIBE_PROMPTS

_GIB: Final = 2**30
_SCORER: Final = "ViT-L-14-336-quickgelu/openai"
_MANY_CPUS: Final = 10_000
# Engines over so many GPUs; most models have a number of attention heads that all of these divide.
_SPLITS: Final = (1, 2, 4, 8)
# Beyond so many prompts a round is long, and the next one goes on with others.
_MOST_A_ROUND: Final = 2000
_BILLION: Final = 10**9
# Of a model that a CPU may be asked to improve.
_MOST_ON_CPU: Final = _BILLION


@dataclass(frozen=True, kw_only=True)
class Starter:
    """A model that a run can begin with.

    Attributes:
        name: as its config in configs/ is called, and as `--model` takes it.
        model: `policy.model`.
        policy, train, search: keys of these sections beside the common ones.
        note: what a person should know of it.
        questions: the only ones that it can make something of; empty: any.
    """

    name: str
    model: str
    policy: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    search: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    questions: tuple[str, ...] = ()


LLAVA_7B: Final = Starter(
    name="llava15-7b", model="llava-hf/llava-1.5-7b-hf", policy={"max_model_len": 2048}, note="the paper's own model"
)
LLAVA_13B: Final = Starter(
    name="llava15-13b",
    model="llava-hf/llava-1.5-13b-hf",
    policy={"max_model_len": 2048},
    note="the larger of the paper's two models",
)
QWEN_7B: Final = Starter(
    name="qwen25-vl-7b",
    model="Qwen/Qwen2.5-VL-7B-Instruct",
    policy={"max_model_len": 4096},
    train={"max_length": 4096, "lora_rank": 64, "lora_alpha": 128},
    note="a photo costs it a token for 28 x 28 pixels, 1,300 a megapixel: scale photos to about a megapixel first",
)
TINY: Final = Starter(
    name="tiny-world",
    model="${world}/policy",
    policy={"max_model_len": 512},
    search={"max_sentence_tokens": 24, "max_answer_tokens": 96, "max_sentences": 5},
    note="4 million parameters, which have seen coloured shapes and nothing else",
    questions=DESCRIBE_PROMPTS,
)
# The larger first; then the one that needs less memory for its cache, but photos of a modest size.
TRIED: Final = (LLAVA_13B, LLAVA_7B, QWEN_7B)
NAMES: Final = {one.name: one for one in (LLAVA_7B, LLAVA_13B, QWEN_7B, TINY)}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What init decides.

    Attributes:
        settings: the sections policy, scorer, search, train, generators, scorers, cluster and world of the config.
        why: a sentence each, for the terminal and for the config's comments.
        is_rehearsal: the model is the tiny one, so only the machinery is tried.
    """

    starter: Starter
    settings: Mapping[str, Mapping[str, Any]]
    why: tuple[str, ...]
    is_rehearsal: bool = False


def choose(place: Place, *, wanted: str | None = None) -> Choice:
    """The largest shipped model that fits, or the one that is wanted.

    The largest model is taken where each engine holds it on one GPU; the smaller ones also where an engine has to
    be spread over several. Where none fits, and where there is no GPU, it is the embedded world's tiny model: a
    rehearsal.

    Args:
        wanted: a name of `NAMES`, or any model folder, URL or hub id.

    Raises:
        ConfigError: the wanted model is known not to fit.
    """
    if wanted is not None:
        return _as_wanted(wanted, place=place)
    if not place.gpus:
        return rehearsal(why=(f"{_name_of(place)} has no GPU, and models of a size for photos need one.",))
    reasons: list[str] = []
    # Where nobody knows how much memory there is, the smaller model is the better guess.
    tried = TRIED if place.smallest_gpu_bytes is not None else (LLAVA_7B,)
    for starter in tried:
        fitted = _fitted(starter, place=place, splits=_SPLITS[:1])
        if isinstance(fitted, str) and starter is not LLAVA_13B:
            spread = _fitted(starter, place=place, splits=_SPLITS[1:])
            fitted = spread if isinstance(spread, Choice) else fitted
        if isinstance(fitted, Choice):
            return _with_others(fitted, reasons=reasons, place=place)
        reasons.append(f"{starter.name} does not fit: {fitted}.")
    return rehearsal(why=(f"{_gpus_in_words(place)}: no shipped model fits.", *reasons))


def rehearsal(*, why: Sequence[str]) -> Choice:
    """The embedded world's tiny model."""
    settings = {
        "world": {"enabled": True},
        "policy": {"model": TINY.model, "dtype": "float32", **TINY.policy},
        "scorer": {"model": "${world}/clip"},
        "search": dict(TINY.search),
        "train": {"dtype": "float32"},
        "generators": {"max_num_seqs": 256, "kv_cache_gib": 0.5},
        "cluster": {"layout": "auto"},
    }
    return Choice(starter=TINY, settings=settings, why=tuple(why), is_rehearsal=True)


def _as_wanted(wanted: str, *, place: Place) -> Choice:
    if wanted == TINY.name:
        return rehearsal(why=("It was asked for by --model.",))
    starter = NAMES.get(wanted) or Starter(name=wanted, model=wanted)
    shape = shape_of_model(starter.model)
    if not place.gpus:
        return _on_cpu(starter, wanted=wanted, place=place, shape=shape)
    if shape is None:
        settings = settings_of(starter)
        return Choice(
            starter=starter,
            settings=settings,
            why=(
                "It was asked for by --model.",
                "Its shape is not known here, so nobody has compared its size with the GPUs' memory.",
            ),
        )
    fitted = _fitted(starter, place=place, splits=_SPLITS)
    if isinstance(fitted, str):
        raise ConfigError(f"--model = {wanted!r}: it does not fit {_gpus_in_words(place)}: {fitted}")
    return Choice(
        starter=starter,
        settings=fitted.settings,
        why=("It was asked for by --model.", *fitted.why),
    )


def _on_cpu(starter: Starter, *, wanted: str, place: Place, shape: ModelShape | None) -> Choice:
    """A model that somebody wants on CPUs, which is no madness where it is a small one."""
    if wanted in NAMES or (shape is not None and shape.num_weights > _MOST_ON_CPU):
        raise ConfigError(
            f"--model = {wanted!r}: {place.name} has no GPU, and a model of this size needs one; run "
            f"csr-ray init where the GPUs are, or give --model {TINY.name} for a rehearsal here"
        )
    settings = settings_of(starter)
    for section in ("policy", "train"):
        settings[section]["dtype"] = "float32"
    why = (
        "It was asked for by --model.",
        f"{_name_of(place)} has no GPU, so it computes on CPUs, in float32; csr-ray plan says how long.",
    )
    return Choice(starter=starter, settings=settings, why=why)


def _with_others(choice: Choice, *, reasons: Sequence[str], place: Place) -> Choice:
    why = [*choice.why, *reasons]
    if choice.starter is not QWEN_7B and isinstance(_fitted(QWEN_7B, place=place, splits=_SPLITS), Choice):
        why.append(f"--model {QWEN_7B.name} would fit, too ({QWEN_7B.note}).")
    return Choice(starter=choice.starter, settings=choice.settings, why=tuple(why))


def settings_of(starter: Starter) -> dict[str, dict[str, Any]]:
    """The sections of a model of billions of weights, as configs/own-data.yaml has them."""
    return {
        "policy": {"model": starter.model, "dtype": "bfloat16", **starter.policy},
        "scorer": {"model": _SCORER},
        "search": {"candidates": 5, "width": 3, "keep_worst": 1, "max_sentences": 8, **starter.search},
        "train": {
            "batch_size": 16,
            "micro_batch_size": 2,
            "lora_rank": 128,
            "lora_alpha": 256,
            "gradient_checkpointing": True,
            "dtype": "bfloat16",
            **starter.train,
        },
        "generators": {"gpu_memory_utilization": 0.85},
        "cluster": {"layout": "auto"},
    }


def _fitted(starter: Starter, *, place: Place, splits: Sequence[int]) -> Choice | str:
    """The settings with which it fits, the usual ones first; or why it does not, with the last ones tried."""
    shape = shape_of_model(starter.model)
    assert shape is not None, "of shipped models it is known"
    reason = ""
    for split in splits:
        if all(len(gpus) < split for gpus in place.gpus_by_node):
            break
        for saving, words in _savings(split):
            settings = settings_of(starter)
            for section, keys in saving.items():
                settings[section] |= keys
            found = _laid_out(settings, place=place, shape=shape)
            if isinstance(found, str):
                reason = found
                continue
            return Choice(
                starter=starter, settings=settings, why=_why(starter, found, place=place, shape=shape, words=words)
            )
    return reason or "there is no GPU for it"


def _savings(split: int) -> Iterator[tuple[dict[str, dict[str, Any]], str]]:
    """Ways to need less memory, each with the ones before it, and what they cost in words."""
    spread: dict[str, dict[str, Any]] = {"generators": {"gpus": float(split)}} if split > 1 else {}
    words = f"each engine is spread over {split} GPUs" if split > 1 else ""
    yield spread, words
    train: dict[str, Any] = {"micro_batch_size": 1}
    yield {**spread, "train": dict(train)}, _joined(words, "one pair at a time is trained on")
    train |= {"lora_rank": 32, "lora_alpha": 64}
    yield (
        {**spread, "train": dict(train)},
        _joined(words, "one pair at a time is trained on, with a LoRA of rank 32"),
    )
    train["deepspeed_stage"] = 3
    yield (
        {**spread, "train": dict(train)},
        _joined(words, "the frozen weights are split among the train workers (ZeRO-3), with a LoRA of rank 32"),
    )


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _laid_out(settings: Mapping[str, Mapping[str, Any]], *, place: Place, shape: ModelShape) -> Config | str:
    """The config as `cluster.layout: auto` would lay it out there, if all of it fits; else why not."""
    config = parse_config({"data": {"prompts": "-"}, **{name: dict(keys) for name, keys in settings.items()}})
    nodes = [
        Node(name=f"node {number}", cpus=_MANY_CPUS, gpus=len(gpus)) for number, gpus in enumerate(place.gpus_by_node)
    ]
    try:
        config = lay_out(
            config, nodes=nodes, needs_scorer=True, engine_needs_gpu=False, num_weights=shape.num_weights
        )
    except ConfigError as error:
        return str(error).partition(": ")[2]
    if place.smallest_gpu_bytes is None:
        return config
    memory_gb = place.smallest_gpu_bytes / GB
    machine = Machine(name=_kinds(place), kind=GpuKind(memory_gb=memory_gb), num_gpus=len(place.gpus))
    memory = memory_of(config, shape=shape)
    reason = too_large(config, memory=memory, machine=machine)
    return reason or refused_by_engine(config, shape=shape, machine=machine) or config


def _why(starter: Starter, config: Config, *, place: Place, shape: ModelShape, words: str) -> tuple[str, ...]:
    engine, worker = (sum(parts.values()) / _GIB for parts in memory_of(config, shape=shape).values())
    note = f": {starter.note}" if starter.note else ""
    least = "the smallest GPU" if len({gpu.num_bytes for gpu in place.gpus}) > 1 else "a GPU"
    of = place.smallest_gpu_bytes
    there = "how much there is, is not known here" if of is None else f"there are {of / _GIB:.0f}"
    return (
        f"{_gpus_in_words(place)}: {in_words(config, needs_scorer=True)}.",
        f"{starter.name} has {shape.num_weights / _BILLION:.1f} billion weights{note}.",
        f"By arithmetic an engine takes {engine:.0f} GiB of {least} and a train worker {worker:.0f}; {there}.",
        *((f"So that it fits, {words}.",) if words else ()),
    )


def _gpus_in_words(place: Place) -> str:
    return f"{_name_of(place)} has {len(place.gpus)} GPU{'s' * (len(place.gpus) != 1)} ({_kinds(place)})"


def _kinds(place: Place) -> str:
    kinds = dict.fromkeys(
        gpu.name + (f", {gpu.num_bytes / _GIB:.0f} GiB" if gpu.num_bytes is not None else "") for gpu in place.gpus
    )
    return "; ".join(kinds)


def _name_of(place: Place) -> str:
    return place.name[:1].upper() + place.name[1:]


def prompts_a_round(num: int) -> int | None:
    """`data.per_round` for so many prompts."""
    return _MOST_A_ROUND if num > _MOST_A_ROUND else None
