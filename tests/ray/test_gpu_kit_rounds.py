"""The part of `benchmarks/gpu` that needs DeepSpeed, rounds of the trainer, at tiny shapes on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

KIT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu" / "kit.py"


def test_rounds_under_deepspeed_are_timed(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    command = [sys.executable, str(KIT), "--json", str(output), "--tiny", "--device", "cpu", "--parts", "zero2_7b"]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    part = json.loads(output.read_text())["parts"]["zero2_7b"]
    assert part["state"] == "done", part
    assert part["rows"][0]["name"].startswith("pairs_per_s [7b ZeRO-2 plain") and part["rows"][0]["value"] > 0
    (case,) = part["cases"]
    assert len(case["losses"]) == len(case["step_s"]) == 4 and all(loss > 0 for loss in case["losses"])
