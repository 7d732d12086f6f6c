"""Benchmarks on a cluster of one-core nodes: who sits where, which rows come out, and what is refused in a line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from heads import ROOT, STORE_BYTES
from ray.cluster_utils import Cluster

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    options = {"object_store_memory": STORE_BYTES, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **options})
    for _ in range(2):
        made.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    made.wait_for_nodes()
    yield made
    made.shutdown()


def run(script: str, *flags: str) -> subprocess.CompletedProcess[str]:
    # Nodes know neither the benchmarks' folder nor, by this, the working folder.
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *flags],
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.mark.long
def test_rollouts_scale_over_nodes_and_say_how_well(cluster: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "rollout.json"
    done = run("bench_rollout.py", "--address", cluster.address, "--quick", "--json", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    rows = {row["name"]: row for row in result["rows"]}
    assert result["name"] == "rollout" and result["headline"] == "scaling_efficiency_2"
    assert [(node["cpus"], node["gpus"]) for node in result["machine"]["nodes"]] == [(1.0, 0)] * 3
    assert (rows["tokens_per_s_1"]["nodes"], rows["tokens_per_s_2"]["nodes"]) == (1, 2), "on nodes of their own"
    assert rows["tokens_per_s_per_node"]["value"] == pytest.approx(rows["tokens_per_s_2"]["value"] / 2)
    assert "tokens_per_s_per_gpu" not in rows, "nobody has a GPU here"
    shares = [
        two / (2 * one)
        for two, one in zip(rows["tokens_per_s_2"]["turns"], rows["tokens_per_s_1"]["turns"], strict=True)
    ]
    assert len(shares) == 2 and rows["scaling_efficiency_2"]["turns"] == pytest.approx(shares)
    assert min(shares) > 0, "two engines that share two cores with all else may be no faster than one"
    print(done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--replicas", "1,8"), ("--replicas = 8: 2 fit", "no room for 6 generators", "1 CPU and 0 GPU")),
        (("--gpus", "1"), ("--gpus = 1: no node has a GPU",)),
    ],
)
def test_what_cannot_be_is_refused(cluster: Cluster, flags: tuple[str, ...], said: tuple[str, ...]) -> None:
    done = run("bench_rollout.py", "--address", cluster.address, "--world", "/nowhere", *flags)
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert all(words in line for words in said), done.stderr


def test_an_address_where_nothing_is() -> None:
    done = run("bench_rollout.py", "--address", "127.0.0.1:9", "--world", "/nowhere")
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert "--address = '127.0.0.1:9'" in line and "no cluster there" in line
