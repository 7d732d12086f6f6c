"""The arithmetic and the tables of `bench_variants.py`: out of the summaries of runs, figures by variant and by cell.

A run is one cell's settings on one variant with one seed. What is drawn again for an interval is the run, so an
interval says what another run of these variants and seeds might have given, and nothing of another image.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from gate_outcomes import looks_seconds

from csr_ray.evaluation.statistics import mean_interval, paired_difference

_SEED = 0
_NOTHING = "–"
_ALMOST = 1e-9  # percent; less than that is rounding, not a figure missed


@dataclass(frozen=True)
class Shared:
    """Seconds of a round, and how many of them went into the gate and, about, the looks at held-out pairs."""

    gate_s: float
    looks_s: float
    seconds: float


@dataclass(frozen=True)
class Figures:
    """What one run came to; rates in percent, before any round and after the last one.

    Attributes:
        num_kept: rounds whose policy was handed over.
        num_refused: trainings that the gate refused.
        ended: why the run ended before its last round; empty: it did not.
        steps: optimizer steps of every kept round.
        gate_and_looks: of every kept round; empty if its summary does not say what they took.
    """

    chair_before: float
    chair_after: float
    chair_t1_before: float
    chair_t1_after: float
    recall_before: float
    recall_after: float
    recall_t1_before: float
    recall_t1_after: float
    repeats_after: float
    yes_no_before: float
    yes_no_after: float
    num_images: int
    num_kept: int
    num_refused: int
    ended: str
    steps: tuple[float, ...]
    gate_and_looks: tuple[Shared, ...]


@dataclass(frozen=True)
class Outcome:
    """One run: its figures, or else the line that says why it has none."""

    cell: str
    variant: int
    seed: int
    figures: Figures | None
    fault: str = ""


@dataclass(frozen=True)
class Measure:
    """A figure of a run of which means, intervals and the worst variant are told.

    Attributes:
        of: the figure, or None where the run does not have it.
        is_worse: which of two values is the worse one: max or min.
    """

    name: str
    title: str
    unit: str
    of: Callable[[Figures], float | None]
    is_worse: Callable[[Sequence[float]], float]


@dataclass(frozen=True)
class Spread:
    """A mean over runs and its 95 % interval; None where there are too few runs, or all are alike."""

    value: float
    ends: tuple[float, float] | None
    num_runs: int


@dataclass(frozen=True)
class Verdict:
    """One asked figure: what it came to, what was asked, and whether that is met.

    Attributes:
        is_met: None: no run has the figure.
        is_sure: whether the whole interval lies on the same side of what was asked.
    """

    asked: str
    found: str
    is_met: bool | None
    is_sure: bool

    @property
    def in_words(self) -> str:
        if self.is_met is None:
            return "no figure"
        return ("met" if self.is_met else "**missed**") + ("" if self.is_sure else ", within the interval")


def relative_fall(before: float, after: float) -> float | None:
    """By how many percent of itself a rate fell; None: there was nothing that could fall."""
    return 100.0 * (before - after) / before if before > 0.0 else None


CHAIR_FALL = Measure(
    "chair_s_relative_fall",
    "CHAIR_s falls by, %",
    "%",
    lambda run: relative_fall(run.chair_before, run.chair_after),
    min,
)
CHAIR_T1_FALL = Measure(
    "chair_s_t1_relative_fall",
    "at T = 1 by, %",
    "%",
    lambda run: relative_fall(run.chair_t1_before, run.chair_t1_after),
    min,
)
RECALL_LOSS = Measure(
    "recall_loss", "recall loses, points", "points", lambda run: run.recall_before - run.recall_after, max
)
RECALL_T1_LOSS = Measure(
    "recall_t1_loss",
    "recall at T = 1 loses, points",
    "points",
    lambda run: run.recall_t1_before - run.recall_t1_after,
    max,
)
REPEATS = Measure("repeat_last", "repeats, %", "%", lambda run: run.repeats_after, max)
YES_NO_CHANGE = Measure(
    "pope_acc_change", "yes/no changes by, points", "points", lambda run: run.yes_no_after - run.yes_no_before, min
)
KEPT = Measure("rounds_kept", "rounds kept", "rounds", lambda run: float(run.num_kept), min)
REFUSED = Measure("refused", "refused", "trainings", lambda run: float(run.num_refused), max)
ENDED = Measure("ended_early", "ended early, %", "%", lambda run: 100.0 * bool(run.ended), max)
STEPS = Measure("steps", "steps", "steps", lambda run: sum(run.steps), max)
GATE_AND_LOOKS = Measure(
    "gate_and_looks_share", "gate and looks, % of a round", "%", lambda run: _percent_of(run.gate_and_looks), max
)
_COMPARED = (CHAIR_FALL, CHAIR_T1_FALL, RECALL_LOSS, RECALL_T1_LOSS, REPEATS, YES_NO_CHANGE)
MEASURES = (*_COMPARED, KEPT, REFUSED, ENDED, STEPS, GATE_AND_LOOKS)

_CHAIR_LAST = Measure("chair_s_last", "CHAIR_s after, %", "%", lambda run: run.chair_after, max)
_CHAIR_T1_LAST = Measure("chair_s_t1_last", "CHAIR_s at T = 1 after, %", "%", lambda run: run.chair_t1_after, max)
_RECALL_LAST = Measure("recall_last", "recall after, %", "%", lambda run: run.recall_after, min)
_RECALL_T1_LAST = Measure("recall_t1_last", "recall at T = 1 after, %", "%", lambda run: run.recall_t1_after, min)
_YES_NO_LAST = Measure("pope_acc_last", "yes/no after, %", "%", lambda run: run.yes_no_after, min)
_LAST = (_CHAIR_LAST, _CHAIR_T1_LAST, _RECALL_LAST, _RECALL_T1_LAST, _YES_NO_LAST)
# What the columns of a variant's row are about, behind its number; its runs are counted, and have no worst.
_COLUMNS = (
    None,
    *(_CHAIR_LAST, CHAIR_FALL, _CHAIR_T1_LAST, CHAIR_T1_FALL, _RECALL_LAST, RECALL_LOSS),
    *(_RECALL_T1_LAST, RECALL_T1_LOSS, REPEATS, _YES_NO_LAST, YES_NO_CHANGE),
    *(KEPT, REFUSED, ENDED, STEPS, GATE_AND_LOOKS),
)


def figures_of(summary: Mapping[str, Any], *, batch_size: int = 8) -> Figures:
    """The figures of a finished run.

    Args:
        summary: the content of its summary.json. The round that a run ended in is not among its rounds; its verdicts
            stand under `ended`.
        batch_size: its `train.batch_size`.

    Raises:
        ValueError: the run is not finished, it was not evaluated on the embedded world, or it ended early and its
            summary does not say by which verdicts.
    """
    if not summary.get("finished"):
        raise ValueError("the run is not finished")
    base, rounds = summary["base"]["eval"], summary["rounds"]
    last = rounds[-1]["eval"] if rounds else base
    phases = [phase for entry in rounds for phase in entry.get("phases") or [entry]]
    ended = summary.get("ended")
    if ended and "verdicts" not in ended:
        raise ValueError("its summary.json is of an earlier version; start the run again, which writes it anew")
    said = [verdict for phase in phases for verdict in phase["train"].get("verdicts", ())]
    said += ended["verdicts"] if ended else ()

    def percent(entry: Mapping[str, Any] | None, name: str) -> float:
        value = (entry or {}).get(name)
        if value is None:
            raise ValueError(f"its evaluation has no {name}; eval.benchmarks has to name world")
        return 100.0 * float(value)

    return Figures(
        chair_before=percent(base, "chair_s"),
        chair_after=percent(last, "chair_s"),
        chair_t1_before=percent(base, "chair_s_t1"),
        chair_t1_after=percent(last, "chair_s_t1"),
        recall_before=percent(base, "recall"),
        recall_after=percent(last, "recall"),
        recall_t1_before=percent(base, "recall_t1"),
        recall_t1_after=percent(last, "recall_t1"),
        repeats_after=percent(last, "repeat"),
        yes_no_before=percent(base, "pope_acc"),
        yes_no_after=percent(last, "pope_acc"),
        num_images=int(last.get("num_images") or 0),
        num_kept=len(rounds),
        num_refused=sum(not verdict["accepted"] for verdict in said),
        ended=str(ended["reason"]) if ended else "",
        steps=tuple(float(entry["train"]["steps"] or 0) for entry in rounds),
        gate_and_looks=tuple(
            Shared(entry["stages"]["gate"], _looks_s(entry, batch_size=batch_size), entry["seconds"])
            for entry in rounds
            if "gate" in entry.get("stages", ())
        ),
    )


def _looks_s(entry: Mapping[str, Any], *, batch_size: int) -> float:
    """About how long the phases of a round looked at held-out pairs, in s."""
    trained = [phase["train"] for phase in entry.get("phases") or [entry]]
    return sum(looks_seconds(train, batch_size=batch_size) for train in trained)


def _percent_of(rounds: Sequence[Shared]) -> float | None:
    seconds = sum(entry.seconds for entry in rounds)
    return 100.0 * sum(entry.gate_s + entry.looks_s for entry in rounds) / seconds if seconds else None


def spread(values: Sequence[float]) -> Spread | None:
    """The mean of one value a run with its bootstrap interval; None: there is no run.

    Runs that are all alike have no interval: every draw of them is the same, which tells nothing.
    """
    if not values:
        return None
    mean = statistics.mean(values)
    if len(set(values)) == 1:
        return Spread(mean, None, len(values))
    found = mean_interval(values, seed=_SEED)
    return Spread(mean, (found.low, found.high), len(values))


def values_of(measure: Measure, *, outcomes: Sequence[Outcome]) -> list[float]:
    """The measure of every run that has it."""
    found = [measure.of(outcome.figures) for outcome in outcomes if outcome.figures is not None]
    return [value for value in found if value is not None]


def by_variant(outcomes: Sequence[Outcome]) -> dict[int, list[Outcome]]:
    """The runs of every variant, in order of the variants' numbers."""
    return {
        variant: [outcome for outcome in outcomes if outcome.variant == variant]
        for variant in sorted({outcome.variant for outcome in outcomes})
    }


