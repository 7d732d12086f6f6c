"""`ray job submit --working-dir .` of a checkout: what is uploaded is what runs, and what it writes lasts longer."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from heads import ROOT, Head

from csr_ray.app.run import world_spec
from csr_ray.config.schema import World
from csr_ray.world.build import cached_world

RAY = str(Path(sys.executable).parent / "ray")
_SAID = "embedded world: built on the first run"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("submitted") / "runs"


@pytest.fixture(scope="module")
def head(runs: Path) -> Iterator[Head]:
    made = Head(num_cpus=2, dashboard=True, environment={"CSR_RAY_RUNS": str(runs)})
    yield made
    made.close()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("checkout")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.rstrip("\0").split("\0"):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)
    return copy


def submit(head: Head, checkout: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [RAY, "job", "submit", "--working-dir", ".", "--", *command],
        env={**head.environment, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{head.dashboard_port}"},
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=180,
    )


def test_a_checkout_is_submitted_and_its_own_code_runs(head: Head, checkout: Path, runs: Path) -> None:
    # Somebody has changed it, as those do who submit a checkout.
    changed = checkout / "csr_ray" / "app" / "run.py"
    assert _SAID in changed.read_text()
    changed.write_text(changed.read_text().replace(_SAID, "embedded world of a changed checkout"))
    done = submit(head, checkout, "csr-ray", "run", "configs/tiny-world.yaml", "run.dir=runs/mine", "--dry-run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"run folder: {runs / 'runs/mine'}" in done.stdout and "CSR_RAY_RUNS" in done.stdout
    assert "embedded world of a changed checkout" in done.stdout
    assert not runs.exists(), "a dry run makes nothing"


def test_a_benchmark_measures_the_cluster_that_its_job_is_on(head: Head, checkout: Path, runs: Path) -> None:
    small = World(enabled=True, quick=True, num_train_images=48, num_heldout_images=48)
    world = cached_world(world_spec(small), progress=False)
    flags = ["--address", "auto", "--world", str(world), "--batches", "2", "--repeats", "2"]
    flags += ["--json", "bench/clip.json"]
    done = submit(head, checkout, "python", "benchmarks/bench_clip.py", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((runs / "bench/clip.json").read_text())
    assert [node["cpus"] for node in result["machine"]["nodes"]] == [2.0], "the head's, not the machine's"
    names = [row["name"] for row in result["rows"]]
    assert names[:2] == ["sentences_per_s_1", "sentences_per_s_2"], "as many as the head's CPUs"
    assert result["headline"] == "scaling_efficiency_2" and result["headline"] in names
