"""A worker of a bulk pipeline that needs no model, and dies when it is told to."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from csr_ray.errors import ActorFailure

SCHEMA = pa.schema([("value", pa.int64()), ("pid", pa.int64())])


class Squares:
    """Gives the square of a number; dies at some of them, each time or the first time only."""

    def __init__(self, folder: str, *, deadly: dict[int, int], refuses: bool = False) -> None:
        self._folder, self._deadly = Path(folder), deadly
        if refuses:
            raise ActorFailure("an engine could not start: no memory\nlast lines of x.log:\nout of it")

    def rows(self, job: int) -> Iterator[dict[str, Any]]:
        deaths = self._folder / f"{job}"
        num = len(deaths.read_text()) if deaths.exists() else 0
        if num < self._deadly.get(job, 0):
            deaths.write_text("." * (num + 1))
            os._exit(1)
        time.sleep(0.1)
        yield {"value": job**2, "pid": os.getpid()}
