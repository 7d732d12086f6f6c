"""What is lost where a start ends between two steps that belong together: nothing, and nothing stays out of date."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from checked_runs import CheckedDriver
from fakes import FakeGenerators, PromptList
from journals import entries_of
from test_loop import cycle, merged_model, pictures_that_nobody_looks_for  # noqa: F401 - a fixture

from csr_ray.app import run as app
from csr_ray.app.console import ConsoleView
from csr_ray.app.stop import SignalStop
from csr_ray.counters import Counters
from csr_ray.errors import ActorFailure
from csr_ray.records import Cycle, Prompt
from csr_ray.stages.roll_out import roll_out
from csr_ray.stages.stop import NeverAsked
from csr_ray.stages.turn import Turn


def committed_ids(driver: CheckedDriver) -> set[str]:
    return {id for entry in entries_of(driver.folder.journal) if entry["kind"] == "rollout" for id in entry["ids"]}


def test_the_result_in_hand_is_committed_when_the_trainer_has_failed(tmp_path) -> None:
    driver = CheckedDriver(tmp_path / "run", num_prompts=5)
    with pytest.raises(ActorFailure, match="no trainer"):
        driver.run(broken="no trainer")
    grown = {prompt_id for _, prompt_id in driver.generators.grown}
    assert grown and committed_ids(driver) == grown


def test_a_unit_is_committed_whose_counters_nobody_gives(tmp_path, monkeypatch) -> None:
    def dead(generators: FakeGenerators) -> None:
        generators.num_counts += 1
        if generators.num_counts > 1:
            raise ActorFailure("no counters")

    monkeypatch.setattr(FakeGenerators, "counters", dead)
    driver = CheckedDriver(tmp_path / "run", num_prompts=2, unit=2)
    with pytest.raises(ActorFailure, match="no counters"):
        driver.run()
    assert committed_ids(driver) == {"p0", "p1"}


def test_a_summary_that_the_last_start_did_not_come_to_is_written_by_the_next(tmp_path) -> None:
    driver = CheckedDriver(tmp_path / "run")
    driver.run()
    summary = json.loads(driver.folder.summary.read_text())
    driver.folder.summary.write_text(json.dumps({**summary, "finished": False}))
    stop = SignalStop(grace_s=1.0, before_exit=lambda: None)
    app._run_locked(driver.state(), stop=stop, view=ConsoleView(num_rounds=1), redo=False)
    assert json.loads(driver.folder.summary.read_text())["finished"]


def test_what_is_finished_is_committed_at_a_stop_although_nobody_gives_counters(tmp_path, monkeypatch) -> None:
    class Asked(NeverAsked):
        is_asked = True

    def dead(generators: FakeGenerators) -> Counters:
        generators.num_counts += 1
        if generators.num_counts > 1:
            raise ActorFailure("no counters")
        return Counters()

    monkeypatch.setattr(FakeGenerators, "counters", dead)
    driver = CheckedDriver(tmp_path / "run", num_prompts=3, unit=3)
    state = replace(driver.state(), stop=Asked())
    generators = FakeGenerators(driver.config)
    one = driver.prompts[:1]
    # A stop is asked for when one prompt of three is under way, and its result comes within the grace.
    monkeypatch.setattr(generators, "rollout", lambda prompts, cycle, **_: _one(generators, one, prompts, cycle))
    monkeypatch.setattr(Asked, "is_asked", property(lambda _: bool(generators.grown)))
    turn = Turn(state, PromptList(driver.prompts), cycle=cycle(0))
    with pytest.raises(ActorFailure, match="no counters"):
        list(roll_out(state, turn, generators=generators, view=ConsoleView(num_rounds=1)))
    assert committed_ids(driver) == {"p0"}


def test_rejections_that_are_held_back_when_an_error_comes_are_committed(tmp_path, monkeypatch) -> None:
    driver = CheckedDriver(tmp_path / "run", num_prompts=3, unit=3)
    generators = FakeGenerators(driver.config)

    def broken(prompts: Iterator[Prompt], cycle: Cycle, control: Prompt | None, num: int | None) -> Iterator:
        yield next(prompts).refused("no such file", fault="input")
        raise ActorFailure("the last generator is gone")

    monkeypatch.setattr(generators, "rollout", broken)
    turn = Turn(driver.state(), PromptList(driver.prompts), cycle=cycle(0))
    with pictures_that_nobody_looks_for(), pytest.raises(ActorFailure, match="last generator"):
        list(roll_out(driver.state(), turn, generators=generators, view=ConsoleView(num_rounds=1)))
    assert committed_ids(driver) == {"p0"}


def _one(generators: FakeGenerators, expected: list[Prompt], prompts: Iterator[Prompt], cycle: Cycle) -> Iterator:
    assert next(prompts) == expected[0]
    generators.grown.append((0, expected[0].id))
    yield generators._rollout(expected[0], cycle=cycle)
