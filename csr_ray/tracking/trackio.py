"""trackio: its own database (TRACKIO_DIR, else in the run folder), or the server or Space that its variables name."""

from __future__ import annotations

import os
import uuid
from typing import Any

from csr_ray.tracking.base import Measured, TrackedRun

_PROJECT = "csr_ray"


class Trackio:
    """See `csr_ray.tracking.base.Tracker`. Runs are found again by their names, so the name is the id."""

    def begin(self, run: TrackedRun, *, known: str | None) -> str:
        os.environ.setdefault("TRACKIO_DIR", str(run.folder.absolute()))  # read when it is imported
        import trackio

        name = known or f"{run.name}-{uuid.uuid4().hex[:8]}"
        self._run: Any = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", _PROJECT),
            name=name,
            config=dict(run.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        return name

    def log(self, measured: Measured) -> None:
        self._run.log(dict(measured.values), step=measured.at)

    def close(self) -> None:
        self._run.finish()
