"""The whole program with everything in a bucket: run folder, prompts, pictures, benchmark, policy and scorer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from s3_server import Door, s3_door

from csr_ray.app.check import check_run
from csr_ray.app.place import opened_to_read
from csr_ray.app.run import world_spec
from csr_ray.config.load import load_config
from csr_ray.world.build import cached_world

ROOT = Path(__file__).resolve().parents[2]
URL = "s3://bucket/experiments/run"
WORLD = ("world.quick=true", "world.num_train_images=16", "world.num_heldout_images=16")


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    with s3_door() as one:
        yield one


def config_in_the_bucket(door: Door, folder: Path) -> Path:
    """The embedded world as somebody's own data in a bucket."""
    tiny = ROOT / "configs" / "tiny-world.yaml"
    world = cached_world(world_spec(load_config(tiny, overrides=WORLD).world), progress=False)
    store = door.store("world")
    for path in world.rglob("*"):
        if path.is_file():
            store.upload(path, name=path.relative_to(world).as_posix())
    plain = yaml.safe_load(tiny.read_text().replace("${world}", store.url))
    plain["world"] = {"enabled": False}
    plain["run"] = {"dir": URL, "rounds": 2, "unit": 4}
    plain["data"] |= {"per_round": 8}
    plain["eval"] |= {"limit": 4}
    path = folder / "bucket.yaml"
    path.write_text(yaml.safe_dump(plain))
    return path


@contextmanager
def started(config: Path, *, machine: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A driver as a process of its own, whose machine has nothing but an empty cache; and a file of what it says."""
    command = [sys.executable, "-m", "csr_ray", "run", str(config)]
    environment = {**os.environ, "CSR_RAY_CACHE": str(machine)}
    (machine.parent / "cwd").mkdir(exist_ok=True)
    said = machine.with_name(f"{machine.name}.log")
    with said.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=machine.parent / "cwd",
            env={**environment, "PYTHONPATH": str(ROOT)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process, said
    finally:
        process.kill()
        process.wait()


@pytest.mark.long
def test_a_run_in_a_bucket_is_killed_and_goes_on_on_another_machine(door: Door, tmp_path: Path) -> None:
    config = config_in_the_bucket(door, tmp_path)
    store = door.store("experiments/run")
    with started(config, machine=tmp_path / "a") as (first, log):
        deadline_s = time.monotonic() + 300
        while not [name for name in store.list() if name.endswith("round_000/pairs.parquet")]:
            assert time.monotonic() < deadline_s and first.poll() is None, log.read_text()
            time.sleep(0.2)
        os.kill(first.pid, signal.SIGKILL)
    with opened_to_read(URL, key="RUN_DIR") as folder:
        report = check_run(folder.root)
        before = folder.journal.read_bytes()
    assert report.damage == []
    with started(config, machine=tmp_path / "b") as (second, log):
        second.wait(timeout=400)
        said = log.read_text()
    assert second.returncode == 0, said
    assert f"page: {URL}/report.html" in said
    with opened_to_read(URL, key="RUN_DIR") as folder:
        report = check_run(folder.root)
        assert (report.damage, report.next) == ([], "nothing: the run is finished")
        assert folder.journal.read_bytes().startswith(before)
        summary = json.loads(folder.summary.read_text())
        assert folder.report.is_file() and (folder.logs / "generator_0.log").is_file()
    assert [one["policy_version"] for one in summary["rounds"]] == [1, 2]
    assert all(one["publish"]["max_probe_gap"] < 1e-3 and one["eval"]["num_images"] == 4 for one in summary["rounds"])
    assert list((tmp_path / "cwd").iterdir()) == [], "a URL was taken for a path"
    models = {path.name.split("-")[0] for path in (tmp_path / "b" / "models").iterdir() if path.is_dir()}
    assert models == {"policy", "clip"}
