"""A version that was handed over is taken back, and its number goes to another adapter: nobody may mix up the two.

Registry, receivers and pool are the real ones, in this process and without Ray; generators stand in. What the
contract is on real Ray, and on real engines, is held by test_contracts, test_hot_adapter and test_families.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_generator import LOGPS, FakeGenerator
from fakes import FakeGenerators, FakeTrainer, tiny_config, train_result
from safetensors.torch import save_file

from actors.handover.expected import Expected
from actors.handover.proofs import Served, noise_of
from actors.handover.registry import Receiver, Registry, RegistryActor
from actors.pool.events import Replica
from actors.pool.generators import GeneratorPool
from actors.train.checkpoints import checkpoints_of
from actors.train.group import TrainerGroup
from actors.turns import InTurns
from csr_ray.config.schema import Train
from csr_ray.errors import ActorFailure
from csr_ray.policy.package import FILES
from csr_ray.records import Cycle, Probe, TrainOrder, TrainResult


@dataclass(eq=False)
class Arrives:
    """In place of Ray's reference of an object."""

    value: Any

    def __await__(self) -> Generator[Any, None, Any]:
        yield from asyncio.sleep(0).__await__()
        return self.value


@dataclass
class Remote:
    """A method of an actor: `.remote(...)` gives something to wait for."""

    call: Callable[..., Any]

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        return Arrives(self.call(*args, **kwargs))


class Handle:
    """The handle of a registry in this process, which may be started again."""

    def __init__(self, memory: Path) -> None:
        self._memory = str(memory)
        self.restart()

    def restart(self) -> None:
        self.there = RegistryActor(1000, self._memory)

    def __getattr__(self, name: str) -> Remote:
        return Remote(getattr(self.there, name))


@pytest.fixture
def handle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Handle:
    monkeypatch.setattr("ray.put", Arrives)
    monkeypatch.setattr("ray.get", lambda reference, timeout=None: reference.value)
    return Handle(tmp_path / "adapters.json")


def adapter(folder: Path, *, value: float, name: str | None = None) -> str:
    """An adapter; the same name stands for the same folder, whatever was in it before."""
    place = folder / (name or f"adapter_{value}")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    (place / FILES[0]).write_text("{}")
    save_file({"x": torch.full((10,), value)}, place / FILES[1])
    return str(place)


def held(receiver: Receiver) -> list[bytes]:
    return [Path(folder, FILES[1]).read_bytes() for folder in receiver.adapters]


def bytes_of(*adapters: str) -> list[bytes]:
    return [Path(one, FILES[1]).read_bytes() for one in adapters]


def pull(receiver: Receiver) -> int:
    return asyncio.run(receiver.pull())


# The registry and its receivers.


def test_a_receiver_goes_back_and_leaves_nothing_of_the_version_on_disk(handle: Handle, tmp_path: Path) -> None:
    first, second = (adapter(tmp_path, value=value) for value in (1.0, 2.0))
    receiver = Receiver(handle, folder=tmp_path / "received")
    handle.there.add(first, version=1)
    handle.there.add(second, version=2)
    assert pull(receiver) == 2
    handle.there.withdraw(version=2)
    assert pull(receiver) == 1
    assert held(receiver) == bytes_of(first)
    assert [str(folder) for folder in (tmp_path / "received").iterdir()] == receiver.adapters


@pytest.mark.parametrize("name", ["the same folder", None])
def test_another_adapter_under_the_same_number_is_sent_anew(handle: Handle, tmp_path: Path, name: str | None) -> None:
    """Also to one that was away and has never seen the number free, and where the trainer wrote to the same place."""
    base = adapter(tmp_path, value=1.0)
    refused = adapter(tmp_path, value=2.0, name=name)
    watching, away = (Receiver(handle, folder=tmp_path / who) for who in ("watching", "away"))
    handle.there.add(base, version=1)
    handle.there.add(refused, version=2)
    assert (pull(watching), pull(away)) == (2, 2)
    handle.there.withdraw(version=2)
    assert pull(watching) == 1
    better = adapter(tmp_path, value=3.0, name=name)
    handle.there.add(better, version=2)
    late = Receiver(handle, folder=tmp_path / "late")
    for receiver in (watching, away, late):
        assert pull(receiver) == 2
        assert held(receiver) == bytes_of(base, better)
        assert receiver.adapters == [str(receiver._folder / f"version_{version:03d}") for version in (1, 2)]


