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
_SPLIT_ACCURACY = "pope_acc_"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of a round's wall time: its key, its name for people, and the role that spends it."""

    key: str
    label: str
    role: str


STAGES = (
    Stage(key="start", label="start-up", role="machinery"),
    Stage(key="rollout", label="rollout", role="generators"),
    Stage(key="pairs", label="pair up", role="loop"),
    Stage(key="train_optimizer", label="optimizer steps", role="trainer"),
    Stage(key="train_setup", label="train set-up", role="trainer"),
    Stage(key="train", label="train", role="trainer"),
    Stage(key="publish", label="publish", role="trainer to generators"),
    Stage(key="gate", label="gate", role="generators"),
    Stage(key="eval", label="evaluate", role="generators"),
    Stage(key="other", label="other", role="loop"),
)


@dataclass(frozen=True, kw_only=True)
class ChangeFigures:
    """How a figure changed since the base model answered the same questions, with its 95 % interval and p.

    Attributes:
        before, after: the figure on the questions that both answered.
        num_images: that these are about; None where the run does not say it.
    """

    before: float
    after: float
    difference: float
    low: float
    high: float
    p: float | None = None
    num_images: int | None = None

    @property
    def is_beyond_chance(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, kw_only=True)
class RoundFigures:
    """One row of the table by round; None where the run did not measure it.

    Attributes:
        index: the round, None for the base model.
        method: whose round it is, if the run has several methods; else empty.
        eval: rates as fractions in 0..1 and `sentences` a count, only the keys that hold a number.
        intervals: 95 % intervals of figures of `eval`, by key.
        changes: of figures of `eval` since the base model, by key.
        rates: what the method says of its judge, by name: how often it was so, and out of how many times.
        imitates: what was made are single answers to be imitated, not pairs.
        score_wait_share: share of a rollout's time spent waiting for scores, 0..1. Rollouts wait side by side while
            others decode, so it is no part of the wall time.
        stages: wall seconds by `Stage.key`, in the order of `STAGES`; they do not overlap, and zeros are left out.
        seconds: wall time of the round.
    """

    index: int | None
    method: str = ""
    eval: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    changes: Mapping[str, ChangeFigures] = field(default_factory=dict)
    chosen_reward: float | None = None
    rejected_reward: float | None = None
    num_pairs: int | None = None
    imitates: bool = False
    dropped: Mapping[str, int] = field(default_factory=dict)
    rates: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    num_prompts: int | None = None
    num_nodes: int | None = None
    tokens_per_s: float | None = None
    loss_first: float | None = None
    loss_last: float | None = None
    score_wait_share: float | None = None
    stages: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None

    @property
    def label(self) -> str:
        return "base" if self.index is None else str(self.index + 1)

    @property
    def train_s(self) -> float | None:
        parts = [self.stages[key] for key in ("train", "train_optimizer", "train_setup") if key in self.stages]
        return sum(parts) if parts else None


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One figure of the base model and of a round, on the questions that both answered where the run knows it.

    Attributes:
        before, after: None where it was not measured.
        change: with its interval, which is of the same questions.
        num_images: that these are about, where the round was asked about fewer than the base; else None.
    """

    before: float | None
    after: float | None
    change: ChangeFigures | None = None
    num_images: int | None = None

    @property
    def of(self) -> str:
        """Of how many images, in words with a blank before; empty where it is of all."""
        return "" if self.num_images is None else f" of {self.num_images:,} images"


def number(value: object) -> float | None:
    """A finite number, or None for null, NaN, text and whatever else a summary may hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def section(tree: object, *, key: str) -> Mapping[str, Any]:
    """`tree[key]` if it is a mapping, else an empty one."""
    value = tree.get(key) if isinstance(tree, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def round_figures(summary: Mapping[str, Any], *, more: Sequence[object] = ()) -> tuple[RoundFigures, ...]:
    """The base row first, then every round the summary knows, in order.

    Args:
        more: entries of rounds that the summary has not, as those that are not over.
    """
    entry = section(summary, key="base")
    base = RoundFigures(
        index=None,
        eval=_numbers(section(entry, key="eval")),
        intervals=_intervals(section(entry, key="eval_intervals")),
    )
    entries = summary.get("rounds")
    rows = [
        _one_round(entry, position=i, methods=summary.get("method"))
        for i, entry in enumerate([*(entries if isinstance(entries, list) else []), *more])
    ]
    return (base, *sorted(rows, key=lambda row: row.index or 0))


def compared(base: RoundFigures, *, row: RoundFigures, key: str) -> Compared:
    """A figure of `base` and of `row`, as fit to stand beside the interval of its change.

    With `eval.limit_between` a round is asked about fewer images than the base was, so the figures by round are of
    other ones.
    """
    before, change = base.eval.get(key), row.changes.get(key)
    if change is None:
        return Compared(before=before, after=row.eval.get(key))
    is_part = row.eval.get("num_images", 0) < base.eval.get("num_images", 0) or (
        before is not None and not math.isclose(before, change.before, abs_tol=1e-9)
    )
    return Compared(
        before=None if before is None else change.before,
        after=change.after,
        change=change,
        num_images=change.num_images if is_part else None,
    )


@dataclass(frozen=True, kw_only=True)
class CostRow:
    """What one role has used, or all of them together; None where the summary does not say.

    Attributes:
        idle_share: of the time that its actors were held, 0..1.
    """

    label: str
    gpu_hours: float | None
    cpu_hours: float | None
    idle_share: float | None
    usd: float | None


def cost_rows(summary: Mapping[str, Any]) -> list[CostRow]:
    """A row a role, and one of all; empty if the summary knows nothing of costs."""
    cost = section(summary, key="cost")
    roles = section(cost, key="roles")
    named = [
        ("unused parts of GPUs" if role == "unused" else str(role).replace("_", " ") + "s", section(roles, key=role))
        for role in roles
    ]
    if not named:
        return []
    keys = ("gpu_hours", "cpu_hours", "idle_share", "usd")
    return [
        CostRow(label=label, **{key: number(entry.get(key)) for key in keys})
        for label, entry in [*named, ("all", cost)]
    ]


def cost_note(summary: Mapping[str, Any]) -> str:
    """By which prices, and what has none."""
    cost = section(summary, key="cost")
    prices = _numbers(section(cost, key="prices"))
    unpriced = cost.get("unpriced")
    words = [f"${price:g} an hour of a {kind}" for kind, price in prices.items()]
    if isinstance(unpriced, list) and unpriced:
        names = ", ".join(str(name) for name in unpriced)
        words.append(f"no price is known of {names}: set cluster.gpu_kinds.NAME.usd_per_hour")
    return "; ".join(words)


@dataclass(frozen=True, kw_only=True)
class SplitColumns:
    """What is known of POPE's splits: their names in order, and the keys of each, the mean F1's last.

    Attributes:
        keys: of `RoundFigures.eval`, two a split (accuracy, F1), and one of the mean.
    """

    names: tuple[str, ...]
    keys: tuple[str, ...]


def split_columns(rows: Sequence[RoundFigures]) -> SplitColumns | None:
    """The splits of yes/no questions that any row has figures of; None without one."""
    known = dict.fromkeys(key for row in rows for key in row.eval)
    names = tuple(key.removeprefix(_SPLIT_ACCURACY) for key in known if key.startswith(_SPLIT_ACCURACY))
    if not names:
        return None
    means = [key for key in known if key.startswith("pope_mean_f1_of_")]
    keys = [key for name in names for key in (f"pope_acc_{name}", f"pope_f1_{name}")]
    return SplitColumns(names=names, keys=(*keys, *means[:1]))


def percent(value: float | None) -> str:
    """A fraction as people read it, one decimal; a dash for None."""
    return "–" if value is None else f"{100 * value:.1f} %"


def ending(summary: Mapping[str, Any]) -> str:
    """Where, why and with which policy a run ended early; empty if it did not."""
    ended = section(summary, key="ended")
    if not ended:
        return ""
    index, version, phase = number(ended.get("round")), number(ended.get("version")), ended.get("phase")
    where = "a phase" if index is None else f"round {index + 1:.0f}{phase_in_words(phase)}"
    left = "" if version is None else f" Its model is policy version {version:.0f}{', the base' * (version == 0)}"
    left += _of_no_round(summary, ended=ended) + "." * bool(left)
    more = "Nothing more is trained in this run, whatever run.rounds says."
    return f"This run ended early: {where} was {ended.get('reason') or 'refused'}.{left} {more}"


def _of_no_round(summary: Mapping[str, Any], *, ended: Mapping[str, Any]) -> str:
    """How good the policy is that an early end left in the middle of a round, which has no row of its own."""
    entries = summary.get("rounds")
    rounds = entries if isinstance(entries, list) else []
    known = {0.0, *(number(entry.get("policy_version")) for entry in rounds if isinstance(entry, Mapping))}
    wrong, recall = (number(section(ended, key="eval").get(name)) for name in ("chair_s", "recall"))
    if wrong is None or number(ended.get("version")) in known:
        return ""
    return f": {percent(wrong)} of its answers hallucinate, at a recall of {percent(recall)}"


def phase_in_words(phase: object) -> str:
    """How a phase is named behind its round; empty for the only one of a method that has no other."""
    return "" if phase in (None, "main") else f", {phase}"


def headline(rows: Sequence[RoundFigures], *, is_over: bool = False) -> str:
    """What the run did, in one sentence that its figures support.

    "Fell" and "rose" are said of the figures as printed: a change that one decimal does not show is "stayed", and one
    whose interval holds no change is neither. Where a run has no intervals, so many answers (`num_images`) decide.
    Figures are of the questions that base and round both answered (`compared`), which the interval is of.

    Args:
        is_over: no round comes any more, although there may be none.
    """
    base, rounds = rows[0], rows[1:]
    evaluated = [(position, row) for position, row in enumerate(rounds, start=1) if "chair_s" in row.eval]
    before = base.eval.get("chair_s")
    if not rounds:
        known = f"; {percent(before)} of the base model's answers hallucinate" if before is not None else ""
        return f"No round {'was handed over' if is_over else 'is finished yet'}{known}."
    if not evaluated:
        return _headline_without_eval(rounds)
    num_rounds, last = evaluated[-1]
    over = f"over {num_rounds} round{'s' if num_rounds > 1 else ''}"
    if before is None:
        after = percent(last.eval["chair_s"])
        return f"{after} of the answers hallucinate after round {last.label}; the base model was not evaluated."
    clauses = [_moved(base, last=last, over=over)]
    recall = compared(base, row=last, key="recall")
    if (first := recall.before) is not None and (final := recall.after) is not None:
        sure = _sure(recall.change)
        clauses.append(
            f"recall stayed at {percent(final)}"
            if percent(first) == percent(final)
            else f"recall {_from_to(first, final)}{sure and f' ({sure})'}"
        )
    clauses += _length_clause(base, last=last)
    return "; ".join(clauses) + "."


def _kind(rounds: Sequence[RoundFigures]) -> str:
    kinds = {row.imitates for row in rounds if row.num_pairs}
    return {False: "preference pairs", True: "answers to imitate"}[kinds.pop()] if len(kinds) == 1 else "examples"


def _headline_without_eval(rounds: Sequence[RoundFigures]) -> str:
    num_pairs = sum(row.num_pairs or 0 for row in rounds)
    text = f"{len(rounds)} round{'s' if len(rounds) > 1 else ''} made {num_pairs:,} {_kind(rounds)}"
    rewarded = [row for row in rounds if row.chosen_reward is not None]
    if len(rewarded) > 1:
        first, last = rewarded[0], rewarded[-1]
        text += (
            f"; mean reward of the chosen answers {first.chosen_reward:.1f} in round {first.label}, "
            f"{last.chosen_reward:.1f} in round {last.label}"
        )
    return text + "; nothing was evaluated."


def before_rounds(summary: Mapping[str, Any]) -> dict[str, float]:
    """Seconds by stage before round 0: starting the machinery, and evaluating the base model."""
    total, start_s = number(summary.get("seconds")), number(summary.get("start_seconds"))
    if total is None or start_s is None:
        return {}
    left_s = total - start_s - sum(row.seconds or 0.0 for row in round_figures(summary)[1:])
    rest = "eval" if section(section(summary, key="base"), key="eval") else "other"
    return {key: seconds for key, seconds in (("start", start_s), (rest, left_s)) if seconds > 1e-6}


def _moved(base: RoundFigures, *, last: RoundFigures, over: str) -> str:
    found = compared(base, row=last, key="chair_s")
    before, after, change, num_answers = found.before, found.after, found.change, last.eval.get("num_images")
    assert before is not None and after is not None, "a headline is of what both measured"
    if percent(before) == percent(after):
        return f"CHAIR_s (hallucinating answers) stayed at {percent(after)}{found.of} {over}"
    moved = f"{'fell' if after < before else 'rose'} from {_from_to(before, after)}{found.of}"
    if change is None:
        if num_answers and abs(after - before) <= _noise(before, after, num_answers=num_answers):
            return f"CHAIR_s {_from_to(before, after)} {over}, within the noise of {num_answers:,.0f} images"
        return f"CHAIR_s {moved} {over}"
    if not change.is_beyond_chance:
        of = found.of or (f" of {num_answers:,.0f} images" if num_answers else "")
        return f"CHAIR_s {_from_to(before, after)} {over}, within the noise{of} ({_sure(change)})"
    size = abs(round(100 * after, 1) - round(100 * before, 1))
    low, high = sorted(abs(100 * end) for end in (change.low, change.high))
    return f"CHAIR_s {moved} ({size:.1f} points, 95 % interval {low:.1f} to {high:.1f}) {over}"


def _from_to(before: float, after: float) -> str:
    return f"{100 * before:.1f} to {100 * after:.1f} %"


def _sure(change: ChangeFigures | None) -> str:
    """The interval of a change in points, its sign said; empty where there is none."""
    return "" if change is None else f"change {points(change.low)} to {points(change.high)} points"


def points(change: float) -> str:
    """A change of a fraction in points of a percent, with its sign."""
    shown = f"{abs(100 * change):.1f}"
    return shown if shown == "0.0" else f"{'+' if change > 0 else '−'}{shown}"


def _noise(*rates: float, num_answers: float) -> float:
    """Half the 95 % interval of a difference of two rates. Strict: as if no image were shared."""
    return 1.96 * math.sqrt(sum(rate * (1 - rate) for rate in rates) / num_answers)


def _length_clause(base: RoundFigures, *, last: RoundFigures) -> list[str]:
    found = compared(base, row=last, key="sentences")
    before, after = found.before, found.after
    if not before or after is None or abs(after / before - 1) < NOTABLE_LENGTH_CHANGE:
        return []
    return [f"answers {before:.1f} to {after:.1f} sentences long"]


def _numbers(tree: Mapping[str, Any]) -> dict[str, float]:
    found = {str(key): number(value) for key, value in tree.items()}
    return {key: value for key, value in found.items() if value is not None}


def _count(value: object) -> int | None:
    found = number(value)
    return None if found is None else int(found)


def _one_round(entry: object, *, position: int, methods: object) -> RoundFigures:
    entry = entry if isinstance(entry, Mapping) else {}
    method = entry.get("method")
    measured = _numbers(section(entry, key="eval"))
    rollout, pairs, train = (section(entry, key=key) for key in ("rollout", "pairs", "train"))
    tokens, rollout_s = number(rollout.get("tokens")), number(rollout.get("seconds"))
    index = _count(entry.get("round"))
    return RoundFigures(
        index=position if index is None else index,
        method=method if isinstance(method, str) and method != methods else "",
        eval=measured,
        intervals=_intervals(section(entry, key="eval_intervals")),
        changes=_changes(section(entry, key="eval_change"), measured=measured),
        chosen_reward=number(pairs.get("answer_reward", pairs.get("chosen_reward"))),
        rejected_reward=number(pairs.get("rejected_reward")),
        num_pairs=_count(pairs.get("made")),
        imitates="answer_sentences" in pairs,
        dropped={reason: int(n) for reason, n in _numbers(section(pairs, key="dropped")).items() if n},
        rates=_rates(section(pairs, key="rates")),
        num_prompts=_count(rollout.get("prompts")),
        num_nodes=_count(rollout.get("nodes")),
        tokens_per_s=tokens / rollout_s if tokens is not None and rollout_s else None,
        loss_first=number(train.get("loss_first")),
        loss_last=number(train.get("loss_last")),
        score_wait_share=number(section(entry, key="score").get("wait_share")),
        stages=_stage_seconds(entry),
        seconds=number(entry.get("seconds")),
    )


def _intervals(tree: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    found = {}
    for name, ends in tree.items():
        if isinstance(ends, Sequence) and len(ends) == 2:
            low, high = number(ends[0]), number(ends[1])
            if low is not None and high is not None:
                found[str(name)] = (low, high)
    return found


def _changes(tree: Mapping[str, Any], *, measured: Mapping[str, float]) -> dict[str, ChangeFigures]:
    found = {}
    for name in map(str, tree):
        known = _numbers(section(tree, key=name))
        # A round answers no question that the base did not, so what an older run does not keep of both follows.
        after = known.get("after", measured.get(name))
        if after is None or not {"difference", "low", "high"} <= known.keys():
            continue
        found[name] = ChangeFigures(
            before=known.get("before", after - known["difference"]),
            after=after,
            difference=known["difference"],
            low=known["low"],
            high=known["high"],
            p=known.get("p"),
            num_images=_count(known.get("num_images")),
        )
    return found


def _rates(rates: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    found = {}
    for name in rates:
        hits, tries = (_count(section(rates, key=name).get(key)) for key in ("hits", "of"))
        if hits is not None and tries:
            found[str(name)] = (hits, tries)
    return found


def _stage_seconds(entry: Mapping[str, Any]) -> dict[str, float]:
    """Seconds by stage that do not overlap: the optimizer's part comes out of train; "other" is the rest."""
    named = _numbers(section(entry, key="stages"))
    found = {**named}
    for key in ("rollout", "train", "publish"):
        seconds = number(section(entry, key=key).get("seconds"))
        if seconds is not None:
            found.setdefault(key, seconds)
    train = section(entry, key="train")
    optimizer_s = number(train.get("optimizer_seconds", train.get("optimizer_s")))
    if optimizer_s is not None and "train" in found:
        train_s = found.pop("train")
        found["train_optimizer"] = min(optimizer_s, train_s)
        found["train_setup"] = train_s - found["train_optimizer"]
    total = number(entry.get("seconds"))
    if total is not None and "other" not in found:
        found["other"] = total - sum(found.values())
    order = {stage.key: position for position, stage in enumerate(STAGES)}
    ranked = sorted(found.items(), key=lambda item: order.get(item[0], len(STAGES) - 1.5))
    return {key: seconds for key, seconds in ranked if seconds > 0}