def worst(measure: Measure, *, outcomes: Sequence[Outcome]) -> tuple[float, int] | None:
    """The worst mean over the seeds of a variant, and which variant's it is; None: no run has the measure."""
    means = {
        variant: statistics.mean(values)
        for variant, runs in by_variant(outcomes).items()
        if (values := values_of(measure, outcomes=runs))
    }
    if not means:
        return None
    value = measure.is_worse(list(means.values()))
    return value, next(variant for variant, mean in means.items() if mean == value)


def verdicts(outcomes: Sequence[Outcome]) -> list[Verdict]:
    """Which of the asked figures are met: those over all runs first, then those of the worst variant."""
    num_done = sum(outcome.figures is not None for outcome in outcomes)
    found = [Verdict("every run finishes", f"{num_done} of {len(outcomes)}", num_done == len(outcomes), True)]
    over_all = (
        (CHAIR_FALL, 80.0, "CHAIR_s falls by at least 80 %, greedy"),
        (CHAIR_T1_FALL, 50.0, "CHAIR_s falls by at least 50 % at T = 1"),
        (RECALL_LOSS, 1.5, "recall loses at most 1.5 points"),
        (
            RECALL_T1_LOSS,
            1.5,
            "recall at T = 1 loses at most 1.5 points (the bound is asked without a temperature)",
        ),
        (REPEATS, 2.0, "repeats under 2 %"),
        (YES_NO_CHANGE, 0.0, "yes/no accuracy does not fall"),
        (GATE_AND_LOOKS, 10.0, "gate and looks take under 10 % of a round"),
    )
    for measure, bound, asked in over_all:
        told = spread(values_of(measure, outcomes=outcomes))
        if told is None:
            found.append(Verdict(asked, _NOTHING, None, True))
            continue
        is_met = _keeps(measure, told.value, bound=bound)
        is_sure = told.ends is None or all(_keeps(measure, end, bound=bound) == is_met for end in told.ends)
        found.append(Verdict(asked, f"{_with_ends(told)} {measure.unit}", is_met, is_sure))
    for measure, bound, asked in (
        (CHAIR_FALL, 40.0, "worst variant: CHAIR_s falls by at least 40 %, greedy"),
        (CHAIR_T1_FALL, 25.0, "worst variant: CHAIR_s falls by at least 25 % at T = 1"),
        (RECALL_LOSS, 3.0, "worst variant: recall loses at most 3 points"),
    ):
        least = worst(measure, outcomes=outcomes)
        if least is None:
            found.append(Verdict(asked, _NOTHING, None, True))
        else:
            is_met = _keeps(measure, least[0], bound=bound)
            found.append(Verdict(asked, f"{least[0]:.1f} {measure.unit} (variant {least[1]})", is_met, True))
    return found


