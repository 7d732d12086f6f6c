"""Makes the content of summary.json from the journal; only the description of the machine is not from there."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Callable, Sequence

from csr_ray.config.schema import Config
from csr_ray.counters import Counters
from csr_ray.machine.cost import cost
from csr_ray.records import Cycle, JsonDict
from csr_ray.stages.meter import used
from csr_ray.stages.refusals import ended, is_finished, refusals
from csr_ray.store.journal import Journal

_EVAL_KEYS = (
    "chair_s",
    "chair_i",
    "recall",
    "repeat",
    "sentences",
    "pope_acc",
    "pope_f1",
    "chair_s_t1",
    "recall_t1",
)
_STAGES = ("rollout", "pairs", "train", "publish", "gate")
# What is added up over the phases of a round that has several.
_SUMMED = (
    *(("rollout", key) for key in ("prompts", "failed", "nodes", "tokens", "seconds")),
    *(("score", key) for key in ("sentences", "seconds", "texts_cut")),
    ("pairs", "made"),
    *(("train", key) for key in ("pairs", "steps", "seconds", "optimizer_seconds")),
    *(("publish", key) for key in ("bytes", "seconds")),
    *(("gate", key) for key in ("looks", "prompts", "failed", "tokens", "seconds")),
)


def summary(
    journal: Journal, *, config: Config, versions: dict[str, str], cycles_of: Callable[[int], Sequence[Cycle]]
) -> JsonDict:
    """The content of summary.json for the run so far.

    Shares and metrics are fractions in 0..1, durations are in seconds, and what was not measured is null. `cycles_of`
    gives the cycles of a round (`RunState.cycles`).
    """
    done = sorted(entry["round"] for entry in journal.all("round"))
    rounds = [round_figures(journal, config=config, cycles=cycles_of(index), round_index=index) for index in done]
    base_eval = journal.find("eval", version=0)
    base_s = base_eval["seconds"] if base_eval else 0.0
    return {
        "method": config.method,
        "versions": versions,
        "policy": {key: (journal.find("model") or {}).get(key) for key in ("name", "revision")},
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform()},
        **({"chair": base_eval["chair"]} if base_eval and "chair" in base_eval else {}),
        "base": {"eval": _eval(base_eval), **_certainty(base_eval)},
        "rounds": rounds,
        "seconds": base_s + sum(entry["seconds"] for entry in rounds) + sum(_seconds(journal, "start")),
        "start_seconds": sum(_seconds(journal, "start")),
        "starts": len(journal.all("start")),
        "seats": (journal.all("start") or [{}])[-1].get("seats"),
        "cost": {
            **cost(used(journal), cluster=config.cluster),
            "tokens": _tokens(journal, [cycle for index in range(config.run.rounds) for cycle in cycles_of(index)]),
            **_judge(journal),
        },
        "ended": _ended(journal, retries=config.gate.retries, cycles_of=cycles_of),
        "finished": is_finished(journal, rounds=config.run.rounds, retries=config.gate.retries),
    }


def _judge(journal: Journal) -> JsonDict:
    """What a judge at an endpoint has cost in this run, as of the last phase whose examples are decided."""
    known = [entry["judge"] for entry in journal.all("examples") if "judge" in entry]
    return {"judge": known[-1]} if known else {}


def round_figures(journal: Journal, *, config: Config, cycles: Sequence[Cycle], round_index: int) -> JsonDict:
    """What summary.json says of one round, as far as the journal has it; also where it is not over."""
    line = journal.find("round", round=round_index)
    return {
        "round": round_index,
        "method": config.method_of_round(round_index),
        **round_entry(journal, cycles=cycles, wall_s=line["wall_s"] if line else 0.0),
        "cost": {
            **cost(used(journal, round_index=round_index), cluster=config.cluster),
            "tokens": _tokens(journal, cycles),
        },
    }


def round_entry(journal: Journal, *, cycles: Sequence[Cycle], wall_s: float) -> JsonDict:
    """The entry of one round, also of one that is not over.

    If it has several phases it is their sums, and each phase's own entry stands under `phases`.
    """
    phases = [cycle_figures(journal, cycle) for cycle in cycles]
    # A round without phases trains nothing, and 1 is the base policy decoded in another way.
    version = max((cycle.policy_version + 1 for cycle in cycles), default=1)
    evaluated = journal.find("eval", version=version)
    stages = {name: sum(phase["stages"][name] for phase in phases) for name in _STAGES}
    stages["eval"] = evaluated["seconds"] if evaluated else 0.0
    # The wall clock of a resumed round covers only what was left to do, so its stages may add up to more.
    seconds = max(wall_s, sum(stages.values()))
    named = [{"phase": cycle.phase.name, **phase} for cycle, phase in zip(cycles, phases, strict=True)]
    whole = phases[0] if len(phases) == 1 else _together(phases)
    return {
        "policy_version": version,
        **{name: whole.get(name, {}) for name in ("rollout", "score", "pairs", "train", "publish", "gate")},
        **({"phases": named} if len(named) > 1 else {}),
        "eval": _eval(evaluated),
        **_certainty(evaluated),
        "stages": {**stages, "other": seconds - sum(stages.values())},
        "seconds": seconds,
    }


def _together(phases: Sequence[JsonDict]) -> JsonDict:
    """One entry out of several phases: sums of counts and seconds, the first phase's first loss, else the last
    phase's."""
    if not phases:
        return {}
    whole: JsonDict = {name: dict(section) for name, section in phases[-1].items()}
    for section, key in _SUMMED:
        whole[section][key] = sum(phase[section][key] or 0 for phase in phases)
    whole["train"]["loss_first"] = phases[0]["train"]["loss_first"]
    dropped = Counter[str]()
    rates: JsonDict = {}
    for phase in phases:
        dropped.update(phase["pairs"]["dropped"] or {})
        for name, rate in phase["pairs"]["rates"].items():
            known = rates.get(name, {"hits": 0, "of": 0})
            rates[name] = {key: known[key] + rate[key] for key in ("hits", "of")}
    whole["pairs"] |= {"dropped": dict(dropped), "rates": rates}
    return whole


