"""TensorBoard: event files, written by TensorBoard's own writer, which needs neither torch nor TensorFlow."""

from __future__ import annotations

import time
from typing import Any

from csr_ray.tracking.base import Measured, TrackedRun

_FLUSH_S = 10


class TensorBoard:
    """See `csr_ray.tracking.base.Tracker`. The run's id is that of its event files; where they are gone it is new."""

    def begin(self, run: TrackedRun, *, known: str | None) -> str:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        has_files = any(run.folder.glob("events.out.tfevents.*"))
        self._writer: Any = EventFileWriter(str(run.folder), flush_secs=_FLUSH_S)
        return known if known is not None and has_files else f"{time.time_ns():x}"

    def log(self, measured: Measured) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in measured.values.items()]
        event = Event(wall_time=time.time(), step=measured.at, summary=Summary(value=values))
        self._writer.add_event(event)
        if measured.key:  # rare, and not to be lost with a driver that is killed
            self._writer.flush()

    def close(self) -> None:
        self._writer.close()
