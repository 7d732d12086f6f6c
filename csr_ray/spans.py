"""What a process did when: the records of a trace, and the bounded place where each process keeps its own.

Times are of the wall clock (`time.time`, seconds), because those of several nodes are drawn on one axis; they are as
far apart as the nodes' clocks are.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

_MOST: Final = 10_000

# work: one thing at a time on its track. flight: many at once, told apart by `id`. moment: has no length.
# level: numbers (`values`) that hold from here on.
Kind = Literal["work", "flight", "moment", "level"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One thing that was done.

    Attributes:
        track: the line that it is drawn on, among those of its process.
        begin_s, end_s: on the wall clock; the same for moments and levels.
        id: of one in flight.
        values: numbers and texts that are shown with it.
    """

    kind: Kind
    name: str
    track: str
    begin_s: float
    end_s: float
    id: str = ""
    values: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What a process has recorded since it was last asked.

    Attributes:
        who: the process, as a person calls it; filled in by whoever knows.
        host, pid: where it is.
        num_dropped: spans for which there was no room.
    """

    who: str = ""
    host: str
    pid: int
    spans: tuple[Span, ...]
    num_dropped: int


class Recorder:
    """The spans of one process until they are taken. What comes when it is full is counted and dropped."""

    def __init__(self, *, most: int = _MOST) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._spans: list[Span] = []
        self._num_dropped = 0

    def add(self, span: Span) -> None:
        """May be called in any thread."""
        with self._lock:
            if len(self._spans) < self._most:
                self._spans.append(span)
            else:
                self._num_dropped += 1

    @contextlib.contextmanager
    def doing(
        self, name: str, *, track: str, kind: Kind = "work", id: str = "", **values: float | str
    ) -> Iterator[None]:
        """Record the block, also if it ends with an error, which is then named in `values`."""
        begin_s = time.time()
        shown: dict[str, float | str] = dict(values)
        try:
            yield
        except BaseException as error:
            shown["error"] = type(error).__name__
            raise
        finally:
            end_s = time.time()
            self.add(Span(kind=kind, name=name, track=track, begin_s=begin_s, end_s=end_s, id=id, values=shown))

    def take(self) -> Recorded:
        """What was recorded since the last call."""
        with self._lock:
            spans, self._spans = tuple(self._spans), []
            num_dropped, self._num_dropped = self._num_dropped, 0
        return Recorded(host=socket.gethostname(), pid=os.getpid(), spans=spans, num_dropped=num_dropped)