def _keeps(measure: Measure, value: float, *, bound: float) -> bool:
    if measure in (REPEATS, GATE_AND_LOOKS):  # "under", and not "at most"
        return value < bound
    return value >= bound - _ALMOST if measure.is_worse is min else value <= bound + _ALMOST


def variant_table(outcomes: Sequence[Outcome]) -> str:
    """A Markdown row a variant (means over its seeds), one a run that has no figures, then all runs and the worst."""
    heads: tuple[str, ...] = ("variant", "runs", "CHAIR_s, %", "falls by, %", "CHAIR_s at T = 1, %", "falls by, %")
    heads += ("recall, %", "loses, points", "recall at T = 1, %", "loses, points", "repeats, %", "yes/no, %")
    heads += ("changes by, points", "rounds kept", "refused", "ended early", "steps of the rounds")
    rows: list[Sequence[str]] = [(*heads, "gate + looks, % of the first round, of later ones")]
    for variant, runs in by_variant(outcomes).items():
        rows.append((str(variant), *_means(runs, is_whole=False)))
        rows += [
            (f"{variant}, seed {run.seed}", run.fault, *[""] * (len(rows[0]) - 2))
            for run in runs
            if run.figures is None
        ]
    rows.append(("**all** (95 % interval)", *_means(outcomes, is_whole=True)))
    rows.append(("worst (variant)", *(_worst(measure, outcomes=outcomes) for measure in _COLUMNS)))
    return markdown(rows)


