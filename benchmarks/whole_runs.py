"""Whole runs for benchmarks: each a `csr-ray run` in a process of its own, which the same command resumes."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from csr_ray.config.load import load_config, settings_that_differ, with_younger_keys
from csr_ray.records import JsonDict


@dataclass(frozen=True, kw_only=True)
class WholeRun:
    """One run to make: what it is called, from which config, where, and with which overrides of the config."""

    named: str
    config: str
    folder: Path
    overrides: tuple[str, ...]

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")


def read_run(run: WholeRun) -> tuple[JsonDict, dict[str, Any]]:
    """The content of a run's summary.json and of its config.yaml.

    The summary has `eval_seconds` besides: by the policy's version, how long its evaluation took.

    Raises:
        FileNotFoundError: it was not run yet.
        ValueError: the folder holds a run of other settings, whose figures would be believed under this one's name.
    """
    summary = json.loads((run.folder / "summary.json").read_text(encoding="utf-8"))
    theirs = with_younger_keys(yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8")))
    if rows := settings_that_differ(theirs, config=load_config(run.config, overrides=run.overrides)):
        raise ValueError(f"{run.folder} holds a run of other settings ({'; '.join(rows)})")
    summary.setdefault("eval_seconds", _eval_seconds(run.folder))
    return summary, theirs


def _eval_seconds(folder: Path) -> dict[str, float]:
    with suppress(OSError):
        lines = (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()
        entries = [json.loads(line) for line in lines if '"kind": "eval"' in line]
        return {str(entry["version"]): float(entry["seconds"]) for entry in entries}
    return {}


def is_finished(folder: Path) -> bool:
    """Whether the run's summary says so."""
    try:
        return json.loads((folder / "summary.json").read_text(encoding="utf-8")).get("finished") is True
    except (OSError, ValueError, AttributeError):
        return False


def last_line(log: Path) -> str:
    """The last line of a run's output that says something."""
    try:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    except OSError as error:
        return in_a_line(str(error))
    return in_a_line(lines[-1]) if lines else "it said nothing"


def in_a_line(text: str) -> str:
    return " ".join(text.split())[:400]


def minutes_left(taken_s: Sequence[float], *, num_left: int, num_at_once: int) -> str:
    """What is said of the time left, by the mean of the runs that were done; nothing where it is not known."""
    if not taken_s or not num_left:
        return ""
    return f"; about {statistics.mean(taken_s) * num_left / min(num_left, num_at_once) / 60:.0f} minutes left"


class Runs:
    """Makes the runs, some side by side; each is a `csr-ray run` in a process and a session of its own.

    A stop (Ctrl-C, SIGTERM) is passed on once, and waited for: a run keeps what it has.

    Attributes:
        faults: why a run did not finish, for those that did not.
    """

    def __init__(self, *, num_at_once: int) -> None:
        self.faults: dict[WholeRun, str] = {}
        self.is_stopped = False
        self._num_at_once = num_at_once
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    def make(self, plans: Sequence[WholeRun]) -> None:
        """Make every run that is not finished."""
        left = [plan for plan in plans if not is_finished(plan.folder)]
        if len(left) < len(plans):
            print(f"{len(plans) - len(left)} of {len(plans)} runs are finished already", flush=True)
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with ThreadPoolExecutor(self._num_at_once) as pool:
                self._follow({pool.submit(self._run, plan): plan for plan in left})
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _follow(self, waiting: dict[Future[float], WholeRun]) -> None:
        taken: list[float] = []
        num = len(waiting)
        while waiting:
            # A limit, so that a signal is heard: Python's handlers run between the waits of the main thread.
            done, _ = wait(waiting, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in done:
                plan, seconds = waiting.pop(future), future.result()
                if self.is_stopped:
                    continue
                if plan not in self.faults:  # one that fails at once would promise that all are quick
                    taken.append(seconds)
                left = minutes_left(taken, num_left=len(waiting), num_at_once=self._num_at_once)
                said = self.faults.get(plan, "done")
                print(f"{num - len(waiting)} of {num} ({plan.named}): {said}, {seconds:.0f} s{left}", flush=True)

    def _run(self, plan: WholeRun) -> float:
        """One run to its end; returns the seconds it took."""
        if self.is_stopped:
            self.faults[plan] = "not run yet"
            return 0.0
        started_s = time.perf_counter()
        plan.log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "csr_ray", "run", plan.config, *plan.overrides]
        print(f"started: {plan.named}", flush=True)
        with plan.log.open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            with self._lock:
                self._processes.add(process)
                if self.is_stopped:
                    _tell_to_stop(process)
            code = process.wait()
            with self._lock:
                self._processes.discard(process)
        if not is_finished(plan.folder):
            self.faults[plan] = "stopped" if self.is_stopped else f"failed: {last_line(plan.log)} (exit code {code})"
        elif code != 0:  # finished under other settings, or its page could not be written
            self.faults[plan] = f"failed: {last_line(plan.log)} (exit code {code})"
        return time.perf_counter() - started_s

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.is_stopped:
            return
        self.is_stopped = True
        print("stopping: the runs at work are told to, and waited for", file=sys.stderr, flush=True)
        # The lock's holders are other threads, and none waits for this one while it holds it.
        with self._lock:
            for process in self._processes:
                _tell_to_stop(process)


def _tell_to_stop(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGTERM)
