"""What a person sees while a run goes on: a live line for the current stage, and one that stays when it is done.

In a terminal the current stage has a bar with rate and time left; elsewhere (a log file, a job) the same facts
come as plain lines, at most one every `PLAIN_EVERY_S` seconds. What the libraries of the actors print is not shown
here: each actor writes to a log file of its own in the run folder.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from csr_ray.stages.view import Progress

PLAIN_EVERY_S = 15.0


class UnattendedConsole(Console):
    """Where nobody reads any more, as behind `| head`, it falls silent; a run is not to end for that."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # for what is printed without a console
        os.close(nowhere)


class ConsoleView:
    """The `csr_ray.stages.view.View` for a terminal or a log."""

    def __init__(self, *, num_rounds: int, console: Console | None = None) -> None:
        self._console = console or UnattendedConsole(highlight=False)
        self._num_rounds = num_rounds
        self._live = self._console.is_terminal

    def say(self, line: str, *, is_warning: bool = False) -> None:
        self._console.print(f"  {line}", soft_wrap=True, markup=False, style="yellow" if is_warning else None)

    def metrics(self, *, version: int, metrics: dict[str, float]) -> None:
        shown = {
            "hallucinating answers": metrics.get("chair_s"),
            "recall": metrics.get("recall"),
            "yes/no accuracy": metrics.get("pope_acc"),
        }
        text = ", ".join(f"{name} {100 * value:.1f} %" for name, value in shown.items() if value is not None)
        self._console.print(f"  [bold]policy version {version}[/bold]: {text}", soft_wrap=True)

    @contextlib.contextmanager
    def stage(self, name: str, *, total: int | None, unit: str, round_index: int | None) -> Iterator[Progress]:
        label = (
            name if round_index is None or round_index < 0 else f"round {round_index + 1}/{self._num_rounds} {name}"
        )
        if self._live:
            with self._live_stage(label, total=total, unit=unit) as stage:
                yield stage
        else:
            with self._plain_stage(label, total=total, unit=unit) as stage:
                yield stage
        figures = stage.figures()
        done = f"{stage.done} {stage.unit} in " if stage.done > 1 else ""
        text = f"{label:<24} {done}{stage.seconds:.1f} s" + (f"  ({figures})" if figures else "")
        mark = "*" if self._console.options.ascii_only else "✓"
        self._console.print(f"[green]{mark}[/green] {escape(text)}", soft_wrap=True)

    @contextlib.contextmanager
    def _live_stage(self, label: str, *, total: int | None, unit: str) -> Iterator[Progress]:
        progress = Bar(
            SpinnerColumn(),
            TextColumn("{task.description:<24}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:.0f}/{task.fields[shown_total]} " + unit, markup=False),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[figures]}", style="dim", markup=False),
            console=self._console,
            transient=True,
            refresh_per_second=5,
        )
        with progress:
            task: TaskID = progress.add_task(
                label, total=total, figures="", shown_total="?" if total is None else str(total)
            )

            def show(stage: Progress) -> None:
                progress.update(
                    task,
                    completed=stage.done,
                    total=stage.total,
                    figures=stage.figures(),
                    shown_total="?" if stage.total is None else str(stage.total),
                )

            yield Progress(name=label, unit=unit, total=total, on_change=show)

    @contextlib.contextmanager
    def _plain_stage(self, label: str, *, total: int | None, unit: str) -> Iterator[Progress]:
        last_s = time.perf_counter()

        def show(stage: Progress) -> None:
            nonlocal last_s
            now_s = time.perf_counter()
            if now_s - last_s >= PLAIN_EVERY_S:
                last_s = now_s
                total = "?" if stage.total is None else str(stage.total)
                figures = f", {shown}" if (shown := stage.figures()) else ""
                self.say(f"{label}: {stage.done}/{total} {unit}{figures}")

        yield Progress(name=label, unit=unit, total=total, on_change=show)
