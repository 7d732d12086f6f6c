"""Runs of fakes whose run folder is at a URL, on "machines" that are cache folders."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import yaml
from checked_runs import CheckedDriver
from test_loop import Driver, save_fake_model

from csr_ray.app.check import CheckReport, check_run
from csr_ray.app.place import Place, folder_of, opened_to_read, settled, take
from csr_ray.config.load import to_plain
from csr_ray.records import Prompt
from csr_ray.stages.state import RunState
from csr_ray.store.journal import Journal
from csr_ray.store.lock import Holder
from csr_ray.store.object_lock import LockObjects
from csr_ray.store.objects import open_store


class UrlDriver(CheckedDriver):
    """A run at a URL, as `csr_ray.app.run` starts one, with fakes at its ports.

    Args:
        place: a folder for the prompt file, which every machine has.
    """

    def __init__(self, url: str, *, place: Path, num_prompts: int = 5, rounds: int = 2, unit: int = 2) -> None:
        ids = [f"p{number}" for number in range(num_prompts)]
        self.source = place / "prompts.jsonl"
        rows = [{"id": id, "image": f"{id}.png", "prompt": "Describe."} for id in ids]
        self.source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sections = {"data": {"prompts": str(self.source)}, "run": {"dir": url, "rounds": rounds, "unit": unit}}
        Driver.__init__(self, place, **sections)
        self.url = url
        self.prompts = [Prompt(id=id, image=f"{id}.png", text="Describe.", source="x") for id in ids]
        self.said_lines: list[str] = []
        self.place: Place | None = None
        self.before_work: Callable[[], None] = lambda: None

    def state(self) -> RunState:
        assert self.place is not None
        journal = Journal(self.folder.journal)
        self.place.follow(journal)
        journal.before_commit = self.place.check
        self.folder.config.write_text(yaml.safe_dump(to_plain(self.config)))
        return RunState(config=self.config, folder=self.folder, journal=journal, model="model", versions={})

    def run_here(self, **trouble: object) -> dict:
        """Start the run on the machine of `CSR_RAY_CACHE`; returns the summary."""
        self.folder = folder_of(self.url)
        self.place = take(self.folder, say=self.said_lines.append)
        try:
            self.before_work()
            with settled(self.place, say=self.said_lines.append):
                return self.run(**trouble)  # type: ignore[arg-type]
        finally:
            self.place.release()

    def check(self) -> CheckReport:
        with opened_to_read(self.url, key="RUN_DIR") as folder:
            return check_run(folder.root)

    def bury(self) -> None:
        """Whoever has the lock is dead, so that the next start takes it over at once."""
        lock = LockObjects(open_store(self.url, key="run.dir"))
        if (found := lock.read()) is not None:
            holder = Holder.from_bytes(found[0])
            assert holder is not None
            assert lock.replace(replace(holder, started=holder.started - 1, token="dead").to_bytes(), tag=found[1])


@contextlib.contextmanager
def on_machine(folder: Path) -> Iterator[None]:
    """What is started in the block has its working copies there."""
    with mock.patch.dict(os.environ, {"CSR_RAY_CACHE": str(folder)}):
        yield


@pytest.fixture(autouse=True)
def fake_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csr_ray.policy.weights.save_merged", save_fake_model)
