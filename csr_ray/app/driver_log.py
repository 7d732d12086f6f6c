"""The driver's own log, `logs/driver.log` of the run folder: tracebacks, and what our code and Ray warn of.

What a person should know is said on the screen (`csr_ray.stages.view`); this is for whoever looks for a cause.
"""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
from collections.abc import Iterator

from csr_ray.errors import shows_tracebacks
from csr_ray.store.run_folder import RunFolder

_LOGGERS = ("csr_ray", "actors", "ray")


@contextlib.contextmanager
def logged(folder: RunFolder) -> Iterator[None]:
    """Write what is logged in the block to the driver's log; with `CSR_RAY_DEBUG=1` it stays on the screen."""
    if shows_tracebacks():
        yield
        return
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [log.handlers for log in loggers]
    for log in loggers:
        log.handlers = [_Handler(folder)]
    try:
        yield
    finally:
        for log, handlers in zip(loggers, before, strict=True):
            log.handlers = handlers


def write_traceback(folder: RunFolder, *, error: Exception) -> bool:
    """Append the error's traceback to the driver's log; returns whether the log could be written."""
    return _append(folder, "".join(traceback.format_exception(error)))


class _Handler(logging.Handler):
    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self._folder = folder
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        _append(self._folder, self.format(record))


def _append(folder: RunFolder, text: str) -> bool:
    try:
        if folder.driver_log.exists() and not folder.driver_log.is_file():  # a pipe would wait for a reader
            return False
        folder.driver_log.parent.mkdir(parents=True, exist_ok=True)
        with folder.driver_log.open("a", encoding="utf-8", errors="replace") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S %z')}\n{text}\n")
    except OSError:
        return False
    return True
