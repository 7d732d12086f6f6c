"""A running train group and what it said, for tests that give it one round after another."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.train.group import TrainerGroup
from csr_ray.records import PreferencePair, TrainResult


@dataclass
class Group:
    """A running group, its rounds so far, and what it reported of their steps."""

    trainer: TrainerGroup
    directory: Path
    results: list[TrainResult] = field(default_factory=list)
    losses: list[list[float]] = field(default_factory=list)
    _is_from_base: bool = False

    def round(self, pairs: Sequence[PreferencePair], *, on_step: Callable[[], None] = lambda: None) -> TrainResult:
        losses: list[float] = []

        def note(step: int, num_steps: int, loss: float) -> None:
            assert step == len(losses) + 1 <= num_steps
            losses.append(loss)
            on_step()

        result = self.trainer.train(pairs, on_step=note, **self._place())
        self.results.append(result)
        self.losses.append(losses)
        return result

    def begin(self, *, num_pairs_at_most: int) -> None:
        self.trainer.begin(num_pairs_at_most=num_pairs_at_most, **self._place())

    def _place(self) -> dict[str, Any]:
        index = len(self.results)
        output_dir = self.directory / f"round_{index:03d}" / "adapter"
        return {"round_index": 0 if self._is_from_base else index, "output_dir": output_dir}

    @contextlib.contextmanager
    def from_base(self) -> Iterator[None]:
        """Let a round be the first again: from the base policy, whose rollouts the pairs are, by the same seed."""
        adapters, self.trainer._adapters, self._is_from_base = self.trainer._adapters, (), True
        yield
        self.trainer._adapters, self._is_from_base = adapters, False
