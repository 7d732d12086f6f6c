"""Counting never holds up a run: who is silent is asked again later, who is dead is somebody else's to report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError

from actors.pool import counting
from actors.pool.counting import Counting
from actors.pool.replicas import Replicas
from csr_ray.counters import Counters


class Actor:
    """`counters.remote()` gives a reference: the actor itself with the call's number."""

    def __init__(self, name: str) -> None:
        self.name, self.calls = name, 0
        self.start = self.ready = self.counters = self

    def remote(self, *_: Any) -> tuple[Actor, int]:
        self.calls += 1
        return self, self.calls


class FakeRay:
    """Every call counts one engine step; the silent do not return, the dead raise."""

    def __init__(self) -> None:
        self.silent: set[str] = set()
        self.dead: set[str] = set()
        self.waited_for: list[str] = []

    def wait(self, references: list[Any], *, num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        assert num_returns == len(references) and timeout <= 5, "nobody is waited for without a limit"
        self.waited_for += [reference[0].name for reference in references if timeout]
        ready = [reference for reference in references if reference[0].name not in self.silent]
        return ready, [reference for reference in references if reference not in ready]

    def get(self, reference: Any) -> Counters:
        if reference[0].name in self.dead:
            raise RayActorError(error_msg="gone")
        return Counters(engine_steps=1)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setattr(counting, "ray", fake)
    return fake


def counting_of(logs: Path) -> Counting:
    return Counting(Replicas(generators=[Actor("a"), Actor("b")], scorers=[Actor("c")], logs=logs))


def test_a_silent_actor_is_left_out_and_its_count_is_not_lost(ray: FakeRay, tmp_path: Path) -> None:
    made = counting_of(tmp_path)
    ray.silent = {"b"}
    assert made.take().engine_steps == 2
    ray.waited_for.clear()
    assert made.take().engine_steps == 2
    assert ray.waited_for == ["a", "c"], "one that is starting would cost every unit two seconds"
    ray.silent = set()
    assert made.take().engine_steps == 3, "the call to b that was open all the time, and no second one"


def test_a_dead_actor_is_left_out(ray: FakeRay, tmp_path: Path) -> None:
    made = counting_of(tmp_path)
    ray.dead = {"a", "c"}
    assert made.take().engine_steps == 1
