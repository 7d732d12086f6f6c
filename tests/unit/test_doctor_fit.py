"""What the doctor says of a config on a cluster: who sits where, what is missing, and what would fit."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import tiny_config

from csr_ray.__main__ import main
from csr_ray.app.doctor import Check
from csr_ray.app.doctor_fit import Cluster, fit_checks
from csr_ray.config.load import load_config
from csr_ray.config.schema import Config
from csr_ray.machine.fit import Free, Node
from csr_ray.machine.model_shape import ModelShape, shape_of_model

GPUS = {"generators": {"min": 2, "max": 2, "gpus": 1}, "train": {"gpus_per_worker": 1, "workers": 1, "batch_size": 4}}


def node(number: int, *, gpus: int, kind: str = "A100", cpus: float = 16) -> Node:
    return Node(name=f"node {number}", cpus=cpus, gpus=gpus, accelerator_type=kind)


def checked(
    config: Config, *nodes: Node, shape: ModelShape | None = None, is_private: bool = False, **cluster: Any
) -> dict[str, Check]:
    found = fit_checks(
        config,
        cluster=Cluster(address="" if is_private else "10.0.0.1:6379", nodes=nodes, **cluster),
        needs_scorer=True,
        engine_needs_gpu=False,
        shape=shape,
    )
    return {check.name: check for check in found}


def test_a_config_that_fits_is_told_where_everybody_sits() -> None:
    found = checked(tiny_config(**GPUS), node(0, gpus=0), node(1, gpus=2), node(2, gpus=1))
    assert {check.state for check in found.values()} == {"ok"}
    assert found["nodes"].fact == "10.0.0.1:6379: 3 nodes, 48 CPUs, 3 A100"
    assert found["places"].fact == "node 0: 1 scorer; node 2: 1 generator; node 1: 1 generator, 1 train worker"


def test_what_has_no_place_is_missing_with_the_smallest_change_that_fits() -> None:
    found = checked(tiny_config(**GPUS), node(0, gpus=2))
    assert found["places"].state == "missing"
    assert found["places"].fact.startswith("no room for 1 train worker")
    assert found["places"].remedy == "the smallest change that fits: generators.min=1"


def test_what_others_hold_now_is_waited_for() -> None:
    there = [node(0, gpus=3)]
    held = Free(name="node 0", cpus=16, gpus=1, accelerator_type="A100")
    found = checked(tiny_config(**GPUS), *there, free=[held])
    assert found["places"].state == "ok"
    assert found["now"].state == "warn" and "generator" in found["now"].fact and "1 GPU free" in found["now"].fact
    assert "now" not in checked(tiny_config(**GPUS), *there, free=[Free(name="node 0", cpus=16, gpus=3)])


def test_a_layout_that_cannot_be_had_is_missing() -> None:
    config = tiny_config(cluster={"layout": "disaggregated"})
    assert "takes 2 and a CPU" in checked(config, node(0, gpus=1))["layout"].fact
    found = checked(tiny_config(cluster={"layout": "auto"}, train={"batch_size": 4}), node(0, gpus=4))
    assert found["asked for"].fact.startswith("1 scorer with 0.1 GPU, 3 generators with 0.9 GPU each")


def test_where_an_autoscaler_adds_nodes_nothing_is_compared() -> None:
    config = tiny_config(cluster={"autoscales": True}, **GPUS)
    found = checked(config, node(0, gpus=0), pending="2 nodes of type gpu on the way")
    assert found["places"].state == "ok" and "waited for" in found["places"].fact
    assert found["on its way"].fact == "2 nodes of type gpu on the way"


def test_every_fault_of_a_node_is_a_row() -> None:
    found = checked(tiny_config(), node(0, gpus=0), faults=["node 0: it has ray 2.59.0, not 2.60.0"])
    assert found["a node"].state == "missing" and "2.59.0" in found["a node"].fact


@pytest.mark.parametrize(("kind", "state"), [("A100", "ok"), ("L4", "warn"), ("NEW", "warn")])
def test_memory_is_compared_part_by_part_with_the_smallest_gpu(kind: str, state: str) -> None:
    config = load_config("configs/llava15-7b.yaml")
    found = checked(config, node(0, gpus=8, kind=kind), shape=shape_of_model(config.policy.model))
    assert found["places"].state == "ok"
    assert found["GPU memory"].state == state
    if kind == "L4":
        assert "on L4: an engine takes 30 GiB of a GPU and may have 20" in found["GPU memory"].fact


def test_a_machine_without_a_cluster_is_a_private_ray() -> None:
    found = checked(tiny_config(), node(0, gpus=0, kind=""), is_private=True)
    assert found["nodes"].fact == "this machine: a private Ray is started here; no GPU"
    assert "every node" not in found
    assert checked(tiny_config(**GPUS), node(0, gpus=0, kind=""), is_private=True)["places"].state == "missing"


def test_overrides_without_a_config_are_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "run.rounds=1"]) == 2
    assert "run.rounds=1 without a config: name one with --config" in capsys.readouterr().err
    assert main(["doctor", "run.rounds=1", "--config", "nowhere.yaml"]) == 2
    assert "config nowhere.yaml: no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "says"),
    [("127.0.0.1:1", "127.0.0.1:1 is not reachable"), ("http://127.0.0.1:9", "http://127.0.0.1:9 takes jobs")],
)
def test_an_address_that_cannot_be_asked_is_missing_at_once(
    address: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["doctor", "--config", "configs/tiny-world.yaml"]) == 1
    assert says in " ".join(capsys.readouterr().out.split())