def cycle_figures(journal: Journal, cycle: Cycle) -> JsonDict:
    """What summary.json says of one cycle, as far as the journal has it; also where its round is not over."""
    units = journal.units(**cycle.key)
    counters = units.counters
    examples = journal.find("examples", **cycle.key) or {}
    trained = journal.find("train", **cycle.key) or {}
    published = journal.find("publish", **cycle.key) or {}
    seconds = units.total("seconds")
    refused = [verdict["spent"] for verdict in refusals(journal, cycle) if "spent" in verdict]
    gate = _gate(journal, cycle, refused=refused)
    return {
        "rollout": {
            "prompts": units.total("prompts"),
            "failed": units.total("failed"),
            "nodes": units.total("nodes"),
            "tokens": units.total("tokens"),
            "seconds": seconds,
            "prompts_per_s": _ratio(units.total("prompts"), seconds),
            "nodes_per_s": _ratio(units.total("nodes"), seconds),
            "tokens_per_s": _ratio(units.total("tokens"), seconds),
            "groups_redone": counters.groups_redone,
            "generator_deaths": counters.generator_deaths,
            "scorer_deaths": counters.scorer_deaths,
            **engine_ratios(counters),
        },
        "score": {
            "sentences": units.total("sentences"),
            "seconds": counters.scorer_s,
            "texts_cut": units.total("texts_cut"),
            "wait_share": _ratio(units.total("score_wait_s"), units.total("rollout_s")),
            "mean_batch": _ratio(counters.scorer_sentences, counters.scorer_batches),
            "mean_wait_ms": 1e3 * _ratio(counters.score_wait_s, counters.score_requests),
            "queue_depth": _ratio(counters.score_queue, counters.scorer_batches),
            "image_encodes": counters.scorer_image_encodes,
            "text_encodes": counters.scorer_text_encodes,
        },
        "pairs": {
            "made": examples.get("made"),
            "dropped": examples.get("dropped"),
            "rates": {name: {"hits": hits, "of": tries} for name, (hits, tries) in examples.get("rates", {}).items()},
            **{
                key: examples.get(key)
                for key in ("chosen_sentences", "rejected_sentences", "chosen_reward", "rejected_reward")
            },
            **{key: examples[key] for key in ("answer_sentences", "answer_reward") if key in examples},
        },
        "train": {
            "pairs": trained.get("num_pairs"),
            "steps": trained.get("num_steps"),
            "seconds": trained.get("seconds"),
            "optimizer_seconds": trained.get("optimizer_s"),
            "loss_first": trained.get("loss_first"),
            "loss_last": trained.get("loss_last"),
            "metrics": trained.get("metrics"),
            "dose": trained.get("dose", {}),
            "verdicts": _verdicts(journal, cycle),
        },
        "publish": {
            "bytes": published.get("bytes"),
            "seconds": published.get("seconds"),
            "max_probe_gap": published.get("max_probe_gap"),
            "swallowed": published.get("swallowed"),
            "kept": published.get("kept"),
        },
        "gate": gate,
        "stages": {
            "rollout": seconds,
            "pairs": examples.get("seconds", 0.0),
            "train": trained.get("seconds", 0.0) + sum(spent["train"] for spent in refused),
            "publish": published.get("seconds", 0.0) + sum(spent["publish"] for spent in refused),
            "gate": gate["seconds"],
        },
    }