def _means(outcomes: Sequence[Outcome], *, is_whole: bool) -> list[str]:
    """Every column behind the first of a variant's row; of all runs together with intervals."""
    runs = [outcome.figures for outcome in outcomes if outcome.figures is not None]
    num = f"{len(runs)} of {len(outcomes)}"
    if not runs:
        return [num, *[_NOTHING] * (len(_COLUMNS) - 1)]

    def change(before: Callable[[Figures], float], after: Callable[[Figures], float]) -> str:
        return f"{statistics.mean(map(before, runs)):.1f} → {statistics.mean(map(after, runs)):.1f}"

    def told(measure: Measure) -> str:
        found = spread(values_of(measure, outcomes=outcomes))
        if found is None:
            return _NOTHING
        return _with_ends(found) if is_whole else f"{found.value:.1f}"

    num_ended = sum(bool(run.ended) for run in runs)
    return [
        num,
        change(lambda run: run.chair_before, lambda run: run.chair_after),
        told(CHAIR_FALL),
        change(lambda run: run.chair_t1_before, lambda run: run.chair_t1_after),
        told(CHAIR_T1_FALL),
        change(lambda run: run.recall_before, lambda run: run.recall_after),
        told(RECALL_LOSS),
        change(lambda run: run.recall_t1_before, lambda run: run.recall_t1_after),
        told(RECALL_T1_LOSS),
        told(REPEATS),
        change(lambda run: run.yes_no_before, lambda run: run.yes_no_after),
        told(YES_NO_CHANGE),
        told(KEPT),
        str(sum(run.num_refused for run in runs)),
        f"{num_ended} of {len(runs)}" if num_ended else "0",
        _steps(runs),
        _shares(runs),
    ]


def _shares(runs: Sequence[Figures]) -> str:
    """What the gate and the looks took of the first rounds, and of the later ones, of all their seconds together."""
    first = [entry for run in runs for entry in run.gate_and_looks[:1]]
    later = [entry for run in runs for entry in run.gate_and_looks[1:]]
    shown = []
    for rounds in filter(None, (first, later)):
        seconds = sum(entry.seconds for entry in rounds)
        gate, looks = sum(entry.gate_s for entry in rounds), sum(entry.looks_s for entry in rounds)
        shown.append(f"{100 * gate / seconds:.1f} + {100 * looks / seconds:.1f}")
    return ", ".join(shown) or _NOTHING


def _steps(runs: Sequence[Figures]) -> str:
    """Mean steps of the first round, the second and so on, each over the runs that kept it."""
    num_rounds = max(len(run.steps) for run in runs)
    means = [
        statistics.mean(run.steps[index] for run in runs if index < len(run.steps)) for index in range(num_rounds)
    ]
    return ", ".join(f"{mean:.0f}" for mean in means) or _NOTHING


def _worst(measure: Measure | None, *, outcomes: Sequence[Outcome]) -> str:
    if measure is None:
        return ""
    found = worst(measure, outcomes=outcomes)
    if found is None:
        return _NOTHING
    is_alike = len(set(values_of(measure, outcomes=outcomes))) == 1  # then no variant is worse than another
    return f"{found[0]:.1f}" if is_alike else f"{found[0]:.1f} ({found[1]})"


