"""Whether what a run asks for fits: Ray's rules of seating, worked out by hand."""

from __future__ import annotations

import pytest
from fakes import tiny_config

from csr_ray.config.load import parse_config
from csr_ray.errors import ConfigError
from csr_ray.machine.fit import Free, Node, check_fit, gpus_needed, num_that_fit, seating, smallest_change
from csr_ray.machine.placement import Demand, demands_of


def demand(role: str, num: int, gpus: float, *, cpus: float = 1) -> Demand:
    return Demand(role=role, num=num, cpus=cpus, gpus=gpus, may_share_gpus=role != "train worker")


def node(gpus: int, *, cpus: float = 64, name: str = "a") -> Node:
    return Node(name=name, cpus=cpus, gpus=gpus)


@pytest.mark.parametrize(
    ("demands", "nodes", "standing"),
    [
        ([demand("generator", 1, 0)], [node(0)], []),
        ([demand("generator", 1, 1)], [node(0)], ["generator"]),
        # Fractions share a GPU to the last tenth, whatever 0.4 + 0.2 + 0.4 is in floating point.
        ([demand("generator", 1, 0.4), demand("scorer", 1, 0.2), demand("train worker", 1, 0.4)], [node(1)], []),
        ([demand("generator", 1, 0.7), demand("scorer", 1, 0.1), demand("train worker", 1, 0.2)], [node(1)], []),
        # 1.4 GPUs of two, but no fraction is laid over two GPUs.
        ([demand("generator", 2, 0.7), demand("scorer", 1, 0.4)], [node(2)], ["scorer"]),
        # Two GPUs for one actor are two free ones of one node.
        ([demand("scorer", 1, 0.1), demand("generator", 1, 2)], [node(2)], ["generator"]),
        ([demand("generator", 1, 2)], [node(1, name="a"), node(1, name="b")], ["generator"]),
        ([demand("generator", 1, 2), demand("train worker", 1, 1)], [node(1, name="a"), node(2, name="b")], []),
        # A fraction goes onto the fullest GPU that has room, so the other stays whole.
        ([demand("generator", 1, 0.9), demand("scorer", 1, 0.1), demand("train worker", 1, 1)], [node(2)], []),
        (
            [demand("generator", 2, 1), demand("scorer", 1, 0.5), demand("train worker", 2, 1)],
            [node(4)],
            ["train worker"],
        ),
        # NCCL takes no two ranks of a group on one device, and that is where Ray would put these.
        ([demand("train worker", 2, 0.5)], [node(2)], ["train worker"]),
        ([demand("generator", 2, 0.6), demand("train worker", 2, 0.4)], [node(2)], []),
        # CPUs are counted on each node for itself.
        ([demand("generator", 1, 0, cpus=3)], [node(0, cpus=2, name="a"), node(0, cpus=2, name="b")], ["generator"]),
        ([demand("generator", 2, 0, cpus=2)], [node(0, cpus=2, name="a"), node(0, cpus=2, name="b")], []),
        # Who needs no GPU leaves the CPUs of a node with GPUs to those that do.
        (
            [demand("scorer", 1, 0), demand("generator", 1, 1)],
            [node(1, cpus=1, name="a"), node(0, cpus=1, name="b")],
            [],
        ),
    ],
)
def test_who_finds_no_place(demands: list[Demand], nodes: list[Node], standing: list[str]) -> None:
    assert list(seating(demands, nodes=nodes).standing) == standing


def test_where_everybody_sits_and_what_is_left() -> None:
    demands = [demand("generator", 2, 1), demand("scorer", 1, 0.25), demand("train worker", 1, 1)]
    found = seating(demands, nodes=[node(4)])
    assert [(seat.role, seat.gpus) for seat in found.seats] == [
        ("generator", (0,)),
        ("generator", (1,)),
        ("scorer", (2,)),
        ("train worker", (3,)),
    ]
    assert found.free_gpus == {"a": (0, 0, 0.75, 0)}


@pytest.mark.parametrize(
    ("demands", "gpus"),
    [
        ([demand("generator", 1, 0), demand("train worker", 1, 0)], 0),
        ([demand("generator", 1, 0.9), demand("scorer", 1, 0.1), demand("train worker", 1, 1)], 2),
        ([demand("generator", 3, 1), demand("scorer", 1, 1), demand("train worker", 4, 1)], 8),
        ([demand("generator", 1, 4), demand("scorer", 1, 0.1)], 5),
    ],
)
def test_how_many_gpus_one_machine_must_have(demands: list[Demand], gpus: int) -> None:
    assert gpus_needed(demands) == gpus