def test_a_receiver_that_was_away_for_two_versions_drops_all_that_differs(handle: Handle, tmp_path: Path) -> None:
    old = [adapter(tmp_path, value=value) for value in (1.0, 2.0, 3.0)]
    new = [adapter(tmp_path, value=value) for value in (4.0, 5.0, 6.0)]
    away = Receiver(handle, folder=tmp_path / "away")
    for version, one in enumerate(old, start=1):
        handle.there.add(one, version=version)
    assert pull(away) == 3
    for version in (3, 2):
        handle.there.withdraw(version=version)
    for version, one in enumerate(new[1:], start=2):
        handle.there.add(one, version=version)
    num_bytes = away.num_bytes
    assert pull(away) == 3
    assert held(away) == bytes_of(old[0], *new[1:])
    assert away.num_bytes - num_bytes == sum(path.stat().st_size for one in new[1:] for path in Path(one).iterdir())


@pytest.mark.parametrize("restart_after", ["adding", "withdrawing", "adding another"])
def test_a_registry_that_is_started_again_knows_which_adapter_has_the_number(
    handle: Handle, tmp_path: Path, restart_after: str
) -> None:
    """A new count from the beginning would give the second adapter the first one's identity."""
    refused, better = (adapter(tmp_path, value=value) for value in (1.0, 2.0))
    receiver = Receiver(handle, folder=tmp_path / "received")
    handle.there.add(refused, version=1)
    assert pull(receiver) == 1
    for step, deed in {
        "adding": lambda: None,
        "withdrawing": lambda: handle.there.withdraw(version=1),
        "adding another": lambda: handle.there.add(better, version=1),
    }.items():
        deed()
        if step == restart_after:
            handle.restart()
            deed()  # Ray calls once more what has not answered
    assert pull(receiver) == 1
    assert held(receiver) == bytes_of(better)


def test_a_withdrawn_package_is_kept_no_longer(handle: Handle, tmp_path: Path) -> None:
    receiver = Receiver(handle, folder=tmp_path / "received")
    for version in (1, 2):
        handle.there.add(adapter(tmp_path, value=float(version)), version=version)
    pull(receiver)
    handle.there.withdraw(version=2)
    assert [package.manifest.version for package in handle.there._kept.values()] == [1]
    memory = json.loads((tmp_path / "adapters.json").read_text())
    assert [entry["folder"] for entry in memory["adapters"]] == [str(tmp_path / "adapter_1.0")]


@pytest.mark.parametrize("version", [0, 1, 4])
def test_the_registry_takes_back_no_version_but_its_newest(handle: Handle, tmp_path: Path, version: int) -> None:
    for number in (1, 2):
        handle.there.add(adapter(tmp_path, value=float(number)), version=number)
    with pytest.raises(ValueError, match=f"version {version} .* version 2"):
        handle.there.withdraw(version=version)
    assert pull(Receiver(handle, folder=tmp_path / "received")) == 2


# The pool.


def trained(one: str, *, version: int) -> TrainResult:
    return train_result(adapter=one, version=version, num_pairs=2, probe_logps=LOGPS)


class Actor:
    """A generator that stands in, and what was asked of it."""

    def __init__(self, folder: Path, fault: str | None) -> None:
        self._there = FakeGenerator(str(folder), fault)
        self.start = Remote(self._start)
        self.publish = Remote(self._publish)
        self.asked: list[tuple[Probe, ...]] = []

    def _start(self, registry: Any) -> Any:
        return asyncio.run(self._there.start(registry))

    def _publish(self, probes: Sequence[Probe]) -> Any:
        self.asked.append(tuple(probes))
        return asyncio.run(self._there.publish(list(probes)))

    def held(self) -> list[float]:
        return self._there.held()


