"""What an actor records of itself for the trace of a round (`run.trace`), and that it records nothing otherwise."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Final

from actors.process.counters import Counting
from csr_ray.counters import Counters
from csr_ray.metrics import Exporter
from csr_ray.spans import Recorded, Recorder, Span

_LEVEL_EVERY_S: Final = 0.1


class TracedCounting(Counting):
    """Counts as `Counting` does, and records what that tells: how full the engine is, and the scorer's batches."""

    def __init__(self, *, actor: str, exporter: Exporter | None = None) -> None:
        super().__init__(actor=actor, exporter=exporter)
        self._recorder = Recorder()
        self._level_s = 0.0

    @classmethod
    def of(cls, actor: str, *, is_traced: bool, exporter: Exporter | None = None) -> Counting:
        """The counts of an actor, with or without records."""
        return cls(actor=actor, exporter=exporter) if is_traced else Counting(actor=actor, exporter=exporter)

    def add(self, more: Counters) -> None:
        super().add(more)
        now_s = time.time()
        if more.engine_steps and now_s - self._level_s >= _LEVEL_EVERY_S:
            self._level_s = now_s
            values = {"running": more.engine_running, "waiting": more.engine_waiting}
            self._recorder.add(
                Span(kind="level", name="engine", track="engine", begin_s=now_s, end_s=now_s, values=values)
            )
        if more.scorer_batches:
            values = {"sentences": more.scorer_sentences, "requests": more.score_requests}
            begin_s = now_s - more.scorer_s
            self._recorder.add(
                Span(kind="work", name="batch", track="batches", begin_s=begin_s, end_s=now_s, values=values)
            )

    def doing(self, name: str, *, track: str) -> contextlib.AbstractContextManager[None]:
        return self._recorder.doing(name, track=track)

    def in_flight(self, name: str, *, id: str) -> contextlib.AbstractContextManager[None]:
        return self._recorder.doing(name, track=f"{name}s", kind="flight", id=id)

    def spans(self) -> Recorded:
        return self._recorder.take()


@contextlib.contextmanager
def doing(counting: Counting, name: str, *, track: str) -> Iterator[None]:
    """Record the block as a piece of the actor's work, if it is traced."""
    with counting.doing(name, track=track) if isinstance(counting, TracedCounting) else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def in_flight(counting: Counting, name: str, *, id: str) -> Iterator[None]:
    """Record the block as one of many that are under way at once, if the actor is traced."""
    with counting.in_flight(name, id=id) if isinstance(counting, TracedCounting) else contextlib.nullcontext():
        yield


def spans_of(counting: Counting) -> Recorded:
    """What a traced actor has recorded since the last call."""
    assert isinstance(counting, TracedCounting), "asked of an actor that is not traced"
    return counting.spans()
