"""Benchmarks that compare on one machine run to their end, at their smallest, and print rows that are numbers."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

from heads import ROOT

from csr_ray.app.run import world_spec
from csr_ray.config.schema import World
from csr_ray.world.build import cached_world


def rows_of(script: str, *flags: str, folder: Path) -> dict[str, float]:
    out = folder / "result.json"
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *flags, "--json", str(out)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {row["name"]: row["value"] for row in json.loads(out.read_text())["rows"]}


def test_the_search_is_held_against_its_bare_engine(tmp_path: Path) -> None:
    world = cached_world(world_spec(World(quick=True, num_train_images=32, num_heldout_images=48)), progress=False)
    flags = ("--world", str(world), "--prompts", "4", "--repeats", "1", "--only", "engine")
    rows = rows_of("bench_rollout.py", *flags, folder=tmp_path)
    assert all(math.isfinite(value) for value in rows.values())
    assert 0 < rows["prefix_hit_rate"] < 1 and 0 < rows["recomputed_share"] < 1
    assert rows["search_tokens_per_s"] > 0 and rows["bare_engine_tokens_per_s"] > 0
