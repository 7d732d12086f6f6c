"""Signals, the grace that a rollout has, and what is kept when it ends early."""

from __future__ import annotations

import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes import FakeGenerators, PromptList, tiny_config
from patience import within
from rich.console import Console

from csr_ray.app.console import ConsoleView
from csr_ray.app.driver_log import logged
from csr_ray.app.ending import told_how_to_go_on
from csr_ray.app.stop import SignalStop
from csr_ray.errors import ActorFailure, RunFailed, StorageError
from csr_ray.records import Cycle, Prompt
from csr_ray.stages.roll_out import roll_out
from csr_ray.stages.state import RunState
from csr_ray.stages.stop import NeverAsked, Stop
from csr_ray.stages.turn import Turn
from csr_ray.store.journal import Journal
from csr_ray.store.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
PROMPTS = PromptList([Prompt(id=f"p{number}", image=f"{number}.png", text="Describe.") for number in range(7)])
CYCLE = Cycle(round_index=0)
VIEW = ConsoleView(num_rounds=1, console=Console(quiet=True))


class EndingGenerators(FakeGenerators):
    """Answers in order; after `num` answers `end` is called, which may raise, block or send a signal."""

    num = 5

    def end(self) -> None:
        raise ActorFailure("generator 0 died: as planted\nlast lines of generator_0.log:\nout of memory")

    def rollout(self, prompts, *, cycle, control=None, num=None):
        for number, prompt in enumerate(prompts):
            if number == self.num:
                self.end()
            yield self._rollout(prompt, cycle=cycle)


class InterleavedGenerators(FakeGenerators):
    """Finishes the first unit of three when one prompt of the second is finished, too."""

    def rollout(self, prompts, *, cycle, control=None, num=None):
        drawn = list(prompts)
        for number in (0, 3, 1, 2, 4, 5, 6):
            yield self._rollout(drawn[number], cycle=cycle)


