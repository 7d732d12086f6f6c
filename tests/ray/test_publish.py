"""The pool's hand-over on real Ray with real bytes; generators stand in that say what a fault would make them say.

What real engines answer is held by test_families.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from fake_generator import LOGPS, DyingScorer, FakeGenerator, ScoringGenerator
from fakes import train_result
from safetensors.torch import save_file

from actors.handover.proofs import Proof, Served, faults, noise_of
from actors.pool.generators import GeneratorPool
from actors.pool.replicas import Replicas
from actors.process.pulse import actor_class
from csr_ray.config.load import parse_config
from csr_ray.config.schema import Config
from csr_ray.errors import ActorFailure
from csr_ray.records import Cycle, Prompt, TrainResult

NOISE = noise_of(["bfloat16"])


def _config() -> Config:
    return parse_config(
        {
            "data": {"prompts": "-"},
            "policy": {"model": "-"},
            "scorer": {"model": "-"},
            "generators": {"chunk_mib": 0.001},
        }
    )


def _adapter(directory: Path, *, value: float) -> str:
    folder = directory / f"adapter_{value}"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    save_file({"x": torch.full((1000,), value)}, folder / "adapter_model.safetensors")
    return str(folder)


def _trained(adapter: str, *, version: int) -> TrainResult:
    return train_result(adapter=adapter, version=version, num_pairs=2, probe_logps=LOGPS)


Start = Callable[..., GeneratorPool]


@pytest.fixture
def start(ray_session: None, tmp_path: Path) -> Iterator[Start]:
    """Starts a pool whose first generators have the given faults; replacements have `replacement`'s."""
    pools = []

    def make(
        *given: str | None,
        replacement: str | None = None,
        adapters: tuple[str, ...] = (),
        notice: Callable[[str], None] = print,
    ) -> GeneratorPool:
        def generator(fault: str | None) -> Any:
            return actor_class(FakeGenerator).options(num_cpus=0).remote(str(tmp_path / "received"), fault)

        replicas = Replicas(
            generators=[generator(fault) for fault in given],
            scorers=[],
            logs=tmp_path,
            starters={"generator": lambda slot: generator(replacement)},
        )
        pool = GeneratorPool(
            _config().generators, replicas=replicas, adapters=adapters, precisions=["bfloat16"], notice=notice
        )
        pools.append(pool)
        pool.wait_until_ready()
        return pool

    yield make
    for pool in pools:
        pool.close()


def _generators(pool: GeneratorPool) -> list[Any]:
    return pool._replicas.actors("generator")


def test_every_generator_pulls_what_it_lacks_and_the_bytes_are_counted(start: Start, tmp_path: Path) -> None:
    old, new = (_adapter(tmp_path, value=value) for value in (1.0, 2.0))
    pool = start(None, None, adapters=(old,))
    assert pool.version == 1
    receipt = pool.publish(_trained(new, version=2))
    size = sum(path.stat().st_size for path in Path(new).iterdir())
    assert (receipt.version, receipt.num_generators, receipt.num_bytes) == (2, 2, 2 * size)
    assert pool.version == 2
    assert [ray.get(actor.held.remote()) for actor in _generators(pool)] == [[1000.0, 2000.0]] * 2


def test_faulty_generators_are_replaced_by_ones_that_hold_every_version(start: Start, tmp_path: Path) -> None:
    faults = ["dies", "out of memory", "other weights", "no number", "old version", "one layer", "stale cache"]
    faults += ["cache not empty"]
    old, new = (_adapter(tmp_path, value=value) for value in (1.0, 2.0))
    pool = start(None, *faults, adapters=(old,))
    before = _generators(pool)
    pool.publish(_trained(new, version=2))
    assert pool.version == 2
    pool.wait_until_ready()
    kept = [actor is other for actor, other in zip(_generators(pool), before, strict=True)]
    assert dict(zip([None, *faults], kept, strict=True)) == {None: True, **dict.fromkeys(faults, False)}
    assert ray.get([actor.held.remote() for actor in _generators(pool)]) == [[1000.0, 2000.0]] * len(before)


def test_a_pool_that_goes_on_with_adapters_is_ready_as_soon_as_its_generators(start: Start, tmp_path: Path) -> None:
    """The registry is there already when it is first asked whether it is."""
    adapter = _adapter(tmp_path, value=1.0)
    started_s = time.monotonic()
    start(None, adapters=(adapter,))
    assert time.monotonic() - started_s < 30


