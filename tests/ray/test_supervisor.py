"""Deaths in the pool on real Ray: who notices, in how many seconds, and that no prompt is lost or set aside for them.

Generators and scorers stand in that take a moment for every prompt; their processes are killed and stopped for real.
What real engines do is shown in tests/ray/chaos.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import ray
from fake_generator import LOGPS, HaltedGenerator, SlowGenerator, SlowScorer
from fakes import train_result
from safetensors.torch import save_file
from torch import ones

from actors.pool import scaling
from actors.pool.events import Role
from actors.pool.generators import GeneratorPool
from actors.pool.replicas import Replicas
from actors.process.pulse import actor_class
from csr_ray.config.load import parse_config
from csr_ray.errors import ActorFailure
from csr_ray.records import Cycle, Prompt, Rejection

NOTICED_S = 15.0


class Pool:
    """A pool of stand-ins, and what it said and when."""

    def __init__(
        self,
        logs: Path,
        *,
        generators: int,
        scorers: int = 0,
        seconds: float = 0.1,
        room: Callable[[Role], int] = lambda role: 0,
        most: int | None = None,
        marker: Path | None = None,
        **limits: Any,
    ) -> None:
        self.said: list[tuple[float, str]] = []
        self._seconds, self._marker = seconds, marker
        replicas = Replicas(
            generators=[], scorers=[], logs=logs, starters={"generator": self._generator, "scorer": self._scorer}
        )
        self.replicas = replicas
        for slot in range(scorers):
            replicas.start("scorer", slot)
        for slot in range(generators):
            replicas.start("generator", slot)
        config = parse_config(
            {
                "data": {"prompts": "-"},
                "policy": {"model": "-"},
                "scorer": {"model": "-"},
                "generators": {
                    "min": generators,
                    "max": most or generators,
                    **{"in_flight": 4, "chunk_mib": 0.001, **limits},
                },
                "scorers": {
                    "min": max(1, scorers),
                    "max": most or max(1, scorers),
                    **{name: value for name, value in limits.items() if name in ("silent_s", "idle_s")},
                },
            }
        )
        self.pool = GeneratorPool(
            config.generators,
            replicas=replicas,
            adapters=(),
            precisions=["bfloat16"],
            scorers=config.scorers,
            notice=lambda line: self.said.append((time.monotonic(), line)),
            room=room,
        )
        self.pool.wait_until_ready()

    def _generator(self, slot: int) -> Any:
        if self._marker is not None:
            halted = actor_class(HaltedGenerator).options(num_cpus=0, max_concurrency=1000)
            return halted.remote(marker=str(self._marker))
        return actor_class(SlowGenerator).options(num_cpus=0, max_concurrency=1000).remote(seconds=self._seconds)

    def _scorer(self, slot: int) -> Any:
        return actor_class(SlowScorer).options(num_cpus=0, max_concurrency=1000).remote()

    def signal(self, role: Role, slot: int, number: signal.Signals) -> float:
        """Send a signal to an actor's process; returns when."""
        os.kill(ray.get(self.replicas.actor(role, slot).pid.remote()), number)
        return time.monotonic()

    def noticed_s(self, since_s: float, *, words: str) -> float:
        """How long after that it was said."""
        deadline_s = time.monotonic() + 60
        while True:
            for at_s, line in self.said:
                if words in line and at_s >= since_s:
                    return at_s - since_s
            assert time.monotonic() < deadline_s, self.said
            time.sleep(0.05)

    def rollout(self, texts: list[str], *, num: int | None = None) -> Iterator[Any]:
        prompts = [Prompt(id=str(at), image=f"{at}.png", text=text) for at, text in enumerate(texts)]
        return self.pool.rollout(prompts, cycle=Cycle(round_index=0), num=num)


Start = Callable[..., Pool]


@pytest.fixture
def start(ray_session: None, tmp_path: Path) -> Iterator[Start]:
    pools: list[Pool] = []

    def make(**options: Any) -> Pool:
        pools.append(Pool(tmp_path, **options))
        return pools[-1]

    yield make
    for made in pools:
        made.pool.close()


def ids(results: list[Any]) -> list[int]:
    assert not any(isinstance(result, Rejection) for result in results), results
    return sorted(int(result[0]) for result in results)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_generator_that_dies_or_hangs_is_replaced_while_the_other_goes_on(
    start: Start, number: signal.Signals
) -> None:
    made = start(generators=2, silent_s=5.0)  # less than the other has to do
    results, times_s = [], []
    since_s = 0.0
    for result in made.rollout(["What?"] * 500):
        results.append(result)
        times_s.append(time.monotonic())
        if len(results) == 20:
            since_s = made.signal("generator", 1, number)
    assert ids(results) == list(range(500))
    assert made.noticed_s(since_s, words="generator 1 is lost") < NOTICED_S
    made.noticed_s(since_s, words="generator 1 serves again")
    assert max(late - early for early, late in pairwise(times_s)) < 3.0, "the other waited"
    assert made.pool._supervisor.take_deaths().generator_deaths == 1
    assert ids(list(made.rollout(["What?"] * 40))) == list(range(40))


