"""Measures the dose of a training while it goes on, and ends the training when it is enough.

What is enough is `csr_ray.training.dose`; here the held-out pairs go through the model, on all workers together.
Imports the whole training stack. Knows one process of the group; knows no cycles.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import distributed
from transformers import TrainerCallback

from csr_ray.records import Example
from csr_ray.training.dose import MOST_HELD_OUT, Dose, Look, look_at, steps_between_looks

_log = logging.getLogger(__name__)

_LOOK: Final = "dose/look"
_RATE: Final = "dose/learning_rate"
# A mean of fewer pairs says nothing.
LEAST_TO_LOOK_AT: Final = 4

Sums = Callable[[Sequence[Example]], tuple[list[float], list[float]]]
"""Summed log-probs, in nats, of the chosen answers of some examples and of their rejected ones, if there are any."""


class DoseClock(TrainerCallback):
    """Looks at the held-out pairs every few steps. All processes of the group look at the same steps.

    A training that goes on from a checkpoint finds its earlier looks in the trainer's own log, which is part of it,
    and so comes to where it was.

    Args:
        dose: what decides; new.
        num_held_out: how many pairs are held out by now, as this process has seen it.
        held_out: the first so many of them.
        sums, reference_sums: under the policy in training, and under its reference. All processes call them with as
            many pairs, not the same ones.
        keep: called when the weights are the best so far; all processes call it.

    Attributes:
        seconds: that the looks of this process have taken; of a training that was gone on from, since then.
    """

    def __init__(
        self,
        dose: Dose,
        *,
        batch_size: int,
        beta: float,
        num_held_out: Callable[[], int],
        held_out: Callable[[int], list[Example]],
        sums: Sums,
        reference_sums: Sums,
        keep: Callable[[], None],
    ) -> None:
        self.dose = dose
        self._batch_size = batch_size
        self._beta = beta
        self._num_held_out = num_held_out
        self._held_out = held_out
        self._sums = sums
        self._reference_sums = reference_sums
        self._keep = keep
        self.seconds = 0.0
        # By the example itself: several of them may have one prompt, and its id.
        self._references: dict[Example, tuple[float, ...]] = {}
        self._lr_sum = 0.0
        self._lr = 0.0

    @property
    def news(self) -> dict[str, float]:
        """The last look's figures by the names of the trackers; empty before the first."""
        if not self.dose.looks:
            return {}
        look = self.dose.looks[-1]
        names = ("margin", "margin_se", "accuracy", "chosen", "rejected", "loss", "divergence")
        return {f"held_out/{name}": value for name in names if (value := getattr(look, name)) is not None}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for entry in state.log_history:  # of before a restart
            self._lr_sum += entry.get(_RATE, 0.0)
            if _LOOK in entry:
                self.dose.observe(Look.from_plain(entry[_LOOK]))
        control.should_training_stop = bool(self.dose.reason)
        if not state.global_step:
            self._keep()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._lr = float(kwargs["lr_scheduler"].get_last_lr()[0])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self._lr_sum += self._lr
        # Before the checkpoint of this step is written, so that it knows of the look.
        entry: dict[str, Any] = {"step": state.global_step, _RATE: self._lr}
        num = self._agreed_number(args.device)
        is_last = state.global_step >= state.max_steps
        interval = steps_between_looks(num, batch_size=self._batch_size)
        is_due = self.dose.is_due(state.global_step, interval=interval)
        if num >= LEAST_TO_LOOK_AT and (is_due or is_last):
            entry[_LOOK] = self._observe(num, step=state.global_step).to_plain()
            control.should_training_stop = control.should_training_stop or bool(self.dose.reason)
        state.log_history.append(entry)
        return control

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if self._agreed_number(args.device) < LEAST_TO_LOOK_AT:
            control.should_training_stop = True  # nobody sees what more would do
        return control

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say why it ended where no look did: a stream has fewer steps than were planned by what it may have."""
        num = self._agreed_number(args.device)
        if self.dose.reason or num < LEAST_TO_LOOK_AT:
            return
        if not self.dose.looks or self.dose.looks[-1].step < state.global_step:
            self._observe(num, step=state.global_step)
        self.dose.close()

    def _observe(self, num: int, *, step: int) -> Look:
        begun_s = time.monotonic()
        look = self._look(min(num, MOST_HELD_OUT), step=step)
        self.seconds += time.monotonic() - begun_s
        self.dose.observe(look)
        if self.dose.best_step == look.step:
            self._keep()
        _log.info("train: %s; learning rate x %g; %s", look, self.dose.factor, self.dose.reason or "on")
        return look

    def _agreed_number(self, device: torch.device) -> int:
        """How many pairs are held out as rank 0 has seen it: of a stream the others may have seen less, or more."""
        if distributed.get_world_size() == 1:
            return self._num_held_out()
        of_first = torch.tensor(self._num_held_out(), device=device)
        distributed.broadcast(of_first, src=0)
        return int(of_first)

    def _look(self, num: int, *, step: int) -> Look:
        pairs = self._held_out(num)
        assert len(pairs) == num, (len(pairs), num)
        if new := [pair for pair in pairs if pair not in self._references]:
            before = self._by_pair(self._reference_sums, pairs=new)
            self._references.update(zip(new, before, strict=True))
        now = self._by_pair(self._sums, pairs=pairs)
        before = [self._references[pair] for pair in pairs]
        if odd := [
            pair.id
            for pair, *sums in zip(pairs, now, before, strict=True)
            if not all(map(math.isfinite, itertools.chain(*sums)))
        ]:
            more = f" and {len(odd) - 5} more" if len(odd) > 5 else ""
            raise FloatingPointError(
                f"step {step}: the log-probs of held-out pairs are no numbers: {', '.join(odd[:5])}{more}. "
                "Lower train.learning_rate, or look at these pairs' log-probs"
            )
        ratios = [
            [after - reference for after, reference in zip(*sums, strict=True)]
            for sums in zip(now, before, strict=True)
        ]
        return look_at(
            [of_pair[0] for of_pair in ratios],
            rejected=[of_pair[1] for of_pair in ratios if len(of_pair) == 2],
            step=step,
            lr_sum=self._lr_sum,
            beta=self._beta,
        )

    @staticmethod
    def _by_pair(sums: Sums, *, pairs: Sequence[Example]) -> list[tuple[float, ...]]:
        """The sums of all pairs, of which each process computes its share: of the chosen answer and the rejected one,
        or of a single answer."""
        rank, size = distributed.get_rank(), distributed.get_world_size()
        if size == 1:
            return _together(*sums(pairs))
        num_each = -(-len(pairs) // size)
        # Every process computes as many, because with parameters in shards each forward pass is common work.
        own = [pairs[min(rank + size * turn, len(pairs) - 1)] for turn in range(num_each)]
        shares: list[Any] = [None] * size
        distributed.all_gather_object(shares, _together(*sums(own)))
        return [shares[index % size][index // size] for index in range(len(pairs))]


def _together(chosen: Sequence[float], rejected: Sequence[float]) -> list[tuple[float, ...]]:
    return list(zip(chosen, rejected, strict=True)) if rejected else [(value,) for value in chosen]
