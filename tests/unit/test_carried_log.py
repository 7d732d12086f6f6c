"""The log of a train worker whose node does not see the folder of logs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from actors.process.logs import tail
from actors.train import pulse as module
from actors.train.desk import Desk
from actors.train.pulse import CarriedLog, Pulse


@pytest.fixture
def mailbox(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A mailbox in this process, whose desk answers at once."""
    monkeypatch.setattr(ray, "get", lambda answer, timeout=None: answer)
    desk = Desk()
    remote = lambda method, *args, **kwargs: getattr(desk, method)(*args, **kwargs)  # noqa: E731
    return SimpleNamespace(desk=SimpleNamespace(remote=remote))


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The log on the worker's node."""
    folder = tmp_path / "own_folder"
    folder.mkdir()
    (folder / "train_worker_0.log").write_text("")
    return folder / "train_worker_0.log"


def test_the_driver_has_what_a_worker_said_before_it_died(mailbox: Any, here: Path, tmp_path: Path) -> None:
    there = tmp_path / "logs" / "train_worker_0.log"
    there.parent.mkdir()
    there.write_text("of the worker before\n")
    log = CarriedLog(here, there=there)
    for number in range(3):
        with here.open("a") as file:
            file.write(f"step {number}\n")
        log.ship(mailbox)
    assert tail(there, num_lines=4).splitlines() == ["of the worker before", "step 0", "step 1", "step 2"]


def test_a_worker_that_ends_leaves_nothing_here_and_nothing_unsaid(
    mailbox: Any, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOG_BYTES", 100)
    there = tmp_path / "logs" / "train_worker_0.log"
    text = "\n".join(f"line {number}" for number in range(1000))
    here.write_text(text)
    Pulse(rank=0, mailbox=mailbox, log=CarriedLog(here, there=there)).close_log()
    assert there.read_text() == text
    assert not here.parent.exists()


def test_a_log_that_cannot_be_written_ends_nobody(mailbox: Any, here: Path, tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file in the place of the folder")
    here.write_text("said")
    CarriedLog(here, there=tmp_path / "logs" / "train_worker_0.log").ship(mailbox)
    here.unlink()
    CarriedLog(here, there=tmp_path / "logs" / "train_worker_0.log").ship(mailbox)