def _gate(journal: Journal, cycle: Cycle, *, refused: Sequence[JsonDict]) -> JsonDict:
    """The looks at the policy: at each of the phase's own, and in the first phase at the one that it began with."""
    versions = [cycle.policy_version + 1, *([0] if cycle.policy_version == 0 else [])]
    looks = [entry for version in versions for entry in journal.all("probe", version=version)]
    looks += [spent["gate"] for spent in refused]
    names = ("prompts", "failed", "tokens", "seconds")
    return {"looks": len(looks), **{name: sum(look.get(name, 0) for look in looks) for name in names}}


def _ended(journal: Journal, *, retries: int, cycles_of: Callable[[int], Sequence[Cycle]]) -> JsonDict | None:
    """Where the run ended early, how good the policy is that is left, and all verdicts of that round.

    The round is not among those that are done, and the policy may be that of one of its phases.
    """
    end = ended(journal, retries=retries)
    if end is None:
        return None
    verdicts = [
        {"phase": cycle.phase.name, **verdict}
        for cycle in cycles_of(end["round"])
        for verdict in _verdicts(journal, cycle)
    ]
    evaluated = journal.find("eval", version=end["version"])
    return {**end, "verdicts": verdicts, "eval": _eval(evaluated), **_certainty(evaluated)}


def _verdicts(journal: Journal, cycle: Cycle) -> list[JsonDict]:
    """What the gate said of each training of the phase, the refused ones first."""
    said = [*refusals(journal, cycle), *journal.all("verdict", **cycle.key)]
    names = ("attempt", "faults", "findings", "dose")
    return [{"accepted": not entry["faults"], **{name: entry[name] for name in names}} for entry in said]


def engine_ratios(counters: Counters) -> dict[str, float | None]:
    """Ratios and counts from the generators' counters; a ratio is None where nothing was counted.

    `occupancy` is how many requests were running over how many may, and `queue_depth` how many waited, both as means
    over engine steps. The hit rates are shares of the tokens looked up in the prefix cache, and of the images looked
    up in the processor's cache. `continuation_misses` counts continuations that had to compute a part of their prefix
    again.
    """

    def ratio(part: float, whole: float) -> float | None:
        return part / whole if whole else None

    return {
        "occupancy": ratio(counters.engine_running, counters.engine_slots),
        "queue_depth": ratio(counters.engine_waiting, counters.engine_steps),
        "prefix_hit_rate": ratio(counters.prefix_hits, counters.prefix_queries),
        "processor_hit_rate": ratio(counters.processor_hits, counters.processor_queries),
        "image_encodes": counters.image_encodes,
        "continuations": counters.continuations,
        "continuation_misses": counters.continuation_misses,
        "preempted": counters.engine_preempted,
    }


def live_figures(counters: Counters, *, seconds: float) -> str:
    """One line for the progress view: how full the engine was, and what its caches and the scorer did."""
    ratios = engine_ratios(counters)
    names = {"occupancy": "engine full", "prefix_hit_rate": "prefix hits"}
    parts = [f"{name} {100 * value:.0f} %" for key, name in names.items() if (value := ratios[key]) is not None]
    if counters.scorer_batches:
        busy = counters.scorer_s / max(seconds, 1e-9)
        mean_batch = counters.scorer_sentences / counters.scorer_batches
        parts.append(f"scorer busy {100 * busy:.0f} %, {mean_batch:.0f} a batch")
    return ", ".join(parts)


def _eval(entry: JsonDict | None) -> JsonDict | None:
    if entry is None:
        return None
    metrics = dict(entry["metrics"])
    return {**{key: metrics.pop(key, None) for key in _EVAL_KEYS}, **metrics}


def _certainty(entry: JsonDict | None) -> JsonDict:
    """The figures' intervals and their change since the base model, where the run has them."""
    names = {"intervals": "eval_intervals", "changes": "eval_change"}
    return {shown: entry[name] for name, shown in names.items() if entry is not None and name in entry}


def _tokens(journal: Journal, cycles: Sequence[Cycle]) -> float:
    """Tokens of the rollouts that are committed, also of a round that is not done."""
    return sum(journal.units(**cycle.key).total("tokens") for cycle in cycles)


def _seconds(journal: Journal, kind: str) -> list[float]:
    return [entry["seconds"] for entry in journal.all(kind)]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
