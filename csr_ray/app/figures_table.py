"""The figures of one result for the terminal, each with its interval; `eval` and `score-answers` print them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from csr_ray.evaluation.statistics import NUM_RESAMPLES

# Numbers of images or answers, which are whole and no estimates.
_COUNTED = ("num_images", "ungraded", "unrated")


def print_figures(result: Mapping[str, Any], *, console: Console) -> None:
    """Print a line of what was marked, a row a metric, and what the intervals rest on.

    Args:
        result: as the JSON file has it: `benchmark`, `n`, `metrics`, `skipped`, and, where they are known,
            `intervals` and `resampled`.
    """
    metrics: Mapping[str, float] = result["metrics"]
    shown = [name for name in metrics if name != "num_images"]
    intervals: Mapping[str, Any] = result.get("intervals", {})
    first = f", {shown[0]} {metrics[shown[0]]:.4f}" if shown else ""
    skipped = sum(result["skipped"].values())
    line = f"{result['benchmark']}: n {result['n']:,}{first}; skipped {skipped:,}"
    console.print(line, markup=False, soft_wrap=True)
    if "resampled" not in result or not shown:
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False, header_style="dim")
    table.add_column("")
    for heading in ("", "95 %"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in shown:
        is_counted = name in _COUNTED
        ends = intervals.get(name)
        between = "" if is_counted else "–" if ends is None else f"{ends[0]:.4f} to {ends[1]:.4f}"
        table.add_row(name, f"{metrics[name]:,.0f}" if is_counted else f"{metrics[name]:.4f}", between)
    console.print(table)
    unit, num = result["resampled"]["unit"], result["resampled"]["num"]
    note = f"95 % intervals: {NUM_RESAMPLES:,} bootstrap draws of {num:,} {unit}"
    if any(name not in intervals and name not in _COUNTED for name in shown):
        note += f"; –: one of the {unit} that it rests on says nothing of the spread"
    console.print(note, style="dim", soft_wrap=True)
