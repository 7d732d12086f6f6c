"""Whose turn it is: which prompts a cycle rolls out, and which of them are left to do."""

from __future__ import annotations

from collections.abc import Generator
from functools import cached_property

import numpy as np

from csr_ray.data.prompts import first_readable
from csr_ray.ports import Prompts
from csr_ray.records import Cycle, Prompt, Rejection, Unit
from csr_ray.stages.state import RunState


class Turn:
    """The prompts of one cycle, walked in their order as a stream.

    Every cycle takes all prompts (as the paper does) or, with `data.per_round`, the next so many, wrapping around to
    the first prompt behind the last. Prompts that this cycle has already rolled out stay in it, even if the prompt
    file has changed since; of the others it takes as many more as its size allows.
    """

    def __init__(self, state: RunState, prompts: Prompts, *, cycle: Cycle) -> None:
        per_round = state.config.data.per_round
        self.cycle = cycle
        self.prompts = prompts
        self._is_part = per_round is not None and per_round < prompts.num
        self._size = per_round if per_round is not None and self._is_part else prompts.num
        self._start = cycle.round_index * self._size if self._is_part else 0
        self._journal = state.journal
        self._done = state.journal.units(**cycle.key).index()

    @property
    def num_prompts(self) -> int:
        """All prompts of the cycle, done or not."""
        return self._done.num_ids + self.num_to_do

    @cached_property
    def num_to_do(self) -> int:
        """Prompts of the cycle that are not rolled out yet."""
        if not self._done.num_ids:
            return self._size
        num_open = int(np.count_nonzero(self._unit_of < 0))
        return min(num_open, max(0, self._size - self._done.num_ids)) if self._is_part else num_open

    def committed(self) -> list[Unit]:
        """The units that an earlier start of the run has committed, in the order of the prompts.

        Each stands where the first of its prompts stands now; units whose prompts have all gone come last.
        """
        if not self._done.num_ids:
            return []
        numbers, positions = np.unique(self._unit_of, return_index=True)
        position_of = dict(zip(numbers.tolist(), positions.tolist(), strict=True))
        units = [
            self._done.unit(number, position=position_of.get(number, self._size + number))
            for number in range(len(self._done.names))
        ]
        return sorted(units, key=lambda unit: unit.position)

    def to_do(self) -> Generator[tuple[int, Prompt | Rejection], None, None]:
        """The prompts that are not rolled out yet, each with its position in the cycle; of bad ones, the reason."""
        if not self._done.num_ids:
            yield from enumerate(self.prompts.stream(start=self._start, num=self._size))
            return
        chosen = self._unit_of < 0
        positions = np.flatnonzero(chosen)[: self.num_to_do]
        if len(positions):
            chosen[positions[-1] + 1 :] = False
            stream = self.prompts.stream(start=self._start, num=self._size, chosen=chosen)
            yield from zip(positions.tolist(), stream, strict=True)

    def answered(self) -> Prompt | None:
        """A prompt that an earlier start of the run has committed a rollout of; None if there is none.

        If the file has changed since, it may be another cycle's turn by now.
        """
        if not self._done.num_ids:
            return None
        of_cycle = self.cycle.key.items()
        refused = {refusal.id for entry, refusal in self._journal.rejections() if of_cycle <= entry.items()}
        walk = self.prompts.take(start=self._start, num=self.prompts.num)
        done = (prompt for prompt in walk if self._done.unit_with(prompt.id) is not None)
        return next((prompt for prompt in done if prompt.id not in refused), None)

    def readable(self) -> str | None:
        """A picture that can be read now, of any prompt there is; None if there is none."""
        found = first_readable(self.prompts.take(start=self._start, num=self.prompts.num))
        return found.image if found else None

    @cached_property
    def _unit_of(self) -> np.ndarray:
        """For each prompt of the cycle, the number of the unit that it is in; -1 if it is in none."""
        return self._done.numbers_of(self.prompts.hashes(start=self._start, num=self._size))
