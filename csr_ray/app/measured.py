"""What a run has measured of its own rates, for the plan of the rest of it or of another run like it.

Read from its config.yaml and summary.json alone; the last finished round counts, because the first one also compiles
and loads, which is kept apart.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from csr_ray.app.place import opened_to_read
from csr_ray.config.load import YAML_ERRORS, parse_config
from csr_ray.config.schema import Config
from csr_ray.errors import ConfigError
from csr_ray.machine.layout import seated
from csr_ray.machine.rates import Cost, Rates
from csr_ray.machine.workload import GATE_ANSWERS, Workload

_NEEDED = ("config.yaml", "summary.json")
_STAGES = ("rollout", "pairs", "train", "publish", "gate")


@dataclass(frozen=True, kw_only=True)
class MeasuredRun:
    """A run with at least one finished round.

    Attributes:
        name: its run folder, as a person calls it.
        summary: the content of its summary.json.
        base_s: seconds of the evaluation before the first round.
        num_starts: how often its machinery was started.
    """

    name: str
    config: Config
    summary: Mapping[str, Any]
    base_s: float = 0.0
    num_starts: int = 1

    def first(self, num_rounds: int) -> MeasuredRun:
        """The same run as it was after so many rounds."""
        return replace(self, summary={**self.summary, "rounds": self.summary["rounds"][:num_rounds]})

    def workload(self, work: Workload, *, own: Workload) -> Workload:
        """The workload with trees, sentences and pairs of this run's size.

        Where the trees may be larger or smaller than this run's they are so in proportion.

        Args:
            own: what was expected of this run itself.
        """
        last = self.summary["rounds"][-1]
        prompts, nodes = last["rollout"]["prompts"], last["rollout"]["nodes"]
        if not prompts or not nodes:
            return work
        pairs = last["train"].get("pairs") or last["pairs"].get("made") or 0
        made = work.prompts * min(1.0, pairs / prompts) if work.phases <= 1 else work.pairs
        measured = replace(
            work,
            nodes=nodes / prompts * work.nodes / own.nodes,
            sentence_tokens=last["rollout"]["tokens"] / nodes * work.sentence_tokens / own.sentence_tokens,
            pairs=made,
            steps=math.ceil(work.steps * made / work.pairs) if work.pairs else work.steps,
        )
        if (looked := _gate_of(last)) is None or not own.gate_answers:
            return measured
        tokens = looked["tokens"] / looked["prompts"] / GATE_ANSWERS
        longer = tokens / (own.gate_tokens / own.gate_answers)
        return replace(measured, gate_tokens=work.gate_tokens * longer)

    def rates(self, work: Workload, *, assumed: Rates) -> Rates:
        """The run's own rates; what it has not measured stays as assumed.

        Args:
            work: of this run itself.
        """
        first, last = self.summary["rounds"][0], self.summary["rounds"][-1]
        source = f"measured in {self.name}, round {last['round'] + 1}"
        prompts = last["rollout"]["prompts"] or 1
        rollout_s = (last["stages"]["rollout"] + last["stages"]["pairs"]) / prompts
        trained, optimizer_s = last["train"].get("pairs") or 0, last["train"].get("optimizer_seconds") or 0.0
        beside_s = max(0.0, last["stages"]["train"] - optimizer_s)
        is_first = last is first
        rates = replace(
            assumed,
            rollout=_cost(
                each_s=rollout_s,
                fixed_s=0.0 if is_first else _of(last, "other"),
                # Of one round alone nobody can say which part of it only the first one has.
                first_s=_of(first, "other")
                if is_first
                else max(0.0, _of(first, "rollout", "pairs", "other") - rollout_s * prompts - _of(last, "other")),
                unit="prompt",
                source=source,
            ),
            publish=_cost(
                fixed_s=last["stages"]["publish"] / max(1, work.phases),
                first_s=max(0.0, first["stages"]["publish"] - last["stages"]["publish"]),
                source=source,
            ),
        )
        if self.summary["start_seconds"]:
            start_s = self.summary["start_seconds"] / self.num_starts
            rates = replace(rates, start=_cost(fixed_s=start_s, source=f"measured in {self.name}"))
        if trained:
            first_train_s = max(0.0, first["stages"]["train"] - (first["train"].get("optimizer_seconds") or 0.0))
            rates = replace(
                rates,
                train=_cost(
                    each_s=optimizer_s / trained * work.pairs / work.trained if work.trained else 0.0,
                    # The first training may wait for the train group, which no later one does.
                    fixed_s=0.0 if is_first else beside_s,
                    first_s=beside_s if is_first else max(0.0, first_train_s - beside_s),
                    unit="pair",
                    source=source,
                ),
            )
        if (looked := _gate_of(last)) is not None:
            each_s = looked["seconds"] / looked["prompts"] / GATE_ANSWERS
            began = _gate_of(first) or looked
            first_s = max(0.0, began["seconds"] - each_s * GATE_ANSWERS * began["prompts"])
            gate = _cost(each_s=each_s, first_s=0.0 if is_first else first_s, unit="answer", source=source)
            rates = replace(rates, gate=gate)
        if work.evaluations and last["stages"]["eval"]:
            asked = work.evaluations[min(last["round"] + 1, len(work.evaluations) - 1)]
            each_s = last["stages"]["eval"] / max(1, asked.answers)
            first_s = max(0.0, self.base_s - each_s * work.evaluations[0].answers)
            rates = replace(rates, evaluate=_cost(each_s=each_s, first_s=first_s, unit="answer", source=source))
        return rates


def measured_run(run_dir: str, *, key: str) -> MeasuredRun | None:
    """The run in a folder or at a URL; None if it has no finished round.

    Args:
        key: what the folder is called on the command line, for messages.

    Raises:
        ConfigError: its files are there, and are not what a run wrote.
    """
    with opened_to_read(run_dir, key=key, is_wanted=lambda name: name in _NEEDED) as folder:
        if not folder.summary.is_file() or not folder.config.is_file():
            return None
        try:
            summary = json.loads(folder.summary.read_text(encoding="utf-8"))
            config = parse_config(yaml.safe_load(folder.config.read_text(encoding="utf-8")))
            # Its config.yaml is as it was given; who had how many GPUs follows from the cluster that it was on.
            config = seated(config, seats=summary.get("seats") or {})
            rounds_s = sum(_of(entry, *_STAGES, "eval", "other") for entry in summary["rounds"])
            if not summary["rounds"] or not summary["rounds"][-1]["rollout"].get("prompts"):
                return None
        except (OSError, KeyError, TypeError, RecursionError, *YAML_ERRORS) as error:
            raise ConfigError(f"{key} = {run_dir!r}: its summary.json or config.yaml is damaged: {error}") from error
        return MeasuredRun(
            name=folder.shown,
            config=config,
            summary=summary,
            base_s=max(0.0, summary["seconds"] - summary["start_seconds"] - rounds_s),
            num_starts=max(1, summary.get("starts") or 1),
        )


def _of(entry: Mapping[str, Any], *stages: str) -> float:
    """Seconds of these stages of a round; earlier versions had no gate."""
    there = entry["stages"]
    return sum(float(there[name]) for name in stages if name != "gate" or name in there)


def _gate_of(entry: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a round's entry says of its gate, if prompts were answered for it."""
    looked: Mapping[str, Any] = entry.get("gate") or {}
    return looked if looked.get("prompts") else None


def _cost(**values: Any) -> Cost:
    return Cost(is_measured=True, **values)
