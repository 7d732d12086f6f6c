"""Who gets how many GPUs: on any number of them, from one key."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import tiny_config

from csr_ray.config.load import load_config
from csr_ray.config.schema import Config
from csr_ray.errors import ConfigError
from csr_ray.machine.fit import Node, seating
from csr_ray.machine.layout import in_words, lay_out
from csr_ray.machine.placement import demands_of


def nodes(*gpus: int, cpus: float = 64) -> list[Node]:
    return [Node(name=f"node {number}", cpus=cpus, gpus=num) for number, num in enumerate(gpus)]


def laid_out(there: list[Node], *, layout: str = "auto", needs_scorer: bool = True, **sections: Any) -> Config:
    train = {"batch_size": 64, **sections.pop("train", {})}
    config = tiny_config(cluster={"layout": layout}, train=train, **sections)
    return lay_out(config, nodes=there, needs_scorer=needs_scorer, engine_needs_gpu=False)


def figures(config: Config) -> tuple[str, int, float, float, int, float]:
    """Layout, engines and their GPUs, the scorer's GPUs, train workers and their GPUs."""
    return (
        config.cluster.layout,
        config.generators.min,
        config.generators.gpus,
        config.scorers.gpus,
        config.train.workers,
        config.train.gpus_per_worker,
    )


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        ((0,), ("cpu", 1, 0.0, 0.0, 1, 0.0)),
        ((1,), ("colocated", 1, 0.6, 0.1, 1, 0.3)),
        ((2,), ("disaggregated", 1, 0.9, 0.1, 1, 1.0)),
        ((4,), ("disaggregated", 3, 0.9, 0.1, 1, 1.0)),
        ((8,), ("disaggregated", 6, 0.9, 0.1, 2, 1.0)),
        ((8, 8), ("disaggregated", 12, 0.9, 0.1, 4, 1.0)),
        ((8,) * 8, ("disaggregated", 48, 0.9, 0.1, 16, 1.0)),
        # Nodes that are not alike, and a head without GPUs.
        ((0, 2, 4), ("disaggregated", 5, 0.9, 0.1, 1, 1.0)),
        ((1, 1), ("disaggregated", 1, 0.9, 0.1, 1, 1.0)),
        ((0, 1), ("colocated", 1, 0.6, 0.1, 1, 0.3)),
        ((3,), ("disaggregated", 2, 0.9, 0.1, 1, 1.0)),
    ],
)
def test_auto_has_an_answer_for_every_number_of_gpus(gpus: tuple[int, ...], expected: tuple[Any, ...]) -> None:
    config = laid_out(nodes(*gpus))
    assert figures(config) == expected
    assert not seating(demands_of(config, needs_scorer=True), nodes=nodes(*gpus)).standing


def test_engines_over_several_gpus_are_whole_and_the_scorer_sits_with_a_train_worker() -> None:
    config = laid_out(nodes(8), generators={"gpus": 2})
    assert figures(config) == ("disaggregated", 3, 2.0, 0.1, 2, 0.9)
    # One of four GPUs cannot hold an engine over two of them.
    assert figures(laid_out(nodes(2, 1, 1), generators={"gpus": 2}))[1:3] == (1, 2.0)


def test_the_number_of_train_workers_divides_the_batch() -> None:
    assert laid_out(nodes(8, 8), train={"batch_size": 6}).train.workers == 3
    assert laid_out(nodes(8, 8), train={"batch_size": 8, "micro_batch_size": 4}).train.workers == 2
    assert laid_out(nodes(8), layout="colocated", train={"batch_size": 6}).train.workers == 6


def test_a_method_without_a_scorer_leaves_the_engines_their_gpus() -> None:
    config = laid_out(nodes(4), needs_scorer=False)
    assert (config.generators.gpus, config.generators.min, config.train.gpus_per_worker) == (1.0, 3, 1.0)


def test_gpus_that_are_used_in_turns_have_everybody_on_them() -> None:
    config = laid_out(nodes(4), layout="colocated")
    assert figures(config) == ("colocated", 4, 0.6, 0.1, 4, 0.3)
    assert config.generators.gpu_memory_utilization == 0.8
    assert "in turns" in in_words(config, needs_scorer=True)
    seats = seating(demands_of(config, needs_scorer=True), nodes=nodes(4)).seats
    for role in ("generator", "train worker"):
        assert sorted(seat.gpus for seat in seats if seat.role == role) == [(0,), (1,), (2,), (3,)]


@pytest.mark.parametrize(
    ("there", "options", "says"),
    [
        (nodes(0), {"layout": "disaggregated"}, "there is no GPU; set cluster.layout=cpu"),
        (nodes(0), {"layout": "colocated"}, "there is no GPU; set cluster.layout=cpu"),
        (nodes(1), {"layout": "disaggregated"}, "takes 2 and a CPU for each actor"),
        (nodes(1), {"train": {"streaming": True}}, "contradicts train.streaming = true"),
        (nodes(2), {"layout": "colocated", "generators": {"gpus": 2}}, "set generators.gpus=1"),
        (nodes(2, cpus=2), {"layout": "disaggregated"}, "node 0: 2 CPU and 2 GPU"),
        (nodes(1, 1), {"generators": {"gpus": 2}}, "an engine over 2 GPUs of one node"),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_key_and_a_remedy(
    there: list[Node], options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=r"^cluster\.layout = ") as error:
        laid_out(there, **options)
    assert says in str(error.value)


def test_an_engine_for_gpus_is_not_laid_out_without_one() -> None:
    with pytest.raises(ConfigError, match="serves on GPUs only"):
        lay_out(tiny_config(cluster={"layout": "cpu"}), nodes=nodes(0), needs_scorer=True, engine_needs_gpu=True)


def test_what_the_config_gives_is_left_as_it_is() -> None:
    config = tiny_config(generators={"gpus": 0.5, "gpu_memory_utilization": 0.4})
    assert lay_out(config, nodes=nodes(8), needs_scorer=True, engine_needs_gpu=True) is config


@pytest.mark.parametrize("name", ["llava15-7b", "llava15-13b", "llava15-13b-mllm-dpo", "qwen25-vl-7b"])
@pytest.mark.parametrize("gpus", [1, 2, 4, 8])
def test_the_large_configs_fit_any_machine_by_one_key(name: str, gpus: int) -> None:
    config = load_config(f"configs/{name}.yaml", overrides=["cluster.layout=auto"])
    config = lay_out(config, nodes=nodes(gpus), needs_scorer=True, engine_needs_gpu=True)
    assert not seating(demands_of(config, needs_scorer=True), nodes=nodes(gpus)).standing