class AllAtOnce:
    """`actors.pool.supervisor.Supervisor` for `GeneratorPool`, without threads; whoever is condemned is replaced."""

    def __init__(self, start: Callable[[Replica, str | None], Actor], *, given: Sequence[str | None]) -> None:
        self._start = start
        self.actors: dict[Replica, Actor] = {}
        self.condemned: list[str] = []
        self.bring_up: Callable[[Replica, Any, Sequence[Any]], Any] | None = None
        self._given = given

    def begin(self) -> None:
        for slot, fault in enumerate(self._given):
            self.join(Replica("generator", slot), fault)

    def join(self, replica: Replica, fault: str | None = None) -> Actor:
        """Bring one up as the supervisor does."""
        assert self.bring_up is not None
        actor, answers = self._start(replica, fault), []
        while (reference := self.bring_up(replica, actor, answers)) is not None:
            answers.append(reference.value)
        self.actors[replica] = actor
        return actor

    def ask(self, role: str, submit: Callable[[Any], Any], *, limit_s: float) -> dict[Replica, Any]:
        return {replica: submit(actor).value for replica, actor in list(self.actors.items())}

    def condemn(self, replica: Replica, reason: str) -> None:
        self.condemned.append(reason)
        del self.actors[replica]
        self.join(replica._replace(life=replica.life + 1))


@dataclass
class Pool:
    """A `GeneratorPool` that was never told of Ray."""

    pool: GeneratorPool
    supervisor: AllAtOnce

    def held(self) -> list[list[float]]:
        return [actor.held() for actor in self.supervisor.actors.values()]


def probe_ids(probes: Sequence[Probe]) -> list[str]:
    return [probe.id for probe in probes]


@pytest.fixture
def make(handle: Handle, tmp_path: Path) -> Callable[..., Pool]:
    """Starts a pool whose generators have the given faults; their successors have none."""

    def made(*given: str | None, adapters: Sequence[str] = ()) -> Pool:
        registry: Any = object.__new__(Registry)
        registry.actor, registry._num_packages = handle, 0
        for version, one in enumerate(adapters, start=1):
            registry.add(one, version=version)
        supervisor = AllAtOnce(
            lambda replica, fault: Actor(tmp_path / f"{replica.slot}-{replica.life}", fault), given=given
        )
        pool: Any = object.__new__(GeneratorPool)
        pool._config, pool._registry, pool._supervisor = tiny_config(tmp_path).generators, registry, supervisor
        pool._expected = Expected(len(adapters), noise=noise_of(["bfloat16"]))
        supervisor.bring_up = pool._bring_up
        supervisor.begin()
        return Pool(pool, supervisor)

    return made


def test_all_generators_serve_the_version_before_and_then_another_one(
    make: Callable[..., Pool], tmp_path: Path
) -> None:
    first, refused, better = (adapter(tmp_path, value=value) for value in (1.0, 2.0, 3.0))
    made = make(None, None)
    made.pool.publish(trained(first, version=1))
    made.pool.publish(trained(refused, version=2))
    made.pool.withdraw(2)
    assert (made.pool.version, made.held()) == (1, [[10.0]] * 2)
    receipt = made.pool.publish(trained(better, version=2))
    assert (receipt.version, receipt.num_generators, made.pool.version) == (2, 2, 2)
    assert made.held() == [[10.0, 30.0]] * 2
    assert made.supervisor.condemned == []


def test_those_that_go_back_are_asked_the_probes_of_the_version_that_they_serve(
    make: Callable[..., Pool], tmp_path: Path
) -> None:
    """And so is a newcomer, as late as it may come."""
    made = make(None)
    results = [trained(adapter(tmp_path, value=float(value)), version=value) for value in (1, 2)]
    results = [
        replace(one, probes=tuple(replace(probe, id=f"of {one.version}-{probe.id}") for probe in one.probes))
        for one in results
    ]
    for one in results:
        made.pool.publish(one)
    made.pool.withdraw(2)
    (actor,) = made.supervisor.actors.values()
    expected = [probe_ids(one.probes) for one in (results[0], results[1], results[0])]
    assert [probe_ids(probes) for probes in actor.asked] == expected
    newcomer = made.supervisor.join(Replica("generator", 1))
    assert (newcomer.held(), [probe_ids(probes) for probes in newcomer.asked]) == ([10.0], expected[:1])