def test_a_generator_whose_engine_is_stopped_while_it_starts_is_replaced(start: Start, tmp_path: Path) -> None:
    started_s = time.monotonic()
    made = start(generators=1, silent_s=5.0, marker=tmp_path / "halted")
    assert time.monotonic() - started_s < 2 * NOTICED_S
    assert made.noticed_s(started_s, words="a process below it, which is stopped, has stood still") < 2 * NOTICED_S
    assert ids(list(made.rollout(["What?"] * 4))) == [0, 1, 2, 3]


def test_the_only_generator_dies_and_the_round_goes_on(start: Start) -> None:
    made = start(generators=1)
    results = []
    for result in made.rollout(["What?"] * 60):
        results.append(result)
        if len(results) == 20:
            made.signal("generator", 0, signal.SIGKILL)
    assert ids(results) == list(range(60))
    assert len({pid for _, pid in results}) == 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_scorer_that_dies_is_named_and_replaced_and_no_tree_is_lost(start: Start, number: signal.Signals) -> None:
    made = start(generators=1, scorers=2, silent_s=5.0)
    results = []
    since_s = 0.0
    for result in made.rollout(["What?"] * 200):
        results.append(result)
        if len(results) == 20:
            since_s = made.signal("scorer", 1, number)
    assert ids(results) == list(range(200))
    assert made.noticed_s(since_s, words="scorer 1 is lost") < NOTICED_S
    assert not any("generator" in line for _, line in made.said), made.said


def test_a_dead_engine_is_a_dead_generator_and_sets_nothing_aside(start: Start) -> None:
    made = start(generators=2)
    results = list(made.rollout(["What?"] * 30 + ["engine"] + ["What?"] * 30))
    rejected = [result for result in results if isinstance(result, Rejection)]
    assert [one.id for one in rejected] == ["30"], "it kills every engine, and only it is set aside"
    assert rejected[0].fault == "input" and "3 replicas died with it" in rejected[0].reason
    assert len(results) == 61


def test_a_prompt_that_kills_processes_is_found_and_the_others_are_answered(start: Start) -> None:
    made = start(generators=1)
    results = list(made.rollout(["What?"] * 10 + ["kill"] + ["What?"] * 10))
    assert [result.id for result in results if isinstance(result, Rejection)] == ["10"]
    assert len(results) == 21


def test_errors_of_the_machine_are_tried_again_and_say_whose_fault_they_were(start: Start) -> None:
    made = start(generators=2)
    results = list(made.rollout(["What?"] * 30 + ["error", "long"] + ["What?"] * 30))
    faults = {result.id: (result.fault, result.reason) for result in results if isinstance(result, Rejection)}
    assert faults["30"][0] == "machine" and "CUDA error" in faults["30"][1]
    assert faults["31"][0] == "input" and "longer than the context" in faults["31"][1]
    assert len(results) == 62 and len(faults) == 2 and not made.said


