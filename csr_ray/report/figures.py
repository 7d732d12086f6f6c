"""The figures of `summary.json`, made safe to show: a row a round, seconds by stage, and the headline sentence.

Every key of the summary is treated as optional, because a run may be half finished, may have had nothing to evaluate
on, or may have been written by a newer version. Knows nothing of HTML or terminals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Headline and cards mention the length of the answers when it moved by this share: an answer that says less also
# hallucinates less, so a fall of the one without a word on the other would mislead.
NOTABLE_LENGTH_CHANGE = 0.10


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of a round's wall time: its key, its name for people, and the role that spends it."""

    key: str
    label: str
    role: str


STAGES = (
    Stage(key="rollout", label="rollout", role="generators"),
    Stage(key="score_wait", label="score wait", role="generators wait for scorers"),
    Stage(key="train_optimizer", label="optimizer steps", role="trainer"),
    Stage(key="train_setup", label="train set-up", role="trainer"),
    Stage(key="train", label="train", role="trainer"),
    Stage(key="publish", label="publish", role="trainer to generators"),
    Stage(key="eval", label="evaluate", role="generators"),
    Stage(key="other", label="other", role="loop"),
)


@dataclass(frozen=True, kw_only=True)
class RoundFigures:
    """One row of the table by round; None where the run did not measure it.

    Attributes:
        index: the round, None for the base model.
        eval: rates as fractions in 0..1 and `sentences` a count, only the keys that hold a number.
        stages: seconds by `Stage.key`, in the order of `STAGES`; they do not overlap.
        seconds: wall time of the round.
    """

    index: int | None
    eval: Mapping[str, float] = field(default_factory=dict)
    chosen_reward: float | None = None
    rejected_reward: float | None = None
    num_pairs: int | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    num_prompts: int | None = None
    num_nodes: int | None = None
    tokens_per_s: float | None = None
    loss_first: float | None = None
    loss_last: float | None = None
    stages: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None

    @property
    def label(self) -> str:
        return "base" if self.index is None else str(self.index)

    @property
    def train_s(self) -> float | None:
        parts = [self.stages[key] for key in ("train", "train_optimizer", "train_setup") if key in self.stages]
        return sum(parts) if parts else None

    @property
    def rollout_s(self) -> float | None:
        parts = [self.stages[key] for key in ("rollout", "score_wait") if key in self.stages]
        return sum(parts) if parts else None