CASES = [
    # Two keys, because whatever one of them gives up, the other two fill the GPU.
    (
        {"generators": {"gpus": 0.9}, "scorers": {"gpus": 0.1}, "train": {"gpus_per_worker": 1}},
        1,
        {"generators.gpus": 0.5, "train.gpus_per_worker": 0.4, "generators.gpu_memory_utilization": 0.45},
    ),
    # One engine less, rather than two on one GPU.
    (
        {
            "generators": {"min": 2, "max": 2, "gpus": 1},
            "scorers": {"gpus": 0.5},
            "train": {"workers": 2, "gpus_per_worker": 1},
        },
        4,
        {"generators.min": 1},
    ),
    # A GPU for the engine alone: nothing else asks for one.
    ({"generators": {"gpus": 2}}, 1, {"generators.gpus": 1}),
    ({"generators": {"gpus": 1}}, 1, {}),
    ({"generators": {"gpus": 1}}, 0, None),
]


@pytest.mark.parametrize(("sections", "gpus", "change"), CASES)
def test_the_smallest_change_is_the_one_that_takes_least(sections: dict, gpus: int, change: dict | None) -> None:
    config = tiny_config(**sections)
    demands = demands_of(config, needs_scorer=True)
    assert smallest_change(config, demands=demands, nodes=[node(gpus)]) == change


@pytest.mark.parametrize(("sections", "gpus", "change"), [case for case in CASES if case[2]])
def test_a_config_with_the_change_is_valid_and_fits(sections: dict, gpus: int, change: dict) -> None:
    config = tiny_config(**sections)
    with pytest.raises(ConfigError) as error:
        check_fit(demands_of(config, needs_scorer=True), nodes=[node(gpus)], config=config)
    text = str(error.value)
    overrides = text.partition("the smallest change that fits: ")[2].split()
    assert dict(item.split("=") for item in overrides) == {key: f"{value:g}" for key, value in change.items()}
    tree = config.model_dump(exclude={"method_keys", "method", "sequence"})
    for item in overrides:
        key, _, value = item.partition("=")
        section, _, name = key.partition(".")
        tree[section][name] = type(tree[section][name])(float(value))
    changed = parse_config(tree)
    check_fit(demands_of(changed, needs_scorer=True), nodes=[node(gpus)], config=changed)


def test_a_refusal_says_what_is_asked_for_what_is_there_and_who_is_left_out() -> None:
    demands = [demand("generator", 2, 1), demand("scorer", 1, 0.5), demand("train worker", 2, 1)]
    with pytest.raises(ConfigError) as error:
        check_fit(demands, nodes=[node(4, cpus=16, name="node 0 (10.0.0.1)")])
    assert str(error.value) == (
        "no room for 1 train worker (asked for: 2 generators with 1 CPU and 1 GPU each, 1 scorer with 1 CPU and 0.5 "
        "GPU each, 2 train workers with 1 CPU and 1 GPU each; there is: node 0 (10.0.0.1): 16 CPU and 4 GPU); on one "
        "machine it takes 5 GPUs and 5 CPUs"
    )


def test_more_than_one_gpu_for_an_actor_are_whole_ones() -> None:
    with pytest.raises(ConfigError, match=r"1\.5 GPUs for a train worker"):
        check_fit([demand("train worker", 1, 1.5)], nodes=[node(8)])


@pytest.mark.parametrize(
    ("generators", "says"),
    [
        ({"gpus": 1.5}, "generators: gpus = 1.5: the model is split over whole GPUs"),
        ({"gpus": 0.5}, "gpus = 0.5 contradicts gpu_memory_utilization = 0.85"),
        ({"gpus": 0.5, "gpu_memory_utilization": 0.6}, "set gpu_memory_utilization=0.45, or gpus=1"),
    ],
)
def test_gpus_that_a_generator_cannot_have_are_refused(generators: dict, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        tiny_config(generators=generators)
    assert says in str(error.value)


@pytest.mark.parametrize(
    "generators",
    [{"gpus": gpus} for gpus in (0, 1, 2, 8.0, 0.9)] + [{"gpus": 0.5, "gpu_memory_utilization": 0.45}],
)
def test_gpus_that_a_generator_can_have_are_taken(generators: dict) -> None:
    assert tiny_config(generators=generators).generators.gpus == generators["gpus"]


def test_how_many_more_actors_there_is_room_for_beside_those_that_come_first() -> None:
    nodes = [Free(name="a", cpus=4, gpus=4), Free(name="b", cpus=2, gpus=0)]
    engine = demand("generator", 1, 1)
    assert num_that_fit(engine, nodes=nodes) == 4
    assert num_that_fit(engine, nodes=nodes, kept=demand("train worker", 2, 1)) == 2
    assert num_that_fit(demand("scorer", 1, 0), nodes=nodes, kept=demand("train worker", 1, 0)) == 5
    assert num_that_fit(engine, nodes=nodes, kept=demand("train worker", 9, 1)) == 0
