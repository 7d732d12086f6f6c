"""How much of its own preferences a policy is given in one phase: the dose, found while it is trained.

A number of epochs at some learning rate moves one model a lot and another hardly at all. So the dose is measured, in
units that mean the same for every model: how far the log-ratio of chosen against rejected answers has moved, in nats
an answer, on pairs of the same phase that are not trained on. This module decides; it is plain arithmetic on a few
numbers, the same in every process of a group, and after a restart it comes to the same end from the same numbers.

Where an objective only makes answers likelier there is no margin; those that are held out tell by their own
likelihood how far it goes.

Legend: the log-ratio of an answer is log p(answer) under the policy in training minus log p(answer) under the
reference, summed over its tokens; the margin of a pair is that of its chosen answer minus that of its rejected one.
Knows nothing of torch, trainers or files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import xxhash

from csr_ray.records import JsonDict

# So many pairs have to be expected among those that are held out: a mean of fewer says too little.
LEAST_HELD_OUT: Final = 8
# More are not measured: their mean is sure enough, and each look at them takes a forward pass of all.
MOST_HELD_OUT: Final = 256
# alpha x layers x learning rate of a LoRA whose phases take about one pass; docs/training.md says where it is from.
_RATE_CONSTANT: Final = 0.0256
# A forward pass takes about a third of a step of the same pairs, so looks take at most a sixth of the training.
_STEPS_A_BATCH: Final = 2
_MOST_DOUBLINGS: Final = 4
# Of a phase without a margin, by which the others go.
_DIVERGENCE_OF_IMITATION: Final = 2.5
_GROWTH: Final = 1.5  # the power of the steps as which a margin grows
_LEAST_LOSS_FALL: Final = 1e-5  # relative; less is rounding


def rule_learning_rate(*, lora_alpha: int, num_layers: int) -> float:
    """The learning rate that moves the outputs of models of any width and LoRA rank about as far in a step.

    Adam moves each entry of B by about the rate, whatever the gradient's size. PEFT draws the entries of A so that
    the entries of A x have the size of those of x, whatever the width, and scales B A x by alpha / rank; its `rank`
    products add up in the direction of the gradient. So a step moves a layer's output by about alpha times the rate,
    and such moves add up over the layers.
    """
    return _RATE_CONSTANT / (lora_alpha * num_layers)


def is_held_out(example_id: str, *, seed: int, share: float) -> bool:
    """Whether an example is held out: by its id alone, so it matters neither when nor in what order it comes."""
    return xxhash.xxh3_64_intdigest(example_id.encode(), seed=seed) < share * 2**64


def held_out_share(num_examples: int, *, share: float) -> float | None:
    """Which share of so many examples to hold out if `share` is asked for; None: they are too few to hold any out."""
    if num_examples * share < LEAST_HELD_OUT:
        return None
    return min(share, MOST_HELD_OUT / num_examples)


def margin_of_round(target_margin: float, *, round_index: int, decay: float) -> float:
    """The margin at which a phase of this round ends: each round may add a share of what the one before might.

    So a run of any number of rounds goes no farther from its base than `target_margin` / (1 - `decay`).
    """
    return float(target_margin * decay**round_index)


def divergence_of_phase(margin: float | None) -> float:
    """How far a phase may go from its reference, in nats an answer: as far as the margin that is asked of it.

    Where chosen answers keep their likelihood and rejected ones lose theirs, the divergence is half of the margin. So
    this is reached where the chosen answers lose half as much as the margin that was asked: both become less likely,
    and what is learned is something else than which of them is better.
    """
    return _DIVERGENCE_OF_IMITATION if margin is None else margin


def steps_between_looks(num_held_out: int, *, batch_size: int) -> int:
    """After so many optimizer steps the held-out pairs are looked at again, if not sooner (`Dose.is_due`)."""
    return max(2, _STEPS_A_BATCH * math.ceil(min(num_held_out, MOST_HELD_OUT) / batch_size))


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the policy makes of the held-out pairs after so many steps.

    Attributes:
        lr_sum: sum of the learning rates of all steps so far, which is how far the weights may have moved.
        margin, margin_se: mean over the pairs, and its standard error, in nats an answer; of single answers, the
            mean log-ratio.
        accuracy: share of pairs whose margin is positive; of single answers, of those that have become likelier.
        chosen, rejected: mean log-ratio of these answers, in nats; single answers are chosen ones, and then there are
            no rejected ones.
        loss: of DPO at the config's beta, whatever the objective is; of single answers, minus their mean log-ratio.
    """

    step: int
    lr_sum: float
    num_pairs: int
    margin: float
    margin_se: float
    accuracy: float
    chosen: float
    rejected: float | None
    loss: float

    @property
    def divergence(self) -> float:
        """How much less likely the reference's answers have become, in nats an answer.

        The mean of minus the log-ratio over answers that the reference gave estimates its KL divergence from the
        policy. Here the answers are the best and the worst of those that it gave, or the ones to be imitated, be
        they its own or not.
        """
        return -self.chosen if self.rejected is None else -(self.chosen + self.rejected) / 2

    def to_plain(self) -> JsonDict:
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Look:
        whole = ("step", "num_pairs")
        return cls(
            **{name: int(plain[name]) for name in whole},
            **{
                name: None if plain[name] is None else float(plain[name])  # type: ignore[arg-type]
                for name in cls.__dataclass_fields__
                if name not in whole
            },
        )