def cell_table(outcomes: Sequence[Outcome]) -> str:
    """A Markdown row a cell: means over its runs, with intervals."""
    titles = [measure.title for measure in MEASURES]
    rows: list[Sequence[str]] = [("cell", "runs", "CHAIR_s, %", "recall, %", *titles)]
    for cell, runs in by_cell(outcomes).items():
        done = [run.figures for run in runs if run.figures is not None]
        spreads = [spread(values_of(measure, outcomes=runs)) for measure in MEASURES]
        ends = [_NOTHING, _NOTHING]
        if done:
            chair = (
                statistics.mean(run.chair_before for run in done),
                statistics.mean(run.chair_after for run in done),
            )
            recall = (
                statistics.mean(run.recall_before for run in done),
                statistics.mean(run.recall_after for run in done),
            )
            ends = [f"{before:.1f} → {after:.1f}" for before, after in (chair, recall)]
        rows.append(
            (cell, f"{len(done)} of {len(runs)}", *ends, *(_with_ends(s) if s else _NOTHING for s in spreads))
        )
    return markdown(rows)


def difference_table(outcomes: Sequence[Outcome]) -> str:
    """A Markdown row for every two cells: the second less the first, over the variants and seeds that both have.

    What is beyond chance is bold.
    """
    titles = [measure.title for measure in _COMPARED]
    rows: list[Sequence[str]] = [("cells", "pairs of runs", *titles)]
    for first, second in combinations(by_cell(outcomes).items(), 2):
        pairs = _pairs(first[1], others=second[1])
        shown = [_difference(measure, pairs=pairs) for measure in _COMPARED]
        rows.append((f"{first[0]} → {second[0]}", str(len(pairs)), *shown))
    return markdown(rows)


def _pairs(runs: Sequence[Outcome], *, others: Sequence[Outcome]) -> list[tuple[Figures, Figures]]:
    """The figures of both cells on the same variant with the same seed, where both have them."""
    there = {(other.variant, other.seed): other.figures for other in others if other.figures is not None}
    return [
        (run.figures, there[run.variant, run.seed])
        for run in runs
        if run.figures is not None and (run.variant, run.seed) in there
    ]


def _difference(measure: Measure, *, pairs: Sequence[tuple[Figures, Figures]]) -> str:
    values = [(measure.of(first), measure.of(second)) for first, second in pairs]
    both = [(first, second) for first, second in values if first is not None and second is not None]
    if not both:
        return _NOTHING
    before, after = zip(*both, strict=True)
    found = paired_difference(before, after=after, seed=_SEED)
    if len(both) == 1:
        return f"{found.mean:+.1f}"
    shown = f"{found.mean:+.1f} ({found.low:+.1f} to {found.high:+.1f})"
    return f"**{shown}**" if found.is_beyond_chance else shown


def verdict_table(outcomes: Sequence[Outcome]) -> str:
    """A Markdown row for every figure asked."""
    told = [(verdict.asked, verdict.found, verdict.in_words) for verdict in verdicts(outcomes)]
    return markdown([("asked", "came to (95 % interval)", ""), *told])


def by_cell(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """The runs of every cell, in order of appearance."""
    names = dict.fromkeys(outcome.cell for outcome in outcomes)
    return {name: [outcome for outcome in outcomes if outcome.cell == name] for name in names}


def rows_of(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """The rows of the benchmark's result: a mean each with its interval and its worst variant.

    With several cells a row's name begins with its cell's. A row that no run has a figure for is left out.
    """
    cells = by_cell(outcomes)
    rows: list[dict[str, Any]] = []
    for cell, runs in cells.items():
        prefix = f"{cell}/" if len(cells) > 1 else ""
        for measure in (*MEASURES, *_LAST):
            found, least = spread(values_of(measure, outcomes=runs)), worst(measure, outcomes=runs)
            if found is None or least is None:
                continue
            low, high = found.ends or (None, None)
            ends = {"low": low, "high": high, "worst": least[0], "worst_variant": least[1]}
            row = {"name": prefix + measure.name, "value": found.value, "unit": measure.unit}
            rows.append({**row, **ends, "num_runs": found.num_runs})
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown, of which the first row is the head."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _with_ends(told: Spread) -> str:
    if told.ends is None or told.num_runs == 1:
        return f"{told.value:.1f}"
    return f"{told.value:.1f} ({told.ends[0]:.1f} to {told.ends[1]:.1f})"
