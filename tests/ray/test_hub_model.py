"""A policy by hub id: rollout, training, hand-over and export from a local hub cache, in offline mode."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from csr_ray.app.run import world_spec
from csr_ray.config.load import load_config
from csr_ray.world.build import cached_world

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "tiny-world.yaml"
REVISION = "0123456789abcdef0123456789abcdef01234567"
SMALL = (
    "run.rounds=1",
    "world.quick=true",
    "world.num_train_images=32",
    "world.num_heldout_images=48",
    "data.per_round=8",
    "eval.limit=4",
    "policy.model=tiny/llava",
)


def hub_cache(directory: Path, *, policy: Path) -> Path:
    """A hub cache that holds `policy` as tiny/llava, laid out as huggingface_hub lays it out."""
    model = directory / "models--tiny--llava"
    shutil.copytree(policy, model / "snapshots" / REVISION)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(REVISION)
    return directory


def csr_ray(*arguments: str, cache: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "csr_ray", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = cached_world(world_spec(load_config(CONFIG, overrides=list(SMALL)).world), progress=False)
    return hub_cache(tmp_path_factory.mktemp("hub"), policy=world / "policy")


@pytest.mark.long
def test_a_hub_id_goes_the_whole_way_and_the_run_remembers_its_revision(cache: Path, tmp_path: Path) -> None:
    run = ("run", str(CONFIG), *SMALL, f"run.dir={tmp_path / 'run'}")
    done = csr_ray(*run, cache=cache, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["policy"] == {"name": "tiny/llava", "revision": REVISION}
    assert summary["finished"] and summary["rounds"][0]["publish"]["max_probe_gap"] < 1e-3
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    assert any((tmp_path / "run" / "model").glob("*.safetensors"))
    assert not (tmp_path / "tiny").exists()


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (
            "nobody/nothing",
            "policy.model = 'nobody/nothing': no such folder, and the hub's copy is neither in the cache",
        ),
        ("nobody/no such", "policy.model = 'nobody/no such': neither a folder here nor a model on the hub"),
    ],
)
def test_an_id_that_does_not_exist_is_one_clear_line(cache: Path, tmp_path: Path, model: str, says: str) -> None:
    run = ("run", str(CONFIG), *SMALL, f"run.dir={tmp_path / 'run'}", f"policy.model={model}")
    done = csr_ray(*run, cache=cache, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert says in done.stderr and "Traceback" not in done.stderr
