"""A real Ray whose nodes say that they have GPUs of two kinds: where train workers, engines and scorer are placed.

There is no GPU here, so the workers fail as soon as they compute; by then Ray has placed them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import json, os, subprocess, sys, time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster
from fakes import tiny_config
from actors import runtime
from actors.cluster.nodes import part_of
from actors.process.ledger import kind_of_node
from actors.train.attempt import Attempt, Setup
from actors.train.token import Token
from csr_ray.machine.layout import lay_out
from csr_ray.machine.placement import demands_of, generator_options, scorer_options

logs = Path(sys.argv[1])
options = {"object_store_memory": 100 << 20, "num_cpus": 16}
cluster = Cluster(initialize_head=True, head_node_args={**options, "num_cpus": 0, "num_gpus": 0})
try:
    cluster.add_node(**options, num_gpus=4, resources={"accelerator_type:L4": 1})
    cluster.add_node(**options, num_gpus=2, resources={"accelerator_type:A100": 1})
    # The plan of the program itself, which joins and starts nothing.
    world = ["configs/tiny-world.yaml", "cluster.layout=auto", "train.batch_size=8", f"run.dir={logs / 'run'}"]
    planned = subprocess.run(
        [sys.executable, "-m", "csr_ray", "run", *world, "--dry-run"],
        env={**os.environ, "RAY_ADDRESS": cluster.address}, capture_output=True, text=True,
    )
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    kinds = {
        node["NodeID"]: next((name[17:] for name in node["Resources"] if name.startswith("accelerator_type:")), "")
        for node in ray.nodes()
    }

    known = {node: kind_of_node(node) for node in (*kinds, "gone")}

    class Sits:
        def __init__(self, *, log=None):
            pass

        def where(self):
            return ray.get_runtime_context().get_node_id()

    config = tiny_config(cluster={"layout": "auto"}, train={"batch_size": 8})
    config = lay_out(config, nodes=runtime._nodes(), needs_scorer=True, engine_needs_gpu=False)
    many = [scorer_options(config.scorers)]
    many += [generator_options(config.generators, slot=slot) for slot in range(config.generators.min)]
    # As the runtime starts them: without waiting for one before it starts the next.
    actors = [ray.remote(Sits).options(
        num_cpus=one.num_cpus, num_gpus=one.num_gpus, accelerator_type=one.accelerator_type
    ).remote() for one in many]
    places = [kinds[node] for node in ray.get([actor.where.remote() for actor in actors], timeout=120)]

    attempt = Attempt(Setup(
        train=config.train, seed=0, model="nowhere", merges=True, visual_tokens=None, takes_turns=False, adapters=(),
        storage=logs / "train", logs=logs, token=Token.leave(logs),
    ))
    until_s, trained = time.monotonic() + 60, []
    while not trained and time.monotonic() < until_s:
        trained = [
            kinds[node]
            for place in ray.util.placement_group_table().values() if place["state"] == "CREATED"
            for node in place["bundles_to_node_id"].values()
        ]
        time.sleep(0.1)
    attempt.end(grace_s=0)
    left = [place for place in ray.util.placement_group_table().values() if place["state"] != "REMOVED"]
    roles = {
        kinds[node["NodeID"]]: sorted(
            part_of(node["Resources"], name="", demands=demands_of(config, needs_scorer=True)).roles
        )
        for node in ray.nodes()
    }
    print("FOUND", json.dumps({
        "scorer": places[0], "engines": sorted(places[1:]), "trained": trained, "roles": roles, "left": len(left),
        "planned": planned.stdout + planned.stderr, "code": planned.returncode,
        "kinds": kinds, "known": known,
    }))
finally:
    ray.shutdown()
    cluster.shutdown()
"""


def test_train_workers_land_on_the_larger_kind_and_engines_leave_it_to_them(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path)],
        cwd=ROOT,
        env={
            **{name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_AUTH_MODE")},
            "RAY_AUTH_MODE": "disabled",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("FOUND ")), "")
    assert line, done.stdout[-2000:] + done.stderr[-3000:]
    found = json.loads(line.partition(" ")[2])
    assert found["trained"] == ["A100"]
    assert (found["scorer"], found["engines"]) == ("L4", ["A100", "L4", "L4", "L4", "L4"])
    assert found["roles"] == {"": [], "L4": ["generator", "scorer"], "A100": ["generator", "train worker"]}
    assert found["left"] == 0, "what the workers had is given back"
    assert found["known"] == {**found["kinds"], "gone": ""} and "A100" in found["kinds"].values()
    assert found["code"] == 0, found["planned"]
    said = next(line for line in found["planned"].splitlines() if "on this cluster" in line)
    assert said.strip().startswith("on this cluster (2 A100, 4 L4): 1 scorer with 0.1 GPU (L4), 5 generators")
    assert said.endswith("(1 on A100, 4 on L4), 1 train worker with 1 GPU (A100)")
