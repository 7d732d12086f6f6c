"""Clusters with more than one kind of GPU: who trains, who generates, and why something cannot be had."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from fakes import tiny_config

from csr_ray.app.plan import make_plan, print_plan
from csr_ray.config.load import load_config
from csr_ray.config.schema import Config
from csr_ray.errors import ConfigError
from csr_ray.machine.fit import Free, Node, check_fit, gpus_needed, num_that_fit, seating
from csr_ray.machine.kinds import gpu_memory_bytes, kind_of
from csr_ray.machine.layout import in_words, lay_out
from csr_ray.machine.placement import Demand, demands_of, generator_options, scorer_options

GB = 10**9
BILLION = 10**9


def cluster(*groups: str) -> list[Node]:
    """Nodes such as "2xA100"; "2x" are two GPUs of which nobody knows the kind, "0x" a head without any."""
    found = []
    for number, group in enumerate(groups):
        num, kind = group.split("x", 1)
        found.append(Node(name=f"node {number}", cpus=64, gpus=int(num), accelerator_type=kind))
    return found


def laid_out(there: list[Node], *, layout: str = "auto", num_weights: int = 0, **sections: Any) -> Config:
    train = {"batch_size": 64, **sections.pop("train", {})}
    config = tiny_config(cluster={"layout": layout}, train=train, **sections)
    return lay_out(config, nodes=there, needs_scorer=True, engine_needs_gpu=False, num_weights=num_weights)


def who(config: Config) -> tuple[str | None, int, dict[str, int], str | None]:
    """The train workers' kind and number, how many engines there are on each kind, and the scorer's kind."""
    engines = dict(Counter(config.generators.accelerator_types))
    return config.train.accelerator_type, config.train.workers, engines, config.scorers.accelerator_type


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (["2xA100", "4xL4"], ("A100", 1, {"A100": 1, "L4": 4}, "L4")),
        # The order in which nodes have joined says nothing; a head has no GPU.
        (["0x", "4xL4", "2xA100"], ("A100", 1, {"A100": 1, "L4": 4}, "L4")),
        (["1xA100", "4xL4"], ("A100", 1, {"L4": 4}, "L4")),
        (["4xA100", "1xL4"], ("A100", 1, {"A100": 3, "L4": 1}, "L4")),
        (["1xA100", "1xL4"], ("A100", 1, {"L4": 1}, "L4")),
        (["8xA100", "8xL4"], ("A100", 4, {"A100": 4, "L4": 8}, "L4")),
        (["4xA100", "4xA100", "4xL4", "4xL4"], ("A100", 4, {"A100": 4, "L4": 8}, "L4")),
        # More memory before more workers, which would otherwise be two.
        (["1xH200", "8xL4"], ("H200", 1, {"L4": 8}, "L4")),
        # A label that somebody has put on a node says more than the kind that Ray finds.
        (["2xA100-40G", "2xL40S"], ("L40S", 1, {"L40S": 1, "A100-40G": 2}, "A100-40G")),
        # Of the same memory: the kind of which there is more.
        (["2xH100", "6xA100"], ("A100", 2, {"A100": 4, "H100": 2}, "H100")),
        # Three kinds; one whose memory is not known comes last.
        (["2xNEW", "2xL4", "4xH100"], ("H100", 2, {"H100": 2, "L4": 2, "NEW": 2}, "NEW")),
        (["32xH100", "32xL4"], ("H100", 16, {"H100": 16, "L4": 32}, "L4")),
    ],
)
def test_train_workers_have_the_kind_with_more_memory_and_engines_what_is_left(
    there: list[str], expected: tuple[str, int, dict[str, int], str]
) -> None:
    nodes = cluster(*there)
    config = laid_out(nodes)
    assert who(config) == expected
    found = seating(demands_of(config, needs_scorer=True), nodes=nodes)
    assert not found.standing
    kinds = {node.name: node.accelerator_type for node in nodes}
    seats = [(seat.role, kinds[seat.node]) for seat in found.seats]
    assert {kind for role, kind in seats if role == "train worker"} == {expected[0]}, "one kind, whatever else"
    assert Counter(kind for role, kind in seats if role == "generator") == expected[2]


@pytest.mark.parametrize("there", [["4xA100"], ["2xA100", "2xA100"], ["0x", "4x"], ["2xA100", "2x"]])
def test_gpus_of_one_kind_or_of_kinds_that_nobody_knows_are_all_alike(there: list[str]) -> None:
    config = laid_out(cluster(*there))
    assert who(config) == (None, 1, {}, None)
    assert config.generators.min == 3


def test_an_engine_over_several_gpus_has_them_of_one_kind() -> None:
    nodes = cluster("3xA100", "3xL4")
    config = laid_out(nodes, generators={"gpus": 2})
    assert who(config) == ("A100", 1, {"A100": 1, "L4": 1}, "A100"), "the scorer sits with the train worker"
    seats = seating(demands_of(config, needs_scorer=True), nodes=nodes).seats
    assert [(seat.node, len(seat.gpus)) for seat in seats if seat.role == "generator"] == [
        ("node 0", 2),
        ("node 1", 2),
    ]
    with pytest.raises(ConfigError, match=r"an engine over 4 GPUs of one node .*") as error:
        laid_out(cluster("3xA100", "3xL4"), generators={"gpus": 4})
    assert "node 0: 64 CPU and 3 GPU (A100), node 1: 64 CPU and 3 GPU (L4)" in str(error.value)


def test_a_kind_that_cannot_hold_the_weights_is_left_alone() -> None:
    # 26 GB in bfloat16.
    config = laid_out(cluster("2xA100", "4xL4"), num_weights=13 * BILLION)
    assert who(config) == ("A100", 1, {"A100": 1}, "A100")
    # 14 GB.
    assert who(laid_out(cluster("2xA100", "4xL4"), num_weights=7 * BILLION))[2] == {"A100": 1, "L4": 4}
    # Two of them hold halves.
    split = laid_out(cluster("3xA100", "2xL4"), num_weights=13 * BILLION, generators={"gpus": 2})
    assert who(split)[2] == {"A100": 1, "L4": 1}
    # A kind of which nobody knows the memory is not ruled out.
    assert who(laid_out(cluster("2xA100", "4xNEW"), num_weights=13 * BILLION))[2] == {"A100": 1, "NEW": 4}


@pytest.mark.parametrize(
    ("there", "options", "says"),
    [
        (["4xL4", "4xT4"], {}, "a train worker's weights take 26 GB, and a GPU has at most 24 GB (L4), 16 GB (T4)"),
        (["4xL4"], {}, "a train worker's weights take 26 GB, and a GPU has at most 24 GB (L4)"),
        (
            ["1xA100", "4xL4"],
            {},
            "and its weights take 26 GB a GPU, more than it may have of a GPU: 19 GB (L4); set "
            "cluster.layout=colocated",
        ),
        (
            ["2xL40S"],
            {"policy": {"dtype": "float32"}},
            "an engine's weights take 52 GB a GPU, and of a GPU it may have at most 39 GB (L40S); set a larger "
            "generators.gpus, or a smaller policy.model",
        ),
        (["2xL4", "2xT4"], {"layout": "colocated"}, "a train worker's weights take 26 GB"),
        (["1xL4"], {}, "a train worker's weights take 26 GB"),
    ],
)
def test_who_cannot_hold_the_weights_is_told_so(there: list[str], options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=r"^cluster\.layout = ") as error:
        laid_out(
            cluster(*there),
            num_weights=13 * BILLION,
            generators={"gpu_memory_utilization": 0.9},
            **{"policy": {"dtype": "bfloat16"}, "train": {"dtype": "bfloat16"}, **options},
        )
    assert says in str(error.value)


def test_parts_of_the_weights_are_smaller() -> None:
    """ZeRO-3 gives each worker a part."""
    config = laid_out(cluster("8xL4"), num_weights=13 * BILLION, generators={"gpus": 2}, train={"deepspeed_stage": 3})
    assert (config.train.workers, config.generators.min) == (2, 3)


def test_gpus_that_are_used_in_turns_are_trained_on_as_far_as_they_are_of_one_kind() -> None:
    nodes = cluster("2xA100", "4xL4")
    config = laid_out(nodes, layout="colocated")
    assert who(config) == ("A100", 2, {"A100": 2, "L4": 4}, None)
    assert not seating(demands_of(config, needs_scorer=True), nodes=nodes).standing


@pytest.mark.parametrize(("there", "layout"), [("4x", "cpu"), ("4xA100", "colocated"), ("4xA100", "disaggregated")])
def test_kinds_that_a_config_names_are_worked_out_anew_as_all_numbers_are(there: str, layout: str) -> None:
    named = {"generators": {"accelerator_types": ["L4"]}, "scorers": {"accelerator_type": "L4"}}
    config = laid_out(cluster(there), layout=layout, **named, train={"accelerator_type": "L4"})
    kinds = config.train.accelerator_type, config.generators.accelerator_types, config.scorers.accelerator_type
    assert kinds == (None, (), None)


@pytest.mark.parametrize(("name", "billions"), [("llava15-7b", 7), ("llava15-13b", 13), ("qwen25-vl-7b", 8)])
@pytest.mark.parametrize("num", [1, 2, 4, 8])
def test_the_large_configs_fit_so_many_a100s_with_their_weights(name: str, billions: int, num: int) -> None:
    config = load_config(f"configs/{name}.yaml", overrides=["cluster.layout=auto"])
    nodes = cluster(f"{num}xA100")
    config = lay_out(config, nodes=nodes, needs_scorer=True, engine_needs_gpu=True, num_weights=billions * BILLION)
    assert not seating(demands_of(config, needs_scorer=True), nodes=nodes).standing


def test_it_is_said_which_kind_gets_what() -> None:
    said = in_words(laid_out(cluster("2xA100", "4xL4")), needs_scorer=True)
    assert said == (
        "1 scorer with 0.1 GPU (L4), 5 generators with 0.9 GPU each (1 on A100, 4 on L4), "
        "1 train worker with 1 GPU (A100)"
    )


def test_a_dry_run_says_what_the_nodes_of_a_cluster_are_used_for(capsys: pytest.CaptureFixture[str]) -> None:
    plan = make_plan(tiny_config(cluster={"layout": "auto"}, train={"batch_size": 8}), num_prompts=10)
    print_plan(plan, nodes=cluster("0x", "4xL4", "2xA100"))
    said = capsys.readouterr().out
    assert (
        "on this cluster (2 A100, 4 L4): 1 " in said and "5 generators with 0.9 GPU each (1 on A100, 4 on L4)" in said
    )
    print_plan(plan, nodes=cluster("2x"))
    assert "on this cluster (2 GPUs): 1 " in capsys.readouterr().out


def test_every_engine_keeps_its_kind_when_it_is_replaced() -> None:
    config = laid_out(cluster("2xA100", "4xL4"))
    kinds = [generator_options(config.generators, slot=slot).accelerator_type for slot in range(6)]
    assert kinds == ["A100", "L4", "L4", "L4", "L4", "A100"]
    assert scorer_options(config.scorers).accelerator_type == "L4"
    assert generator_options(tiny_config().generators, slot=3).accelerator_type is None


def demand(role: str, num: int, gpus: float, kind: str | None) -> Demand:
    return Demand(role=role, num=num, cpus=1, gpus=gpus, may_share_gpus=False, accelerator_type=kind)


def test_who_asks_for_a_kind_sits_on_no_other() -> None:
    nodes = cluster("1xA100", "4xL4")
    assert seating([demand("train worker", 2, 1, "A100")], nodes=nodes).standing == ("train worker",)
    with pytest.raises(ConfigError) as error:
        check_fit([demand("train worker", 2, 1, "A100"), demand("generator", 1, 1, "H100")], nodes=nodes)
    said = str(error.value)
    assert "2 train workers with 1 CPU and 1 GPU (A100) each" in said and "4 GPU (L4)" in said
    assert "train.accelerator_type" in said, "what to set"
    assert gpus_needed([demand("train worker", 2, 1, "A100"), demand("generator", 1, 1, "L4")]) == 3


def test_room_is_counted_on_nodes_of_the_kind_only() -> None:
    nodes = [Free(name="a", cpus=8, gpus=2, accelerator_type="A100"), Free(name="b", cpus=8, gpus=4)]
    assert num_that_fit(demand("generator", 1, 1, "A100"), nodes=nodes) == 2
    assert num_that_fit(demand("generator", 1, 1, None), nodes=nodes) == 6
    kept = demand("train worker", 1, 1, "A100")
    assert num_that_fit(demand("generator", 1, 1, "A100"), nodes=nodes, kept=kept) == 1


def test_what_ray_says_of_a_node_is_read() -> None:
    assert kind_of({"CPU": 8.0, "GPU": 2.0, "accelerator_type:A100": 1.0}) == "A100"
    assert kind_of({"GPU": 2.0, "accelerator_type:A100": 1.0, "accelerator_type:A100-40G": 1.0}) == "A100-40G"
    assert kind_of({"CPU": 8.0, "node:10.0.0.1": 1.0}) == ""
    assert (gpu_memory_bytes("A100"), gpu_memory_bytes("A100-40G"), gpu_memory_bytes("L4")) == (
        80 * GB,
        40 * GB,
        24 * GB,
    )
    assert gpu_memory_bytes("NEW") is None


def test_every_kind_of_nvidia_that_ray_names_has_its_memory() -> None:
    from ray.util.accelerators import accelerators

    names = {value for name, value in vars(accelerators).items() if name.startswith("NVIDIA_")}
    assert names and not [name for name in names if gpu_memory_bytes(name) is None]
