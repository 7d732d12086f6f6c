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
from model_servers import served
from tutorial import CONFIG, Reader, block, take_photos

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


@pytest.fixture(scope="module")
def rehearsed(reader: Reader) -> RunFolder:
    """A run of one's own photos, from the folder of photos to the page."""
    take_photos(reader.folder / "photos", num=12)
    said = reader.types("own-photos", with_words="csr-ray init")
    assert "12 pictures, 1 set aside" in said and "REHEARSAL" in said
    config = reader.folder / "photos-run" / "config.yaml"
    tree = yaml.safe_load(config.read_text(encoding="utf-8"))
    tree["world"] |= QUICK["world"]
    config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    assert "12 usable" in reader.types("own-photos", with_words="config.yaml --dry-run")
    said = reader.types("own-photos", with_words="run photos-run/config.yaml\n")
    assert "photos-run/run/report.html" in said
    return RunFolder(reader.folder / "photos-run" / "run")


def test_own_photos_are_rehearsed(rehearsed: RunFolder) -> None:
    assert summary_of(rehearsed.root)["finished"]
    pairs = pq.read_table(rehearsed.root / "round_000" / "pairs.parquet")
    assert pairs.num_rows > 0
    assert set(pairs["id"].to_pylist()) <= {f"IMG_{number}.jpg" for number in range(1, 13)}
    assert (rehearsed.model / "config.json").is_file() and (rehearsed.model / "model.safetensors").is_file()
    assert "IMG_" in rehearsed.report.read_text(encoding="utf-8")


def test_the_run_of_own_photos_is_watched_and_judged(rehearsed: RunFolder, reader: Reader) -> None:
    assert "The run is over" in reader.opens("own-photos", with_words="csr-ray watch")
    shown = reader.opens("own-photos", with_words="csr-ray annotate")
    assert "<button>Begin</button>" in shown and "IMG_" not in shown, "whoever judges says who they are first"


def test_the_base_and_every_round_are_asked_about_own_photos(rehearsed: RunFolder, reader: Reader) -> None:
    said = reader.types("own-photos", with_words="csr-ray ask")
    assert "base" in said and "after round 3" in said
    page = (reader.folder / "answers.html").read_text(encoding="utf-8")
    assert all(f"IMG_{number}.jpg" in page for number in range(1, 13)) and "broken.jpg" in page


def test_a_program_asks_a_server_of_the_model_of_own_photos(rehearsed: RunFolder, reader: Reader) -> None:
    """The end of the way: photos, a model that was improved on them, a server, an answer."""
    program = reader.saves("serve", language="python", name="ask_server.py")
    command = block("serve", language="bash", with_words="api_server")
    with served(command, log=reader.folder / "log", folder=reader.folder) as url:
        program.write_text(program.read_text().replace("http://localhost:8000/v1", url))
        said = reader.types("serve", with_words="python ask_server.py")
    assert len(said.split()) > 2


def test_the_pairs_and_the_model_of_own_photos_are_given_away(rehearsed: RunFolder, reader: Reader) -> None:
    reader.types("serve", with_words="csr-ray pairs")
    (rows,) = (reader.folder / "my-pairs" / "data").glob("*.parquet")
    assert pq.read_table(rows)["image"][0]["bytes"].as_py()
    assert "model.safetensors" in reader.types("serve", with_words="csr-ray push")
    assert (rehearsed.model / "README.md").is_file(), "the card that the page speaks of"


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
