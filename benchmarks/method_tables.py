"""The arithmetic, the table and the plot of `bench_methods.py`: what every method comes to on one rollout budget."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from variant_tables import markdown

from csr_ray.records import JsonDict

# Student's t: by how many standard errors the mean of 2, 3, ... runs may be off in 95 of 100 cases. A bootstrap over
# so few never leaves their range, which holds the mean of all worlds in three of four cases only.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
_NOTHING = "–"
BASE = "base"


@dataclass(frozen=True, kw_only=True)
class MethodFigures:
    """What one run came to, or the base model that it began with.

    Attributes:
        rates: rates in percent and sentences an answer, by the names of the columns; None where not measured.
        tokens: that all rollouts generated.
        judge_tokens: that a judge at an endpoint read and wrote.
        train_s: seconds in which the trainer trained, over all rounds.
        eval_s: seconds that the last evaluation took; None where nobody wrote them down.
        ended: why the run ended before its last round; empty: it did not.
        told: what the method says of its judge, by name: how often it was so, and out of how many times.
    """

    rates: Mapping[str, float | None]
    tokens: float = 0.0
    judge_tokens: float = 0.0
    train_s: float = 0.0
    eval_s: float | None = None
    ended: str = ""
    told: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MethodRun:
    """One run of a row of the table: its figures, or the line that says why it has none."""

    row: str
    seed: int
    figures: MethodFigures | None
    fault: str = ""


@dataclass(frozen=True)
class _Column:
    title: str
    of: Callable[[MethodFigures], float | None]
    digits: int = 1

    @property
    def most(self) -> float:
        """The largest value that a mean can have."""
        return 100.0 if self.title.endswith("%") else math.inf


def _rate(name: str) -> Callable[[MethodFigures], float | None]:
    return lambda figures: figures.rates.get(name)


_COLUMNS = {
    "chair_s": _Column("CHAIR_s, %", _rate("chair_s")),
    "chair_s_t1": _Column("at T = 1, %", _rate("chair_s_t1")),
    "recall": _Column("recall, %", _rate("recall")),
    "recall_t1": _Column("at T = 1, %", _rate("recall_t1")),
    "repeat": _Column("repeats, %", _rate("repeat")),
    "pope_acc": _Column("yes/no right, %", _rate("pope_acc")),
    "sentences": _Column("sentences an answer", _rate("sentences"), 2),
    "tokens": _Column("generated tokens, thousands", lambda figures: figures.tokens / 1e3, 0),
    "judge_tokens": _Column("judge's tokens, thousands", lambda figures: figures.judge_tokens / 1e3, 0),
    "train_s": _Column("training, s", lambda figures: figures.train_s, 0),
    "eval_s": _Column("last evaluation, s", lambda figures: figures.eval_s, 0),
}
_PERCENT = ("chair_s", "chair_s_t1", "recall", "recall_t1", "repeat", "pope_acc")


def figures_of(summary: JsonDict) -> tuple[MethodFigures, MethodFigures]:
    """The figures of the base model and of the last policy of a finished run.

    Raises:
        ValueError: the run is not finished, or was not evaluated on the embedded world.
    """
    if not summary.get("finished"):
        raise ValueError("the run is not finished")
    base, rounds = summary["base"]["eval"], summary["rounds"]
    if not base or base.get("chair_s") is None:
        raise ValueError("its evaluation has no chair_s; eval.benchmarks has to name world")
    ended = summary.get("ended")
    if ended and ended["version"] and not ended.get("eval"):
        raise ValueError("it ended early, and was made by a csr_ray that does not measure what is left of such a run")
    last = next((entry["eval"] for entry in reversed(rounds) if entry["eval"]), base)
    if ended:
        last = ended["eval"] if ended["version"] else base
    seconds = {int(version): value for version, value in (summary.get("eval_seconds") or {}).items()}
    told: dict[str, tuple[int, int]] = {}
    for entry in rounds:
        for name, rate in ((entry.get("pairs") or {}).get("rates") or {}).items():
            hits, of = told.get(name, (0, 0))
            told[name] = (hits + rate["hits"], of + rate["of"])
    after = MethodFigures(
        rates=_rates(last),
        tokens=float((summary.get("cost") or {}).get("tokens") or 0),  # those of a round that was refused, too
        judge_tokens=_judge_tokens(summary),
        train_s=float(sum((entry["train"] or {}).get("seconds") or 0 for entry in rounds)),
        eval_s=seconds.get(max(seconds)) if seconds else None,
        ended=str(ended["reason"]) if ended else "",
        told=told,
    )
    return MethodFigures(rates=_rates(base), eval_s=seconds.get(0)), after


def _rates(entry: Mapping[str, Any]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name in (*_PERCENT, "sentences"):
        value = entry.get(name)
        found[name] = None if value is None else float(value) * (100.0 if name in _PERCENT else 1.0)
    return found


def _judge_tokens(summary: JsonDict) -> float:
    """What a judge at an endpoint has read and written; other judges are the policy, a rule or a file."""
    spent = (summary.get("cost") or {}).get("judge") or {}
    return float(spent.get("input_tokens", 0) + spent.get("output_tokens", 0))


def method_table(runs: Sequence[MethodRun]) -> str:
    """A Markdown row a method, means over its seeds with 95 % intervals, and one for each run without figures."""
    rows: list[Sequence[str]] = [("method", "runs", *(column.title for column in _COLUMNS.values()), "")]
    bases = {run.seed: run.figures.rates for run in runs if run.row == BASE and run.figures is not None}
    for name, of_row in by_row(runs).items():
        done = [run.figures for run in of_row if run.figures is not None]
        told = [_told(column, done) for column in _COLUMNS.values()]
        ended = [figures.ended for figures in done if figures.ended]
        notes = [f"{len(ended)} ended early: {ended[0]}"] if ended else []
        same = sum(
            name != BASE and run.figures is not None and run.figures.rates == bases.get(run.seed) for run in of_row
        )
        note = "; ".join([*notes, *([f"{same} with the base's policy"] if same else [])])
        rows.append((name, f"{len(done)} of {len(of_row)}", *told, note))
        rows += [
            (f"{name}, seed {run.seed}", run.fault, *[""] * (len(rows[0]) - 2))
            for run in of_row
            if run.figures is None
        ]
    return markdown(rows)


def judge_table(runs: Sequence[MethodRun]) -> str:
    """What every method says of its judge, over all its runs: a Markdown row for each rate."""
    rows: list[Sequence[str]] = [("method", "rate", "so often", "of", "%")]
    for name, of_row in by_row(runs).items():
        sums: dict[str, tuple[int, int]] = {}
        for run in of_row:
            for rate, (hits, of) in (run.figures.told if run.figures else {}).items():
                known = sums.get(rate, (0, 0))
                sums[rate] = (known[0] + hits, known[1] + of)
        rows += [
            (name, rate, f"{hits:,}", f"{of:,}", f"{100 * hits / of:.1f}" if of else _NOTHING)
            for rate, (hits, of) in sorted(sums.items())
        ]
    return markdown(rows)


def _told(column: _Column, done: Sequence[MethodFigures]) -> str:
    values = [value for figures in done if (value := column.of(figures)) is not None]
    if not values:
        return _NOTHING
    shown = f"{statistics.mean(values):,.{column.digits}f}"
    ends = _interval(values, most=column.most)
    return shown if ends is None else f"{shown} ({ends[0]:,.{column.digits}f} to {ends[1]:,.{column.digits}f})"


def _interval(values: Sequence[float], *, most: float) -> tuple[float, float] | None:
    """Student's 95 % interval of the mean over runs, cut at 0 and at `most`; None: there is one, or all are alike."""
    if len(set(values)) == 1:
        return None
    freedom = len(values) - 1
    wide = _STUDENT[min(freedom, len(_STUDENT)) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.mean(values)
    return max(0.0, mean - wide), min(most, mean + wide)


def by_row(runs: Sequence[MethodRun]) -> dict[str, list[MethodRun]]:
    """The runs of every row, in order of appearance."""
    names = dict.fromkeys(run.row for run in runs)
    return {name: [run for run in runs if run.row == name] for name in names}


def rows_of(runs: Sequence[MethodRun]) -> list[dict[str, Any]]:
    """The rows of the benchmark's result: NAME/figure, a mean over the seeds with its interval."""
    found: list[dict[str, Any]] = []
    for name, of_row in by_row(runs).items():
        done = [run.figures for run in of_row if run.figures is not None]
        for key, column in _COLUMNS.items():
            values = [value for figures in done if (value := column.of(figures)) is not None]
            if values:
                low, high = _interval(values, most=column.most) or (None, None)
                unit = "%" if key in _PERCENT else "s" if key in ("train_s", "eval_s") else key
                scale = 1e3 if key in ("tokens", "judge_tokens") else 1.0
                row = {"name": f"{name}/{key}", "value": scale * statistics.mean(values), "unit": unit}
                ends = {"low": low and scale * low, "high": high and scale * high}
                found.append({**row, **ends, "num_runs": len(values)})
    return found


def plot(runs: Sequence[MethodRun]) -> str:
    """Hallucination against recall as an SVG: a cross a method, whose arms are the 95 % intervals over its seeds."""
    points = []
    for name, of_row in by_row(runs).items():
        done = [run.figures.rates for run in of_row if run.figures is not None]
        x = [value for rates in done if (value := rates.get("chair_s")) is not None]
        y = [value for rates in done if (value := rates.get("recall")) is not None]
        if x and y:
            points.append((name, x, y))
    width, height, left, right, top, bottom = 900, 560, 60, 190, 20, 50
    most = max([10.0, *(value for _, x, _ in points for value in x)]) * 1.05
    least = min([95.0, *(value for _, _, y in points for value in y)]) - 1.0

    def at_x(value: float) -> float:
        return left + value / most * (width - left - right)

    def at_y(value: float) -> float:
        return top + (100.0 - value) / (100.0 - least) * (height - top - bottom)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12" role="img" aria-label="CHAIR_s against recall by method">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for tick in range(0, int(most) + 1, 10):
        parts.append(f'<path d="M{at_x(tick):.1f} {top}V{height - bottom}" stroke="#ddd"/>')
        parts.append(f'<text x="{at_x(tick):.1f}" y="{height - bottom + 18}" text-anchor="middle">{tick} %</text>')
    for tick in range(-(-int(least) // 5) * 5, 101, 5):
        parts.append(f'<path d="M{left} {at_y(tick):.1f}H{width - right}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{at_y(tick) + 4:.1f}" text-anchor="end">{tick} %</text>')
    parts.append(
        f'<text x="{(left + width - right) / 2}" y="{height - 10}" text-anchor="middle">'
        "answers that name something absent (CHAIR_s, greedy)</text>"
    )
    parts.append(f'<text x="{left}" y="{top - 6}">recall (greedy)</text>')
    labels = []
    for position, (name, x, y) in enumerate(points):
        colour = f"hsl({position * 137 % 360} 70% 38%)"
        centre = at_x(statistics.mean(x)), at_y(statistics.mean(y))
        for ends, is_x in ((_interval(x, most=100.0), True), (_interval(y, most=100.0), False)):
            if ends is None:
                continue
            if is_x:
                ends = ends[0], min(most, ends[1])
            else:
                ends = max(least, ends[0]), ends[1]
            first, last = (at_x(end) if is_x else at_y(end) for end in ends)
            path = f"M{first:.1f} {centre[1]:.1f}H{last:.1f}" if is_x else f"M{centre[0]:.1f} {first:.1f}V{last:.1f}"
            parts.append(f'<path d="{path}" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(f'<circle cx="{centre[0]:.1f}" cy="{centre[1]:.1f}" r="4" fill="{colour}"/>')
        labels.append((centre[1], centre[0], name, colour))
    parts += _labels(labels, x=width - right + 12, low=top + 8, high=height - bottom)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _labels(labels: list[tuple[float, float, str, str]], *, x: float, low: float, high: float) -> list[str]:
    """A name beside the plot for each point, in the points' order of height, and a thin line to it."""
    gap = min(16.0, (high - low) / max(1, len(labels)))
    parts: list[str] = []
    place = low
    for y, point_x, name, colour in sorted(labels):
        place = max(place, min(y, high - gap * (len(labels) - len(parts) // 2)))
        parts.append(f'<path d="M{point_x:.1f} {y:.1f}L{x - 4} {place:.1f}" stroke="{colour}" stroke-width="0.5"/>')
        parts.append(f'<text x="{x}" y="{place + 4:.1f}" fill="{colour}">{escape(name)}</text>')
        place += gap
    return parts