def test_if_all_fail_the_run_stops_and_says_which_tensor_differs(start: Start, tmp_path: Path) -> None:
    pool = start("one layer", "other weights")
    with pytest.raises(
        ActorFailure, match=r"version 1: generator 0: .*layers\.1\.q_proj\.weight; generator 1: .*probe answer 0 "
    ):
        pool.publish(_trained(_adapter(tmp_path, value=1.0), version=1))


def test_a_replacement_that_fails_too_gets_no_work_and_the_others_go_on(start: Start, tmp_path: Path) -> None:
    said: list[str] = []
    pool = start(None, "stale cache", replacement="stale cache", notice=said.append)
    receipt = pool.publish(_trained(_adapter(tmp_path, value=1.0), version=1))
    assert receipt.num_generators == 1
    deadline_s = time.monotonic() + 60
    while sum("generator 1 is lost" in line and "cached" in line for line in said) < 3:
        assert time.monotonic() < deadline_s, said
        time.sleep(0.1)
    assert not any("serves again" in line for line in said)
    assert [replica.slot for replica in pool._supervisor.serving("generator")] == [0]


def test_faulty_generators_are_replaced_when_a_version_is_taken_back_by_ones_that_never_had_it(
    start: Start, tmp_path: Path
) -> None:
    faults = ["dies at going back", "does not go back"]
    old, refused, better = (_adapter(tmp_path, value=value) for value in (1.0, 2.0, 3.0))
    pool = start(None, *faults)
    pool.publish(_trained(old, version=1))
    pool.publish(_trained(refused, version=2))
    before = _generators(pool)
    pool.withdraw(2)
    pool.wait_until_ready()
    kept = [actor is other for actor, other in zip(_generators(pool), before, strict=True)]
    assert (pool.version, kept) == (1, [True, False, False])
    assert ray.get([actor.held.remote() for actor in _generators(pool)]) == [[1000.0]] * 3
    pool.publish(_trained(better, version=2))
    assert ray.get([actor.held.remote() for actor in _generators(pool)]) == [[1000.0, 3000.0]] * 3


def _answers(actor: Any) -> bool:
    try:
        ray.get(actor.held.remote(), timeout=30)
    except ray.exceptions.RayActorError:
        return False
    return True


def test_closing_ends_the_actors_that_hold_the_slots_now(start: Start, tmp_path: Path) -> None:
    pool = start(None, "dies")
    pool.publish(_trained(_adapter(tmp_path, value=1.0), version=1))
    pool.wait_until_ready()
    actors = _generators(pool)
    assert ray.get([actor.held.remote() for actor in actors]) == [[1000.0]] * 2
    pool.close()
    deadline_s = time.monotonic() + 30
    for actor in actors:
        while _answers(actor):  # Ray ends an actor a moment after it was told to
            assert time.monotonic() < deadline_s, "still there"
            time.sleep(0.1)


def test_one_that_loaded_other_tensors_than_the_rest_is_found() -> None:
    def served(checksum: str) -> Served:
        return Served(
            version=1,
            checksum=checksum,
            wrong_tensors=(),
            swallowed=0.0,
            kept=1.0,
            num_stale=0,
            probe_logps=LOGPS,
            cache_gaps=(0.0, 0.0),
            num_bytes=0,
            seconds=0.0,
        )

    proof = Proof.of(_trained("-", version=1), noise=NOISE)
    assert faults({0: served("a"), 1: served("a")}, proof=proof) == {}
    found = faults({0: served("a"), 1: served("b"), 2: served("a")}, proof=proof)
    assert list(found) == [1] and "other tensors" in found[1]


def test_a_scorer_that_died_is_named_and_not_the_generator_that_asked_it(ray_session: None, tmp_path: Path) -> None:
    scorer: Any = actor_class(DyingScorer).options(num_cpus=0).remote(str(tmp_path / "scorer_0.log"))
    generator: Any = actor_class(ScoringGenerator).options(num_cpus=0).remote()
    replicas = Replicas(generators=[generator], scorers=[scorer], logs=tmp_path)
    pool = GeneratorPool(_config().generators, replicas=replicas, adapters=(), precisions=["bfloat16"])
    try:
        pool.wait_until_ready()
        prompts = [Prompt(id=str(number), image="i.png", text="What?") for number in range(3)]
        with pytest.raises(ActorFailure) as caught:
            list(pool.rollout(prompts, cycle=Cycle(round_index=0)))
    finally:
        pool.close()
    assert "scorer 0 died" in str(caught.value) and "3 GiB for the image tower" in str(caught.value)
    assert "generator 0 died" not in str(caught.value)
