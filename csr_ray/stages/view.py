"""How the stages tell whoever watches how far they are, how fast they go, and what came out.

The stages call a `View`; `csr_ray.app.console` has the one for a terminal. Knows nothing of terminals or pages.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol


class View(Protocol):
    """What the stages call."""

    def stage(
        self, name: str, *, total: int | None, unit: str, round_index: int | None
    ) -> contextlib.AbstractContextManager[Progress]: ...

    def say(self, line: str, *, is_warning: bool = False) -> None:
        """Show a line as it is. It may hold anything: file names, an error's own words."""
        ...

    def watch(self, health: Callable[[], str]) -> None:
        """Ask for a few words on who serves and who is waited for, from any thread, whenever they are shown."""
        ...

    def metrics(self, *, version: int, metrics: dict[str, float]) -> None: ...


@dataclass
class Progress:
    """Progress of one stage.

    Attributes:
        unit: what `done` and `total` count, in the plural; `total` is None while it is not known.
        on_change: called at every change; the view decides what it shows.
        note: more to show beside the rates while the stage goes on.
        details: gives what is to be shown in lines of their own while the stage goes on; called in any thread.
    """

    name: str
    unit: str
    total: int | None
    on_change: Callable[[Progress], None]
    done: int = 0
    tokens: int = 0
    loss: float | None = None
    note: str = ""
    details: Callable[[], Sequence[str]] = tuple
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
