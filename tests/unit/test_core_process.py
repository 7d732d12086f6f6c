"""The engine's process is one that has its imports behind it."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from multiprocessing import parent_process
from pathlib import Path

import pytest

from actors.generate.core_process import ProcessAhead

_MODULE = "colorsys"  # that nothing else imports


def say_what_there_is(path: str) -> None:
    parent = parent_process()
    assert parent is not None
    facts = {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "imported": _MODULE in sys.modules,
        "home": os.environ.get("HOME_OF_ENGINE"),
        "gone": "ONLY_BEFORE" in os.environ,
        "name": _named("VLLM::EngineCore"),
    }
    Path(path).write_text(json.dumps(facts))
    sys.exit(3)


def _named(name: str) -> str:
    """What ps shows of this process when it has given itself a name, as vLLM does."""
    import setproctitle

    setproctitle.setproctitle(name)
    return Path("/proc/self/cmdline").read_text().split("\0")[0].strip()


def wait_for_the_end() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()


def test_it_becomes_what_is_asked_with_the_environment_of_that_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONLY_BEFORE", "1")
    ahead = ProcessAhead(modules=(_MODULE,))
    monkeypatch.delenv("ONLY_BEFORE")
    monkeypatch.setenv("HOME_OF_ENGINE", "here")
    path = tmp_path / "facts.json"
    process = ahead.context().Process(target=say_what_there_is, kwargs={"path": str(path)}, name="EngineCore")
    process.start()
    process.join(60)
    assert process.exitcode == 3
    facts = json.loads(path.read_text())
    assert facts.pop("name") == "VLLM::EngineCore"
    assert facts == {"pid": ahead.pid, "parent": os.getpid(), "imported": True, "home": "here", "gone": False}
    ahead.close()  # nothing is left to close


def test_one_that_is_never_asked_ends_by_close() -> None:
    ahead = ProcessAhead(modules=(_MODULE,))
    ahead.close()
    with pytest.raises(ProcessLookupError):
        os.kill(ahead.pid, 0)
    ahead.close()


def test_its_death_before_it_was_asked_is_told() -> None:
    ahead = ProcessAhead(modules=(_MODULE,))
    os.kill(ahead.pid, signal.SIGKILL)
    os.waitid(os.P_PID, ahead.pid, os.WEXITED | os.WNOWAIT)
    process = ahead.context().Process(target=wait_for_the_end, name="EngineCore")
    with pytest.raises(BrokenPipeError):
        process.start()


def test_its_death_as_an_engine_is_seen_by_its_sentinel() -> None:
    from multiprocessing.connection import wait

    ahead = ProcessAhead(modules=(_MODULE,))
    process = ahead.context().Process(target=wait_for_the_end, name="EngineCore")
    process.start()
    assert not wait([process.sentinel], timeout=1)
    process.kill()
    begun_s = time.monotonic()
    assert wait([process.sentinel], timeout=30) and time.monotonic() - begun_s < 30
    process.join()
    assert process.exitcode == -signal.SIGKILL