def number(value: object) -> float | None:
    """A finite number, or None for null, NaN, text and whatever else a summary may hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def section(tree: object, *, key: str) -> Mapping[str, Any]:
    """`tree[key]` if it is a mapping, else an empty one."""
    value = tree.get(key) if isinstance(tree, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def round_figures(summary: Mapping[str, Any]) -> tuple[RoundFigures, ...]:
    """The base row first, then every round the summary knows, in order."""
    base = RoundFigures(index=None, eval=_numbers(section(section(summary, key="base"), key="eval")))
    entries = summary.get("rounds")
    rows = [_one_round(entry, position=i) for i, entry in enumerate(entries if isinstance(entries, list) else [])]
    return (base, *sorted(rows, key=lambda row: row.index or 0))


def percent(value: float | None) -> str:
    """A fraction as people read it, one decimal; a dash for None."""
    return "–" if value is None else f"{100 * value:.1f} %"


def headline(rows: Sequence[RoundFigures]) -> str:
    """What the run did, in one sentence that its figures support.

    "Fell" and "rose" are said of the figures as printed: a change that one decimal does not show is "stayed".
    """
    base, rounds = rows[0], rows[1:]
    evaluated = [(position, row) for position, row in enumerate(rounds, start=1) if "chair_s" in row.eval]
    before = base.eval.get("chair_s")
    if not rounds:
        known = f"; {percent(before)} of the base model's answers hallucinate" if before is not None else ""
        return f"No round is finished yet{known}."
    if not evaluated:
        return _headline_without_eval(rounds)
    num_rounds, last = evaluated[-1]
    over = f"over {num_rounds} round{'s' if num_rounds > 1 else ''}"
    if before is None:
        after = percent(last.eval["chair_s"])
        return f"{after} of the answers hallucinate after round {last.label}; the base model was not evaluated."
    clauses = [f"Hallucinating answers {_moved(before, after=last.eval['chair_s'])} {over}"]
    if "recall" in base.eval and "recall" in last.eval:
        first, final = percent(base.eval["recall"]), percent(last.eval["recall"])
        clauses.append(f"recall stayed at {final}" if first == final else f"recall {first} to {final}")
    clauses += _length_clause(base, last=last)
    return "; ".join(clauses) + "."


def _headline_without_eval(rounds: Sequence[RoundFigures]) -> str:
    num_pairs = sum(row.num_pairs or 0 for row in rounds)
    text = f"{len(rounds)} round{'s' if len(rounds) > 1 else ''} made {num_pairs:,} preference pairs"
    rewarded = [row for row in rounds if row.chosen_reward is not None]
    if len(rewarded) > 1:
        first, last = rewarded[0], rewarded[-1]
        text += (
            f"; mean reward of the chosen answers {first.chosen_reward:.1f} in round {first.label}, "
            f"{last.chosen_reward:.1f} in round {last.label}"
        )
    return text + "; nothing was evaluated."


def _moved(before: float, *, after: float) -> str:
    first, last = percent(before), percent(after)
    if first == last:
        return f"stayed at {last}"
    return f"{'fell' if after < before else 'rose'} from {first} to {last}"


def _length_clause(base: RoundFigures, *, last: RoundFigures) -> list[str]:
    before, after = base.eval.get("sentences"), last.eval.get("sentences")
    if not before or after is None or abs(after / before - 1) < NOTABLE_LENGTH_CHANGE:
        return []
    return [f"answers {before:.1f} to {after:.1f} sentences long"]


def _numbers(tree: Mapping[str, Any]) -> dict[str, float]:
    found = {str(key): number(value) for key, value in tree.items()}
    return {key: value for key, value in found.items() if value is not None}


def _count(value: object) -> int | None:
    found = number(value)
    return None if found is None else int(found)


def _one_round(entry: object, *, position: int) -> RoundFigures:
    entry = entry if isinstance(entry, Mapping) else {}
    rollout, pairs, train = (section(entry, key=key) for key in ("rollout", "pairs", "train"))
    tokens, rollout_s = number(rollout.get("tokens")), number(rollout.get("seconds"))
    index = _count(entry.get("round"))
    return RoundFigures(
        index=position if index is None else index,
        eval=_numbers(section(entry, key="eval")),
        chosen_reward=number(pairs.get("chosen_reward")),
        rejected_reward=number(pairs.get("rejected_reward")),
        num_pairs=_count(pairs.get("made")),
        dropped={reason: int(n) for reason, n in _numbers(section(pairs, key="dropped")).items() if n},
        num_prompts=_count(rollout.get("prompts")),
        num_nodes=_count(rollout.get("nodes")),
        tokens_per_s=tokens / rollout_s if tokens is not None and rollout_s else None,
        loss_first=number(train.get("loss_first")),
        loss_last=number(train.get("loss_last")),
        stages=_stage_seconds(entry),
        seconds=number(entry.get("seconds")),
    )


def _stage_seconds(entry: Mapping[str, Any]) -> dict[str, float]:
    """Seconds by stage that do not overlap: `score_wait` is taken out of rollout, the optimizer's out of train."""
    named = _numbers(section(entry, key="stages"))
    found: dict[str, float] = {}
    for key in ("rollout", "train", "publish", "eval"):
        seconds = named.get(key, number(section(entry, key=key).get("seconds")))
        if seconds is not None:
            found[key] = max(0.0, seconds)
    _split(found, whole="rollout", part="score_wait", rest="rollout", part_s=named.get("score_wait"))
    optimizer_s = named.get("train_optimizer", number(section(entry, key="train").get("optimizer_s")))
    _split(found, whole="train", part="train_optimizer", rest="train_setup", part_s=optimizer_s)
    known = {stage.key for stage in STAGES}
    found.update({key: max(0.0, seconds) for key, seconds in named.items() if key not in known})
    total = number(entry.get("seconds"))
    if total is not None:
        found["other"] = max(0.0, total - sum(found.values()))
    order = {stage.key: position for position, stage in enumerate(STAGES)}
    return dict(sorted(found.items(), key=lambda item: order.get(item[0], len(STAGES) - 1.5)))


def _split(found: dict[str, float], *, whole: str, part: str, rest: str, part_s: float | None) -> None:
    if part_s is None or whole not in found:
        return
    whole_s = found.pop(whole)
    found[part] = min(max(0.0, part_s), whole_s)
    found[rest] = whole_s - found[part]
