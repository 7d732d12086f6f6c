"""A whole run on one GPU: engine, scorer and trainer share it, in bfloat16, over NCCL and with CUDA graphs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The tiny models on a part of the GPU each; what differs from a CPU is left at its defaults.
ON_GPU = (
    "policy.dtype=bfloat16", "scorer.dtype=bfloat16", "train.dtype=bfloat16",
    "generators.gpus=0.4", "scorers.gpus=0.2", "train.gpus_per_worker=0.4",
    "generators.gpu_memory_utilization=0.4", "generators.probe_tolerance=0.05",
    "world.quick=true", "world.num_train_images=32", "world.num_heldout_images=16",
    "data.per_round=16", "eval.limit=16", "run.rounds=2",
)  # fmt: skip


@pytest.mark.parametrize(
    "overrides",
    [(), ("train.streaming=true",), ("generators.publish=adapter",), ("search.preset=paper",)],
    ids=["plain", "streaming", "hot adapter", "coupled decodes"],
)
def test_a_run_ends_and_every_hand_over_is_proved(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "csr_ray", "run", str(ROOT / "configs/tiny-world.yaml"), *ON_GPU, *overrides]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, f"run.dir={tmp_path / 'run'}"], check=True, cwd=tmp_path, env=environment, timeout=1500)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["finished"] and [entry["policy_version"] for entry in summary["rounds"]] == [1, 2]
    for entry in summary["rounds"]:
        assert 0 < entry["publish"]["max_probe_gap"] < 5.0
        assert entry["pairs"]["made"] > 0 and entry["rollout"]["failed"] == 0
