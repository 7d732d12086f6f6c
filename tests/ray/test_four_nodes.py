"""Four nodes with real engines: one goes and another comes in the middle of a round, and the round goes on."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from heads import ROOT, STORE_BYTES
from ray.cluster_utils import Cluster

from csr_ray.app.run import world_spec
from csr_ray.config.load import load_config
from csr_ray.store.run_folder import RunFolder
from csr_ray.world.build import cached_world

CONFIG = ROOT / "configs" / "tiny-world.yaml"
# Enough work on a fast machine that an engine more is worth its start, and that one that is lost can be replaced.
NUM_PROMPTS = 384
SMALL = (
    *(
        "run.rounds=1",
        "run.unit=4",
        "world.quick=true",
        f"world.num_train_images={NUM_PROMPTS}",
        "world.num_heldout_images=48",
    ),
    *(f"data.per_round={NUM_PROMPTS}", "eval.limit=2", "generators.in_flight=2", "generators.max_num_seqs=8"),
    # An engine takes a whole node of two CPUs, so that two of them sit on nodes of their own.
    *("generators.cpus=2", "generators.min=1", "generators.max=2"),
    "gate.prompts=8",  # two at a time, more would take longer than the round
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cached_world(world_spec(load_config(CONFIG, overrides=list(SMALL)).world), progress=False)
    options = {"object_store_memory": STORE_BYTES, "include_dashboard": False}
    # The head has room for the scorer and the train worker, and for no engine.
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **options})
    made.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    for _ in range(2):
        made.add_node(num_cpus=2, object_store_memory=STORE_BYTES)
    made.wait_for_nodes()
    yield made
    made.shutdown()


@pytest.mark.long
def test_a_node_goes_and_another_comes_in_the_middle_of_a_round(cluster: Cluster, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    lines: list[tuple[float, str]] = []
    process = subprocess.Popen(
        [sys.executable, "-m", "csr_ray", "run", str(CONFIG), *SMALL, f"run.dir={folder.root}"],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": cluster.address, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    def read() -> None:
        for line in process.stdout or ():
            lines.append((time.monotonic(), line.rstrip()))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()

    def wait_for(words: str, *, since: int = 0) -> float:
        until_s = time.monotonic() + 300
        while True:
            for at_s, line in lines[since:]:
                if words in line:
                    return at_s
            assert time.monotonic() < until_s and process.poll() is None, lines
            time.sleep(0.1)

    try:
        # One engine more than at the start, because there is a node for it.
        wait_for("starting generator 1: there is work and room for it")
        until_s = time.monotonic() + 300
        while len(prompt_ids(folder)) < 8:
            assert time.monotonic() < until_s and process.poll() is None, lines
            time.sleep(0.1)
        said = len(lines)
        killed_s = time.monotonic()
        kill_node_of("ray::GeneratorActor", cluster)
        cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES)
        lost_s = wait_for("is lost", since=said)
        process.wait(timeout=400)
    finally:
        process.kill()
    reader.join(timeout=10)
    text = "\n".join(line for _, line in lines)
    assert process.returncode == 0, text
    ids = prompt_ids(folder)
    assert len(ids) == len(set(ids)) == NUM_PROMPTS
    again = re.findall(r"generator (\d) serves again, (\d+) s after it was lost", text)
    print(text)
    print(f"the node's death was said after {lost_s - killed_s:.1f} s; serving again: {again}")
    assert again, "it was replaced on the node that came"


def prompt_ids(folder: RunFolder) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        lines = folder.journal.read_text().splitlines(keepends=True)
        return [one for line in lines if line.endswith("\n") for one in json.loads(line).get("ids", ())]
    return []


def kill_node_of(title: str, cluster: Cluster) -> None:
    """SIGKILL of a raylet that has such an actor, and of all its workers, as when its machine is taken away."""
    for node in list(cluster.worker_nodes):
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        workers = raylet.children(recursive=True)
        if any((worker.cmdline() or [""])[0].startswith(title) for worker in workers):
            for process in [*workers, raylet]:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            cluster.remove_node(node, allow_graceful=False)
            return
    raise AssertionError(f"no node has {title}")
