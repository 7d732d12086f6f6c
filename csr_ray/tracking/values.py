"""Makes numbers to track of the journal's lines and of train steps. Knows the names, and no tracker."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from csr_ray.config.load import to_plain
from csr_ray.config.schema import Config
from csr_ray.records import Cycle, JsonDict
from csr_ray.redaction import without_credentials
from csr_ray.stages.summary import cycle_figures, summary
from csr_ray.store.journal import Journal
from csr_ray.tracking.base import Measured

# Of a line of this kind, the sections of its cycle's figures that are known by then.
_SECTIONS = {"examples": ("rollout", "score", "pairs"), "train": ("train",), "publish": ("publish",)}
_KINDS = ("eval", *_SECTIONS, "round")
_KNOWN_BEFORE = ("rollout", "score", "pairs", "train", "publish", "eval", "eval_intervals", "eval_change")
# Figures of a whole training are no train steps.
_PREFIX = {"train": "training"}
# MLflow takes no other characters in a name.
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_\-./ ]+")

CyclesOf = Callable[[int], Sequence[Cycle]]


class Values:
    """The numbers of one run.

    Args:
        cycles_of: the cycles of a round (`RunState.cycles`).
    """

    def __init__(self, journal: Journal, *, config: Config, cycles_of: CyclesOf) -> None:
        self._journal = journal
        self._config = config
        self._cycles_of = cycles_of

    def so_far(self) -> Iterator[Measured]:
        """What the journal's lines gave that are there already, by kind and then oldest first."""
        for kind in _KINDS:
            for entry in self._journal.all(kind):
                if (measured := self.of_line(entry)) is not None:
                    yield measured

    def of_line(self, entry: JsonDict) -> Measured | None:
        """What is known with a line that is in the journal; None if its kind gives no numbers.

        What is measured again, because earlier work was voided, has another key: it takes other seconds.
        """
        kind = entry["kind"]
        if kind == "eval":
            return self._at(entry["version"], key=f"eval {entry['seconds']!r}", values={"eval": entry["metrics"]})
        if kind == "round":
            return self._of_round(entry)
        cycle = self._cycle(entry) if kind in _SECTIONS else None
        if cycle is None:
            return None
        figures = cycle_figures(self._journal, cycle)
        values = {_PREFIX.get(section, section): figures[section] for section in _SECTIONS[kind]}
        return self._at(cycle.policy_version + 1, key=f"{kind} {entry['seconds']!r}", values=values)

    def of_step(self, cycle: Cycle, *, step: int, metrics: Mapping[str, float]) -> Measured:
        """The numbers of an optimizer step; `step` counts from 1 in the training of this cycle."""
        version = cycle.policy_version + 1
        before = sum(entry["num_steps"] for entry in self._journal.all("train") if entry["version"] < version)
        return Measured(
            key="",
            axis="train/step",
            at=before + step,
            values={**_flat({"train": dict(metrics)}), "train/version": float(version)},
            version=version,
            step=step,
        )

    def _of_round(self, entry: JsonDict) -> Measured | None:
        """A round's seconds, and whatever of it was not known before: its cost, for one."""
        whole = summary(self._journal, config=self._config, versions={}, cycles_of=self._cycles_of)
        found = [one for one in whole["rounds"] if one["round"] == entry["round"]]
        if not found or not found[0]["policy_version"]:
            return None
        shown = {
            name: value
            for name, value in found[0].items()
            if name not in (*_KNOWN_BEFORE, "phases", "round", "policy_version")
        }
        return self._at(found[0]["policy_version"], key=f"round {entry['wall_s']!r}", values={"round": shown})

    def _cycle(self, entry: JsonDict) -> Cycle | None:
        cycles = self._cycles_of(entry["round"])
        return next((cycle for cycle in cycles if cycle.phase.name == entry["phase"]), None)

    @staticmethod
    def _at(version: int, *, key: str, values: JsonDict) -> Measured:
        return Measured(key=f"{version} {key}", axis="policy/version", at=version, values=_flat(values))


def tracked_config(config: Config) -> dict[str, object]:
    """The config, one entry a key, without what is or may be a secret in its URLs."""
    return dict(_leaves(to_plain(config)))


def _leaves(value: object, *, name: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _leaves(one, name=f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        yield name, without_credentials(", ".join(map(str, value)))
    else:
        yield name, without_credentials(value) if isinstance(value, str) else value


def _flat(values: object, *, name: str = "") -> dict[str, float]:
    """The finite numbers of a tree, by their way through it; truth values, texts and lists are left out."""
    if isinstance(values, Mapping):
        parts = (_flat(one, name=f"{name}/{key}" if name else str(key)) for key, one in values.items())
        return {key: value for part in parts for key, value in part.items()}
    if isinstance(values, int | float) and not isinstance(values, bool) and math.isfinite(values):
        return {_NOT_IN_NAMES.sub("_", name): float(values)}
    return {}
