"""Keeps `progress.json` of a run folder: what its driver is doing now, for whoever watches from another process.

The journal says what is done; this file says what goes on: the running stage and how far it is, who serves, who was
lost, and the lines that a person at the terminal sees. It is written anew every second in which something has
changed, and every few seconds otherwise, so its age shows whether the driver lives. Nothing of a run rests on it: it
is not durable, and where it cannot be written the run goes on without it.

    time, started     now, and when this start of the run began; seconds since 1970
    running           the stages that go on, the innermost last: {"stage", "round", "unit", "done", "total",
                      "seconds", "silent_s", "tokens", "loss", "note", "first"}; `round` and `total` are null if there
                      is none; `first` is [done, seconds] when something was first done, as far as anybody looked
    done              the last stages that are over, oldest first: the same without `silent_s`
    health            who serves and who is waited for, in words
    replicas          by role, how many actors are in each state, and "wanted"
    deaths, replacements, retries    by role, since this start; of prompts that were sent again one number
    said              the last lines that were shown: {"time", "line", "is_warning"}
    ended             null, or how this start ended: {"how": "finished", "stopped" or "failed", "reason"}
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from csr_ray.errors import UserError
from csr_ray.metrics import Exporter
from csr_ray.records import JsonDict
from csr_ray.redaction import without_credentials
from csr_ray.stages.view import Progress, View
from csr_ray.store.atomic import write_json

_log = logging.getLogger(__name__)

SIGN_OF_LIFE_S: Final = 10.0
_WRITE_EVERY_S: Final = 1.0
_MOST_STAGES: Final = 60
_MOST_LINES: Final = 100
_MOST_CHARACTERS: Final = 400
# What the machinery counts, as the metrics name it: the key in the file.
_COUNTED: Final = {"csr_ray_deaths_total": "deaths", "csr_ray_replacements_total": "replacements"}

How = Literal["finished", "stopped", "failed"]


class ProgressFile:
    """The file of one start of a run, from the beginning to the end of `kept`. Its methods may be called in any
    thread, and none of them raises or takes long."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._started = time.time()
        self._running: list[_Running] = []
        self._done: deque[JsonDict] = deque(maxlen=_MOST_STAGES)
        self._said: deque[JsonDict] = deque(maxlen=_MOST_LINES)
        self._health: Callable[[], str] = str
        self._replicas: dict[str, dict[str, int]] = defaultdict(dict)
        self._counts: dict[str, dict[str, int]] = {key: {} for key in _COUNTED.values()}
        self._retries = 0
        self._ended: JsonDict | None = None
        self._written: JsonDict = {}
        self._written_s = float("-inf")
        self._is_over = threading.Event()
        self._is_refused = False
        self._thread = threading.Thread(target=self._keep, name="progress", daemon=True)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Write it while the block goes on, and at the end how that came about."""
        self._thread.start()
        try:
            yield
        except KeyboardInterrupt as stopped:
            self._end("stopped", reason=str(stopped))
            raise
        except BaseException as error:
            said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            self._end("failed", reason=said)
            raise
        self._end("finished", reason="")

    def say(self, line: str, *, is_warning: bool) -> None:
        with self._lock:
            self._said.append({"time": time.time(), "line": _one_line(line), "is_warning": is_warning})

    def watch(self, health: Callable[[], str]) -> None:
        self._health = health

    def begin(self, name: str, *, progress: Progress, round_index: int | None) -> None:
        with self._lock:
            self._running.append(_Running(name, progress, round_index))

    def end(self, progress: Progress) -> None:
        with self._lock:
            ending = [one for one in self._running if one.progress is progress]
            self._running = [one for one in self._running if one.progress is not progress]
            self._done += [one.to_plain() for one in ending]

    def set(self, name: str, value: float, *, role: str, state: str) -> None:
        """Take in how many actors of a role are in a state."""
        with self._lock:
            self._replicas[role][state] = int(value)

    def count(self, name: str, value: float, *, role: str) -> None:
        """Take in a death, a replacement or a retry, by the name of its metric."""
        with self._lock:
            if name == "csr_ray_retries_total":
                self._retries += int(value)
            elif name in _COUNTED:
                counts = self._counts[_COUNTED[name]]
                counts[role] = counts.get(role, 0) + int(value)

    def _keep(self) -> None:
        while not self._is_over.wait(_WRITE_EVERY_S):
            self._write()

    def _end(self, how: How, *, reason: str) -> None:
        self._is_over.set()
        self._thread.join(timeout=2 * _WRITE_EVERY_S)
        with self._lock:
            self._ended = {"how": how, "reason": _one_line(reason)}
            self._running.clear()
            self._replicas.clear()
        self._health = str
        self._write()

    def _write(self) -> None:
        if self._is_refused:
            return
        try:
            content = self._content()
            now_s = time.monotonic()
            if _without_clocks(content) == self._written and now_s - self._written_s < SIGN_OF_LIFE_S:
                return
            write_json(self._path, value=content, is_durable=False)
            self._written, self._written_s = _without_clocks(content), now_s
        except Exception as error:  # who only watches must not stop the run; a full disk may have room again
            self._is_refused = not isinstance(error, UserError)
            _log.debug("%s cannot be written", self._path, exc_info=True)

    def _content(self) -> JsonDict:
        health = self._health()  # asks another thread, which may call in here
        with self._lock:
            return {
                "time": time.time(),
                "started": self._started,
                "running": [{**one.to_plain(), "silent_s": one.silent_s()} for one in self._running],
                "done": list(self._done),
                "health": health,
                "replicas": {role: dict(states) for role, states in self._replicas.items()},
                **{key: dict(counts) for key, counts in self._counts.items()},
                "retries": self._retries,
                "said": list(self._said),
                "ended": self._ended,
            }


@dataclass
class _Running:
    """A stage that goes on. `silent_s` is for how long it has got no further, as far as it was asked.

    A stage may wait before it begins, as a training does for its workers, so its rate counts from when it began.
    """

    name: str
    progress: Progress
    round_index: int | None
    _done: int = -1
    _since_s: float = 0.0
    _first: tuple[int, float] | None = None

    def silent_s(self) -> float:
        if self._done != self.progress.done:
            self._done, self._since_s = self.progress.done, time.monotonic()
        return round(time.monotonic() - self._since_s, 3)

    def to_plain(self) -> JsonDict:
        progress, index = self.progress, self.round_index
        if self._first is None and progress.done:
            self._first = (progress.done, round(progress.seconds, 3))
        return {
            "stage": self.name,
            "round": None if index is None or index < 0 else index,
            "unit": progress.unit,
            "done": progress.done,
            "total": progress.total,
            "seconds": round(progress.seconds, 3),
            "tokens": progress.tokens,
            "loss": progress.loss,
            "note": _one_line(progress.note),
            "first": self._first,
        }


class ProgressView:
    """A view that shows what another does, and notes it in the file."""

    def __init__(self, view: View, *, file: ProgressFile) -> None:
        self._view = view
        self._file = file
        self.metrics = view.metrics

    def say(self, line: str, *, is_warning: bool = False) -> None:
        self._file.say(line, is_warning=is_warning)
        self._view.say(line, is_warning=is_warning)

    def watch(self, health: Callable[[], str]) -> None:
        self._file.watch(health)
        self._view.watch(health)

    @contextlib.contextmanager
    def stage(self, name: str, *, total: int | None, unit: str, round_index: int | None) -> Iterator[Progress]:
        with self._view.stage(name, total=total, unit=unit, round_index=round_index) as progress:
            self._file.begin(name, progress=progress, round_index=round_index)
            try:
                yield progress
            finally:
                self._file.end(progress)


class ProgressExporter:
    """An exporter that hands on what it is given, and notes in the file who serves and who was lost."""

    def __init__(self, exporter: Exporter, *, file: ProgressFile) -> None:
        self._exporter = exporter
        self._file = file
        self.run = exporter.run
        self.forget = exporter.forget
        self.observe = exporter.observe
        self.sample = exporter.sample
        self.close = exporter.close

    def add(self, name: str, value: float = 1.0, **tags: str) -> None:
        self._file.count(name, value, role=tags.get("role", ""))
        self._exporter.add(name, value, **tags)

    def set(self, name: str, value: float, **tags: str) -> None:
        if name == "csr_ray_replicas":
            self._file.set(name, value, role=tags["role"], state=tags["state"])
        elif name == "csr_ray_replicas_wanted":
            self._file.set(name, value, role=tags["role"], state="wanted")
        self._exporter.set(name, value, **tags)


def _without_clocks(content: JsonDict) -> JsonDict:
    """What of the content changes only if something has happened."""
    running = [
        {key: one[key] for key in one if key not in ("seconds", "silent_s", "first")} for one in content["running"]
    ]
    return {**content, "time": 0.0, "running": running}


def _one_line(text: str) -> str:
    words = " ".join(without_credentials(text).split())
    return words if len(words) <= _MOST_CHARACTERS else words[: _MOST_CHARACTERS - 1] + "…"
