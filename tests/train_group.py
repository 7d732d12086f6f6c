"""A running train group and what it said, for tests that give it one round after another."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from actors.train.group import TrainerGroup
from csr_ray.records import Cycle, Example, TrainOrder, TrainResult
from csr_ray.store.tables import Outcome, write_example_unit


@dataclass
class Group:
    """A running group, its rounds so far, and what it reported of their steps."""

    trainer: TrainerGroup
    directory: Path
    results: list[TrainResult] = field(default_factory=list)
    losses: list[list[float]] = field(default_factory=list)
    _is_from_base: bool = False
    _files: Iterator[int] = field(default_factory=itertools.count)

    def round(self, pairs: Sequence[Example], *, on_step: Callable[[], None] = lambda: None) -> TrainResult:
        """All pairs are there before the first step. They count as rollouts of the version that is trained."""
        version = len(self.trainer._adapters)
        self.begin(num_examples_at_most=len(pairs), is_whole=True)
        self.offer([replace(pair, policy_version=version) for pair in pairs])
        return self.finish(on_step=on_step)

    def begin(self, *, num_examples_at_most: int, is_whole: bool = False) -> None:
        index = len(self.results)
        cycle = Cycle(round_index=0 if self._is_from_base else index, policy_version=len(self.trainer._adapters))
        order = TrainOrder(
            cycle=cycle,
            output_dir=str(self.directory / f"round_{index:03d}" / "adapter"),
            num_examples_at_most=num_examples_at_most,
            is_whole=is_whole,
        )
        self.trainer.begin(order)

    def offer(self, pairs: Sequence[Example]) -> None:
        """One more file."""
        path = self.directory / f"unit_{next(self._files)}.parquet"
        write_example_unit(path, examples=pairs, outcome=Outcome(made=len(pairs)))
        self.trainer.offer([str(path)])

    def finish(self, *, on_step: Callable[[], None] = lambda: None) -> TrainResult:
        losses: list[float] = []

        def note(step: int, num_steps: int, loss: float, *_: object) -> None:
            assert step == len(losses) + 1 <= num_steps
            losses.append(loss)
            on_step()

        result = self.trainer.finish(on_step=note)
        self.results.append(result)
        self.losses.append(losses)
        return result

    def withdraw(self) -> None:
        """Take the last round back; the next one has its number and its place."""
        self.trainer.withdraw(self.results.pop().version)
        self.losses.pop()

    @contextlib.contextmanager
    def from_base(self) -> Iterator[None]:
        """Let a round be the first again: from the base policy, whose rollouts the pairs are, by the same seed."""
        adapters, self.trainer._adapters, self._is_from_base = self.trainer._adapters, (), True
        yield
        self.trainer._adapters, self._is_from_base = adapters, False