def has_taught(dose: Mapping[str, Any]) -> bool:
    """Whether a phase has learned beyond chance, so that its learning rate and length may serve the phases after it.

    If not, its rate was doubled because nothing moved, whatever the reason for that was.

    Args:
        dose: as `Dose.to_plain` has it; empty: none was found.
    """
    kept = next((look for look in dose.get("looks", ()) if look["step"] == dose["best_step"]), None)
    return kept is not None and kept["margin"] > kept["margin_se"]


def look_at(chosen: Sequence[float], *, rejected: Sequence[float], step: int, lr_sum: float, beta: float) -> Look:
    """The figures of held-out pairs, or of single answers.

    Args:
        chosen, rejected: log-ratios, one of each for a pair, in nats; no rejected ones of single answers.
    """
    is_paired = bool(rejected)
    margins = [ours - theirs for ours, theirs in zip(chosen, rejected, strict=True)] if is_paired else list(chosen)
    num = len(margins)
    assert num, "no pairs held out"
    mean = math.fsum(margins) / num
    variance = math.fsum((margin - mean) ** 2 for margin in margins) / max(1, num - 1)
    return Look(
        step=step,
        lr_sum=lr_sum,
        num_pairs=num,
        margin=mean,
        margin_se=math.sqrt(variance / num),
        accuracy=sum(margin > 0 for margin in margins) / num,
        chosen=math.fsum(chosen) / num,
        rejected=math.fsum(rejected) / num if is_paired else None,
        loss=math.fsum(_softplus(-beta * margin) for margin in margins) / num if is_paired else -mean,
    )


def _softplus(value: float) -> float:
    """log(1 + exp(value)), which is -log sigmoid(-value)."""
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


@dataclass(frozen=True, kw_only=True)
class DosePlan:
    """What ends a phase's training.

    Attributes:
        margin: the training ends when the held-out margin has come to this, in nats; None: rejected answers have no
            part in the objective (`csr_ray.records.IMITATIONS`), so how likely the chosen ones are alone tells how it
            goes.
        divergence: it ends when `Look.divergence` has come to this, in nats, with the weights of a look before.
        patience: it ends after so many looks in a row at which the held-out loss was no lower than before; without a
            margin that loss is minus the log-ratio of the chosen answers.
        lr_sum: it ends when `Look.lr_sum` has come to this; None: that does not end it.
        steps_a_pass: optimizer steps of one pass over the examples.
        max_steps: it ends then at the latest.
        finds_rate: whether the learning rate is sought, as in the first phase of a run, or given.
    """

    margin: float | None
    divergence: float
    patience: int
    lr_sum: float | None
    steps_a_pass: int
    max_steps: int
    finds_rate: bool


