"""What every stage works on: the state of one run, as its folder and journal have it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from csr_ray.config.schema import Config
from csr_ray.machine.cost import cost, in_words
from csr_ray.methods.base import Method, method_of
from csr_ray.methods.sequence import MethodSequence
from csr_ray.records import Cycle, JsonDict, WayToAsk
from csr_ray.stages.meter import Meter
from csr_ray.stages.refusals import ended, is_evaluated_whole, is_finished
from csr_ray.stages.stop import NeverAsked, Stop
from csr_ray.store.journal import Journal
from csr_ray.store.quarantine import Quarantine
from csr_ray.store.run_folder import RunFolder


def _nobody_listens(cycle: Cycle, step: int, metrics: Mapping[str, float]) -> None:
    pass


def _nobody_describes(state: RunState, *, has_model: bool) -> None:
    pass


class WriteCards(Protocol):
    """Writes the card of each folder of a run that others may get (`csr_ray.report.cards.write_cards`)."""

    def __call__(self, state: RunState, *, has_model: bool) -> None: ...


@dataclass
class RunState:
    """One run on disk: its config, folder and journal.

    Attributes:
        model: the base policy's reference (`csr_ray.policy.source`).
        versions: of this package, of Python and of the libraries, by name; for summary.json.
        method: the one that the config names, or all of several (`method_of_round`).
        stop: tells a stage that it should end soon.
        meter: writes down what is used of the cluster.
        on_train_step: told of every optimizer step: of which cycle, its number there from 1, and what the trainer
            measured, by name. Must not take long.
        write_cards: writes the cards of the adapters whose round is closed, and with `has_model` of the model.
    """

    config: Config
    folder: RunFolder
    journal: Journal
    model: str
    versions: dict[str, str]
    stop: Stop = field(default_factory=NeverAsked)
    on_train_step: Callable[[Cycle, int, Mapping[str, float]], None] = _nobody_listens
    write_cards: WriteCards = _nobody_describes
    method: Method = field(init=False)
    quarantine: Quarantine = field(init=False)
    meter: Meter = field(init=False)
    _round_wall_s: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.method = method_of(self.config)
        self.quarantine = Quarantine(self.folder.quarantine)
        self.meter = Meter(self.journal)

    @property
    def is_finished(self) -> bool:
        """Whether every round that the config asks for is done, or the run ended early, and the model is saved.

        A finished run may be started again with more rounds, and then it is not finished any more; one that ended
        early stays as it is.
        """
        return is_finished(self.journal, rounds=self.config.run.rounds, retries=self.config.gate.retries)

    @property
    def are_rounds_done(self) -> bool:
        """Whether nothing is left but to save the model; a run that ended early evaluates its last policy first."""
        if (end := self.ended) is not None:
            known = is_evaluated_whole(self.journal.all("eval"), version=end["version"])
            return known or not self.config.eval.benchmarks
        return all(self.journal.find("round", round=index) for index in range(self.config.run.rounds))

    @property
    def ended(self) -> JsonDict | None:
        """Which phase was refused so often that the run ended there (`csr_ray.stages.refusals`); None: none was."""
        return ended(self.journal, retries=self.config.gate.retries)

    def method_of_round(self, round_index: int) -> Method:
        """The method whose turn a round is."""
        return self.method.of_round(round_index) if isinstance(self.method, MethodSequence) else self.method

    def cycles(self, round_index: int) -> list[Cycle]:
        """The phases of a round in their order, each with the policy version that it starts from."""
        version = sum(len(self.method.phases(earlier)) for earlier in range(round_index))
        return [
            Cycle(round_index=round_index, phase=phase, position=position, policy_version=version + position)
            for position, phase in enumerate(self.method.phases(round_index))
        ]

    @property
    def is_training_free(self) -> bool:
        """Whether the method trains nothing: what it changes is how the base policy's answers are decoded."""
        return not any(self.method.phases(index) for index in range(self.config.run.rounds))

    def version_after(self, round_index: int) -> int:
        """The policy version that a round ends with: versions count the trained phases.

        Of a method that trains nothing it is 1: the base policy's weights, decoded as the method says.
        """
        if self.is_training_free:
            return 1
        return sum(len(self.method.phases(index)) for index in range(round_index + 1))

    def round_of(self, version: int) -> int | None:
        """The round in which a policy version is made; None of the base model."""
        rounds = range(self.config.run.rounds)
        return next((index for index in rounds if 0 < version <= self.version_after(index)), None)

    def way_to_ask(self, version: int) -> WayToAsk:
        """How a policy version is asked where it is measured. What is compared with a decoding is the plain base."""
        way = self.config.way_to_ask
        return replace(way, decoding=None) if self.is_training_free and version == 0 else way

    @property
    def adapters(self) -> list[str]:
        """Adapter folders of every phase trained so far, oldest first."""
        trained = [
            cycle
            for entry in self.journal.all("train")
            for cycle in self.cycles(entry["round"])
            if cycle.phase.name == entry["phase"]
        ]
        return [str(self.folder.adapter(cycle)) for cycle in trained]

    @property
    def spent(self) -> str:
        """What GPUs have cost so far, in words; "" where there are none, or nothing was written down yet."""
        total = cost(self.meter.total, cluster=self.config.cluster)
        return in_words(total) if total["gpu_hours"] else ""

    @contextlib.contextmanager
    def round_clock(self, index: int) -> Iterator[None]:
        """Measure the wall time of a round, which shows how much of it was spent outside the stages."""
        started_s = time.perf_counter()
        yield
        self._round_wall_s[index] = time.perf_counter() - started_s

    def round_wall_s(self, index: int) -> float:
        return self._round_wall_s.get(index, 0.0)
