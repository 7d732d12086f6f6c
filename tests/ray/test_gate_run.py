"""A harmful phase on the real stack: taken back, tried again with half the dose, and the run keeps its policy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from csr_ray.app.run import run_config, world_spec
from csr_ray.config.load import load_config
from csr_ray.store.run_folder import RunFolder
from csr_ray.world.build import cached_world

pytestmark = pytest.mark.usefixtures("ray_session")

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "tiny-world.yaml"
SMALL = (
    "run.rounds=2",
    "run.unit=4",
    "world.quick=true",
    "world.num_train_images=32",
    "world.num_heldout_images=48",
    "data.per_round=24",
    "eval.benchmarks=[]",
    "gate.enabled=true",
    "gate.prompts=24",
    "gate.retries=1",
)


def test_a_learning_rate_that_breaks_the_policy_changes_nothing(ray_session: None, tmp_path: Path) -> None:
    overrides = [*SMALL, f"run.dir={tmp_path / 'run'}", "train.epochs=3", "train.learning_rate=0.05"]
    world = cached_world(world_spec(load_config(CONFIG, overrides=overrides).world), progress=False)
    assert run_config(str(CONFIG), overrides=overrides, fresh=False, dry_run=False) == 0
    folder = RunFolder(tmp_path / "run")
    summary = json.loads(folder.summary.read_text())
    assert summary["ended"]["round"] == 0 and summary["ended"]["version"] == 0 and summary["finished"]
    again = [json.loads(line) for line in folder.journal.read_text().splitlines() if '"again"' in line]
    assert [entry["verdict"]["attempt"] for entry in again] == [1, 2]
    assert all(entry["verdict"]["faults"] for entry in again)
    base, last = (load_file(next(path.glob("*.safetensors"))) for path in (world / "policy", folder.model))
    assert base.keys() == last.keys() and all(torch.equal(tensor, last[name]) for name, tensor in base.items())
