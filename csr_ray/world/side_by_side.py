"""Runs the training processes side by side and shows how far they are.

Knows processes, pipes and a progress bar; knows nothing of what is trained.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_SHARES_SAID: Final = 4
_LOG_TAIL_CHARACTERS: Final = 2000
_STOP_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True)
class Training:
    """One process to run: its role, its name for people, its optimizer steps, and the folder it writes."""

    role: str
    label: str
    num_steps: int
    directory: Path


@dataclass
class _Running:
    training: Training
    process: subprocess.Popen[bytes]
    pipe: int
    log: IO[bytes]
    unread: bytes = b""
    figures: dict[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def run_trainings(
    trainings: Sequence[Training], *, seed: int, variant: int, progress: bool
) -> Iterator[Callable[[], dict[str, dict[str, Any]]]]:
    """Start the processes; the value waits for all of them and returns each one's figures by role.

    Leaving the block ends whatever still runs.

    Raises:
        RuntimeError: a process failed (raised by the value); the message ends with the last lines of its output.
    """
    running: list[_Running] = []
    try:
        for training in trainings:
            running.append(_start(training, seed=seed, variant=variant))
        yield lambda: _finish(running, progress=progress)
    finally:
        for item in running:
            _stop(item)


def _start(training: Training, *, seed: int, variant: int) -> _Running:
    reading, writing = os.pipe()
    log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by _stop
    command = [sys.executable, "-m", "csr_ray.world.worker", training.role, str(seed), str(variant)]
    command += [str(training.num_steps), str(training.directory), str(writing)]
    package_root = str(Path(__file__).resolve().parents[2])
    inherited = os.environ.get("PYTHONPATH")
    environment = {
        **os.environ,
        "PYTHONPATH": package_root if not inherited else os.pathsep.join((package_root, inherited)),
        # One thread each, on the CPU: the same result on a machine with a GPU or with many cores.
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONHASHSEED": "0",
    }
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(writing,), env=environment
        )
    finally:
        os.close(writing)
    return _Running(training=training, process=process, pipe=reading, log=log)


def _finish(running: Sequence[_Running], *, progress: bool) -> dict[str, dict[str, Any]]:
    with selectors.DefaultSelector() as selector, _shown(running, progress=progress) as show:
        for item in running:
            selector.register(item.pipe, selectors.EVENT_READ, item)
        while selector.get_map():
            for key, _ in selector.select():
                data = os.read(key.data.pipe, 65536)
                if data:
                    _take(key.data, data=data, show=show)
                else:
                    selector.unregister(key.data.pipe)
                    _check_end(key.data)
    return {item.training.role: item.figures for item in running}


def _check_end(item: _Running) -> None:
    if item.process.wait() != 0 or not item.figures:
        raise RuntimeError(
            f"training the {item.training.label} ended with exit code {item.process.returncode}; "
            f"its last output:\n{_tail(item.log)}"
        )


def _take(item: _Running, *, data: bytes, show: Callable[[_Running, int, float | None], None]) -> None:
    *lines, item.unread = (item.unread + data).split(b"\n")
    for line in lines:
        message = json.loads(line)
        item.figures = message.get("figures", item.figures)
        show(item, message["steps"], message.get("loss"))


@contextlib.contextmanager
def _shown(running: Sequence[_Running], *, progress: bool) -> Iterator[Callable[[_Running, int, float | None], None]]:
    """A bar a process in a terminal, a line every quarter elsewhere, nothing without `progress`."""
    console = Console(highlight=False)
    if not progress:
        yield lambda _item, _steps, _loss: None
    elif console.is_terminal:
        columns = (
            TextColumn("embedded world: {task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as bars:
            tasks: dict[str, TaskID] = {
                item.training.role: bars.add_task(item.training.label, total=item.training.num_steps, loss="starting")
                for item in running
            }

            def update(item: _Running, steps: int, loss: float | None) -> None:
                text = {"loss": f"loss {loss:.3f}"} if loss is not None else {}
                bars.update(tasks[item.training.role], completed=steps, **text)  # type: ignore[arg-type]

            yield update
    else:
        said = dict.fromkeys((item.training.role for item in running), 0)

        def say(item: _Running, steps: int, loss: float | None) -> None:
            quarter = _SHARES_SAID * steps // item.training.num_steps
            if quarter > said[item.training.role]:
                said[item.training.role] = quarter
                value = f", loss {loss:.3f}" if loss is not None else ""
                console.print(f"embedded world: {item.training.label} {steps}/{item.training.num_steps}{value}")

        yield say


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode(errors="replace")[-_LOG_TAIL_CHARACTERS:]


def _stop(item: _Running) -> None:
    os.close(item.pipe)
    if item.process.poll() is None:
        item.process.terminate()
        try:
            item.process.wait(timeout=_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            item.process.kill()
            item.process.wait()
    item.log.close()
