"""What a person sees while a run goes on: a live line for the current stage, and one that stays when it is done.

In a terminal the current stage has a bar with rate and time left, and below it who does what while the machinery
starts; elsewhere (a log file, a job) the same facts come as a plain line every minute (every half minute of a start),
also while nothing moves, with the time of day and with who serves and who is waited for. What the libraries of the
actors print is not shown here: each actor writes to a log file of its own in the run folder.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from csr_ray.stages.view import Progress

PLAIN_EVERY_S = 60.0
PLAIN_START_EVERY_S = 30.0
_BAR_WIDTH = 30
_RESULT_WIDTH = 140
_ROOM_BESIDE_BAR = 76  # of a line: the spinner, the stage's name, what is counted and the time left


class UnattendedConsole(Console):
    """Where nobody reads any more, as behind `| head`, it falls silent; a run is not to end for that."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # for what is printed without a console
        os.close(nowhere)


def result_console() -> UnattendedConsole:
    """Where a command prints its result: as wide as the terminal, and where there is none as wide as tables like it.

    COLUMNS in the environment says another width. Colours are off where rich says so: without a terminal, and with
    NO_COLOR or TERM=dumb.
    """
    is_told = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal()
    return UnattendedConsole(highlight=False, width=None if is_told else _RESULT_WIDTH)


class _LiveStage(Bar):
    """A stage in a terminal: its bar, and its details in lines below, for as long as the block lasts."""

    def __init__(self, stage: Progress, *, console: Console) -> None:
        self._stage = stage
        self._task: TaskID | None = None
        is_narrow = console.width < 80
        super().__init__(
            SpinnerColumn("line" if console.options.ascii_only else "dots"),
            TextColumn("{task.description}" if is_narrow else "{task.description:<24}", markup=False),
            *([] if is_narrow else [BarColumn(bar_width=min(_BAR_WIDTH, max(8, console.width - _ROOM_BESIDE_BAR)))]),
            TextColumn("{task.fields[counted]}", markup=False),
            TimeRemainingColumn(compact=True),
            *([] if is_narrow else [TextColumn("{task.fields[figures]}", style="dim", markup=False)]),
            console=console,
            transient=True,
            refresh_per_second=5,
        )
        self._task = self.add_task(stage.name, total=stage.total, counted="", figures="")

    def get_renderables(self) -> Iterable[RenderableType]:
        """See rich: what is shown at each refresh."""
        if self._task is None:
            return
        stage = self._stage
        said = counted(stage)
        self.update(self._task, completed=stage.done, total=stage.total, counted=said, figures=stage.figures())
        yield self.make_tasks_table(self.tasks)
        for line in stage.details():
            yield Text(f"    {line}", style="dim", no_wrap=True, overflow="ellipsis")


class ConsoleView:
    """The `csr_ray.stages.view.View` for a terminal or a log."""

    def __init__(self, *, num_rounds: int, console: Console | None = None) -> None:
        self._console = console or UnattendedConsole(highlight=False)
        self._num_rounds = num_rounds
        self._live = self._console.is_terminal and not self._console.is_dumb_terminal
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
        stage = Progress(name=label, unit=unit, total=total, on_change=lambda _: None)
        with _LiveStage(stage, console=self._console):
            yield stage

    @contextlib.contextmanager
    def _plain_stage(self, label: str, *, total: int | None, unit: str) -> Iterator[Progress]:
        changed_s = time.perf_counter()

        def note(_: Progress) -> None:
            nonlocal changed_s
            changed_s = time.perf_counter()

        stage = Progress(name=label, unit=unit, total=total, on_change=note)
        is_over = threading.Event()

        def tell() -> None:
            while not is_over.wait(PLAIN_EVERY_S if unit else PLAIN_START_EVERY_S):
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
        health: who serves and who is waited for, in words; empty if there is nobody yet. A stage's own details, where
            it has any, say more.
    """
    parts = [f"{stage.name}: {counted(stage)}"]
    if figures := stage.figures():
        parts.append(figures)
    if stage.total and stage.done:
        parts.append(f"about {duration(stage.seconds / stage.done * (stage.total - stage.done))} left")
    if stage.unit and silent_s >= PLAIN_EVERY_S:
        parts.append(f"nothing new for {duration(silent_s)}")
    details = "; ".join(stage.details()) or health
    return ", ".join(parts) + (f"; {details}" if details else "")


def counted(stage: Progress) -> str:
    """How far a stage is; of one that counts nothing, for how long it has gone on."""
    if not stage.unit:
        return f"for {duration(stage.seconds)}"
    return f"{stage.done} {stage.unit}" if stage.total is None else f"{stage.done}/{stage.total} {stage.unit}"


def duration(seconds: float) -> str:
    """A time span for a person, to two units at most."""
    whole = round(seconds)
    days, hours, minutes = whole // 86400, whole % 86400 // 3600, whole % 3600 // 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
