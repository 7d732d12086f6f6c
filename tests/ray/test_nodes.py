"""The look at every node of a real cluster of two, of which the second is not as the first."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

from two_disks import ROOT, two_disks

LEAVING = """
import os, threading, time
import ray
from ray.cluster_utils import Cluster
from actors.cluster import nodes
from actors.process.fitness import Wanted, look
from csr_ray.machine.placement import Demand

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
leaving = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")

def slow(*arguments, **named):
    if ray.get_runtime_context().get_node_id() == where:
        time.sleep(600)
    return look(*arguments, **named)

where = leaving.node_id
nodes.look = slow
threading.Timer(4.0, lambda: cluster.remove_node(leaving, allow_graceful=False)).start()
wanted = Wanted.here(policy=os.getcwd(), scorer=None, picture="")
started_s = time.monotonic()
nodes.check_nodes(wanted, demands=[Demand(role="scorer", num=1, cpus=1, gpus=0)], say=print)
print(f"fit after {time.monotonic() - started_s:.1f} s")
ray.shutdown()
cluster.shutdown()
"""

SCRIPT = """
import sys, time
import ray
from actors.cluster.nodes import check_nodes
from actors.process.fitness import Wanted
from csr_ray.errors import ConfigError
from csr_ray.machine.placement import Demand

ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
demands = {
    role: Demand(role=role, num=1, cpus=1, gpus=0) for role in ("scorer", "train worker")
}

def check(what, roles, picture, archives=()):
    started_s = time.monotonic()
    wanted = Wanted.here(policy=sys.argv[2], scorer=None, picture=picture, archives=archives)
    try:
        check_nodes(wanted, demands=[demands[role] for role in roles], say=print)
        said = "fit"
    except ConfigError as error:
        said = str(error)
    print(f"{what} {time.monotonic() - started_s:.1f} s: {said}")

check("nothing", [], "")
check("versions", ["train worker"], "")
check("gpus", ["scorer"], "")
check("picture", ["scorer"], sys.argv[3])
check("tars", ["scorer"], sys.argv[3], [sys.argv[4]])
"""


def test_a_node_that_leaves_while_it_is_looked_at_does_not_end_the_start() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LEAVING)],
        capture_output=True,
        text=True,
        timeout=180,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]
    left, fit = (line for line in done.stdout.splitlines() if line.startswith(("node", "fit")))
    # Ray lists nodes in any order.
    assert re.fullmatch(r"node [01] \(.+\) left while it was looked at; the start goes on without it", left)
    assert fit.startswith("fit after ")


def test_every_node_is_asked_about_what_it_is_for(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    (hidden / "policy").mkdir(parents=True)
    (hidden / "policy" / "model.safetensors").write_bytes(b"weights")
    (hidden / "picture.png").write_bytes(b"picture")
    (hidden / "pictures.tar").write_bytes(b"pictures")
    # What is there is found by its metadata, which come first on the second node's path.
    other = tmp_path / "packages" / "trl-0.0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: trl\nVersion: 0.0.1\n")
    environment = {"PYTHONPATH": f"{other.parent}:{ROOT}"}
    with two_disks(hidden, head_cpus=0, cpus=2, environment=environment, options=["--num-gpus=2"]) as nodes:
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                textwrap.dedent(SCRIPT),
                nodes.address,
                str(hidden / "policy"),
                f"{hidden}/picture.png",
                f"{hidden}/pictures.tar",
            ],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    print(done.stdout)
    lines = {line.split(" ", 1)[0]: line.partition(" s: ")[2] for line in done.stdout.splitlines()}
    assert done.returncode == 0, done.stderr
    assert lines["nothing"] == "fit", "a node without work is asked for nothing"
    assert lines["versions"].startswith("node ") and "it has trl 0.0.1, and the driver's node " in lines["versions"]
    assert lines["versions"].endswith("(and 2 more like it)"), "the GPU and the policy"
    assert "Ray gives away 2 GPUs there, and torch can use 0" in lines["gpus"]
    assert not lines["gpus"].endswith("like it)"), "a scorer needs no policy"
    assert "torch can use 0" in lines["picture"] and lines["picture"].endswith("(and 1 more like it)")
    assert "torch can use 0" in lines["tars"] and lines["tars"].endswith("(and 2 more like it)")