class BlockingGenerators(EndingGenerators):
    """Is told to stop by a signal, and then has nothing more for a long time."""

    def end(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        queue.Queue().get(timeout=60)


class StoppingGenerators(EndingGenerators):
    """Is told to stop by a signal, and goes on as long as it gets prompts."""

    def end(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)


def state_of(directory: Path, *, stop: Stop | None = None, unit: int = 3) -> RunState:
    folder = RunFolder(directory)
    directory.mkdir(exist_ok=True)
    return RunState(
        config=tiny_config(directory, run={"dir": str(directory), "rounds": 1, "unit": unit}),
        folder=folder,
        journal=Journal(folder.journal),
        model="model",
        versions={},
        stop=stop or NeverAsked(),
    )


def units_of(state: RunState, *, generators: FakeGenerators) -> Iterator[str]:
    turn = Turn(state, PROMPTS, cycle=CYCLE)
    return (unit.name for unit in roll_out(state, turn, generators=generators, view=VIEW))


def check_the_rest_is_done(directory: Path, *, num_kept: int) -> None:
    state = state_of(directory)
    assert state.journal.units(**CYCLE.key).total("prompts") == num_kept
    generators = FakeGenerators(state.config)
    list(units_of(state, generators=generators))
    assert len(generators.grown) == 7 - num_kept, "nothing is done twice, nothing is left out"
    assert state_of(directory).journal.units(**CYCLE.key).total("prompts") == 7


def test_what_is_finished_is_committed_before_an_error_of_the_pool_goes_up(tmp_path: Path) -> None:
    state = state_of(tmp_path)
    with pytest.raises(ActorFailure):
        list(units_of(state, generators=EndingGenerators(state.config)))
    check_the_rest_is_done(tmp_path, num_kept=5)


def test_what_is_finished_is_committed_when_those_behind_it_fail(tmp_path: Path) -> None:
    """A generator that is closed in the middle, as the loop closes it after an error of the trainer."""
    state = state_of(tmp_path)
    turn = Turn(state, PROMPTS, cycle=CYCLE)
    units = roll_out(state, turn, generators=InterleavedGenerators(state.config), view=VIEW)
    next(units)
    units.close()
    check_the_rest_is_done(tmp_path, num_kept=4)


def test_nothing_more_is_written_where_the_storage_failed(tmp_path: Path) -> None:
    state = state_of(tmp_path)
    num_tries = 0

    def full() -> None:
        nonlocal num_tries
        num_tries += 1
        raise StorageError("full")

    state.journal.before_commit = full
    with pytest.raises(StorageError):
        list(units_of(state, generators=FakeGenerators(state.config)))
    assert num_tries == 1


def test_after_a_signal_what_is_under_way_has_the_grace_and_is_committed(tmp_path: Path) -> None:
    with SignalStop(grace_s=0.3, before_exit=lambda: None) as stop:
        state = state_of(tmp_path, stop=stop)
        started_s = time.monotonic()
        with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
            list(units_of(state, generators=BlockingGenerators(state.config)))
        assert 0.3 <= time.monotonic() - started_s < 10
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    check_the_rest_is_done(tmp_path, num_kept=5)


class PartlyBlockingGenerators(BlockingGenerators):
    """Finishes one prompt of each unit of two, and then is told to stop."""

    def rollout(self, prompts, *, cycle, control=None, num=None):
        drawn = list(prompts)
        yield from (self._rollout(drawn[number], cycle=cycle) for number in (0, 2, 4, 6))
        self.end()


def test_commits_that_are_slow_are_all_made_after_the_grace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csr_ray.app.stop._SETTLE_S", 1.0)
    with SignalStop(grace_s=0.3, before_exit=lambda: None) as stop:
        state = state_of(tmp_path, stop=stop, unit=2)

        def slowly() -> None:
            stop.check()  # as a run does before each commit
            time.sleep(0.6)

        state.journal.before_commit = slowly
        with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
            list(units_of(state, generators=PartlyBlockingGenerators(state.config)))
    assert state_of(tmp_path, unit=2).journal.units(**CYCLE.key).total("prompts") == 4


def test_a_commit_that_does_not_end_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csr_ray.app.stop._SETTLE_S", 0.3)
    with SignalStop(grace_s=0.1, before_exit=lambda: None) as stop:
        state = state_of(tmp_path, stop=stop)

        def hang() -> None:
            stop.check()
            if stop.is_asked:
                time.sleep(30)

        state.journal.before_commit = hang
        started_s = time.monotonic()
        with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
            list(units_of(state, generators=BlockingGenerators(state.config)))
        assert time.monotonic() - started_s < 20
    check_the_rest_is_done(tmp_path, num_kept=3)


def test_after_a_signal_no_prompt_is_drawn_any_more(tmp_path: Path) -> None:
    with SignalStop(grace_s=60, before_exit=lambda: None) as stop:
        state = state_of(tmp_path, stop=stop)
        with pytest.raises(KeyboardInterrupt, match="SIGINT"):
            list(units_of(state, generators=StoppingGenerators(state.config)))
    check_the_rest_is_done(tmp_path, num_kept=6)  # the sixth had been drawn


def test_a_signal_elsewhere_interrupts_at_once_and_the_words_say_what_is_kept(tmp_path: Path) -> None:
    with SignalStop(grace_s=60, before_exit=lambda: None) as stop:
        state = state_of(tmp_path, stop=stop)
        list(units_of(state, generators=FakeGenerators(state.config)))
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        says = r"stopped by SIGINT.*7 prompts of round 1 in 3 units.*goes on"
        with pytest.raises(KeyboardInterrupt, match=says), told_how_to_go_on(state, stop=stop):
            time.sleep(30)
        with pytest.raises(KeyboardInterrupt):
            stop.check()


def test_what_our_code_logs_goes_to_the_drivers_log_and_not_to_the_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path)
    log = logging.getLogger("actors.train.group")
    with logged(folder):
        log.error("train worker 0:\n%s", "Traceback (most recent call last): ...")
        logging.getLogger("ray").error("a word of Ray's own")
    assert "ERROR actors.train.group: train worker 0:\nTraceback" in folder.driver_log.read_text()
    assert "ERROR ray: a word of Ray's own" in folder.driver_log.read_text()
    assert capsys.readouterr() == ("", "")
    with logged(RunFolder(Path("/proc/nowhere"))):
        log.error("a log that cannot be written stops nobody")
    before = folder.driver_log.read_text()
    log.error("behind it")
    monkeypatch.setenv("CSR_RAY_DEBUG", "1")
    with logged(folder):
        log.error("shown")
    assert folder.driver_log.read_text() == before


def started(script: str) -> subprocess.Popen[str]:
    """The script in a process of its own, whose output is read."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


UNREAD = """
import sys, time
from csr_ray.app.console import ConsoleView, UnattendedConsole
from csr_ray.report.terminal import print_round_table
view = ConsoleView(num_rounds=1)
for _ in range(5):
    view.say("a line")
    time.sleep(0.2)
