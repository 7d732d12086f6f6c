"""Writes what every process did when, a file a round, as Chrome's trace events (Perfetto and chrome://tracing).

Records are asked for every two seconds and written at once, so nothing of a round stays in memory. A file has a
limit; what is beyond it is counted in the file itself.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Final

from csr_ray.records import JsonDict
from csr_ray.spans import Recorded, Recorder, Span
from csr_ray.stages.view import Progress, View

_log = logging.getLogger(__name__)

_TAKE_EVERY_S: Final = 2.0
_MOST_EVENTS: Final = 300_000
_MOST_CHARACTERS: Final = 120

Source = Callable[[], Sequence[Recorded]]


class Trace:
    """The trace of a run, from `start` to `close`. A disk that takes nothing ends it with one line.

    Args:
        folder: where the files go; one that is there already, of an earlier start, is kept beside the new one.
        round_index: the first round that is not over.
        say: shows a person one line.
    """

    def __init__(
        self, folder: Path, *, round_index: int, say: Callable[[str], None], most_events: int = _MOST_EVENTS
    ) -> None:
        self._folder = folder
        self._say = say
        self._most_events = most_events
        self._driver = Recorder()
        self._sources: list[Source] = [lambda: [replace(self._driver.take(), who="driver")]]
        self._round_index = round_index
        self._file: _TraceFile | None = None
        self._is_failed = False
        self._lock = threading.RLock()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="trace", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Take what is left and finish the file."""
        self._is_over.set()
        self._thread.join(timeout=2 * _TAKE_EVERY_S)
        self._finish()

    def add_source(self, source: Source) -> None:
        """Ask this one, too, from now on; it is called in any thread and must not take long."""
        self._sources.append(source)

    def remove_sources(self) -> None:
        """Ask everybody once more, and then nobody but this process: the others are about to end."""
        self._take()
        with self._lock:
            del self._sources[1:]

    def on_line(self, entry: JsonDict) -> None:
        """Record that a line of the journal is written."""
        named = {key: str(entry[key]) for key in ("round", "phase", "unit", "version") if key in entry}
        self.moment(f"commit {entry['kind']}", track="commits", **named)

    def moment(self, name: str, *, track: str, **values: str) -> None:
        """Record something of this process that has no length."""
        now_s = time.time()
        self._driver.add(Span(kind="moment", name=name, track=track, begin_s=now_s, end_s=now_s, values=dict(values)))

    @contextlib.contextmanager
    def stage(self, name: str, *, round_index: int | None) -> Iterator[None]:
        """Record a stage; the first of a later round ends the file of the one before."""
        if round_index is not None and round_index > self._round_index:
            self._take()
            self._finish()
            self._round_index = round_index
        with self._driver.doing(name, track="stages"):
            yield

    def _keep(self) -> None:
        while not self._is_over.wait(_TAKE_EVERY_S):
            self._take()

    def _take(self) -> None:
        with self._lock:
            for source in list(self._sources):
                try:
                    found = source()
                except Exception:  # who only watches must not stop the run
                    _log.exception("trace: a source failed")
                    continue
                for recorded in found:
                    self._write(recorded)

    def _write(self, recorded: Recorded) -> None:
        try:
            if self._file is None and not self._is_failed:
                self._file = _TraceFile(self._folder, round_index=self._round_index, most=self._most_events)
            if self._file is not None:
                self._file.write(recorded)
        except OSError as error:
            self._fail(error)

    def _finish(self) -> None:
        with self._lock:
            self._take()
            file, self._file = self._file, None
            if file is not None:
                try:
                    file.finish()
                except OSError as error:
                    self._fail(error)

    def _fail(self, error: OSError) -> None:
        self._file, self._is_failed = None, True
        self._say(f"run.trace: {self._folder} takes no more ({error.strerror or error}); the run goes on without")


class TracedView:
    """A `View` whose stages and lines go into a trace, too."""

    def __init__(self, view: View, *, trace: Trace) -> None:
        self._view = view
        self._trace = trace
        self.watch = view.watch
        self.metrics = view.metrics

    @contextlib.contextmanager
    def stage(self, name: str, *, total: int | None, unit: str, round_index: int | None) -> Iterator[Progress]:
        with (
            self._trace.stage(name, round_index=round_index),
            self._view.stage(name, total=total, unit=unit, round_index=round_index) as progress,
        ):
            yield progress

    def say(self, line: str, *, is_warning: bool = False) -> None:
        # Among these are the deaths, and who serves again.
        self._trace.moment(line[:_MOST_CHARACTERS], track="said")
        self._view.say(line, is_warning=is_warning)


