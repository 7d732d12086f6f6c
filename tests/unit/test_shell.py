"""The shell around the pool's decisions, with a stand-in for Ray's three calls: what it makes of what comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError

from actors.pool import replicas, shell
from actors.pool.replicas import Replicas
from actors.pool.shell import Shell
from csr_ray.errors import ActorFailure, ScorerFailure
from csr_ray.records import Rejection

HUNG = object()


class FakeRay:
    """References are (actor, item); a call returns when it is waited for, unless its actor hangs."""

    def __init__(self) -> None:
        self.killed: list[Any] = []
        self.returns: dict[Any, Any] = {}

    def wait(
        self, references: list[Any], *, num_returns: int, timeout: float | None, **_: Any
    ) -> tuple[list[Any], Any]:
        ready = [reference for reference in references if reference[1] is not HUNG]
        return ready[: max(1, num_returns // 2)], None

    def get(self, reference: Any) -> Any:
        if isinstance(reference[1], Exception):
            raise reference[1]
        return self.returns.get(reference[1], f"{reference[1]} by {reference[0]}")

    def kill(self, actor: Any) -> None:
        self.killed.append(actor)


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setattr(shell, "ray", fake)
    monkeypatch.setattr(replicas, "ray", fake)
    return fake


def run(*items: Any, logs: Path, hang_s: float = 60.0) -> list[tuple[Any, Any]]:
    made = Shell(Replicas(generators=["A", "B"], scorers=["C", "D", "E"], logs=logs), hang_s=hang_s)
    submit = lambda generator, item: (generator, item)  # noqa: E731
    return list(made.map(items, image_of=str, submit=submit, in_flight=2))


def error(cause: Exception) -> RayTaskError:
    return RayTaskError("grow", "traceback", cause)


def test_every_item_comes_back_with_its_result_or_its_own_error(fake_ray: FakeRay, tmp_path: Path) -> None:
    bad = error(OSError("no such image"))
    results = dict(run(*range(600), bad, *range(600, 1000), logs=tmp_path))
    assert results.pop(bad) is bad
    assert results == {number: f"{number} by {results[number][-1]}" for number in range(1000)}
    assert {result[-1] for result in results.values()} == {"A", "B"}


def test_a_dead_generator_ends_the_run_with_its_name_and_log(fake_ray: FakeRay, tmp_path: Path) -> None:
    (tmp_path / "generator_1.log").write_text("out of memory\n")
    with pytest.raises(ActorFailure, match=r"(?s)^generator 1 died: gone.*generator_1\.log:\nout of memory$"):
        run(1, RayActorError(error_msg="gone"), 3, logs=tmp_path)


def test_a_hung_one_is_killed_and_named(fake_ray: FakeRay, tmp_path: Path) -> None:
    with pytest.raises(ActorFailure, match=r"^generator 1 died: had work and was silent for 0\.05 s \(hang_s\)"):
        run(1, HUNG, logs=tmp_path, hang_s=0.05)
    assert fake_ray.killed == ["B"]


def test_a_dead_scorer_is_not_taken_for_a_dead_generator(fake_ray: FakeRay, tmp_path: Path) -> None:
    (tmp_path / "scorer_2.log").write_text("segmentation fault\n")
    dead = error(ScorerFailure(2, "gone"))
    with pytest.raises(ActorFailure, match=r"(?s)^scorer 2 died: gone.*scorer_2\.log:\nsegmentation fault"):
        run(1, dead, 3, logs=tmp_path)


def test_nothing_but_errors_ends_the_run_with_the_last_one_as_its_cause(fake_ray: FakeRay, tmp_path: Path) -> None:
    errors = [error(MemoryError(f"no room {number}")) for number in range(40)]
    with pytest.raises(ActorFailure, match="every item so far failed; the last: MemoryError: no room") as raised:
        run(*errors, logs=tmp_path)
    assert raised.value.__cause__ in errors


def test_a_prompt_that_is_refused_says_nothing_of_the_engine(fake_ray: FakeRay, tmp_path: Path) -> None:
    """One broken picture among them must not hide that every call to the engine fails."""
    broken = Rejection(id="1", source="1.png", reason="cut short")
    fake_ray.returns = {0: broken}
    errors = [error(MemoryError(f"no room {number}")) for number in range(40)]
    with pytest.raises(ActorFailure, match="every item so far failed"):
        run(0, *errors, logs=tmp_path)
    assert dict(run(0, 1, logs=tmp_path))[0] is broken
