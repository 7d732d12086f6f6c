"""How a run is told to stop: by Ctrl-C, by SIGTERM, which is what `ray job stop`, Slurm and Kubernetes send, or by
SIGHUP, when its terminal is closed and it was not started with nohup.

The first signal interrupts whatever the main thread does, by a KeyboardInterrupt, unless a stage has asked for grace
(`csr_ray.stages.stop`): then what is under way may finish for `run.grace_s` seconds. The second signal ends the
process at once. Nothing is lost by that, because a run is always in a state from which it can go on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import TypeVar

from csr_ray.errors import EXIT_FAILED

T = TypeVar("T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A terminal that is closed sends SIGHUP, and its shell sends it once more.
_INSISTING = (signal.SIGINT, signal.SIGTERM)
# `timeout` sends its signal to its child and in the same moment to their group: so soon after the first, the same one
# is the same wish.
_ECHO_S = 0.15
# After a second signal the process is ended by another thread if the main one has not done so in this time: it may
# stand in a call of some library, in which Python's signal handlers wait.
_STUCK_S = 2.0
# A stage in grace that does not come back to its results for so long behind the end of the grace is interrupted, too.
# Each commit of what is finished has this time anew.
_SETTLE_S = 5.0
_END = object()


class SignalStop:
    """The `csr_ray.stages.stop.Stop` of a driver, while its `with` block lasts. Signals only reach the main thread.

    Args:
        grace_s: how long what is under way may take to finish.
        before_exit: called before the process ends at a second signal.
    """

    def __init__(self, *, grace_s: float, before_exit: Callable[[], None]) -> None:
        self.signal_name = ""
        self._first, self._first_s = 0, 0.0  # the number of the first signal, and when it came
        self._grace_s = grace_s
        self._before_exit = before_exit
        self._in_grace = False
        self._is_over = False
        self._is_waiting = False
        self._earlier: dict[int, object] = {}
        self._earlier_wakes = -1  # the descriptor that whoever was here before is woken by

    def __enter__(self) -> SignalStop:
        if threading.current_thread() is threading.main_thread():
            self._earlier = {number: signal.getsignal(number) for number in (*_SIGNALS, signal.SIGALRM)}
            for number in _SIGNALS:
                if self._earlier[number] != signal.SIG_IGN:  # as nohup does with SIGHUP
                    signal.signal(number, self._on_signal)
            signal.signal(signal.SIGALRM, self._on_alarm)
            self._count_signals()
        return self

    def __exit__(self, *_: object) -> None:
        # After a wish to stop the process is about to end, and one more signal still ends it at once.
        if not self.is_asked:
            for number, handler in self._earlier.items():
                signal.signal(number, handler)  # type: ignore[arg-type]
            if self._earlier:
                os.close(signal.set_wakeup_fd(self._earlier_wakes))

    def _count_signals(self) -> None:
        """Let a thread hear of signals, too, in case the main thread cannot."""
        heard, wakes = os.pipe()
        os.set_blocking(wakes, False)
        self._earlier_wakes = signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)

        def count() -> None:
            first, first_s = 0, 0.0
            while numbers := os.read(heard, 64):
                for number in numbers:
                    if not first:
                        first, first_s = (number, time.monotonic()) if number in _SIGNALS else (0, 0.0)
                    elif number in _INSISTING and not _is_echo(number, of=first, since_s=first_s):
                        time.sleep(_STUCK_S)
                        self._exit()
            os.close(heard)

        threading.Thread(target=count, name="signals", daemon=True).start()

    @property
    def is_asked(self) -> bool:
        return bool(self.signal_name)

    def check(self) -> None:
        """Raise if the wish to stop was swallowed, as it is where the signal came in the middle of a destructor.

        It is called before each commit. One behind the grace shows that what is finished is being committed.
        """
        if self.is_asked and not self._in_grace:
            self.now()
        if self._is_over and self._in_grace:
            signal.setitimer(signal.ITIMER_REAL, _SETTLE_S, _SETTLE_S)

    def now(self) -> None:
        raise KeyboardInterrupt(f"stopped by {self.signal_name}; the same command goes on where it was")

    @contextlib.contextmanager
    def graceful(self) -> Iterator[None]:
        self.check()
        self._in_grace = True
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._in_grace = False

    def until_grace_ends(self, results: Iterable[T]) -> Iterator[T]:
        iterator = iter(results)
        try:
            while not self._is_over:
                self._is_waiting = True
                result = next(iterator, _END)
                self._is_waiting = False
                if result is _END:
                    return
                yield result  # type: ignore[misc]
        except KeyboardInterrupt:
            if not self._is_over:
                raise
        finally:
            self._is_waiting = False
            if close := getattr(iterator, "close", None):
                close()

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self.is_asked:
            if number in _INSISTING and not _is_echo(number, of=self._first, since_s=self._first_s):
                self._exit()
            return
        self.signal_name = signal.Signals(number).name
        self._first, self._first_s = number, time.monotonic()
        if self._in_grace:
            _print(
                f"{self.signal_name}: what is under way may finish, for at most {self._grace_s:g} s; "
                "a second signal stops at once"
            )
            signal.setitimer(signal.ITIMER_REAL, max(self._grace_s, 1e-3), _SETTLE_S)
        else:
            _print(f"{self.signal_name}: stopping; a second signal stops at once")
            self.now()

    def _on_alarm(self, _: int, __: FrameType | None) -> None:
        is_late, self._is_over = self._is_over, True
        if self._is_waiting or is_late:
            self.now()

    def end(self, reason: str) -> None:
        """End the process at once, from any thread, where it cannot go on and its main thread may stand still."""
        self._exit(reason)

    def _exit(self, line: str = "stopped at once; the same command goes on from what was committed") -> None:
        with contextlib.suppress(Exception):
            self._before_exit()
        if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
            os.write(1, b"\x1b[?25h")  # a progress bar hides the cursor
        _print(line)
        os._exit(EXIT_FAILED)


def _print(line: str) -> None:
    """Write to stderr, from a signal handler: the buffered way may be under way in what the signal interrupted."""
    with contextlib.suppress(OSError):
        os.write(2, f"\ncsr-ray: {line}\n".encode())


def _is_echo(number: int, *, of: int, since_s: float) -> bool:
    return number == of and time.monotonic() - since_s < _ECHO_S
