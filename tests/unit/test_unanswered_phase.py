"""Phases without an example: what a judge left unanswered is asked again; where nothing is to be had, a run ends."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes import tiny_config
from journals import entries_of, write_journal
from judge_server import JudgeServer
from PIL import Image
from test_annotated import BEST, OBJECTS, SAID, WORSE, Speaker
from test_early_end import _page as words_of_page
from test_early_end import _table as words_of_table
from test_loop import Driver as LoopDriver
from test_loop import cycle, merged_model  # noqa: F401 - a fixture that every test here uses

from csr_ray.app.check import check_run
from csr_ray.config.load import to_plain
from csr_ray.errors import NoDataError
from csr_ray.methods.base import AsksJudge, method_of
from csr_ray.records import Cycle, Prompt, Rollout
from csr_ray.stages import judge as judge_stage
from csr_ray.store.tables import read_rollouts

NUM = 5


class Driver(LoopDriver):
    """A run of `annotated` whose rounds say `answers`, one list each, and are shown to the judge of `server`."""

    has_pictures = True

    def __init__(self, folder: Path, *, server: JudgeServer, patch: pytest.MonkeyPatch, **sections: Any) -> None:
        own = {"judge": "endpoint", "objects": list(OBJECTS), "num_answers": 3}
        judge = {"url": server.url, "model": "tiny-judge", "retry_wait_s": 0.01, "retries": 0, "concurrency": 1}
        super().__init__(folder / "run", method="annotated", annotated=own, judge=judge, **sections)
        self.server = server
        self.answers: list[Sequence[str]] = [(BEST, *WORSE)] * 2
        self.prompts = []
        for number in range(NUM):
            image = folder / f"{number}.png"
            Image.new("RGB", (8, 6), (number * 30, 0, 0)).save(image)
            self.prompts.append(Prompt(id=f"p{number}", image=str(image), text=f"Describe {number}."))
        self.folder.config.write_text(yaml.safe_dump(to_plain(self.config)))

        def rolled(generators: Any, prompt: Prompt, *, cycle: Cycle) -> Rollout:
            said = [text and f"{text} V{cycle.round_index}." for text in self.answers[cycle.round_index]]
            return asyncio.run(
                method_of(self.config).rollout(
                    cycle.phase,
                    prompt,
                    engine=Speaker(said),  # type: ignore[arg-type]
                    scorer=None,  # type: ignore[arg-type]
                    policy_version=generators.version,
                    seed=1,
                )
            )

        patch.setattr("fakes.FakeGenerators._rollout", rolled)

    def start(self, *plan: str, **how: Any) -> Any:
        """Start the run with a judge that goes through `plan`, and is well behind it."""
        self.server.plan(*plan, say=SAID)
        return self.run(**how)

    def dropped(self, index: int = 0) -> dict[str, int]:
        decided = self.state().journal.find("examples", **cycle(index).key)
        assert decided is not None
        return decided["dropped"]


@pytest.fixture
def driver(tmp_path: Path, server: JudgeServer, monkeypatch: pytest.MonkeyPatch) -> Driver:
    return Driver(tmp_path, server=server, patch=monkeypatch)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("trouble", ["500", "429", "html", "403"])
def test_a_phase_that_the_judge_left_unanswered_is_judged_by_the_next_start_without_new_rollouts(
    driver: Driver, index: int, trouble: str
) -> None:
    # Four of the five refusals, not to end the run as a wrong key would.
    silence = [trouble] * 4 + ["500"]
    with pytest.raises(NoDataError, match=r"the judge has not answered 5 of .* start the same command again") as said:
        driver.start(*[f"say {SAID}"] * (NUM * index), *silence)
    assert said.value.exit_code == 3 and f"round {index + 1}: " in str(said.value)
    with pytest.raises(NoDataError, match="has not answered 5 of"):  # it is not well yet
        driver.start(*silence)
    assert driver.generators.grown == [] and len(driver.server.asked()) == NUM
    summary = driver.start()
    assert [entry["pairs"]["made"] for entry in summary["rounds"]] == [NUM, NUM]
    assert index not in {at for at, _ in driver.generators.grown}, "nothing is rolled out again"
    assert summary["finished"] and summary["rounds"][index]["rollout"]["prompts"] == NUM
    assert "the judge is asked again about the answers to 5 prompts" in driver.said.getvalue()
    assert not [finding for finding in check_run(driver.folder.root).damage]
    assert driver.start() == summary


def test_what_is_answered_when_it_is_asked_again_is_written_and_the_rest_stays_as_it_was(driver: Driver) -> None:
    with pytest.raises(NoDataError):
        driver.start(*["500"] * NUM)
    driver.start("", "", *["500"] * 3)
    assert driver.dropped() == {"judge_failed": 3}
    assert {
        (line["what"], line["round"]) for line in entries_of(driver.folder.journal) if line["kind"] == "again"
    } == {("unit", 0)}
    units = driver.state().journal.units(**cycle(0).key)
    assert (units.total("prompts"), units.total("tokens"), units.total("unanswered")) == (NUM, 6 * NUM, 3)
    for unit in units.in_order():
        for rollout in read_rollouts(driver.folder.candidates(cycle(0), unit=unit.name)):
            assert [one.role for one in rollout.candidates].count("judge") == 1


def test_what_was_left_unanswered_before_a_kill_is_asked_again(driver: Driver) -> None:
    with pytest.raises(KeyboardInterrupt):
        driver.start(*["500"] * NUM, stop_after=4)
    lines = [line for line in entries_of(driver.folder.journal) if line["kind"] == "rollout"]
    driver.start()
    assert driver.dropped() == {}, "all have an answer"
    assert not {(0, key) for line in lines for key in line["ids"]} & set(driver.generators.grown)


def test_a_run_of_before_they_were_counted_is_judged_again_too(driver: Driver) -> None:
    with pytest.raises(NoDataError):
        driver.start(*["500"] * NUM)
    entries = entries_of(driver.folder.journal)
    for entry in entries:
        entry.pop("unanswered", None)
    write_journal(driver.folder.journal, entries=entries)
    driver.start()
    assert 0 not in {at for at, _ in driver.generators.grown}


def test_in_a_sequence_the_method_whose_turn_it_is_says_what_lacks_an_answer(driver: Driver) -> None:
    sections = {key: to_plain(driver.config)[key] for key in ("annotated", "judge")}
    method = method_of(tiny_config(method=["csr", "annotated"], **sections))  # type: ignore[arg-type]
    assert isinstance(method, AsksJudge)
    with pytest.raises(NoDataError):
        driver.start(*["500"] * NUM)
    (unit, *_) = driver.state().journal.units(**cycle(0).key).names
    rollout = read_rollouts(driver.folder.candidates(cycle(0), unit=unit))[0]
    assert method.lacks_answer(replace(rollout, policy_version=1))
    assert not method.lacks_answer(replace(rollout, policy_version=0)), "csr asks no judge"


def test_who_dies_while_the_answers_are_written_rolls_out_those_units_again(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NoDataError):
        driver.start(*["500"] * NUM)

    def dies(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(judge_stage, "write_rollouts", dies)
        with pytest.raises(KeyboardInterrupt):
            driver.start()
    summary = driver.start()
    assert len([key for key in driver.generators.grown if key[0] == 0]) == NUM
    assert len(driver.server.asked()) == NUM, "of the first round nothing is paid for twice"
    assert [entry["pairs"]["made"] for entry in summary["rounds"]] == [NUM, NUM]


def test_a_first_phase_without_an_example_is_no_run(driver: Driver) -> None:
    driver.answers[0] = [BEST] * 3
    with pytest.raises(NoDataError, match=r"round 1: no rollout gave .*'answers_equal': 5.*quarantine") as said:
        driver.start()
    assert said.value.exit_code == 3 and "start the same command" not in str(said.value)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_later_phase_without_an_example_ends_the_run_with_the_policy_that_there_is(
    tmp_path: Path, server: JudgeServer, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    driver = Driver(tmp_path, server=server, patch=monkeypatch, train={"streaming": streaming})
    driver.answers[1] = [BEST] * 3
    summary = driver.start()
    assert summary["finished"] and len(summary["rounds"]) == 1
    ended = summary["ended"]
    assert (ended["round"], ended["version"]) == (1, 1)
    why = "left without a training example (answers_equal 5)"
    assert ended["reason"] == why and driver.trainer.trained == [0] and driver.machinery.closed
    assert f"round 2 was {why}. The run ends here, with policy version 1" in driver.said.getvalue()
    assert (driver.folder.model / "model.safetensors").read_bytes() == bytes([1]) * 100
    assert driver.dropped(1) == {"answers_equal": 5}
    sentence = f"This run ended early: round 2 was {why}. Its model is policy version 1."
    assert sentence in words_of_page(driver.folder.root) and sentence in words_of_table(driver.folder.root)
    report = check_run(driver.folder.root)
    assert not report.damage and report.next == "nothing: the run ended early in round 2, with policy version 1"
    assert f"round 2: {why}" in report.notes
    starts = len(driver.starts)
    assert driver.start() == summary and len(driver.starts) == starts


def test_a_run_that_dies_before_it_has_said_its_end_says_it_at_the_next_start(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.answers[1] = [BEST] * 3

    def dies(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("csr_ray.stages.train.end_without_examples", dies)
        with pytest.raises(KeyboardInterrupt):
            driver.start()
    summary = driver.start()
    assert summary["finished"] and summary["ended"]["version"] == 1 and driver.generators.grown == []


def test_an_earlier_phase_that_is_done_again_takes_the_end_back(driver: Driver) -> None:
    driver.answers[1] = [BEST] * 3
    driver.start()
    (driver.folder.adapter(cycle(0)) / "adapter_model.safetensors").write_bytes(b"damaged")
    driver.answers[1] = [BEST, *WORSE]
    driver.server.plan(say=SAID)
    summary = driver.run(may_redo=True)
    assert summary["ended"] is None and len(summary["rounds"]) == 2


def test_a_later_phase_that_machines_failed_on_does_not_end_the_run_for_good(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.answers[1] = [BEST] * 3
    refused = Prompt.refused
    monkeypatch.setattr(Prompt, "refused", lambda prompt, reason: refused(prompt, reason, fault="machine"))
    with pytest.raises(NoDataError, match=r"set aside, 1 had no fault of their own: start the same command"):
        driver.start(fail_ids=frozenset({"p1"}))
