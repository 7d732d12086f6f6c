"""What a run needs and costs, worked out without starting anything: `csr-ray plan`.

Neither prompts nor model have to be on this machine: shapes of released models are known, and the number of prompts
can be said (`csr_ray.machine.model_shape`). `csr_ray.app.forecast_page` prints it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from csr_ray.app.idle_keys import check_idle_keys
from csr_ray.app.inputs import resolve_world, uses_world
from csr_ray.app.measured import MeasuredRun, measured_run
from csr_ray.app.run import world_spec
from csr_ray.app.speed import gflops_of_a_thread
from csr_ray.config.load import load_config
from csr_ray.config.schema import Config
from csr_ray.data.prompts import read_prompts
from csr_ray.errors import ConfigError
from csr_ray.machine.choices import GPUS_A_NODE, Choice, Overrides, choices, nodes_of
from csr_ray.machine.clip_cost import ClipCost, clip_cost, open_clip_config
from csr_ray.machine.cores import usable_cores
from csr_ray.machine.cpu_rates import cpu_rates
from csr_ray.machine.fit import gpus_needed
from csr_ray.machine.forecast import Forecast, forecast
from csr_ray.machine.kinds import GpuKind, gpu_kind, known_kinds
from csr_ray.machine.model_shape import ModelShape, released_models, shape_of_model
from csr_ray.machine.needs import cpu_bytes
from csr_ray.machine.placement import demands_of
from csr_ray.machine.rates import Rates
from csr_ray.machine.roofline import Machine, gpu_rates
from csr_ray.machine.workload import Workload, workload_of
from csr_ray.methods.base import Method, answers_a_prompt, asks_judge, method_of
from csr_ray.training.dose import held_out_share

# Planned for where a config asks for GPUs and nobody says which.
_ASSUMED_KIND = "A100"
_CLIP_MARKS = 2  # tokens that CLIP puts around a sentence


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line says beside the config.

    Attributes:
        num_gpus, kind: of the GPUs to plan for; None: those of the config.
        gpus_a_node: of a node of them.
        num_prompts: usable prompts; None: as the file or the config says.
        rates_of: the run folder whose rates are taken; None: of `run.dir`, if a run is there.
    """

    num_gpus: int | None = None
    kind: str | None = None
    gpus_a_node: int = GPUS_A_NODE
    num_prompts: int | None = None
    rates_of: str | None = None


