"""What a person sees while a run goes on: a live line a stage, and a line that stays when it is done.

In a terminal the current stage has a bar with rate and time left; elsewhere (a log file, a job) the same facts
come as plain lines, at most one every `PLAIN_EVERY_S` seconds. The chatter of the machinery is not here: each actor
writes to its own file under the run folder.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn

PLAIN_EVERY_S = 15.0


class View(Protocol):
    """What the stages call."""

    def stage(
        self, name: str, *, total: int | None, unit: str, round_index: int | None
    ) -> contextlib.AbstractContextManager[Stage]: ...

    def say(self, line: str) -> None: ...

    def metrics(self, *, version: int, metrics: dict[str, float]) -> None: ...


@dataclass
class Stage:
    """Progress of one stage. `on_change` is called at every change; the view decides what to show.

    `note` is more to show beside the rates, as long as it goes on.
    """

    name: str
    unit: str
    total: int | None
    on_change: Callable[[Stage], None]
    done: int = 0
    tokens: int = 0
    loss: float | None = None
    note: str = ""
    started_s: float = field(default_factory=time.perf_counter)

    def advance(self, *, tokens: int = 0) -> None:
        self.done += 1
        self.tokens += tokens
        self.on_change(self)

    def set(self, *, done: int, total: int, loss: float | None = None) -> None:
        self.done, self.total, self.loss = done, total, loss
        self.on_change(self)

    @property
    def seconds(self) -> float:
        return max(time.perf_counter() - self.started_s, 1e-9)

    def figures(self) -> str:
        parts = [f"{self.done / self.seconds:.1f} {self.unit}/s"] if self.done > 1 else []
        if self.tokens:
            parts.append(f"{self.tokens / self.seconds:,.0f} tokens/s")
        if self.loss is not None:
            parts.append(f"loss {self.loss:.3f}")
        if self.note:
            parts.append(self.note)
        return ", ".join(parts)


class ConsoleView:
    """The view on a terminal or in a log."""

    def __init__(self, *, num_rounds: int, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._num_rounds = num_rounds
        self._live = self._console.is_terminal

    def say(self, line: str) -> None:
        self._console.print(f"  {line}", soft_wrap=True)

    def metrics(self, *, version: int, metrics: dict[str, float]) -> None:
        shown = {
            "hallucinating answers": metrics.get("chair_s"),
            "recall": metrics.get("recall"),
            "yes/no accuracy": metrics.get("pope_acc"),
        }
        text = ", ".join(f"{name} {100 * value:.1f} %" for name, value in shown.items() if value is not None)
        self.say(f"[bold]policy version {version}[/bold]: {text}")

    @contextlib.contextmanager
    def stage(self, name: str, *, total: int | None, unit: str, round_index: int | None) -> Iterator[Stage]:
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
        self._console.print(
            f"[green]✓[/green] {label:<24} {done}{stage.seconds:.1f} s" + (f"  ({figures})" if figures else ""),
            soft_wrap=True,
        )

    @contextlib.contextmanager
    def _live_stage(self, label: str, *, total: int | None, unit: str) -> Iterator[Stage]:
        progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:.0f}/{task.fields[shown_total]} " + unit),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[figures]}", style="dim"),
            console=self._console,
            transient=True,
            refresh_per_second=5,
        )
        with progress:
            task: TaskID = progress.add_task(
                label, total=total, figures="", shown_total="?" if total is None else str(total)
            )

            def show(stage: Stage) -> None:
                progress.update(
                    task,
                    completed=stage.done,
                    total=stage.total,
                    figures=stage.figures(),
                    shown_total="?" if stage.total is None else str(stage.total),
                )

            yield Stage(name=label, unit=unit, total=total, on_change=show)

    @contextlib.contextmanager
    def _plain_stage(self, label: str, *, total: int | None, unit: str) -> Iterator[Stage]:
        last_s = time.perf_counter()

        def show(stage: Stage) -> None:
            nonlocal last_s
            now_s = time.perf_counter()
            if now_s - last_s >= PLAIN_EVERY_S:
                last_s = now_s
                self._console.print(
                    f"  {label}: {stage.done}/{stage.total if stage.total is not None else '?'} {unit}, "
                    f"{stage.figures()}",
                    soft_wrap=True,
                )

        yield Stage(name=label, unit=unit, total=total, on_change=show)
