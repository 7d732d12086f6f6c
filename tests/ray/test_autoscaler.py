"""A run on a cluster that begins as a head without CPUs: nodes come for its actors, and go when they are idle.

The nodes are Ray's own, started and ended by Ray's own autoscaler; how many there are is what the autoscaler says.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from heads import ROOT, Head

from csr_ray.app.run import world_spec
from csr_ray.config.load import load_config
from csr_ray.store.run_folder import RunFolder
from csr_ray.world.build import cached_world

CONFIG = ROOT / "configs" / "tiny-world.yaml"
SMALL = (
    *("run.rounds=1", "run.unit=4", "world.quick=true", "world.num_train_images=192", "world.num_heldout_images=48"),
    *("data.per_round=192", "eval.limit=2", "cluster.autoscales=true", "generators.max_num_seqs=8"),
    *("generators.min=1", "generators.max=3", "generators.in_flight=2", "generators.idle_s=4"),
)

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    cached_world(world_spec(load_config(CONFIG, overrides=list(SMALL)).world), progress=False)
    made = Head(num_cpus=0, node_types={"worker": (4, {"CPU": 2})})
    yield made
    made.close()


def start(head: Head, folder: Path, *overrides: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "csr_ray", "run", str(CONFIG), *SMALL, f"run.dir={folder}", *overrides],
        cwd=ROOT,
        env={**head.environment, "RAY_ADDRESS": head.address, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_nodes_come_for_the_work_and_go_without_it(head: Head, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    process = start(head, folder.root)
    timeline: list[tuple[float, int, str]] = []
    started_s = time.monotonic()
    output: list[str] = []
    reader = threading.Thread(target=lambda: output.extend(process.stdout or ()), daemon=True)
    reader.start()
    while process.poll() is None:
        assert time.monotonic() - started_s < 500, output
        last = folder.journal.read_bytes().rstrip().rpartition(b"\n")[2] if folder.journal.exists() else b""
        kind = json.loads(last)["kind"] if last.endswith(b"}") else ""
        timeline.append((time.monotonic() - started_s, sum(head.nodes().values()), kind))
        time.sleep(0.5)
    reader.join()
    said = "".join(output)
    assert process.returncode == 0, said
    ended_s = time.monotonic()
    while head.nodes():
        assert time.monotonic() - ended_s < 90, head.nodes()
        time.sleep(0.5)
    changes = [now for before, now in pairwise(timeline) if now[1:] != before[1:]]
    print(said, *(f"{at_s:6.1f} s  {num} nodes  {kind}" for at_s, num, kind in changes), sep="\n")
    print(f"without nodes again {time.monotonic() - ended_s:.1f} s after the end")
    nums = [num for _, num, _ in timeline]
    assert nums[0] == 0 and max(nums) >= 2
    before, _, after = said.partition("✓ start the machinery")
    assert "starting generator 1" not in before, "there is no work yet"
    assert "starting generator 1: there is work and room for it" in after
    assert "is lost" not in said
    ids = [one for line in folder.journal.read_text().splitlines() for one in json.loads(line).get("ids", ())]
    assert len(ids) == len(set(ids)) == 192


def test_what_no_node_can_hold_is_waited_for_and_then_said_in_one_line(head: Head, tmp_path: Path) -> None:
    process = start(head, tmp_path / "run", "generators.cpus=64", "cluster.wait_s=20")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 2, said
    line = said.strip().splitlines()[-1]
    assert line.startswith("csr-ray: cluster.wait_s: generator 0 found no place in the cluster within 20 s"), said
    assert "Traceback" not in said
    print(said)
