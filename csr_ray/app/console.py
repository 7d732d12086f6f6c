"""What a person sees while a run goes on: a live line for the current stage, and one that stays when it is done.

In a terminal the current stage has a bar with rate and time left; elsewhere (a log file, a job) the same facts come
as a plain line every minute, also while nothing moves, with the time of day and with who serves and who is waited
for. What the libraries of the actors print is not shown
here: each actor writes to a log file of its own in the run folder.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from csr_ray.stages.view import Progress

PLAIN_EVERY_S = 60.0


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
        self._health: Callable[[], str] = str

    def watch(self, health: Callable[[], str]) -> None:
        self._health = health

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
        changed_s = time.perf_counter()

        def note(_: Progress) -> None:
            nonlocal changed_s
            changed_s = time.perf_counter()

        stage = Progress(name=label, unit=unit, total=total, on_change=note)
        is_over = threading.Event()

        def tell() -> None:
            while not is_over.wait(PLAIN_EVERY_S):
                line = status_line(stage, silent_s=time.perf_counter() - changed_s, health=self._health())
                self.say(f"{time.strftime('%H:%M:%S')} {line}")

        teller = threading.Thread(target=tell, name="status lines", daemon=True)
        teller.start()
        try:
            yield stage
        finally:
            is_over.set()
            teller.join()


def status_line(stage: Progress, *, silent_s: float, health: str) -> str:
    """How far a stage is, how fast it goes, how long it will take, and whether it stands still.

    Args:
        silent_s: for how long nothing has come of it, in seconds.
        health: who serves and who is waited for, in words; empty if there is nobody yet.
    """
    total = "?" if stage.total is None else str(stage.total)
    parts = [f"{stage.name}: {stage.done}/{total} {stage.unit}" if stage.unit else f"{stage.name}: "]
    if not stage.unit:
        parts[0] += f"for {duration(stage.seconds)}"
    if figures := stage.figures():
        parts.append(figures)
    if stage.total and stage.done:
        parts.append(f"about {duration(stage.seconds / stage.done * (stage.total - stage.done))} left")
    if stage.unit and silent_s >= PLAIN_EVERY_S:
        parts.append(f"nothing new for {duration(silent_s)}")
    return ", ".join(parts) + (f"; {health}" if health else "")


def duration(seconds: float) -> str:
    """A time span for a person, to two units at most."""
    whole = round(seconds)
    days, hours, minutes = whole // 86400, whole % 86400 // 3600, whole % 3600 // 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
