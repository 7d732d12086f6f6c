"""Sends what a run measures to all its trackers while it goes on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from csr_ray.records import Cycle, JsonDict
from csr_ray.stages.state import RunState
from csr_ray.tracking.base import TrackedRun, makers
from csr_ray.tracking.outlet import Outlet
from csr_ray.tracking.values import Values, tracked_config

_CLOSE_S: Final = 10.0


@contextlib.contextmanager
def tracked(state: RunState, *, say: Callable[[str], None]) -> Iterator[RunState]:
    """The state of a run whose figures are sent to its trackers while the block goes on.

    What the journal has at the beginning goes to a tracker that has not had it. A tracker that fails costs a line,
    and at the end all of them together get ten seconds.
    """
    config = state.config
    values = Values(state.journal, config=config, cycles_of=state.cycles)
    so_far = tuple(values.so_far())
    plain = tracked_config(config)
    outlets = [
        Outlet(
            name,
            make=make,
            run=TrackedRun(name=state.folder.name, config=plain, folder=state.folder.tracker(name)),
            so_far=so_far,
            say=say,
        )
        for name, make in makers(config.run.trackers).items()
    ]
    is_open = True

    def on_line(entry: JsonDict) -> None:
        if is_open and (measured := values.of_line(entry)) is not None:
            for outlet in outlets:
                outlet.offer(measured)

    def on_step(cycle: Cycle, step: int, metrics: Mapping[str, float]) -> None:
        measured = values.of_step(cycle, step=step, metrics=metrics)
        for outlet in outlets:
            outlet.offer(measured)

    state.journal.listen(on_line)
    try:
        yield replace(state, on_train_step=on_step)
    finally:
        is_open = False
        until_s = time.monotonic() + _CLOSE_S
        for outlet in outlets:
            outlet.close(until_s=until_s)