print_round_table({"base": {}, "rounds": []}, console=UnattendedConsole())
print("one without a console", flush=True)
print("still there", file=sys.stderr)
"""


def test_a_run_whose_output_nobody_reads_any_more_goes_on() -> None:
    """As behind `| head -1`."""
    process = started(UNREAD)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == "still there\n" and process.wait(timeout=30) == 0


def test_timeout_sends_its_signal_twice_and_means_it_once() -> None:
    with SignalStop(grace_s=60, before_exit=lambda: None) as stop, stop.graceful():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        assert stop.signal_name == "SIGTERM", "it is in its grace"


def test_nohup_is_respected() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with SignalStop(grace_s=1, before_exit=lambda: None) as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.05)
        assert not stop.is_asked
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with SignalStop(grace_s=1, before_exit=lambda: None) as stop, pytest.raises(KeyboardInterrupt, match="SIGHUP"):
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(5)


def test_a_terminal_that_is_closed_says_so_twice_and_means_it_once() -> None:
    process = started(TWICE)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for _ in range(2):
        process.send_signal(signal.SIGHUP)
        time.sleep(0.1)
    time.sleep(3)
    assert process.poll() is None, "it is in its grace"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == "let go\n" and process.returncode == 1


def test_the_handlers_of_before_are_back_afterwards() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with SignalStop(grace_s=1, before_exit=lambda: None):
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_whoever_heard_of_signals_before_hears_of_them_afterwards() -> None:
    hears, wakes = os.pipe()
    os.set_blocking(wakes, False)
    before = signal.set_wakeup_fd(wakes)
    try:
        with SignalStop(grace_s=1, before_exit=lambda: None):
            pass
        assert signal.set_wakeup_fd(-1) == wakes
    finally:
        signal.set_wakeup_fd(before)
        os.close(hears)
        os.close(wakes)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """After a wish to stop the handlers stay, because the process is about to end; this one is not."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


TWICE = """
import os, signal, sys, time
from csr_ray.app.stop import SignalStop
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where these tests run under nohup
with SignalStop(grace_s=60, before_exit=lambda: print("let go", flush=True)) as stop:
    with stop.graceful():
        print("ready", flush=True)
        while True:
            time.sleep(1)
"""


STUCK = """
import ctypes
from csr_ray.app.stop import SignalStop

libc = ctypes.CDLL(None)
mutex = ctypes.create_string_buffer(256)
libc.pthread_mutex_init(mutex, None)
with SignalStop(grace_s=60, before_exit=lambda: print("let go", flush=True)):
    libc.pthread_mutex_lock(mutex)
    print("ready", flush=True)
    libc.pthread_mutex_lock(mutex)  # no signal interrupts it, so Python does not get to its handlers
"""


def test_a_second_signal_ends_a_process_whose_main_thread_stands_in_somebody_elses_code() -> None:
    process = started(STUCK)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(1.0)  # until it stands there
    for number in (signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
        time.sleep(0.2)
    assert process.communicate(timeout=20)[0] == "let go\n" and process.returncode == 1


def test_a_second_signal_ends_the_process_at_once_without_a_traceback() -> None:
    process = started(TWICE)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    while "may finish" not in process.stderr.readline():
        pass
    started_s = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=30)
    assert time.monotonic() - started_s < 10
    assert process.returncode == 1 and output == "let go\n"
    assert "stopped at once" in errors and "Traceback" not in errors


# ---- other ends ----


def test_an_actor_s_failure_is_a_paragraph_and_its_traceback_is_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SignalStop(grace_s=1, before_exit=lambda: None) as stop:
        state = state_of(tmp_path, stop=stop)
        with pytest.raises(RunFailed) as failed, told_how_to_go_on(state, stop=stop):
            list(units_of(state, generators=EndingGenerators(state.config)))
        text = str(failed.value)
        assert text.startswith("generator 0 died: as planted\nlast lines of generator_0.log:\nout of memory\n")
        assert "5 prompts of round 1 in 2 units" in text and "The same command goes on" in text
        log = tmp_path / "logs" / "driver.log"
        assert str(log) in text and "Traceback" in log.read_text()
        with pytest.raises(RunFailed, match="unexpected ZeroDivisionError"), told_how_to_go_on(state, stop=stop):
            1 / 0  # noqa: B018
        monkeypatch.setenv("CSR_RAY_DEBUG", "1")
        with pytest.raises(ZeroDivisionError), told_how_to_go_on(state, stop=stop):
            1 / 0  # noqa: B018


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_log_that_cannot_be_written_is_said_to_be_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], None]
) -> None:
    log = tmp_path / "logs" / "driver.log"
    log.parent.mkdir()
    make(log)

    def fail() -> None:
        stop = SignalStop(grace_s=1, before_exit=lambda: None)
        with stop, told_how_to_go_on(state_of(tmp_path, stop=stop), stop=stop):
            1 / 0  # noqa: B018

    with pytest.raises(RunFailed) as failed:
        within(fail)
    text = str(failed.value)
    assert f"The traceback could not be written to {log} (CSR_RAY_DEBUG=1 shows it)." in text
    assert "The traceback is in" not in text
    assert capsys.readouterr() == ("", "")


def test_a_run_folder_that_goes_away_is_one_line(tmp_path: Path) -> None:
    with SignalStop(grace_s=1, before_exit=lambda: None) as stop:
        state = state_of(tmp_path, stop=stop)
        with pytest.raises(StorageError) as failed, told_how_to_go_on(state, stop=stop):
            (tmp_path / "round_000" / "gone.parquet").read_bytes()
        assert "\n" not in str(failed.value)
        assert "cannot use" in str(failed.value) and "file system is there" in str(failed.value)
