"""The page's charts as inline SVG, drawn here so that the page needs no plotting library and no network.

Colours are CSS classes (the template's style sheet has a light and a dark value for each); sizes are in the SVG's own
units, and the page scales a chart down to its column. Legends are the template's job. Every label is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

LABEL_GAP = 15.0
MIN_LABELLED_WIDTH = 50.0


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart: its values by x position (None where not measured) and its CSS class.

    Attributes:
        bands: ends of the values' intervals by x position; None where they are not known.
    """

    label: str
    style: str
    values: tuple[float | None, ...]
    bands: tuple[tuple[float, float] | None, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The plotting area of a chart and its linear scales; y grows upwards."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        share = (value - self.x_low) / ((self.x_high - self.x_low) or 1.0)
        return self.left + share * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        share = (value - self.y_low) / ((self.y_high - self.y_low) or 1.0)
        return self.height - self.bottom - share * (self.height - self.top - self.bottom)


def nice_ticks(low: float, *, high: float, num: int) -> list[float]:
    """About `num` round values from at most `low` to at least `high`."""
    if not high > low:
        high = low + 1.0
    raw = (high - low) / max(1, num)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * magnitude >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def line_chart(lines: Sequence[Line], *, x_labels: Sequence[str], x_title: str, width: int, title: str) -> Markup:
    """Shares (fractions in 0..1) by round, the axis always from 0 % to 100 % so that a small change looks small."""
    frame = Frame(
        width=width, height=320 if width > 500 else 280, left=46, right=52, top=14, bottom=46,
        x_low=0, x_high=max(1, len(x_labels) - 1), y_low=0.0, y_high=1.0,
    )  # fmt: skip
    parts = [_y_axis(frame, ticks=[0, 0.25, 0.5, 0.75, 1.0], show=lambda value: f"{100 * value:.0f} %")]
    every = math.ceil(len(x_labels) / (12 if width > 500 else 6))
    for position, label in enumerate(x_labels):
        if position % every == 0:
            x, y = frame.x(position), frame.height - frame.bottom + 19
            parts.append(_text(x, y, label, style="tick", anchor="middle"))
    parts.append(_text(_middle(frame), frame.height - 6, x_title, style="axis", anchor="middle"))
    for line in lines:
        parts += _band(line, frame=frame)
    for line in lines:
        parts += _line(line, frame=frame, x_labels=x_labels)
    parts += _end_labels(lines, frame=frame)
    return _svg(parts, width=width, height=frame.height, title=title)


def step_chart(
    lines: Sequence[tuple[str, str, Sequence[tuple[float, float]]]],
    *,
    x_title: str,
    title: str,
    level: float | None = None,
    show: Callable[[float], str] = lambda value: f"{value:g}",
) -> Markup:
    """Lines over a count of steps, from 0 on; a dashed line at `level`.

    Args:
        lines: of each its label, its CSS class, and its points (step, value).
        show: a value in words.
    """
    points = [point for _, _, of_line in lines for point in of_line]
    values = [value for _, value in points] + ([] if level is None else [level])
    y_ticks = nice_ticks(min([0.0, *values]), high=max([0.0, *values]), num=4)
    frame = Frame(
        width=380, height=220, left=48, right=12, top=10, bottom=44,
        x_low=0, x_high=max([1.0, *(step for step, _ in points)]), y_low=y_ticks[0], y_high=y_ticks[-1],
    )  # fmt: skip
    parts = [_y_axis(frame, ticks=y_ticks, show=show), *_x_ticks(frame, title=x_title)]
    if level is not None:
        height = frame.y(level)
        parts.append(f'<path class="median" d="M{frame.left} {height:.1f}H{frame.width - frame.right}"/>')
    for label, style, of_line in lines:
        places = [(frame.x(step), frame.y(value)) for step, value in of_line]
        path = "".join(f"{'ML'[position > 0]}{x:.1f} {y:.1f}" for position, (x, y) in enumerate(places))
        parts.append(f'<path class="line {style}" d="{path}"/>')
        for (x, y), (step, value) in zip(places, of_line, strict=True):
            hint = escape(f"{label}, step {step:g}: {show(value)}")
            place = f'cx="{x:.1f}" cy="{y:.1f}" r="3"'
            parts.append(f'<circle class="dot {style}" {place}><title>{hint}</title></circle>')
    return _svg(parts, width=frame.width, height=frame.height, title=title)


def histogram(
    chosen: np.ndarray, *, rejected: np.ndarray, edges: np.ndarray, y_max: float, x_title: str, title: str
) -> Markup:
    """Two step outlines over shared bins; y is the share of pairs, up to `y_max` (a fraction)."""
    frame = Frame(
        width=380, height=220, left=42, right=12, top=10, bottom=44,
        x_low=float(edges[0]), x_high=float(edges[-1]), y_low=0.0, y_high=y_max,
    )  # fmt: skip
    ticks = [tick for tick in nice_ticks(0.0, high=100 * y_max, num=3) if tick <= 100 * y_max * 1.001]
    parts = [_y_axis(frame, ticks=[tick / 100 for tick in ticks], show=lambda value: f"{100 * value:g} %")]
    parts += _x_ticks(frame, title=x_title)
    for values, style in ((rejected, "rejected"), (chosen, "chosen")):
        if not np.isfinite(values).any():
            continue  # answers that are imitated have no others beside them
        shares = shares_by_bin(values, edges=edges)
        base = frame.y(0.0)
        steps = [f"M{frame.x(edges[0]):.1f} {base:.1f}"]
        for share, right in zip(shares, edges[1:], strict=True):
            steps.append(f"V{frame.y(share):.1f}H{frame.x(right):.1f}")
        parts.append(f'<path class="area {style}" d="{"".join(steps)}V{base:.1f}Z"/>')
        finite = values[np.isfinite(values)]
        if len(finite):
            x = frame.x(float(np.clip(np.median(finite), edges[0], edges[-1])))
            parts.append(f'<path class="median {style}" d="M{x:.1f} {frame.top}V{base:.1f}"/>')
    return _svg(parts, width=frame.width, height=frame.height, title=title)


def shares_by_bin(values: np.ndarray, *, edges: np.ndarray) -> np.ndarray:
    """Share of the finite `values` [n] in each bin [len(edges) - 1]; those beyond the ends count in the end bins."""
    finite = values[np.isfinite(values)]
    counts, _ = np.histogram(np.clip(finite, edges[0], edges[-1]), bins=edges)
    return counts / max(1, len(finite))


def heat_map(x: np.ndarray, *, y: np.ndarray, width: int, title: str) -> tuple[Markup, int]:
    """Density of image scores `x` and self scores `y` [n] on a grid (log scale), and the fullest cell's count."""
    x_ticks = nice_ticks(float(np.percentile(x, 0.1)), high=float(np.percentile(x, 99.9)), num=5)
    y_ticks = nice_ticks(float(np.percentile(y, 0.1)), high=float(np.percentile(y, 99.9)), num=5)
    frame = Frame(
        width=width, height=360 if width > 500 else 290, left=54, right=12, top=12, bottom=46,
        x_low=x_ticks[0], x_high=x_ticks[-1], y_low=y_ticks[0], y_high=y_ticks[-1],
    )  # fmt: skip
    x_edges = np.linspace(frame.x_low, frame.x_high, 57)
    y_edges = np.linspace(frame.y_low, frame.y_high, 31)
    inside_x, inside_y = np.clip(x, frame.x_low, frame.x_high), np.clip(y, frame.y_low, frame.y_high)
    counts, _, _ = np.histogram2d(inside_x, inside_y, bins=(x_edges, y_edges))
    most = int(counts.max())
    parts = [_y_axis(frame, ticks=y_ticks, show=_plain), *_x_ticks(frame, title="image score (CLIP)")]
    parts.append(_text(14, _centre(frame), "self score (policy)", style="axis", anchor="middle", turned=True))
    cell_w, cell_h = frame.x(x_edges[1]) - frame.x(x_edges[0]), frame.y(y_edges[0]) - frame.y(y_edges[1])
    for column, row in zip(*np.nonzero(counts), strict=True):
        count = int(counts[column, row])
        strength = 0.12 + 0.88 * (math.log1p(count) / math.log1p(most))
        parts.append(
            f'<rect class="heat" x="{frame.x(x_edges[column]):.1f}" y="{frame.y(y_edges[row + 1]):.1f}" '
            f'width="{cell_w + 0.2:.1f}" height="{cell_h + 0.2:.1f}" fill-opacity="{strength:.2f}"/>'
        )
    return _svg(parts, width=frame.width, height=frame.height, title=title), most


def stacked_bars(
    rows: Sequence[tuple[str, Mapping[str, float]]], *, names: Mapping[str, str], width: int, title: str
) -> Markup:
    """Seconds by stage, a horizontal bar a row. `names` maps a stage's key to its label; classes are `stage-KEY`."""
    bar_h, gap = (26.0, 12.0) if len(rows) <= 12 else (12.0, 4.0)
    top, bottom = 6.0, 46.0
    longest = max((sum(stages.values()) for _, stages in rows), default=0.0) or 1.0
    unit_s, unit = (3600.0, "h") if longest >= 3 * 3600 else (60.0, "min") if longest >= 300 else (1.0, "s")
    ticks = nice_ticks(0.0, high=longest / unit_s, num=6 if width > 500 else 3)
    frame = Frame(
        width=width, height=top + bottom + len(rows) * (bar_h + gap), left=64, right=64, top=top, bottom=bottom,
        x_low=0.0, x_high=ticks[-1] * unit_s, y_low=0.0, y_high=1.0,
    )  # fmt: skip
    parts = []
    for tick in ticks:
        x = frame.x(tick * unit_s)
        parts.append(f'<path class="grid" d="M{x:.1f} {top}V{frame.height - bottom:.1f}"/>')
        parts.append(_text(x, frame.height - bottom + 18, _plain(tick), style="tick", anchor="middle"))
    parts.append(_text(_middle(frame), frame.height - 6, f"wall time ({unit})", style="axis", anchor="middle"))
    for position, (label, stages) in enumerate(rows):
        y = top + gap / 2 + position * (bar_h + gap)
        parts.append(_text(frame.left - 8, y + bar_h / 2 + 4, label, style="tick", anchor="end"))
        parts += _bar(stages, names=names, frame=frame, y=y, height=bar_h, label=label)
        end = frame.x(sum(stages.values()))
        parts.append(_text(end + 7, y + bar_h / 2 + 4, duration(sum(stages.values())), style="value"))
    return _svg(parts, width=width, height=frame.height, title=title)


def sparkline(values: Sequence[float | None]) -> Markup:
    """A small line without axes, scaled to its own range; nothing for fewer than two values."""
    known = [(position, value) for position, value in enumerate(values) if value is not None]
    if len(known) < 2:
        return Markup("")
    low, high = min(value for _, value in known), max(value for _, value in known)
    points = []
    for position, value in known:
        x = 4 + 112 * position / (len(values) - 1)
        y = 14.0 if high == low else 24 - 20 * (value - low) / (high - low)
        points.append((x, y))
    path = " ".join(f"{'ML'[i > 0]}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(points))
    end = f'<circle cx="{points[-1][0]:.1f}" cy="{points[-1][1]:.1f}" r="3"/>'
    return Markup(f'<svg class="spark" viewBox="0 0 120 28" aria-hidden="true"><path d="{path}"/>{end}</svg>')


def size_in_words(num_bytes: float) -> str:
    """A number of bytes as people read it: 812 B, 38.1 KiB, 1.25 GiB."""
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:,.0f} {unit}" if unit == "B" else f"{num_bytes:,.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:,.2f} GiB"


def duration(seconds: float) -> str:
    """Seconds as people read them: 8.4 s, 95 s, 12.5 min, 3.2 h."""
    if seconds >= 3 * 3600:
        return f"{seconds / 3600:.1f} h"
    if seconds >= 300:
        return f"{seconds / 60:.1f} min"
    return f"{seconds:.1f} s" if seconds < 20 else f"{seconds:.0f} s"


def _band(line: Line, *, frame: Frame) -> list[str]:
    """The area between the ends of the intervals."""
    known = [(position, ends) for position, ends in enumerate(line.bands) if ends is not None]
    if len(known) < 2:
        return []
    high = [f"{frame.x(position):.1f} {frame.y(ends[1]):.1f}" for position, ends in known]
    low = [f"{frame.x(position):.1f} {frame.y(ends[0]):.1f}" for position, ends in reversed(known)]
    return [f'<path class="band {line.style}" d="M{"L".join([*high, *low])}Z"/>']


def _line(line: Line, *, frame: Frame, x_labels: Sequence[str]) -> list[str]:
    parts, path, pen_down = [], [], False
    for position, value in enumerate(line.values):
        if value is None:
            pen_down = False
            continue
        x, y = frame.x(position), frame.y(value)
        path.append(f"{'L' if pen_down else 'M'}{x:.1f} {y:.1f}")
        pen_down = True
        ends = line.bands[position] if position < len(line.bands) else None
        sure = "" if ends is None else f" (95 % interval {100 * ends[0]:.1f} to {100 * ends[1]:.1f})"
        hint = escape(f"{line.label}, {x_labels[position]}: {100 * value:.1f} %{sure}")
        place = f'cx="{x:.1f}" cy="{y:.1f}" r="4"'
        parts.append(f'<circle class="dot {line.style}" {place}><title>{hint}</title></circle>')
    return [f'<path class="line {line.style}" d="{"".join(path)}"/>', *parts] if path else []


def _end_labels(lines: Sequence[Line], *, frame: Frame) -> list[str]:
    ends: list[tuple[float, float, str, str]] = []
    for line in lines:
        known = [(position, value) for position, value in enumerate(line.values) if value is not None]
        if known:
            position, value = known[-1]
            ends.append((frame.y(value), frame.x(position) + 9, f"{100 * value:.1f} %", line.style))
    ends.sort()
    heights = spread_labels([end[0] for end in ends], low=frame.top, high=frame.height - frame.bottom)
    placed = zip(heights, ends, strict=True)
    return [_text(x, y + 4, text, style=f"value {style}") for y, (_, x, text, style) in placed]


def spread_labels(wanted: Sequence[float], *, low: float, high: float) -> list[float]:
    """Heights near `wanted` (ascending) that keep `LABEL_GAP` between labels, within low..high if they fit."""
    heights: list[float] = []
    for height in wanted:
        heights.append(max(height, low if not heights else heights[-1] + LABEL_GAP))
    ceiling = high
    for position in range(len(heights) - 1, -1, -1):
        heights[position] = min(heights[position], ceiling)
        ceiling = heights[position] - LABEL_GAP
    return heights


def _bar(
    stages: Mapping[str, float], *, names: Mapping[str, str], frame: Frame, y: float, height: float, label: str
) -> list[str]:
    parts, start = [], 0.0
    total = sum(stages.values()) or 1.0
    for key, seconds in stages.items():
        x, width = frame.x(start), frame.x(start + seconds) - frame.x(start)
        start += seconds
        style = f"stage-{key}" if key in names else "stage-other"
        hint = escape(f"{label}, {names.get(key, key)}: {duration(seconds)} ({100 * seconds / total:.0f} %)")
        parts.append(
            f'<rect class="segment {style}" x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{height}">'
            f"<title>{hint}</title></rect>"
        )
        if width > MIN_LABELLED_WIDTH and height > 20:
            parts.append(_text(x + 8, y + height / 2 + 4, duration(seconds), style=f"on {style}"))
    return parts


def _y_axis(frame: Frame, *, ticks: Sequence[float], show: Callable[[float], str]) -> str:
    parts = []
    for tick in ticks:
        y = frame.y(tick)
        style = "zero" if tick == ticks[0] else "grid"
        parts.append(f'<path class="{style}" d="M{frame.left} {y:.1f}H{frame.width - frame.right}"/>')
        parts.append(_text(frame.left - 8, y + 4, show(tick), style="tick", anchor="end"))
    return "".join(parts)


def _x_ticks(frame: Frame, *, title: str) -> list[str]:
    ticks = nice_ticks(frame.x_low, high=frame.x_high, num=5)
    inside = [tick for tick in ticks if frame.x_low - 1e-9 <= tick <= frame.x_high + 1e-9]
    y = frame.height - frame.bottom + 18
    labels = [_text(frame.x(tick), y, _plain(tick), style="tick", anchor="middle") for tick in inside]
    return [*labels, _text(_middle(frame), frame.height - 6, title, style="axis", anchor="middle")]


def _text(x: float, y: float, text: str, *, style: str, anchor: str = "start", turned: bool = False) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turn}>{escape(text)}</text>'


def _middle(frame: Frame) -> float:
    return (frame.left + frame.width - frame.right) / 2


def _centre(frame: Frame) -> float:
    return (frame.top + frame.height - frame.bottom) / 2


def _plain(value: float) -> str:
    return f"{value:g}"


def _svg(parts: Sequence[str], *, width: float, height: float, title: str) -> Markup:
    head = f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}">'
    return Markup(f"{head}{''.join(parts)}</svg>")
