"""The engine's own process, which has its imports behind it by the time that it is asked for.

vLLM runs its engine in a process beside the one that asks it, and lets Python start that process from nothing
("spawn"), as a process of Ray cannot be forked. Both import the same modules, which takes each of them ten seconds
of a core, one after the other. Here the process is started when the actor is, imports while the actor does, and then
waits at the pipe by which a spawned process is told what to do.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import tempfile
from collections.abc import Iterator
from functools import partial
from multiprocessing import popen_spawn_posix, reduction, resource_tracker, spawn, util
from multiprocessing.context import SpawnContext, SpawnProcess, set_spawning_popen
from multiprocessing.process import BaseProcess
from typing import Any, Final

# What an engine on a CPU imports, from the top down.
_IMPORTED: Final = (
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.attention.backends.cpu_attn",
    "vllm.model_executor.model_loader.default_loader",
    "vllm.model_executor.models.llava",
)


class ProcessAhead:
    """A Python process that imports what an engine on a CPU needs, and then waits to become one.

    Make it when the environment has what torch and vLLM read while they are imported, the number of threads above
    all; for the rest, the engine has the environment of the time at which it starts. If no engine comes of it, it
    ends with the process that made it, or by `close`.

    Args:
        modules: that it imports.
    """

    def __init__(self, *, modules: tuple[str, ...] = _IMPORTED) -> None:
        tracker = resource_tracker.getfd()
        assert tracker is not None
        self.sentinel, of_child = os.pipe()
        told, self._tells = os.pipe()
        main = f"from multiprocessing.spawn import spawn_main; spawn_main(tracker_fd={tracker}, pipe_handle={told})"
        program = os.fsdecode(spawn.get_executable())
        command = [program, "-c", f"import {', '.join(modules)}; {main}", "--multiprocessing-fork"]
        try:
            self.pid = util.spawnv_passfds(os.fsencode(program), command, [tracker, told, of_child])
        finally:
            os.close(told)
            os.close(of_child)
        self._is_used = False

    def context(self) -> SpawnContext:
        """Where a `Process` is not a new process, but this one; once."""
        return _Context(self)

    @contextlib.contextmanager
    def is_the_engine(self) -> Iterator[None]:
        """Let the process that vLLM starts for its engine in this block be this one."""
        from vllm.v1.engine import utils

        usual = utils.get_mp_context
        utils.get_mp_context = self.context
        try:
            yield
        finally:
            utils.get_mp_context = usual

    def become(self, content: memoryview) -> tuple[int, ...]:
        """Tell it what to unpickle and do; returns what is to be closed when it has ended.

        The pipe stays open, because the other sees by its end that this process has ended.
        """
        assert not self._is_used, "it is an engine already"
        self._is_used = True
        with open(self._tells, "wb", closefd=False) as pipe:
            pipe.write(content)
        return self.sentinel, self._tells

    def close(self) -> None:
        """End it, if no engine has come of it."""
        if not self._is_used:
            self._is_used = True
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            _close(self.sentinel, self._tells)


class _Context(SpawnContext):
    """As vLLM's own, but that a process is the one that is there already."""

    def __init__(self, ahead: ProcessAhead) -> None:
        super().__init__()
        self.Process = partial(_EngineProcess, ahead=ahead)  # type: ignore[assignment, misc]


class _EngineProcess(SpawnProcess):
    """A process with the environment that this one has when it starts, and not when the other was made."""

    def __init__(self, *, ahead: ProcessAhead, **what: Any) -> None:
        super().__init__(**what)
        self._ahead: ProcessAhead | None = ahead

    def start(self) -> None:
        self._environment = dict(os.environ)
        super().start()

    def run(self) -> None:
        # vLLM names the process in the memory of its arguments, which is found by the first variable as it is now.
        import setproctitle

        setproctitle.getproctitle()
        os.environ.clear()
        os.environ.update(self._environment)
        tempfile.tempdir = None  # it is looked up anew
        super().run()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ahead": None}

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:
        assert isinstance(process_obj, _EngineProcess) and process_obj._ahead is not None
        return _Popen(process_obj, ahead=process_obj._ahead)


class _Popen(popen_spawn_posix.Popen):
    def __init__(self, process_obj: BaseProcess, *, ahead: ProcessAhead) -> None:
        self._ahead = ahead
        super().__init__(process_obj)

    def duplicate_for_child(self, fd: int) -> int:
        raise ValueError("a process that is there already gets no more open files")

    def _launch(self, process_obj: BaseProcess) -> None:
        content = io.BytesIO()
        set_spawning_popen(self)
        try:
            reduction.dump(spawn.get_preparation_data(process_obj.name), content)
            reduction.dump(process_obj, content)
        finally:
            set_spawning_popen(None)
        self.pid, self.sentinel = self._ahead.pid, self._ahead.sentinel
        self.finalizer = util.Finalize(self, _close, self._ahead.become(content.getbuffer()))


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
