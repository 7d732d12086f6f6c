"""A small whole run on the tiny world that is killed once on the way, and what its config is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

import csr_ray
from csr_ray.app.run import world_spec
from csr_ray.config.load import load_config
from csr_ray.store.journal import Journal
from csr_ray.store.run_folder import RunFolder
from csr_ray.world.build import cached_world

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "tiny-world.yaml"
SAID = "killed.log"
SMALL = (
    "run.rounds=3",
    "run.unit=4",
    "world.quick=true",
    "world.num_train_images=32",
    "world.num_heldout_images=48",
    "data.per_round=12",
    "eval.limit=16",
    "run.trace=true",
    "gate.prompts=8",
)


def killed_and_resumed(directory: Path) -> RunFolder:
    """A finished run of three rounds, whose driver was killed right after the first round's pairs.

    What the killed driver's terminal showed is beside the folder, in `SAID`; the second driver is Python's interface.
    """
    overrides = [*SMALL, f"run.dir={directory}"]
    cached_world(world_spec(load_config(CONFIG, overrides=overrides).world), progress=False)
    with (directory.parent / SAID).open("wb") as said:
        killed = subprocess.Popen(
            [sys.executable, "-m", "csr_ray", "run", str(CONFIG), *overrides],
            cwd=ROOT,
            stdout=said,
            stderr=subprocess.DEVNULL,
        )
    folder = RunFolder(directory)
    deadline_s = time.monotonic() + 400
    while b'"kind": "examples"' not in _whole_lines(folder.journal):
        assert time.monotonic() < deadline_s and killed.poll() is None, "the run to be killed never made pairs"
        time.sleep(0.2)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    before = _whole_lines(folder.journal)
    keys = (override.partition("=") for override in overrides)
    ran = csr_ray.run(CONFIG, **{key: yaml.safe_load(value) for key, _, value in keys})
    assert ran.is_finished and len(ran.rounds) == 3
    assert _whole_lines(folder.journal).startswith(before), "what was committed still stands"
    units = Journal(folder.journal).units(round=0, phase="main")
    assert len(set(units.names)) == len(units.names) == 3, "committed work was done again"
    return folder


def _whole_lines(journal: Path) -> bytes:
    """As a `Journal` would read them, without looking at their checksums."""
    lines = journal.read_bytes() if journal.exists() else b""
    return lines[: lines.rfind(b"\n") + 1]