class _TraceFile:
    """One file, valid JSON once it is finished; until then it has another name."""

    def __init__(self, folder: Path, *, round_index: int, most: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        _finish_what_was_left(folder)
        self._path = _free_name(folder, stem=f"round_{round_index:03d}")
        self._part = self._path.with_name(f".{self._path.name}.part")
        self._file: IO[str] = self._part.open("w", encoding="utf-8")
        self._file.write('{"traceEvents": [\n')
        self._most = most
        self._num_events = self._num_dropped = 0
        self._pids: dict[tuple[str, str, int], int] = {}
        self._tids: dict[tuple[int, str], int] = {}

    def write(self, recorded: Recorded) -> None:
        self._num_dropped += recorded.num_dropped
        if not recorded.spans:
            return
        pid = self._pid(recorded)
        for span in recorded.spans:
            if self._num_events >= self._most:
                self._num_dropped += 1
                continue
            for event in _events(span, pid=pid, tid=self._tid(pid, span.track)):
                self._put(event)
        self._file.flush()

    def finish(self) -> None:
        facts = {"clock": "wall time of each node", "dropped": self._num_dropped, "limit": self._most}
        self._file.write(f'\n], "displayTimeUnit": "ms", "otherData": {json.dumps(facts)}}}\n')
        self._file.close()
        os.replace(self._part, self._path)

    def _put(self, event: JsonDict) -> None:
        self._file.write((",\n" if self._num_events else "") + json.dumps(event))
        self._num_events += 1

    def _pid(self, recorded: Recorded) -> int:
        """A number for each process, because several nodes may have the same pids; its name says which it is."""
        key = (recorded.who, recorded.host, recorded.pid)
        if key not in self._pids:
            pid = self._pids[key] = len(self._pids) + 1
            name = f"{recorded.who} ({recorded.host}, pid {recorded.pid})"
            self._put({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}})
            order = ("driver", "generator", "scorer", "train").index(recorded.who.split(" ")[0])
            self._put({"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": order}})
        return self._pids[key]

    def _tid(self, pid: int, track: str) -> int:
        if (pid, track) not in self._tids:
            tid = self._tids[pid, track] = len(self._tids) + 1
            self._put({"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": track}})
        return self._tids[pid, track]


def _finish_what_was_left(folder: Path) -> None:
    """Make valid files of those that a killed driver has left, without the last event if that is half a line."""
    for part in folder.glob(".round_*.json.part"):
        whole = part.read_bytes().rpartition(b"\n")[0].rstrip(b",")
        name = part.name.removeprefix(".").removesuffix(".json.part")
        facts = {"clock": "wall time of each node", "dropped": None, "killed": True}
        part.write_bytes(whole + b'\n], "displayTimeUnit": "ms", "otherData": ' + json.dumps(facts).encode() + b"}\n")
        os.replace(part, _free_name(folder, stem=name))


def _free_name(folder: Path, *, stem: str) -> Path:
    number, path = 1, folder / f"{stem}.json"
    while path.exists():
        number += 1
        path = folder / f"{stem}_start_{number}.json"
    return path


def _events(span: Span, *, pid: int, tid: int) -> list[JsonDict]:
    """A span as Chrome's events; their times are in microseconds."""
    common: dict[str, Any] = {"name": span.name, "cat": span.track, "pid": pid, "tid": tid}
    begin_us, end_us = round(1e6 * span.begin_s), round(1e6 * span.end_s)
    args = {"args": dict(span.values)} if span.values else {}
    if span.kind == "work":
        return [{**common, "ph": "X", "ts": begin_us, "dur": end_us - begin_us, **args}]
    if span.kind == "moment":
        return [{**common, "ph": "i", "s": "p", "ts": begin_us, **args}]
    if span.kind == "level":
        return [{**common, "ph": "C", "ts": begin_us, **args}]
    named = {**common, "id": f"{pid}.{span.id}"}
    return [{**named, "ph": "b", "ts": begin_us, **args}, {**named, "ph": "e", "ts": end_us}]
