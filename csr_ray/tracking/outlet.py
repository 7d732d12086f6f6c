"""The thread of one tracker: what goes there waits in a bounded queue, so a tracker that hangs or fails costs a line.

Beside the tracker's own files lies a small file of ours: the tracked run's id, and what it has been given. A resumed
run goes on from there, so nothing is logged twice; it is written before a value is handed on, so a driver that is
killed loses at most that one.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from csr_ray.redaction import without_credentials
from csr_ray.tracking.base import Measured, TrackedRun, Tracker

_log = logging.getLogger(__name__)

_MOST_WAITING: Final = 1000
_MOST_CHARACTERS: Final = 300


@dataclass
class _Given:
    """What a tracker has been given.

    Attributes:
        id: of the tracked run; None before there is one.
        keys: of everything but train steps.
        version, step: of the last train step.
    """

    id: str | None = None
    keys: list[str] = field(default_factory=list)
    version: int = 0
    step: int = 0


class Outlet:
    """Begins at once, in a thread of its own.

    Args:
        name: the tracker's.
        make: imports and makes the tracker; called in the thread.
        so_far: what the journal had already, of which the tracker gets what it has not been given yet.
        say: shows a person one line; called from the thread.
    """

    def __init__(
        self,
        name: str,
        *,
        make: Callable[[], Tracker],
        run: TrackedRun,
        so_far: Iterable[Measured],
        say: Callable[[str], None],
    ) -> None:
        self._name = name
        self._make = make
        self._run = run
        self._so_far = tuple(so_far)
        self._say = say
        self._file = run.folder.with_name(f"{run.folder.name}.json")
        self._queue: queue.Queue[Measured | None] = queue.Queue(maxsize=_MOST_WAITING)
        self._given = _Given()
        self._is_over = False
        self._thread = threading.Thread(target=self._serve, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def offer(self, measured: Measured) -> None:
        """Hand on a value; returns at once. With a queue that is full the tracker is given up."""
        if self._is_over:
            return
        try:
            self._queue.put_nowait(measured)
        except queue.Full:
            self._give_up(f"it is {_MOST_WAITING} values behind")

    def close(self, *, until_s: float) -> None:
        """Let it finish what waits, until this time of `time.monotonic`."""
        if not self._is_over:
            try:
                self._queue.put(None, timeout=max(0.0, until_s - time.monotonic()))
            except queue.Full:
                self._give_up("it does not take what is left")
        if not self._is_over:
            self._thread.join(timeout=max(0.0, until_s - time.monotonic()))
            if self._thread.is_alive():
                self._give_up("it has not taken what is left in time")

    def _give_up(self, reason: str) -> None:
        if not self._is_over:
            self._is_over = True
            self._say(f"tracker {self._name}: {reason}; the run goes on without it, the next start tries again")

    # What follows runs in the thread.

    def _serve(self) -> None:
        try:
            tracker = self._begin()
            for measured in self._so_far:
                self._log(tracker, measured)
            while not self._is_over and (got := self._queue.get()) is not None:
                self._log(tracker, got)
            if not self._is_over:
                tracker.close()
                self._is_over = True
        except BaseException as error:  # some of these libraries end with SystemExit
            if self._is_over:  # given up already, and whoever would log it may have ended
                return
            _log.exception("tracker %s", self._name)
            words = " ".join(without_credentials(str(error)).split())[:_MOST_CHARACTERS]
            self._give_up(f"{type(error).__name__}: {words}")

    def _begin(self) -> Tracker:
        self._given = _read(self._file)
        tracker = self._make()
        run_id = tracker.begin(self._run, known=self._given.id)
        if run_id != self._given.id:
            if self._given.id is not None and self._given.step:
                self._say(
                    f"tracker {self._name}: the tracked run of before is gone; what the journal has is logged anew, "
                    "single train steps of before are not in it"
                )
            self._given = _Given(id=run_id)
        return tracker

    def _log(self, tracker: Tracker, measured: Measured) -> None:
        given = self._given
        if measured.key:
            if measured.key in given.keys:
                return
            given.keys.append(measured.key)
        else:
            here = (measured.version, measured.step)
            whole = [key for key in given.keys if key.startswith(f"{measured.version} train ")]
            if here <= (given.version, given.step) and not whole:
                return  # steps behind a checkpoint, or of a training that was begun again
            # A training that was finished is done again: its steps are new ones, but each of them only once.
            given.keys = [key for key in given.keys if key not in whole]
            given.version, given.step = here
        self._file.parent.mkdir(parents=True, exist_ok=True)
        # Whole or not at all: by half of it everything would be logged again. It need not outlive a power loss.
        unfinished = self._file.with_name(f".{self._file.name}.part")
        unfinished.write_text(json.dumps(vars(given)))
        os.replace(unfinished, self._file)
        tracker.log(measured)


def _read(file: Path) -> _Given:
    try:
        return _Given(**json.loads(file.read_text()))
    except FileNotFoundError:
        return _Given()
    except (OSError, ValueError, TypeError):  # half of it, as of a driver that was killed
        return _Given()