class Dose:
    """Decides after every look whether the training goes on, and at what learning rate.

    The learning rate is sought by its effect: where the margin grows so slowly that the phase would take more than
    two passes over its examples, the rate is doubled, and halved where it would end within a quarter of one. The
    weights start at zero effect, so the margin grows as the power 3/2 of the steps (as measured; docs/training.md).

    What a phase ends with are the weights of the look with the lowest held-out loss, be they those of its start,
    among those that stayed nearer to the reference than the plan's limit.

    Attributes:
        factor: by which the learning rate is multiplied from now on.
        reason: why the training is over, in words; "": it is not.
        looks: all of them so far.
        best_step: of the look whose weights are taken; 0: at none was the loss lower than at the start.
    """

    def __init__(self, plan: DosePlan) -> None:
        self._plan = plan
        self.factor = 1.0
        self.reason = ""
        self.looks: list[Look] = []
        self.best_step = 0
        self._best_loss = 0.0 if plan.margin is None else math.log(2)  # of the policy before the first step
        self._num_worse = 0

    def is_due(self, step: int, *, interval: int) -> bool:
        """Whether to look after this step: `interval` after the last look, sooner where the margin is near."""
        last_step = self.looks[-1].step if self.looks else 0
        expected = self._expected_steps()
        if expected < last_step + 1.5 * interval:
            # Half the way, because a margin that has begun to grow may grow faster than it ever did.
            return step >= last_step + max(1, round((expected - last_step) / 2))
        return step >= last_step + interval

    def observe(self, look: Look) -> None:
        """Take note of a look; `factor`, `reason` and `best_step` say what follows from it."""
        assert not self.reason, "the training is over"
        self.looks.append(look)
        loss = -look.chosen if self._plan.margin is None else look.loss
        is_lower = loss < self._best_loss - _LEAST_LOSS_FALL * (abs(self._best_loss) or 1.0)
        if is_lower and look.divergence < self._plan.divergence:
            self._best_loss, self.best_step, self._num_worse = loss, look.step, 0
        else:
            self._num_worse += 1
        if self._plan.finds_rate and look.step <= self._plan.steps_a_pass:
            self._seek_rate()
        self.reason = self._reason(look)

    def _reason(self, look: Look) -> str:
        plan = self._plan
        if plan.margin is not None and look.margin >= plan.margin:
            return f"the held-out margin came to {look.margin:.2f} nats (asked: {plan.margin:g})"
        if look.divergence >= plan.divergence:
            return f"the policy went {look.divergence:.2f} nats from its reference (at most: {plan.divergence:g})"
        if self._num_worse >= plan.patience:
            return f"the held-out loss was lowest after step {self.best_step}"
        if plan.lr_sum is not None and look.lr_sum >= plan.lr_sum * (1 - 1e-9):
            return "it was trained as far as an earlier round or attempt allows"
        if look.step >= plan.max_steps:
            return self._used_up(look)
        return ""

    def _used_up(self, look: Look) -> str:
        if look.rejected is None:
            return f"train.max_epochs was reached; held-out answers are {look.chosen:.2f} nats likelier"
        of = "" if self._plan.margin is None else f" of {self._plan.margin:g}"
        return f"train.max_epochs was reached at a held-out margin of {look.margin:.2f}{of} nats"

    def _expected_steps(self) -> float:
        """The step at which the margin should be reached, or a limit of divergence or of summed learning rates."""
        if not self.looks:
            return math.inf
        plan, look = self._plan, self.looks[-1]
        expected = math.inf
        if plan.margin is not None and look.margin > 0:
            expected = look.step * (plan.margin / look.margin) ** (1 / self._growth())
        if look.divergence > 0:
            expected = min(expected, look.step * (plan.divergence / look.divergence) ** (1 / _GROWTH))
        if plan.lr_sum is not None and look.lr_sum > 0:
            expected = min(expected, look.step * plan.lr_sum / look.lr_sum)
        return expected

    def _growth(self) -> float:
        """The power of the steps as which the margin has grown of late."""
        if len(self.looks) < 2 or self.looks[-2].margin <= 0 or self.looks[-1].margin <= self.looks[-2].margin:
            return _GROWTH
        before, now = self.looks[-2:]
        return max(_GROWTH, math.log(now.margin / before.margin) / math.log(now.step / before.step))

    def _seek_rate(self) -> None:
        plan, expected = self._plan, self._expected_steps()
        if plan.margin is None:
            return
        if expected > 2 * plan.steps_a_pass and self.factor < 2**_MOST_DOUBLINGS:
            self.factor *= 2
            self._num_worse = 0  # nothing can be said of a policy that has hardly moved
        elif expected < plan.steps_a_pass / 4 and self.factor > 2**-_MOST_DOUBLINGS:
            self.factor /= 2

    def close(self) -> None:
        """The training has ended though no look said so: its passes are used up, as a stream's may be at any step."""
        assert self.looks, "nothing was looked at"
        self.reason = self.reason or self._used_up(self.looks[-1])

    def to_plain(self, *, learning_rate: float) -> JsonDict:
        """What the journal keeps of it, after one look at least: a dose without any was not found.

        Args:
            learning_rate: before it was multiplied by `factor`.
        """
        assert self.looks, "nothing was looked at"
        return {
            "learning_rate": learning_rate * self.factor,
            "lr_sum": self.looks[-1].lr_sum,
            "target_margin": self._plan.margin,
            "reason": self.reason,
            "best_step": self.best_step,
            "looks": [look.to_plain() for look in self.looks],
        }
