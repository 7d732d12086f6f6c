"""`ray job submit --working-dir .` of a checkout: what is uploaded is what runs, and the run folder lasts longer."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from heads import ROOT, Head

RAY = str(Path(sys.executable).parent / "ray")
_SAID = "embedded world: built on the first run"


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    made = Head(num_cpus=2, dashboard=True, environment={"CSR_RAY_RUNS": str(tmp_path / "runs")})
    yield made
    made.close()


def test_a_checkout_is_submitted_and_its_own_code_runs(head: Head, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.rstrip("\0").split("\0"):
        if (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, checkout / name)
    # Somebody has changed it, as those do who submit a checkout.
    changed = checkout / "csr_ray" / "app" / "run.py"
    assert _SAID in changed.read_text()
    changed.write_text(changed.read_text().replace(_SAID, "embedded world of a changed checkout"))
    command = ["csr-ray", "run", "configs/tiny-world.yaml", "run.dir=runs/mine", "--dry-run"]
    done = subprocess.run(
        [RAY, "job", "submit", "--working-dir", ".", "--", *command],
        env={**head.environment, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{head.dashboard_port}"},
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"run folder: {tmp_path / 'runs' / 'runs/mine'}" in done.stdout and "CSR_RAY_RUNS" in done.stdout
    assert "embedded world of a changed checkout" in done.stdout
    assert not (tmp_path / "runs").exists(), "a dry run makes nothing"