def test_where_everything_fails_the_run_stops_early_and_sets_nothing_aside(start: Start) -> None:
    made = start(generators=1)
    results: list[Any] = []
    with pytest.raises(ActorFailure, match=r"every item so far failed; the last: RuntimeError: CUDA error"):
        for result in made.rollout(["error"] * 500):
            results.append(result)
    assert not results


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_registry_dies_and_the_hand_over_goes_on(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    made = start(generators=1, silent_s=5.0)
    for version in (1, 2):
        folder = tmp_path / f"adapter_{version}"
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{}")
        save_file({"x": ones(3)}, folder / "adapter_model.safetensors")
        if version == 2:
            pid = ray.get(made.replicas.actor("registry", 0).pulse.remote()).pids[0]
            os.kill(pid, number)
        receipt = made.pool.publish(train_result(adapter=str(folder), version=version, probe_logps=LOGPS))
        assert receipt.version == version
    made.signal("generator", 0, signal.SIGKILL)
    made.noticed_s(0.0, words="generator 0 serves again")
    receiver = made.replicas.actor("generator", 0)
    assert ray.get(receiver.publish.remote([])).version == 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_one_that_hangs_at_a_hand_over_is_replaced_by_one_that_proves_the_new_version(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    made = start(generators=2, silent_s=5.0)
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    save_file({"x": ones(3)}, folder / "adapter_model.safetensors")
    since_s = made.signal("generator", 0, number)
    receipt = made.pool.publish(train_result(adapter=str(folder), version=1, probe_logps=LOGPS))
    assert time.monotonic() - since_s < NOTICED_S and receipt.version == 1
    assert made.noticed_s(since_s, words="generator 0 is lost") < NOTICED_S
    made.noticed_s(since_s, words="generator 0 serves again")
    served = made.pool._expected.served
    assert {one.version for one in served.values()} == {1} and len(served) == 2


def test_a_death_while_nobody_asks_for_anything_is_mended_before_anybody_does(start: Start) -> None:
    """As while the driver trains."""
    made = start(generators=1)
    since_s = made.signal("generator", 0, signal.SIGKILL)
    assert made.noticed_s(since_s, words="generator 0 is lost") < NOTICED_S
    made.noticed_s(since_s, words="generator 0 serves again")
    started_s = time.monotonic()
    assert ids(list(made.rollout(["What?"] * 8))) == list(range(8))
    assert time.monotonic() - started_s < 3.0


def test_a_driver_that_is_busy_for_long_holds_nobody_up(start: Start) -> None:
    made = start(generators=1, seconds=0.01, silent_s=5.0)
    results = made.rollout(["What?"] * 1000)
    next(results)
    time.sleep(8)
    assert not made.said
    assert len(list(results)) == 999


def test_who_wants_no_more_results_leaves_nothing_under_way(start: Start) -> None:
    made = start(generators=1, seconds=0.3)
    results = made.rollout(["What?"] * 100)
    next(results)
    results.close()
    assert ids(list(made.rollout(["What?"] * 8))) == list(range(8))
    assert threading.active_count() < 50


def test_the_pool_grows_with_the_work_where_there_is_room_and_shrinks_without(start: Start, tmp_path: Path) -> None:
    """Who comes late serves the policy of then; who has nothing to do goes, also while the driver is elsewhere."""
    made = start(generators=1, most=3, idle_s=3.0, room=lambda role: 1)
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    save_file({"x": ones(3)}, folder / "adapter_model.safetensors")
    made.pool.publish(train_result(adapter=str(folder), version=1, probe_logps=LOGPS))
    results: list[Any] = []
    until_s = time.monotonic() + 120

    def prompts() -> Iterator[Prompt]:
        while len({pid for _, pid in results}) < 3:
            assert time.monotonic() < until_s, made.said
            yield Prompt(id=(at := str(next(number))), image=f"{at}.png", text="What?")

    number = itertools.count()
    for result in made.pool.rollout(prompts(), cycle=Cycle(round_index=0), num=100_000):
        results.append(result)
    assert ids(results) == list(range(next(number)))
    made.noticed_s(0.0, words="is let go: nothing to do for 3 s")
    until_s = time.monotonic() + 60
    while len(left := made.pool._supervisor.serving("generator")) > 1:
        assert time.monotonic() < until_s
        time.sleep(0.1)
    assert made.pool._expected.served[left[0]].version == 1
    assert made.pool._supervisor.take_deaths().generator_deaths == 0
    assert not any("is lost" in line for _, line in made.said)
    assert ids(list(made.rollout(["What?"] * 8))) == list(range(8))


def test_scorers_grow_with_their_load_and_no_tree_is_lost_when_one_goes(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "_BUSY_FOR_S", 2.0)
    made = start(generators=1, scorers=1, most=2, idle_s=3.0, in_flight=16, room=lambda role: role == "scorer")
    texts = ["What?"] * 3000
    results = list(made.rollout(texts, num=3000))
    assert ids(results) == list(range(3000))
    assert made.noticed_s(0.0, words="starting scorer 1: there is work and room for it")
    asked = made.replicas.actors("scorer")
    assert len(asked) == 2 and all(ray.get([scorer.num_calls.remote() for scorer in asked]))
    made.noticed_s(0.0, words="scorer 1 is let go")
    assert ids(list(made.rollout(["What?"] * 8))) == list(range(8))
    assert not any("is lost" in line for _, line in made.said)


def test_an_error_of_the_prompts_themselves_is_raised_where_results_are_awaited(start: Start) -> None:
    made = start(generators=1)

    def prompts() -> Iterator[Prompt]:
        yield Prompt(id="0", image="0.png", text="What?")
        raise OSError("the prompt file is gone")

    with pytest.raises(OSError, match="the prompt file is gone"):
        list(made.pool.rollout(prompts(), cycle=Cycle(round_index=0)))
    assert ids(list(made.rollout(["What?"] * 4))) == list(range(4))