@pytest.mark.parametrize("adapters_at_start", [0, 1])
def test_a_version_of_which_no_training_is_known_is_proved_without_log_probs(
    make: Callable[..., Pool], tmp_path: Path, adapters_at_start: int
) -> None:
    """The base, or what a run went on with: the caches are still looked at, with the prompts of the next version."""
    first, refused, better = (adapter(tmp_path, value=value) for value in (1.0, 2.0, 3.0))
    start = [first][:adapters_at_start]
    made = make(None, None, adapters=start)
    version = len(start) + 1
    refusal = trained(refused, version=version)
    made.pool.publish(refusal)
    made.pool.withdraw(version)
    assert (made.pool.version, made.held()) == (version - 1, [[10.0][: len(start)]] * 2)
    newcomer = made.supervisor.join(Replica("generator", 7))
    assert (len(newcomer.held()), len(newcomer.asked[0])) == (version - 1, len(LOGPS))
    made.pool.publish(trained(better, version=version))
    assert made.held() == [[*[10.0][: len(start)], 30.0]] * 3
    assert made.supervisor.condemned == []


def test_the_newest_of_those_that_a_run_went_on_with_can_be_taken_back(
    make: Callable[..., Pool], tmp_path: Path
) -> None:
    adapters = [adapter(tmp_path, value=value) for value in (1.0, 2.0)]
    made = make(None, adapters=adapters)
    made.pool.withdraw(2)
    assert (made.pool.version, made.held()) == (1, [[10.0]])
    made.pool.withdraw(1)
    assert (made.pool.version, made.held()) == (0, [[]])


def test_of_a_version_without_a_known_training_no_log_prob_is_wrong(
    make: Callable[..., Pool], tmp_path: Path
) -> None:
    """Those of the probes are of the version that was taken back."""
    made = make(None)
    made.pool.publish(trained(adapter(tmp_path, value=1.0), version=1))
    made.supervisor.actors[Replica("generator", 0)]._there._fault = "other weights"
    made.pool.withdraw(1)
    assert made.supervisor.condemned == []


@pytest.mark.parametrize("fault", ["does not go back", "old version", "stale cache", "cache not empty"])
def test_a_generator_that_does_not_go_back_is_replaced(make: Callable[..., Pool], tmp_path: Path, fault: str) -> None:
    made = make(None, None)
    first, refused = (adapter(tmp_path, value=value) for value in (1.0, 2.0))
    made.pool.publish(trained(first, version=1))
    made.pool.publish(trained(refused, version=2))
    made.supervisor.actors[Replica("generator", 1)]._there._fault = fault
    made.pool.withdraw(2)
    assert len(made.supervisor.condemned) == 1 and "version 1" in made.supervisor.condemned[0]
    assert list(made.supervisor.actors) == [Replica("generator", 0), Replica("generator", 1, 1)]
    assert made.held() == [[10.0]] * 2


def test_if_none_goes_back_the_run_stops(make: Callable[..., Pool], tmp_path: Path) -> None:
    """All agree with each other; what tells is the checksum that the version had before."""
    made = make("does not go back", "does not go back")
    for number in (1, 2):
        made.pool.publish(trained(adapter(tmp_path, value=float(number)), version=number))
    with pytest.raises(
        ActorFailure, match=r"no generator can be brought to version 1: .*other tensors than version 1"
    ):
        made.pool.withdraw(2)


@pytest.mark.parametrize("version", [0, 1, 3])
def test_the_pool_takes_back_no_version_but_its_newest(
    make: Callable[..., Pool], tmp_path: Path, version: int
) -> None:
    made = make(None)
    for number in (1, 2):
        made.pool.publish(trained(adapter(tmp_path, value=float(number)), version=number))
    with pytest.raises(ActorFailure, match=f"version {version} .* version 2"):
        made.pool.withdraw(version)
    assert (made.pool.version, made.held()) == (2, [[10.0, 20.0]])