@dataclass(frozen=True, kw_only=True)
class Option:
    """One layout of the same machine; without a forecast it does not fit."""

    choice: Choice
    rates: Rates | None = None
    forecast: Forecast | None = None


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A plan.

    Attributes:
        machine: what is planned for; None: this machine's CPUs.
        options: the layouts, the fastest first, then those that do not fit.
        notes: what a reader has to know before they believe it, a line each.
    """

    config: Config
    machine: Machine | None
    num_nodes: int
    work: Workload
    options: tuple[Option, ...]
    needs_scorer: bool
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> Option:
        return self.options[0]

    def to_plain(self) -> dict[str, Any]:
        """For `--json`; seconds and dollars are of the whole run."""
        return {
            "config": {"method": self.config.method, "policy": self.config.policy.model, "dir": self.config.run.dir},
            "gpus": self.machine.num_gpus if self.machine else 0,
            "gpu": self.machine.name if self.machine else None,
            "nodes": self.num_nodes,
            "workload": {
                "rounds": self.work.rounds,
                "prompts": self.work.prompts,
                "sentences": round(self.work.rounds * self.work.phases * self.work.prompts * self.work.nodes),
                "tokens": round(self.work.all_tokens),
                "pairs": round(self.work.rounds * self.work.phases * self.work.pairs),
                "steps": self.work.rounds * self.work.phases * self.work.steps,
                "answers": sum(asked.answers for asked in self.work.evaluations),
                "gate_answers": self.work.gate_looks * self.work.gate_answers,
            },
            "layouts": [_plain(option, needs_scorer=self.needs_scorer) for option in self.options],
            "notes": list(self.notes),
        }


def _plain(option: Option, *, needs_scorer: bool) -> dict[str, Any]:
    choice, found = option.choice, option.forecast
    actors: dict[str, int] = {}
    for demand in demands_of(choice.config, needs_scorer=needs_scorer):
        actors[demand.role] = actors.get(demand.role, 0) + demand.num
    plain: dict[str, Any] = {
        "name": choice.name,
        "fits": found is not None,
        "reason": choice.reason,
        "overrides": in_words(choice.overrides),
        "actors": actors,
        "memory_bytes": {who: dict(parts) for who, parts in choice.memory.items()},
    }
    if found is not None and option.rates is not None:
        plain |= {
            "seconds": found.seconds,
            "hours": found.hours,
            "gpu_hours": found.gpu_hours,
            "usd": found.usd,
            "stages": dict(found.stages),
            "rates": {
                name: {
                    "fixed_s": cost.fixed_s,
                    "each_s": cost.each_s,
                    "first_s": cost.first_s,
                    "unit": cost.unit,
                    "source": cost.source,
                    "is_measured": cost.is_measured,
                }
                for name, cost in option.rates.items()
            },
        }
    return plain


def in_words(overrides: Overrides) -> str:
    """Overrides as the command line takes them."""
    return " ".join(f"{key}={_value(value)}" for key, value in overrides.items())


def _value(value: str | int | float | bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def make_forecast(path: str, *, overrides: Sequence[str], asked: Asked) -> Planned:
    """Work out the plan of a config.

    Raises:
        ConfigError: what is asked for contradicts itself or the config, is not known, or fits nowhere.
    """
    given = load_config(path, overrides=overrides)
    if asked.kind is not None and asked.num_gpus is None:
        raise ConfigError(f"--gpu = {asked.kind!r} without --gpus: say how many of them, as in --gpus 8")
    method = method_of(given)
    check_idle_keys(given)
    config = given
    if uses_world(given):
        from csr_ray.world.build import world_folder

        config = resolve_world(given, folder=world_folder(world_spec(given.world)))
    phases = max((len(method.phases(index)) for index in range(config.run.rounds)), default=0)
    if not phases:
        raise ConfigError(f"method = {config.method!r}: it trains nothing, so there is nothing to plan")
    work = _workload(config, num_prompts=_num_prompts(config, method=method, asked=asked), phases=phases)
    measured, notes = _measured(config, asked=asked)
    own_work = work
    if measured is not None:
        prompts = measured.summary["rounds"][-1]["rollout"]["prompts"]
        expected = _workload(measured.config, num_prompts=prompts, phases=phases)
        work, own_work = measured.workload(work, own=expected), measured.workload(expected, own=expected)
    else:
        notes += _answers_in_words(config)
    if asking := [one.method for one in config.of_each_method if asks_judge(method_of(one))]:
        names = ", ".join(dict.fromkeys(asking))
        notes.append(f"the judge of {names} is asked {work.prompts:,} times a round; no time or price here has it")
    if config.sequence:
        notes.append(f"assumed: each round is like the mean of the rounds of {config.method}, and scored as a whole")
    if _is_for_cpus(config):
        return _on_this_machine(
            config, asked=asked, method=method, work=work, own_work=own_work, measured=measured, notes=notes
        )
    return _on_gpus(config, asked=asked, method=method, work=work, own_work=own_work, measured=measured, notes=notes)


def _answers_in_words(config: Config) -> list[str]:
    """What is counted of a prompt where no run has been measured, a note for each method without a tree."""
    notes = []
    for one in {one.method: one for one in config.of_each_method}.values():
        answers = answers_a_prompt(method_of(one))
        if answers is not None:
            what = f"{answers:g} whole answers a phase, verdicts among them" if answers else "nothing"
            notes.append(f"counted: for a prompt the policy of {one.method} writes {what}")
    return notes


def _workload(config: Config, *, num_prompts: int, phases: int) -> Workload:
    """What a run has to do, with the pairs that its dose is found by; of several methods, with the mean tree."""
    written = {one.method: answers_a_prompt(method_of(one)) for one in config.of_each_method}
    turns = [config.method_of_round(index) for index in range(config.run.rounds)]

    def counted(held_out: float) -> Workload:
        works = {
            name: workload_of(config, num_prompts=num_prompts, answers=answers, phases=phases, held_out=held_out)
            for name, answers in written.items()
        }
        nodes = sum(works[name].nodes for name in turns) / len(turns)
        return replace(works[turns[0]], nodes=nodes)

    pairs = counted(0.0).prompts
    share = held_out_share(pairs, share=config.train.held_out) if config.train.dose == "auto" else None
    return counted(share or 0.0)


def _num_prompts(config: Config, *, method: Method, asked: Asked) -> int:
    if asked.num_prompts is not None:
        return asked.num_prompts
    if config.world.enabled:
        return config.world.num_train_images
    data = config.data
    if "://" not in data.prompts and Path(os.path.expanduser(data.prompts)).exists():
        prompts, _ = read_prompts(data.prompts, images=data.images, limit=data.limit, urls=data.urls)
        return sum(method.refuses(prompt) is None for prompt in prompts)
    if (number := data.per_round or data.limit) is not None:
        return number
    raise ConfigError(
        f"data.prompts = {data.prompts!r}: no such file here; say how many prompts it has with --prompts N"
    )


def _is_for_cpus(config: Config) -> bool:
    uses_gpus = config.generators.gpus or config.train.gpus_per_worker or config.scorers.gpus
    return config.cluster.layout == "cpu" or (config.cluster.layout in ("given", "auto") and not uses_gpus)


# ---- measured rates ----


def _measured(config: Config, *, asked: Asked) -> tuple[MeasuredRun | None, list[str]]:
    """The run whose rates are taken, and what to say of it.

    Raises:
        ConfigError: `--rates` names no such run, or one of another policy.
    """
    key, folder = ("--rates", asked.rates_of) if asked.rates_of is not None else ("run.dir", config.run.dir)
    if key == "run.dir" and "://" in folder:
        return None, []  # nothing is fetched that nobody asks for
    run = measured_run(folder, key=key)
    if run is None:
        if asked.rates_of is not None:
            raise ConfigError(f"--rates = {folder!r}: no run with a finished round; name the run.dir of one")
        return None, []
    theirs, ours = run.summary["policy"]["name"], config.policy.model
    computes = ["on CPUs" if _is_for_cpus(one) else "on GPUs" for one in (run.config, config)]
    kinds = [kind for kind in run.summary.get("cost", {}).get("kinds", {}) if kind]  # earlier versions did not say
    others = [
        f"its policy is {theirs}, here it is {ours}" if theirs != ours else "",
        f"its method is {run.config.method}" if run.config.method != config.method else "",
        "the rounds of several methods are not like each other" if config.sequence else "",
        f"it computes {computes[0]}, and this {computes[1]}" if computes[0] != computes[1] else "",
        f"it ran on {', '.join(kinds)}, here it is {asked.kind}"
        if kinds and asked.kind not in (None, *kinds)
        else "",
    ]
    if differences := [words for words in others if words]:
        if asked.rates_of is not None:
            raise ConfigError(f"--rates = {folder!r}: {differences[0]}; name a run of the same")
        return None, [f"the run in {folder} is not measured by: {differences[0]}"]
    notes = []
    if not _is_for_cpus(config) and (not kinds or asked.kind is None):
        notes.append(f"the kind of GPU of the run in {folder} is taken to be the one that is planned for")
    return run, notes


# ---- CPUs ----


def _on_this_machine(
    config: Config,
    *,
    asked: Asked,
    method: Method,
    work: Workload,
    own_work: Workload,
    measured: MeasuredRun | None,
    notes: list[str],
) -> Planned:
    if asked.num_gpus is not None:
        raise ConfigError(
            f"--gpus = {asked.num_gpus}: this config computes on CPUs (generators.gpus = "
            f"{config.generators.gpus:g}); leave --gpus and --gpu out, or set cluster.layout=auto"
        )
    gflops = gflops_of_a_thread()
    builds_world = config.world.enabled and not Path(config.policy.model).exists()
    clip = _clip_cost(config, work=work) if method.needs_scorer else None
    rates = cpu_rates(
        config,
        shape=shape_of_model(config.policy.model, visual_tokens=config.policy.visual_tokens),
        work=work,
        clip=clip,
        gflops=gflops,
        num_cores=usable_cores(),
        builds_world=builds_world,
    )
    if measured is not None:
        rates = measured.rates(own_work, assumed=rates)
    if builds_world:
        notes.append("the embedded world is not in the cache: building it is counted as a part of the start")
    cores, load = usable_cores(), os.getloadavg()[0]
    if load > cores / 2:
        notes.append(
            f"this machine has other work (load {load:.1f}, {cores:g} cores), of which the plan knows nothing"
        )
    price = config.cluster.cpu_usd_per_hour
    found = forecast(
        work,
        rates=rates,
        usd_per_hour=None if price is None else price * cores,
        is_streaming=False,  # on the same cores nothing is gained by that
    )
    shape = shape_of_model(
        config.policy.model, visual_tokens=config.policy.visual_tokens
    )  # None before the embedded world is built
    memory = {} if shape is None else cpu_bytes(config, shape=shape)
    choice = Choice(name="this machine's CPUs", config=config, overrides={}, memory=memory)
    if max(config.generators.min, config.scorers.min, config.train.workers) > 1:
        notes.append("more actors on the same cores are taken to be no faster")
    if config.cluster.layout == "auto":
        notes.append("cluster.layout=auto would use GPUs where there are some; --gpus plans for these")
    return Planned(
        config=config,
        machine=None,
        num_nodes=1,
        work=work,
        options=(Option(choice=choice, rates=rates, forecast=found),),
        needs_scorer=method.needs_scorer,
        notes=tuple(notes),
    )


def _clip_cost(config: Config, *, work: Workload) -> ClipCost | None:
    clip = open_clip_config(config.scorer.model) if config.scorer is not None else None
    return None if clip is None else clip_cost(clip, sentence_tokens=round(work.sentence_tokens) + _CLIP_MARKS)


# ---- GPUs ----


def _on_gpus(
    config: Config,
    *,
    asked: Asked,
    method: Method,
    work: Workload,
    own_work: Workload,
    measured: MeasuredRun | None,
    notes: list[str],
) -> Planned:
    machine = _machine(config, asked=asked, method=method, notes=notes)
    shape = shape_of_model(config.policy.model, visual_tokens=config.policy.visual_tokens)
    if shape is None:
        raise ConfigError(
            f"policy.model = {config.policy.model!r}: its shape is not known here; name a folder of it on this "
            f"machine, or one of {', '.join(released_models())}"
        )
    nodes = nodes_of(machine.num_gpus, gpus_a_node=asked.gpus_a_node, kind="")
    # Kinds that the config names are those of its own cluster, and here there is one kind only.
    found = choices(_of_any_kind(config), shape=shape, machine=machine, nodes=nodes, needs_scorer=method.needs_scorer)
    clip = _clip_cost(config, work=work) if method.needs_scorer else None
    if method.needs_scorer and clip is None:
        notes.append("the scorer's cost is not known (no plain CLIP, or open_clip is not installed), and not counted")
    options = [
        _option(choice, shape=shape, machine=machine, work=work, clip=clip, own_work=own_work, measured=measured)
        for choice in found
    ]
    fitting = sorted((one for one in options if one.forecast is not None), key=_seconds_of)
    if not fitting:
        raise _fits_nowhere(found, machine=machine, config=config)
    return Planned(
        config=config,
        machine=machine,
        num_nodes=len(nodes),
        work=work,
        options=(*fitting, *(one for one in options if one.forecast is None)),
        needs_scorer=method.needs_scorer,
        notes=tuple(notes),
    )


def _seconds_of(option: Option) -> float:
    return math.inf if option.forecast is None else option.forecast.seconds


def _of_any_kind(config: Config) -> Config:
    return config.model_copy(
        update={
            "generators": config.generators.model_copy(update={"accelerator_types": ()}),
            "scorers": config.scorers.model_copy(update={"accelerator_type": None}),
            "train": config.train.model_copy(update={"accelerator_type": None}),
        }
    )


def _machine(config: Config, *, asked: Asked, method: Method, notes: list[str]) -> Machine:
    num_gpus = asked.num_gpus
    if num_gpus is None:
        if config.cluster.layout != "given":
            raise ConfigError(
                f"cluster.layout = {config.cluster.layout!r} takes the GPUs there are: say how many, --gpus N"
            )
        num_gpus = gpus_needed(demands_of(config, needs_scorer=method.needs_scorer))
    said = [config.train.accelerator_type, *config.generators.accelerator_types]
    name = asked.kind or next((kind for kind in said if kind), None)
    if name is None:
        name = _ASSUMED_KIND
        notes.append(f"no kind of GPU is named: planned for {name}; --gpu takes {', '.join(known_kinds())}")
    return Machine(name=name, kind=_known_kind(name, config=config), num_gpus=num_gpus)


def _known_kind(name: str, *, config: Config) -> GpuKind:
    kind = gpu_kind(name, given=config.cluster.gpu_kinds)
    needed = ("memory_gb", "tflops", "memory_gb_per_s")
    missing = [key for key in needed if kind is None or getattr(kind, key) is None]
    if kind is not None and not missing:
        return kind
    keys = " ".join(f"cluster.gpu_kinds.{name}.{key}=..." for key in (*missing, "usd_per_hour"))
    raise ConfigError(
        f"--gpu = {name!r}: not known; known are {', '.join(known_kinds())}; or say what it has: {keys}"
    )


def _option(
    choice: Choice,
    *,
    shape: ModelShape,
    machine: Machine,
    work: Workload,
    clip: ClipCost | None,
    own_work: Workload,
    measured: MeasuredRun | None,
) -> Option:
    if choice.reason:
        return Option(choice=choice)
    rates = gpu_rates(choice.config, shape=shape, machine=machine, work=work, clip=clip)
    if measured is not None:
        rates = _scaled(rates, run=measured, shape=shape, machine=machine, own_work=own_work, clip=clip)
    config = choice.config
    price = machine.kind.usd_per_hour
    if price is not None:
        price *= machine.num_gpus
        cpus = sum(demand.num * demand.cpus for demand in demands_of(config, needs_scorer=config.scorer is not None))
        price += cpus * (config.cluster.cpu_usd_per_hour or 0.0)
    found = forecast(
        work,
        rates=rates,
        num_gpus=machine.num_gpus,
        usd_per_hour=price,
        is_streaming=config.train.streaming and config.cluster.layout != "colocated",
    )
    return Option(choice=choice, rates=rates, forecast=found)


def _scaled(
    rates: Rates, *, run: MeasuredRun, shape: ModelShape, machine: Machine, own_work: Workload, clip: ClipCost | None
) -> Rates:
    """Rates of a layout by what a run measured on its own one: as assumed, times measured over assumed there."""
    theirs = gpu_rates(_of_any_kind(run.config), shape=shape, machine=machine, work=own_work, clip=clip)
    seen = run.rates(own_work, assumed=theirs)
    scaled = {}
    for (name, cost), (_, assumed), (_, measured) in zip(rates.items(), theirs.items(), seen.items(), strict=True):
        if not measured.is_measured:
            scaled[name] = cost
            continue
        factor = measured.each_s / assumed.each_s if assumed.each_s else 1.0
        fixed = measured.fixed_s * (cost.fixed_s / assumed.fixed_s) if assumed.fixed_s else measured.fixed_s
        scaled[name] = type(cost)(
            fixed_s=fixed,
            each_s=cost.each_s * factor,
            first_s=measured.first_s,
            unit=cost.unit,
            source=measured.source,
            is_measured=True,
        )
    return Rates(**scaled)


def _fits_nowhere(found: Sequence[Choice], *, machine: Machine, config: Config) -> ConfigError:
    """Of the layouts that have a GPU for everybody the last one tried is the one that takes the least of each."""
    seated = [choice for choice in found if not choice.reason.startswith("no GPU for")] or list(found)
    tightest = min(seated, key=lambda choice: sum(sum(parts.values()) for parts in choice.memory.values()))
    return ConfigError(
        f"policy.model = {config.policy.model!r} fits no layout of {machine.num_gpus} x {machine.name} "
        f"({machine.kind.memory_gb:g} GB each): {tightest.reason}; take GPUs with more memory (--gpu), more of them "
        "(--gpus: an engine or ZeRO-3 spreads over several), a smaller policy.model, or a smaller search.width"
    )
