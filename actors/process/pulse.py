"""The sign of life that every actor gives when it is asked: that it is there, and whether its work goes on.

It is asked in a thread of its own (Ray's concurrency group "pulse"), so that an actor that computes for a minute
answers at once, and one whose process is stopped, or whose interpreter is stuck, does not answer at all.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

_GROUP: Final = "pulse"
_BEAT_EVERY_S: Final = 1.0
_FEW_STEPS: Final = 20


def actor_class(plain: type) -> Any:
    """Ray's actor class of a class that has a `pulse` method, which then runs beside everything else."""
    import ray

    return ray.remote(concurrency_groups={_GROUP: 2})(plain)


def ask(actor: Any) -> Any:
    """The reference of an actor's `Pulse`."""
    return actor.pulse.options(concurrency_group=_GROUP).remote()


@dataclass(frozen=True, kw_only=True)
class Pulse:
    """What an actor says of itself.

    Attributes:
        pids: of its process and those below it.
        stalled_s: for how long its work has stood still, in seconds; 0.0 if it goes on or there is none.
        longest_s: the longest that one step of its work has taken so far; None: not known yet.
        what: what stands still.
        is_stopped: a process below it is stopped (as by SIGSTOP), so even one that only starts gets no further.
        ends: why it is of no more use though it lives; empty if it is.
        doing: what it does while it starts, in words; empty if it does not say.
        busy: the share of the time since it was last asked in which it had work.
        worked_s: for how long it has had work so far, in seconds.
        node: Ray's id of the node that it is on; "" outside Ray.
    """

    pids: tuple[int, ...]
    stalled_s: float = 0.0
    longest_s: float | None = None
    what: str = "its work"
    is_stopped: bool = False
    ends: str = ""
    doing: str = ""
    busy: float = 0.0
    worked_s: float = 0.0
    node: str = ""


class Progress:
    """Whether work goes on: it is told when work begins and ends, and of every step in between."""

    def __init__(self) -> None:
        self._num_begun = 0
        self._size = 1
        self._since_s = 0.0
        self._num_steps = 0
        self._longest_s = 0.0
        self._begun_s = 0.0
        self._worked_s = 0.0  # until the last time that all work was done

    @property
    def longest_s(self) -> float | None:
        """The longest that a step of this size has taken so far; None while too few steps were seen to tell."""
        return self._longest_s * self._size if self._num_steps >= _FEW_STEPS else None

    def begin(self, *, size: int = 1) -> None:
        """Work begins. `size`: how much there is to do in a step, where steps are of unlike size."""
        self._size = size
        if self._num_begun == 0:
            self._since_s = self._begun_s = time.monotonic()
        self._num_begun += 1

    def step(self) -> None:
        """A step is done."""
        now_s = time.monotonic()
        if self._num_begun:
            self._longest_s = max(self._longest_s, (now_s - self._since_s) / self._size)
            self._num_steps += 1
        self._since_s = now_s

    def end(self) -> None:
        """A piece of work that had begun is over, which is a step for those that go on."""
        self.step()
        self._num_begun -= 1
        if self._num_begun == 0:
            self._worked_s += time.monotonic() - self._begun_s

    def worked_s(self) -> float:
        """For how long there has been work so far, all in all."""
        begun_s = self._begun_s
        return self._worked_s + (time.monotonic() - begun_s if self._num_begun else 0.0)

    def stalled_s(self) -> float:
        """For how long there has been work without a step."""
        return time.monotonic() - self._since_s if self._num_begun else 0.0


class Heart:
    """What an actor's `pulse` method answers with.

    Args:
        progress: of the actor's work.
        what: the work, as an error message calls it.
    """

    def __init__(self, progress: Progress, *, what: str) -> None:
        self._progress = progress
        self._what = what
        self._beat: asyncio.Task[None] | None = None
        self._beat_s: float | None = None
        self._stopped_since_s: dict[int, float] = {}
        self._asked_s, self._worked_s = time.monotonic(), 0.0
        # What the actor does while it starts, told by whoever starts it; asked in the pulse's own thread.
        self.doing: Callable[[], str] = str

    def start(self) -> None:
        """Begin to watch the event loop that this is called in, the one that the actor's own work runs in."""
        if self._beat is None:
            self._beat = asyncio.get_running_loop().create_task(self._keep_beating())

    async def _keep_beating(self) -> None:
        while True:
            self._beat_s = time.monotonic()
            await asyncio.sleep(_BEAT_EVERY_S)

    def pulse(self, *, ends: str = "") -> Pulse:
        """May be called in any thread."""
        now_s = time.monotonic()
        worked_s = self._progress.worked_s()
        busy = min(1.0, max(0.0, worked_s - self._worked_s) / max(now_s - self._asked_s, 1e-3))
        self._asked_s, self._worked_s = now_s, worked_s
        children = _children()
        stopped_s = self._longest_stopped_s(children, now_s=now_s)
        pids = (os.getpid(), *(child.pid for child in children))
        if stopped_s:
            what = "a process below it, which is stopped,"
            stalled_s: float = stopped_s
            longest_s: float | None = 0.0
        else:
            loop_s = 0.0 if self._beat_s is None else max(0.0, now_s - self._beat_s - _BEAT_EVERY_S)
            work_s, longest_s = self._progress.stalled_s(), self._progress.longest_s
            stalled_s, what = max((work_s, self._what), (loop_s, "its event loop"))
        return Pulse(
            pids=pids,
            stalled_s=stalled_s,
            longest_s=longest_s,
            what=what,
            is_stopped=stopped_s > 0,
            ends=ends,
            doing=self.doing(),
            busy=busy,
            worked_s=worked_s,
            node=_node(),
        )

    def _longest_stopped_s(self, children: list[Any], *, now_s: float) -> float:
        """For how long a process below this one has been stopped (as by SIGSTOP), as far as has been looked."""
        import psutil

        stopped = {child.pid for child in children if _status(child) == psutil.STATUS_STOPPED}
        self._stopped_since_s = {pid: self._stopped_since_s.get(pid, now_s) for pid in stopped}
        return max((now_s - since_s for since_s in self._stopped_since_s.values()), default=0.0)


def _node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


def _children() -> list[Any]:
    import psutil

    try:
        return list(psutil.Process().children(recursive=True))
    except psutil.Error:
        return []


def _status(process: Any) -> str | None:
    import psutil

    try:
        return str(process.status())
    except psutil.Error:
        return None
