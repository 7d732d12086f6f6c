"""The node groups of cluster/, held to the validators of Ray and Kubernetes, and what Ray's autoscaler makes of them.

Nothing is started. The autoscaler's scheduler is a function of node groups and demands; here it is asked what it
would start for the demands of the very command that a file names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from cluster_files import FOLDER, ROOT, read_yaml, run_commands
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.event_logger import AutoscalerEventLogger
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import GangResourceRequest

from csr_ray.config.load import load_config
from csr_ray.machine.placement import Demand, demands_of

RAY_UP = ("aws.yaml", "gcp.yaml", "machines.yaml")
SCALING = ("aws.yaml", "gcp.yaml", "rayjob.yaml")
KUBERNETES = "1.37"
RAYJOB_SPEC = json.loads((ROOT / "tests" / "data" / "kuberay" / "rayjob_spec.json").read_text(encoding="utf-8"))


def prepared(name: str) -> dict[str, Any]:
    """A file as Ray's autoscaler has it: with defaults, validated."""
    tree = read_yaml(name)
    if name == "rayjob.yaml":
        cluster = {"metadata": {"namespace": "default", "name": "csr-ray"}, "spec": tree["spec"]["rayClusterSpec"]}
        config: dict[str, Any] = _derive_autoscaling_config_from_ray_cr(cluster)
    else:
        config = prepare_config(tree)
        validate_config(config)
    return config


# Validated


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_up_takes_it(name: str) -> None:
    prepared(name)


def test_the_validation_of_ray_up_sees_a_wrong_key() -> None:
    config = prepare_config(read_yaml("aws.yaml"))
    config["available_node_types"]["trainers"]["min_worker"] = 1
    with pytest.raises(jsonschema.ValidationError, match="min_worker"):
        validate_config(config)


def test_a_rayjob_has_fields_that_kuberay_knows() -> None:
    tree = read_yaml("rayjob.yaml")
    assert (tree["apiVersion"], tree["kind"]) == ("ray.io/v1", "RayJob")
    jsonschema.validate(tree["spec"], RAYJOB_SPEC)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["shutDownAfterJobFinishes"], True),
        (["rayClusterSpec", "autoscalerOptions", "version"], "2"),
        (["rayClusterSpec", "workerGroupSpecs", 0, "priority"], "high"),
    ],
)
def test_the_validation_of_a_rayjob_sees_what_is_wrong(path: list[str | int], value: object) -> None:
    spec = read_yaml("rayjob.yaml")["spec"]
    place: Any = spec
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(spec, RAYJOB_SPEC)


def pods() -> dict[str, dict[str, Any]]:
    cluster = read_yaml("rayjob.yaml")["spec"]["rayClusterSpec"]
    groups = {
        "head": cluster["headGroupSpec"],
        **{group["groupName"]: group for group in cluster["workerGroupSpecs"]},
    }
    return {name: group["template"]["spec"] for name, group in groups.items()}


@pytest.mark.parametrize("name", ["head", "generators-spot", "generators-on-demand", "trainers"])
def test_a_pod_is_one_that_kubernetes_takes(name: str) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pods()[name]}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    # KubeRay's own rules: with its second autoscaler pods are not started again, but replaced by others.
    assert pods()[name].get("restartPolicy", "Never") == "Never"
    resources = pod["spec"]["containers"][0]["resources"]
    assert resources["requests"] == resources["limits"], "a pod over its request is the first to be evicted"


def test_a_volume_claim_is_one_that_kubernetes_takes_and_that_pods_mount() -> None:
    claim = read_yaml("rayjob-volume.yaml")
    kubernetes_validate.validate(claim, KUBERNETES, strict=True)
    for pod in pods().values():
        assert [volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]] == [
            claim["metadata"]["name"]
        ]
    (command,) = run_commands(FOLDER / "rayjob.yaml")
    assert "run.dir=/shared/runs/llava15-7b" in command
    mounts = {mount["mountPath"] for pod in pods().values() for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts == {"/shared"}


# Scheduled


def demands(name: str) -> tuple[Demand, ...]:
    """What the run asks for whose command stands in a file."""
    (command,) = run_commands(FOLDER / name)
    return demands_of(load_config(ROOT / command[0], overrides=command[1:]), needs_scorer=True)


def started(
    name: str, *, singles: list[Demand], gang: Demand | None = None, failed: tuple[str, ...] = ()
) -> Mapping[str, int]:
    """How many nodes of which group Ray's autoscaler starts from the head alone.

    Args:
        singles: actors that ask each for themselves; `gang`: those that ask together.
        failed: groups of which a node was not to be had a moment ago.
    """
    config = AutoscalingConfig(prepared(name), skip_content_hash=True)
    requests = [_request(demand) for demand in singles for _ in range(demand.num)]
    together = [GangResourceRequest(requests=[_request(gang)] * gang.num)] if gang else []
    reply = ResourceDemandScheduler(AutoscalerEventLogger(_NoEvents())).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_nodes(),
            resource_requests=ResourceRequestUtil.group_by_count(requests),
            gang_resource_requests=together,
            recoverable_resource_availabilities=dict.fromkeys(failed, 0.0),
        )
    )
    assert not reply.infeasible_resource_requests and not reply.infeasible_gang_resource_requests
    return {launch.instance_type.replace("-", "_"): launch.count for launch in reply.to_launch}


def _request(demand: Demand) -> Any:
    return ResourceRequestUtil.make({"CPU": demand.cpus, "GPU": demand.gpus})


class _NoEvents:
    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


@pytest.mark.parametrize("name", SCALING)
def test_engines_and_scorers_start_generator_nodes_and_no_trainers_node(name: str) -> None:
    scorers, generators, _ = demands(name)
    assert started(name, singles=[scorers, generators]) == {"generators_spot": 4}


@pytest.mark.parametrize("name", SCALING)
def test_train_workers_start_one_trainers_node(name: str) -> None:
    scorers, generators, trainers = demands(name)
    assert started(name, singles=[], gang=trainers) == {"trainers": 1}
    assert started(name, singles=[scorers, generators], gang=trainers) == {"generators_spot": 4, "trainers": 1}


@pytest.mark.parametrize("name", SCALING)
def test_the_first_run_of_the_readme_starts_one_node(name: str) -> None:
    """Also in the autoscaler's sums, in which shares of 0.4, 0.4 and 0.2 make more than one GPU."""
    command = run_commands(FOLDER / "README.md")[0]
    config = load_config(ROOT / command[0], overrides=command[1:])
    scorers, generators, trainers = demands_of(config, needs_scorer=True)
    assert started(name, singles=[scorers, generators, trainers]) == {"generators_spot": 1}


@pytest.mark.parametrize("name", SCALING)
def test_where_no_spot_node_is_to_be_had_one_on_demand_takes_its_place(name: str) -> None:
    scorers, generators, _ = demands(name)
    group = "generators-spot" if name == "rayjob.yaml" else "generators_spot"
    assert started(name, singles=[scorers, generators], failed=(group,)) == {"generators_on_demand": 4}


@pytest.mark.parametrize("name", SCALING)
def test_only_the_head_stays_when_nothing_runs(name: str) -> None:
    config = prepared(name)
    groups = dict(config["available_node_types"])
    head = groups.pop(config["head_node_type"])
    assert (head["resources"]["CPU"], head["max_workers"]) == (0, 0)
    assert all(group["min_workers"] == 0 < group["max_workers"] for group in groups.values())
    assert started(name, singles=[]) == {}
    assert 0 < config["idle_timeout_minutes"] <= 30
