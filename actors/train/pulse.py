"""The pulse of a train worker: a thread says every second what the training is at.

It is not the training's own thread, which may be in one forward pass for a minute. Knows the mailbox's handle; knows
nothing of models.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from actors.train.messages import Beat, Placed

_BEAT_S = 1.0
_ANSWER_S = 5.0
_LOG_BYTES = 2**20


class CarriedLog:
    """The log of a worker whose node does not see the folder of logs: it grows here, and is brought there piece by
    piece, so that the driver has the last lines of a worker that has died.

    Args:
        here: the file on this node, in a folder of its own.
        there: the log's path on the driver's machine.
    """

    def __init__(self, here: Path, *, there: Path) -> None:
        self._here = here
        self._there = there
        self._num_shipped = 0
        self._shipping = threading.Lock()

    def ship(self, mailbox: Any) -> bool:
        """Bring what is new of it, up to a limit; returns whether there may be more."""
        import ray

        with self._shipping, contextlib.suppress(OSError):
            with self._here.open("rb") as file:
                file.seek(self._num_shipped)
                new = file.read(_LOG_BYTES)
            if new:
                ray.get(mailbox.desk.remote("append", str(self._there), new), timeout=_ANSWER_S)
                self._num_shipped += len(new)
            return len(new) == _LOG_BYTES
        return False

    def remove(self) -> None:
        """Remove the file and its folder, which is this process's own."""
        shutil.rmtree(self._here.parent, ignore_errors=True)


class Pulse:
    """What this worker is at, and the thread that tells the mailbox.

    Args:
        log: this worker's log, if it has to be brought to the driver.
    """

    def __init__(self, *, rank: int, mailbox: Any, log: CarriedLog | None = None) -> None:
        self._rank = rank
        self._log = log
        self._mailbox = mailbox
        self._doing = "its start"
        self._since_s = time.monotonic()
        self._waits: list[str] = []  # more than one thread may wait

    def start(self) -> None:
        threading.Thread(target=self._beat, name="pulse", daemon=True).start()

    def at(self, doing: str) -> None:
        """The training has come to this; the time for which it may stay there begins anew."""
        self._doing, self._since_s = doing, time.monotonic()

    @contextlib.contextmanager
    def waiting(self, for_what: str) -> Iterator[None]:
        """The block waits for the driver, for as long as it likes."""
        self._waits.append(for_what)
        try:
            yield
        finally:
            self._waits.remove(for_what)
            self._since_s = time.monotonic()

    def beat(self) -> Beat:
        waits = [*self._waits]
        doing_s = time.monotonic() - self._since_s
        return Beat(doing=waits[0] if waits else self._doing, doing_s=doing_s, is_waiting=bool(waits))

    def ship_log(self) -> None:
        """Bring the log to the driver up to this moment."""
        import ray

        if self._log is not None:
            with contextlib.suppress(ray.exceptions.RayError):
                while self._log.ship(self._mailbox):
                    pass

    def close_log(self) -> None:
        """Leave nothing of the log on this node; for a worker that is about to end."""
        self.ship_log()
        if self._log is not None:
            self._log.remove()

    def _beat(self) -> None:
        import ray

        # Whoever knows the place can end this process even where it answers nobody.
        place = ray.util.get_current_placement_group()
        placed = Placed(
            rank=self._rank,
            host=socket.gethostname(),
            node=ray.get_runtime_context().get_node_id(),
            pid=os.getpid(),
            placement_group=place,
        )
        self._mailbox.post.remote(placed)
        while True:
            try:
                # An answer is waited for, so that a mailbox that hangs is not flooded.
                ray.get(self._mailbox.beat.remote(self._rank, self.beat()), timeout=_ANSWER_S)
                if self._log is not None:
                    self._log.ship(self._mailbox)
            except ray.exceptions.GetTimeoutError:
                continue
            except ray.exceptions.RayError:
                return  # the mailbox is gone; the driver, if there is one, ends this group
            time.sleep(_BEAT_S)


_of_process: Pulse | None = None


def start_pulse(*, rank: int, mailbox: Any, log: CarriedLog | None = None) -> None:
    """Start this process's pulse; see `Pulse`."""
    global _of_process
    _of_process = Pulse(rank=rank, mailbox=mailbox, log=log)
    _of_process.start()


def pulse() -> Pulse:
    """This process's pulse."""
    assert _of_process is not None, "no pulse was started"
    return _of_process


def worker_log(logs: Path, *, rank: int) -> Path:
    """Where a worker's output goes."""
    return logs / f"train_worker_{rank}.log"
