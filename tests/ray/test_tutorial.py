"""The tutorial typed as it stands, on the real stack, in a world that is made in seconds.

What needs a GPU, a registry or a person is not typed; tests/unit/test_tutorial.py lists it, and types what is quick.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from heads import Head
from tutorial import CONFIG, Reader, take_photos

from csr_ray.store.run_folder import RunFolder

# The demo's config with a small world and little to do; everything else is as a reader has it.
QUICK = {
    "world": {"quick": True, "num_train_images": 48, "num_heldout_images": 48},
    "data": {"per_round": 24},
    "eval": {"limit": 4, "limit_between": 4},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the reader works, with a config of the demo's name and the cache of its world."""
    folder = tmp_path_factory.mktemp("tutorial")
    tree = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    for section, keys in QUICK.items():
        tree[section] |= keys
    (folder / "configs").mkdir()
    (folder / "configs" / CONFIG.name).write_text(yaml.safe_dump(tree), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def reader(folder: Path) -> Reader:
    return Reader(folder=folder, environment={})


def summary_of(run_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return found


def test_own_photos_are_rehearsed(reader: Reader) -> None:
    take_photos(reader.folder / "photos", num=12)
    reader.saves("own-photos", language="python", name="make_prompts.py")
    reader.types("own-photos", with_words="make_prompts.py")
    said = reader.types("own-photos", with_words="'eval.benchmarks=[]'\n")
    assert "page: runs/rehearsal/report.html" in said
    run = RunFolder(reader.folder / "runs" / "rehearsal")
    assert summary_of(run.root)["finished"]
    (line,) = run.quarantine.read_text().splitlines()
    assert json.loads(line)["id"] == "broken"
    pairs = pq.read_table(run.root / "round_000" / "pairs.parquet")
    assert pairs.num_rows > 0
    assert set(pairs["id"].to_pylist()) <= {f"IMG_{number}" for number in range(1, 13)}
    assert (run.model / "config.json").is_file() and (run.model / "model.safetensors").is_file()
    assert "IMG_" in run.report.read_text(encoding="utf-8")


@pytest.mark.long
def test_the_demo_is_run_shown_again_looked_at_and_compared(reader: Reader) -> None:
    said = reader.types("demo", with_words="tiny-world.yaml\n")
    for line in (
        "start the machinery",
        "roll out",
        "train",
        "publish",
        "check",
        "evaluate",
        "page: runs/tiny-world/",
    ):
        assert line in said, line
    journal = reader.folder / "runs" / "tiny-world" / "journal.jsonl"
    written = journal.read_bytes()
    again = reader.types("demo", with_words="tiny-world.yaml\n")
    assert "page: runs/tiny-world/" in again and "roll out" not in again
    assert journal.read_bytes() == written
    reader.types("demo", with_words="reward.weight=0")
    assert "report.html" in reader.types("demo", with_words="csr-ray check")
    assert "chair_s" in reader.types("demo", with_words="csr-ray compare")


@pytest.fixture
def cluster(folder: Path) -> Iterator[Reader]:
    """A reader who has started a head that wants a token, as the page says, but on ports of its own."""
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    of_nodes = {
        "CSR_RAY_RUNS": str(folder / "csr_ray_runs"),
        "CSR_RAY_CACHE": str(folder / "cache"),
        "PYTHONPATH": str(CONFIG.parents[1]),
    }
    head = Head(num_cpus=4, dashboard=True, environment={**environment, **of_nodes})
    try:
        environment["RAY_ADDRESS"] = f"http://127.0.0.1:{head.dashboard_port}"
        yield Reader(folder=folder, environment=environment)
    finally:
        head.close()


@pytest.mark.long
def test_a_run_is_submitted_stopped_and_gone_on_with(cluster: Reader) -> None:
    said = cluster.types("first-cluster", with_words="first-1")
    assert "run folder: " in said and "page: " in said
    assert summary_of(cluster.folder / "csr_ray_runs" / "first")["finished"]
    assert "second-1" in cluster.types("first-cluster", with_words="stop second-1")
    cluster.types("first-cluster", with_words="second-2")
    assert summary_of(cluster.folder / "csr_ray_runs" / "second")["finished"]
