"""How many cores a process may use: the machine's, this process's own, or what a container is limited to."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from actors.data import context
from csr_ray.machine import cores


@pytest.mark.parametrize(
    ("num_allowed", "limit", "usable", "whole"),
    [
        (64, "", 64, 64),
        (64, "max 100000", 64, 64),
        (64, "800000 100000", 8, 8),
        (64, "150000 100000", 1.5, 1),
        (64, "50000 100000", 0.5, 1),  # half a core has room for one thread
        (4, "800000 100000", 4, 4),
        (4, "nonsense", 4, 4),
        (4, "100000 0", 4, 4),
    ],
)
def test_the_smallest_of_them_counts(
    monkeypatch: pytest.MonkeyPatch, num_allowed: int, limit: str, usable: float, whole: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(num_allowed)), raising=False)
    monkeypatch.setattr(cores, "cgroup_limit", lambda name: limit if name == "cpu.max" else "")
    assert cores.usable_cores() == usable
    assert cores.whole_cores() == whole


def test_a_generator_counts_the_cores_of_its_own_node_before_torch_is_imported() -> None:
    """Torch looks at OMP_NUM_THREADS once, when it is imported; the engine's process inherits it."""
    code = """
import os, sys
os.sched_getaffinity = lambda _: range(12)
from actors.generate.engine import EngineSettings
from actors.generate.generator import GeneratorActor
from csr_ray.config.schema import Generators, Policy
GeneratorActor(EngineSettings(policy=Policy(model="/nowhere"), generators=Generators()), model="/nowhere")
print(os.environ["OMP_NUM_THREADS"], "torch" in sys.modules)
"""
    # As Ray starts an actor that asks for one CPU.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["11", "False"], done.stderr


@pytest.mark.parametrize(("resources", "num"), [({}, 3), ({"CPU": 0.0}, 3), ({"CPU": 2.0}, 3), ({"CPU": 64.0}, 64)])
def test_prompts_are_read_by_this_machine_at_least(
    monkeypatch: pytest.MonkeyPatch, resources: dict[str, float], num: int
) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: resources)
    monkeypatch.setattr(context, "whole_cores", lambda: 3)
    assert context.num_cpus_of_cluster() == num
