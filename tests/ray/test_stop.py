"""The real program is told to stop, in a rollout and while it starts, and goes on to the end afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from csr_ray.app.run import world_spec
from csr_ray.config.load import load_config
from csr_ray.store.journal import Journal
from csr_ray.store.run_folder import RunFolder
from csr_ray.world.build import cached_world

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "tiny-world.yaml"
SMALL = (
    *("run.rounds=1", "run.unit=5", "world.quick=true", "world.num_train_images=32", "world.num_heldout_images=48"),
    *("data.per_round=24", "eval.limit=2", "generators.in_flight=3"),
)


class Run:
    """The run in one folder, started as a person starts it."""

    def __init__(self, directory: Path) -> None:
        self.folder = RunFolder(directory)
        self._overrides = [*SMALL, f"run.dir={directory}"]
        cached_world(world_spec(load_config(CONFIG, overrides=self._overrides).world), progress=False)

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "csr_ray", "run", str(CONFIG), *self._overrides],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def stop(self, number: signal.Signals, *, when: Callable[[], bool]) -> tuple[str, float]:
        """Start it, send a signal at a moment, and return what it printed and how long it still took."""
        process = self.start()
        try:
            until_s = time.monotonic() + 400
            while not when():
                assert time.monotonic() < until_s and process.poll() is None, process.communicate()[0]
                time.sleep(0.05)
            os.kill(process.pid, number)
            started_s = time.monotonic()
            output, _ = process.communicate(timeout=90)
        finally:
            process.kill()
        assert process.returncode == 1, output
        assert "Traceback" not in output
        return output, time.monotonic() - started_s

    def units(self) -> list[list[str]]:
        lines = self.folder.journal.read_text().splitlines()
        return [entry["ids"] for line in lines if (entry := json.loads(line))["kind"] == "rollout"]


def test_a_run_that_is_stopped_keeps_what_is_finished_and_goes_on(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    journal = run.folder.journal
    # In mid-rollout SIGTERM, before which Ray's C++ puts a handler of its own; Ctrl-C takes the same way in ours.
    output, took_s = run.stop(
        signal.SIGTERM, when=lambda: journal.exists() and b'"kind": "rollout"' in journal.read_bytes()
    )
    units = run.units()
    num = sum(map(len, units))
    assert 5 <= num < 24, "stopped in the middle"
    assert f"{num} prompts of round 1 in {len(units)} unit" in output
    assert "stopped by SIGTERM" in output and "The same command goes on" in output
    assert "SIGTERM received" not in output
    assert all(len(unit) <= 5 for unit in units)
    assert not run.folder.lock.exists()
    print(f"SIGTERM in mid-rollout: {took_s:.1f} s to the end, {[len(unit) for unit in units]} prompts in units")

    output, took_s = run.stop(signal.SIGINT, when=run.folder.lock.exists)
    assert "stopped by SIGINT" in output and not run.folder.lock.exists()
    print(f"SIGINT while it starts: {took_s:.1f} s to the end")

    process = run.start()
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert run.units()[: len(units)] == units
    ids = [prompt_id for unit in run.units() for prompt_id in unit]
    assert len(ids) == len(set(ids)) == 24
    assert Journal(journal).find("finished") is not None and not run.folder.lock.exists()