def test_a_newcomer_that_was_brought_to_the_version_taken_back_goes_back_before_it_serves(
    make: Callable[..., Pool], tmp_path: Path
) -> None:
    """It has pulled while it started, and its answer is read after the withdrawal, or after the next hand-over."""
    made = make(None)
    refused, better = (adapter(tmp_path, value=value) for value in (1.0, 2.0))
    made.pool.publish(trained(refused, version=1))
    pool: Any = made.pool
    late = [Actor(tmp_path / f"late-{number}", None) for number in range(2)]
    answers = [one.start.remote(pool._registry.actor).value for one in late]
    assert answers == [1, 1]
    pool.withdraw(1)
    reference = pool._bring_up(Replica("generator", 8), late[0], answers[:1])
    assert (reference.value.version, late[0].held()) == (0, [])
    assert pool._bring_up(Replica("generator", 8), late[0], [*answers[:1], reference.value]) is None
    pool.publish(trained(better, version=1))
    reference = pool._bring_up(Replica("generator", 9), late[1], answers[1:])
    assert isinstance(reference.value, Served) and late[1].held() == [20.0]
    assert pool._bring_up(Replica("generator", 9), late[1], [1, reference.value]) is None


# The train group, and what stands in for both.


def group(tmp_path: Path, *, adapters: Sequence[str]) -> TrainerGroup:
    return TrainerGroup(Train(), model="-", adapters=[Path(one) for one in adapters], logs=tmp_path / "logs")


@pytest.mark.parametrize("kind", ["fake", "real"])
def test_the_trainer_takes_back_its_newest_version_alone(tmp_path: Path, kind: str) -> None:
    adapters = [adapter(tmp_path, value=value) for value in (1.0, 2.0)]
    trainer: Any = group(tmp_path, adapters=adapters) if kind == "real" else FakeTrainer(version=2)
    for version in (0, 1, 3):
        with pytest.raises(ActorFailure, match=f"version {version} .* version 2"):
            trainer.withdraw(version)
    trainer.withdraw(2)
    with pytest.raises(ActorFailure, match=r"version 2 .* version 1"):
        trainer.withdraw(2)
    trainer.withdraw(1)
    if kind == "real":
        assert trainer._adapters == ()


def test_a_trainer_that_takes_turns_hands_it_on(tmp_path: Path) -> None:
    real, nobody = group(tmp_path, adapters=[adapter(tmp_path, value=1.0)]), object()
    trainer: Any = InTurns(real, generators=nobody)  # type: ignore[arg-type]
    trainer.withdraw(1)
    assert real._adapters == ()


def test_nothing_goes_on_from_the_checkpoints_of_a_version_taken_back(tmp_path: Path) -> None:
    """The next training has the same cycle and the same place, so it would take them for its own."""
    output = tmp_path / "round_000" / "adapter"
    for folder in (output, checkpoints_of(output) / "checkpoint-1"):
        folder.mkdir(parents=True)
    group(tmp_path, adapters=[str(output)]).withdraw(1)
    assert not checkpoints_of(output).exists() and output.exists()


def test_a_version_is_not_taken_back_while_a_stream_is_open(tmp_path: Path) -> None:
    order = TrainOrder(cycle=Cycle(round_index=0), output_dir=str(tmp_path / "a"), num_examples_at_most=1)
    fake = FakeTrainer(version=0)
    fake.begin(order)
    with pytest.raises(AssertionError):
        fake.withdraw(0)


def test_the_fakes_start_the_next_order_from_the_version_before(tmp_path: Path) -> None:
    trainer = FakeTrainer()
    order = TrainOrder(cycle=Cycle(round_index=0), output_dir=str(tmp_path / "a"), num_examples_at_most=0)
    later = replace(order, cycle=Cycle(round_index=1, policy_version=1))
    with pytest.raises(ActorFailure, match=r"version 1 .* version 0"):
        trainer.withdraw(1)
    trainer.begin(order)
    trainer.finish(on_step=lambda *_: None)
    trainer.withdraw(1)
    with pytest.raises(AssertionError):
        trainer.begin(later)
    trainer.begin(order)
    assert trainer.finish(on_step=lambda *_: None).version == 1
    trainer.begin(later)
    assert (trainer.trained, trainer.withdrawn) == ([0, 0], [1])


def test_the_fakes_refuse_what_the_pool_refuses(tmp_path: Path) -> None:
    generators = FakeGenerators(tiny_config(tmp_path), version=1)
    for version in (0, 2):
        with pytest.raises(ActorFailure, match=f"version {version} .* version 1"):
            generators.withdraw(version)
    generators.withdraw(1)
    assert (generators.version, generators.withdrawn) == (0, [1])
