"""Relative paths of the user's, on a cluster whose actors work in another folder than the driver, and in a job.

The head was started in a folder of its own, as an operator does; the user stands in a folder with data and models.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from heads import ROOT, Head
from PIL import Image

from csr_ray.app.run import world_spec
from csr_ray.config.load import load_config
from csr_ray.world.build import cached_world

CONFIG = ROOT / "configs" / "tiny-world.yaml"
WORLD = ("world.quick=true", "world.num_train_images=48", "world.num_heldout_images=48")
RELATIVE = (
    *("data.prompts=data/prompts.jsonl", "data.images=pictures", "policy.model=models/policy"),
    *("scorer.model=models/clip", "eval.data=heldout", "world.enabled=false"),
)
SMALL = ("run.rounds=1", "run.unit=4", "data.limit=8", "data.per_round=8", "eval.limit=2", "generators.in_flight=3")
RAY = str(Path(sys.executable).parent / "ray")


class Place:
    """A folder of the user's with everything that a run needs, and a head that was started elsewhere."""

    def __init__(self, folder: Path) -> None:
        world = cached_world(world_spec(load_config(CONFIG, overrides=list(WORLD)).world), progress=False)
        self.here = folder / "here"
        self.runs = folder / "runs_of_jobs"
        shutil.copytree(world / "policy", self.here / "models" / "policy")
        shutil.copytree(world / "clip", self.here / "models" / "clip")
        shutil.copytree(world / "heldout", self.here / "heldout")
        shutil.copytree(world / "train" / "images", self.here / "pictures")
        (self.here / "data").mkdir()
        rows = [json.loads(line) for line in (world / "train" / "prompts.jsonl").read_text().splitlines()]
        text = "\n".join(json.dumps({**row, "image": Path(row["image"]).name}) for row in rows)
        (self.here / "data" / "prompts.jsonl").write_text(text)
        (self.here / "mine.yaml").write_text(CONFIG.read_text())
        self.head = Head(
            num_cpus=4, dashboard=True, environment={"CSR_RAY_RUNS": str(self.runs), "PYTHONPATH": str(ROOT)}
        )

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "csr_ray", *words],
            env={**self.head.environment, "RAY_ADDRESS": self.head.address},
            cwd=self.here,
            capture_output=True,
            text=True,
            timeout=400,
        )

    def job(self, *words: str) -> tuple[str, str]:
        """How a job ends that is submitted from the user's folder, and its log."""
        environment = {
            **self.head.environment,
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{self.head.dashboard_port}",
        }

        def ray(*more: str) -> str:
            done = subprocess.run(
                [RAY, "job", *more], env=environment, cwd=self.here, capture_output=True, text=True, timeout=120
            )
            return done.stdout + done.stderr

        options = ("--submission-id", "relative", "--no-wait", "--working-dir", ".")
        ray("submit", *options, "--", "python", "-m", "csr_ray", *words)
        until_s = time.monotonic() + 400
        while True:
            said = ray("status", "relative")
            if re.search(r"succeeded|failed|stopped|SUCCEEDED|FAILED|STOPPED", said):
                return said, ray("logs", "relative")
            assert time.monotonic() < until_s, said
            time.sleep(1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("place"))
    yield made
    made.head.close()


@pytest.mark.long
def test_a_driver_that_stands_elsewhere_than_the_actors(place: Place, tmp_path: Path) -> None:
    done = place.command("run", "mine.yaml", *RELATIVE, *SMALL, "data.reader=ray", f"run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert kept["data"]["prompts"] == "data/prompts.jsonl" and kept["scorer"]["model"] == "models/clip"
    pairs = pq.read_table(tmp_path / "run" / "round_000" / "pairs.parquet").to_pylist()
    assert {Path(row["image"]["path"]).parent for row in pairs} == {place.here / "pictures"}
    assert not (tmp_path / "run" / "quarantine.jsonl").exists()
    again = place.command("run", "mine.yaml", *RELATIVE, *SMALL, "data.reader=ray", f"run.dir={tmp_path / 'run'}")
    assert again.returncode == 0 and "page:" in again.stdout, again.stdout + again.stderr

    scored = place.command(
        *("score", "data/prompts.jsonl", "--images", "pictures", "--scorer", "models/clip"),
        *("--out", str(tmp_path / "scores"), "--limit", "8"),
    )
    assert scored.returncode == 0, scored.stdout[-4000:] + scored.stderr[-4000:]
    evaluated = place.command(
        *("eval", "--model", "models/policy", "--benchmark", "world", "--data", "heldout", "--limit", "2"),
        *("--json", str(tmp_path / "eval.json")),
    )
    assert evaluated.returncode == 0, evaluated.stdout[-4000:] + evaluated.stderr[-4000:]


@pytest.mark.long
def test_a_job_names_pictures_by_what_was_submitted_and_its_pairs_hold_them(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    said, log = place.job("run", "mine.yaml", *RELATIVE, *SMALL, "data.reader=ray", "run.dir=relative")
    assert "succeeded" in said.lower(), said + log[-6000:]
    folder = place.runs / "relative"
    rows = pq.read_table(folder / "round_000" / "pairs.parquet").to_pylist()
    assert rows and not (folder / "quarantine.jsonl").exists(), log
    (entry,) = json.loads((folder / "summary.json").read_text())["rounds"]
    assert entry["train"]["pairs"] == len(rows), "train workers find them, too"
    for row in rows:
        assert row["image"]["path"].startswith("pictures/"), "and not in a cache of Ray's"
        assert row["image"]["bytes"] == (place.here / row["image"]["path"]).read_bytes()
    for path in (folder / "round_000" / "candidates").glob("*.parquet"):
        assert all(name.startswith("pictures/") for name in pq.read_table(path)["image"].to_pylist())
    monkeypatch.chdir(tmp_path)
    read = datasets.load_dataset(
        "parquet", data_files=str(folder / "round_000" / "pairs.parquet"), split="train", cache_dir=str(tmp_path)
    )
    assert read[0]["image"].size == Image.open(place.here / rows[0]["image"]["path"]).size
