"""A phase that made the policy worse is refused: trained again with half the dose, and at last given up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import yaml
from fakes import FakeGenerators, PromptList
from journals import die_after_line
from test_loop import Driver as LoopDriver
from test_loop import cycle, merged_model  # noqa: F401 - a fixture that every test here uses

from csr_ray.app.check import check_run
from csr_ray.config.load import to_plain
from csr_ray.errors import LockLost
from csr_ray.evaluation.suite import Suite
from csr_ray.methods.base import Dropped
from csr_ray.methods.csr import Csr
from csr_ray.records import Example, Phase, Prompt, Question, Rejection, Rollout, Target
from csr_ray.stages.gate import gate_prompts
from csr_ray.store.journal import Journal
from csr_ray.store.marked_answers import read_marked_answers
from csr_ray.training.dose import is_held_out

PROMPTS = [Prompt(id=f"p{number:03d}", image=f"{number}.png", text="Describe.") for number in range(40)]
WELL, WORSE, ENDLESS = (50.0, 10), (20.0, 10), (50.0, 100)


class Driver(LoopDriver):
    prompts = PROMPTS


def by_dose(healthy_from: float, *, version: int = 1):
    """Version `version` is worse while its dose is larger than `healthy_from`."""
    return staticmethod(lambda served, scale: WORSE if served == version and scale > healthy_from else WELL)


def _lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def test_a_phase_that_does_no_harm_is_handed_over(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    summary = driver.run()
    assert driver.generators.probed == [0, 1, 2] and driver.generators.withdrawn == []
    (verdict,) = summary["rounds"][0]["train"]["verdicts"]
    assert verdict["accepted"] and verdict["attempt"] == 1 and summary["ended"] is None
    assert {finding["name"] for finding in verdict["findings"]} == {
        "preferences",
        "reward",
        "tokens",
        "repeats",
        "broken",
        "self_bleu",
    }


def test_a_phase_that_hurts_is_trained_again_with_half_the_dose(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    driver.health = by_dose(0.5)
    summary = driver.run()
    assert [order.scale for order in driver.trainer.orders] == [1.0, 0.5, 1.0]
    assert driver.generators.withdrawn == driver.trainer.withdrawn == [1]
    assert driver.generators.published == [1, 1, 2]
    refused, accepted = summary["rounds"][0]["train"]["verdicts"]
    first, second = summary["rounds"]
    assert first["stages"]["train"] == 2 * second["stages"]["train"] > 0, "what a refused training took is told"
    assert first["stages"]["publish"] == 2 * second["stages"]["publish"] > 0
    assert first["train"]["seconds"] == second["train"]["seconds"], "of the training that stays"
    assert first["gate"]["looks"] == 3 and second["gate"]["looks"] == 1
    assert not refused["accepted"] and refused["faults"] == ["the reward fell"]
    assert accepted["accepted"] and accepted["attempt"] == 2
    assert len(summary["rounds"]) == 2 and summary["finished"]
    said = " ".join(driver.said.getvalue().split())
    assert "round 1 is refused: the reward fell (reward 51" in said and "trained again with half the dose" in said


def test_answers_that_leave_out_what_the_picture_shows_are_refused(tmp_path: Path) -> None:
    """Sentences of the base's trees score 60 and 10, so one of 60 more or less is a part of what can be seen."""
    driver = Driver(tmp_path)
    driver.scored = staticmethod(lambda served, scale: (60.0, 1 if served == 1 and scale > 0.5 else 2))
    summary = driver.run()
    refused, accepted = summary["rounds"][0]["train"]["verdicts"]
    assert refused["faults"] == ["the answers say less of what is in the picture"] and accepted["accepted"]
    (evidence,) = [finding for finding in refused["findings"] if finding["name"] == "evidence"]
    assert (evidence["before"], evidence["after"]) == (50.0, 25.0), "above the middle of 35"
    assert "gate.reward_loss=0.02" in " ".join(driver.said.getvalue().split())


def test_answers_that_leave_out_what_the_picture_does_not_show_are_handed_over(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    driver.scored = staticmethod(lambda served, scale: (60.0, 1) if served else (35.0, 2))
    verdicts = driver.run()["rounds"][0]["train"]["verdicts"]
    assert [verdict["accepted"] for verdict in verdicts] == [True]


def test_half_the_dose_is_half_of_what_was_refused(tmp_path: Path) -> None:
    """The rate that the refused attempt had found is halved, and not sought again; so is its length."""
    driver = Driver(tmp_path)
    driver.health = by_dose(0.25)
    look = {"step": 4, "margin": 1.3, "margin_se": 0.3, "accuracy": 0.9, "num_pairs": 9}
    dose = {"learning_rate": 3e-4, "lr_sum": 1e-3, "best_step": 4, "looks": [look], "reason": "it is enough"}
    driver.doses = {0: dose}
    driver.run()
    asked = [(order.scale, order.learning_rate, order.lr_sum) for order in driver.trainer.orders]
    assert asked[:3] == [(1.0, None, None), (0.5, 3e-4, 1e-3), (0.25, 3e-4, 1e-3)]


def test_a_phase_that_always_hurts_ends_the_run_with_the_policy_before_it(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    driver.health = by_dose(0.0, version=2)
    summary = driver.run()
    assert [order.scale for order in driver.trainer.orders] == [1.0, 1.0, 0.5, 0.25]
    assert driver.generators.version == 1 and driver.generators.withdrawn == [2, 2, 2]
    assert summary["ended"]["round"] == 1 and summary["ended"]["version"] == 1
    assert "the reward fell" in summary["ended"]["reason"]
    assert summary["finished"] and (tmp_path / "model" / "model.safetensors").read_bytes() == bytes([1]) * 100
    assert len(driver.state().adapters) == 1
    assert "The run ends here, with the policy before it" in " ".join(driver.said.getvalue().split())
    again = driver.run()
    assert again["ended"] == summary["ended"] and len(driver.starts) == 1, "there is nothing to go on with"


def test_examples_at_fault_are_not_trained_on_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less training on the same pairs does not mend what ranked them, so the run ends with the first verdict."""
    examples = Csr.examples

    def exchanged(method: Csr, phase: Phase, rollout: Rollout) -> Sequence[Example] | Dropped:
        made = examples(method, phase, rollout)
        assert not isinstance(made, Dropped)
        return [replace(pair, targets=tuple(_other_role(target) for target in pair.targets)) for pair in made]

    monkeypatch.setattr(Csr, "examples", exchanged)
    driver = Driver(tmp_path)
    _write_config(tmp_path, retries=2)
    summary = driver.run()
    assert check_run(tmp_path).next == "nothing: the run ended early in round 1, with policy version 0"
    assert [order.scale for order in driver.trainer.orders] == [1.0]
    assert summary["ended"]["version"] == 0 and "prefers the rejected answers" in summary["ended"]["reason"]
    assert "at reward.aggregate=stretched_mean and reward.weight=0.5" in summary["ended"]["reason"]
    assert [verdict["faults"] for verdict in summary["ended"]["verdicts"]] == [
        ["the scorer prefers the rejected answers"]
    ]
    said = " ".join(driver.said.getvalue().split())
    assert "less training on the same examples would not mend it" in said
    assert "The run ends here, with the policy before it" in said
    assert driver.run()["ended"] == summary["ended"] and len(driver.starts) == 1


def _write_config(folder: Path, *, retries: int) -> None:
    """As a start would, for the checker."""
    tree = {
        "run": {"dir": str(folder), "rounds": 2},
        "data": {"prompts": "prompts.jsonl"},
        "policy": {"model": "model"},
        "scorer": {"model": "clip"},
        "gate": {"retries": retries},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))


def _other_role(target: Target) -> Target:
    return replace(target, role={"chosen": "rejected", "rejected": "chosen"}[target.role])


def test_answers_that_grow_without_end_are_refused_though_their_reward_does_not_fall(tmp_path: Path) -> None:
    driver = Driver(tmp_path, gate={"retries": 0})
    driver.health = staticmethod(lambda version, scale: ENDLESS if version else WELL)
    summary = driver.run()
    assert "the answers are over 1.05 times as long" in summary["ended"]["reason"]


def test_without_a_gate_nothing_is_asked(tmp_path: Path) -> None:
    driver = Driver(tmp_path, gate={"enabled": False})
    driver.health = by_dose(0.0)
    summary = driver.run()
    assert driver.generators.probed == [] and summary["rounds"][0]["train"]["verdicts"] == []


@pytest.mark.parametrize("healthy_from", [0.5, 0.0])
def test_a_run_that_is_killed_after_any_line_comes_to_the_same_verdicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, healthy_from: float
) -> None:
    monkeypatch.setattr(Driver, "prompts", PROMPTS[:9])
    monkeypatch.setattr(Driver, "health", by_dose(healthy_from))
    whole = Driver(tmp_path / "whole", run={"rounds": 2, "unit": 9})
    expected = whole.run()
    num_lines = Journal(whole.folder.journal).num_lines
    assert num_lines > 12
    for number in range(1, num_lines):
        driver = Driver(tmp_path / f"killed_{number}", run={"rounds": 2, "unit": 9})
        with monkeypatch.context() as patch:
            die_after_line(patch, number)
            with pytest.raises(KeyboardInterrupt):
                driver.run()
        summary = driver.run()
        for ours, theirs in zip(summary["rounds"], expected["rounds"], strict=True):
            assert ours["train"]["verdicts"] == theirs["train"]["verdicts"], number
        assert summary["ended"] == expected["ended"] and summary["finished"], number
        assert driver.state().adapters == [
            path.replace("whole", f"killed_{number}") for path in whole.state().adapters
        ]


def yes_no_suite(num_images: int) -> Suite:
    questions = tuple(Question(id=f"q{number}", image=f"{number}.png", text="Is it?") for number in range(num_images))
    return Suite(yes_no=questions, labels={question.id: "yes" for question in questions})


class FewBetween(Driver):
    """Three images are asked about before and after the run, and one in between; version 2 is always worse."""

    suite = yes_no_suite(3)
    health = by_dose(0.0, version=2)

    def __init__(self, directory: Path, *, rounds: int, unit: int = 40) -> None:
        evaluated = {"benchmarks": ["world"], "data": "heldout", "limit_between": 1}
        super().__init__(directory, run={"rounds": rounds, "unit": unit}, eval=evaluated)
        self.folder.config.write_text(yaml.safe_dump(to_plain(self.config)))


def test_what_is_left_of_a_run_that_ended_early_is_asked_about_everything(tmp_path: Path) -> None:
    driver = FewBetween(tmp_path, rounds=3)
    summary = driver.run()
    assert summary["finished"] and summary["ended"]["version"] == 1
    assert [entry["eval"]["num_images"] for entry in (summary["base"], *summary["rounds"])] == [3, 3]
    assert summary["ended"]["eval"] == summary["rounds"][0]["eval"]
    assert len(read_marked_answers(driver.folder.marked_answers(1))) == 3
    assert check_run(tmp_path).damage == []
    assert driver.run()["ended"] == summary["ended"] and len(driver.starts) == 1


def test_a_phase_that_is_left_of_a_round_is_measured_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Csr, "phases", lambda method, round_index: (Phase(), Phase(name="second")))
    summary = FewBetween(tmp_path, rounds=1).run()
    assert (summary["ended"]["phase"], summary["ended"]["version"]) == ("second", 1)
    assert summary["rounds"] == [] and summary["ended"]["eval"]["num_images"] == 3


def test_an_early_end_is_measured_wherever_the_run_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Driver, "prompts", PROMPTS[:9])
    whole = FewBetween(tmp_path / "whole", rounds=2, unit=9)
    expected = whole.run()
    lines = _lines(whole.folder.root)
    first_refusal = next(number for number, line in enumerate(lines) if line["kind"] == "again")
    next_steps = set()
    for number in range(first_refusal, len(lines)):
        driver = FewBetween(tmp_path / f"killed_{number}", rounds=2, unit=9)
        with monkeypatch.context() as patch:
            die_after_line(patch, number)
            with pytest.raises(KeyboardInterrupt):
                driver.run()
        report = check_run(driver.folder.root)
        next_steps.add(report.next)
        assert report.damage == [], number
        summary = driver.run()
        assert summary["ended"] == expected["ended"] and summary["finished"], number
        assert [entry["eval"] for entry in summary["rounds"]] == [entry["eval"] for entry in expected["rounds"]]
        assert check_run(driver.folder.root).damage == []
    assert "evaluate policy version 1, with which the run ended, and save the model" in next_steps


def test_the_prompts_are_those_that_no_phase_trains_on(tmp_path: Path) -> None:
    many = [Prompt(id=f"many-{number}", image="i.png", text="Describe.") for number in range(2000)]
    state = Driver(tmp_path, data={"per_round": 500}, gate={"prompts": 30}).state()
    asked = gate_prompts(state, PromptList(many))
    assert len(asked) == 30
    assert all(is_held_out(prompt.id, seed=state.config.run.seed, share=0.1) for prompt in asked)
    few = gate_prompts(state, PromptList(PROMPTS))
    assert len({prompt.id for prompt in few}) == len(few) == 30, "the others are the first of the file"


def test_a_policy_that_answers_too_few_prompts_is_not_judged(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    driver.prompts = PROMPTS[:5]
    driver.health = by_dose(0.0)
    summary = driver.run()
    (verdict,) = summary["rounds"][0]["train"]["verdicts"]
    assert verdict["accepted"] and verdict["findings"] == []
    assert "too few answers to compare" in " ".join(driver.said.getvalue().split())


@pytest.mark.parametrize("share_failing", [1.0, 0.5])
def test_a_policy_whose_answers_fail_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share_failing: float
) -> None:
    monkeypatch.setattr("csr_ray.stages.gate.check_image", lambda image: None)
    served = FakeGenerators._served

    def fails(generators: FakeGenerators, prompt: Prompt) -> Rollout | Rejection:
        if generators.version and int(prompt.id[1:]) < share_failing * len(PROMPTS):
            return prompt.refused("the policy said nothing", fault="policy")
        return served(generators, prompt)

    monkeypatch.setattr(FakeGenerators, "_served", fails)
    summary = Driver(tmp_path, run={"rounds": 1}).run()
    assert "more answers are empty or cut" in summary["ended"]["reason"]


def test_answers_that_fail_by_a_machine_say_nothing_of_the_policy_and_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("csr_ray.stages.gate.check_image", lambda image: None)
    served = FakeGenerators._served

    def fails(generators: FakeGenerators, prompt: Prompt) -> Rollout | Rejection:
        if generators.version and int(prompt.id[1:]) % 4:
            return prompt.refused("the engine died", fault="machine")
        return served(generators, prompt)

    monkeypatch.setattr(FakeGenerators, "_served", fails)
    driver = Driver(tmp_path, run={"rounds": 1})
    (verdict,) = driver.run()["rounds"][0]["train"]["verdicts"]
    assert verdict["accepted"]
    assert "30 of 40 prompts of the gate have no answer" in " ".join(driver.said.getvalue().split())


def test_a_gate_that_can_compare_nothing_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the pairs are like is known all the same, and is no comparison."""
    monkeypatch.setattr("csr_ray.stages.gate.check_image", lambda image: None)
    monkeypatch.setattr(FakeGenerators, "_served", lambda generators, prompt: prompt.refused("gone", fault="input"))
    driver = Driver(tmp_path, run={"rounds": 1})
    (verdict,) = driver.run()["rounds"][0]["train"]["verdicts"]
    assert verdict["accepted"] and [finding["name"] for finding in verdict["findings"]] == ["preferences"]
    assert "too few answers to compare the policy" in driver.said.getvalue()


def test_a_verdict_that_was_about_a_training_that_is_done_again_does_not_count(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    driver.run()
    adapter = driver.folder.adapter(cycle(1)) / "adapter_model.safetensors"
    adapter.write_bytes(b"damaged")
    driver.health = by_dose(0.5, version=2)
    summary = driver.run()
    assert [verdict["accepted"] for verdict in summary["rounds"][1]["train"]["verdicts"]] == [False, True]


@pytest.mark.parametrize("loss", ["deleted", "damaged"])
def test_a_file_of_candidates_that_is_lost_before_the_verdict_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    """The examples are there, so nothing is rolled out again; the other units' pairs are compared."""
    driver = Driver(tmp_path, run={"rounds": 1, "unit": 20})
    commit = Journal.commit

    def die_before_verdict(journal: Journal, kind: str, **values: object) -> object:
        if kind == "probe" and values["version"] == 1:
            raise KeyboardInterrupt
        return commit(journal, kind, **values)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "commit", die_before_verdict)
        with pytest.raises(KeyboardInterrupt):
            driver.run()
    first, *others = sorted((driver.folder.round(0) / "candidates").glob("*.parquet"))
    assert others
    if loss == "deleted":
        first.unlink()
    else:
        first.write_bytes(b"damaged")
    summary = driver.run()
    (verdict,) = summary["rounds"][0]["train"]["verdicts"]
    assert summary["finished"] and verdict["accepted"]
    assert "preferences" in {finding["name"] for finding in verdict["findings"]}


def test_who_has_lost_the_lock_refuses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line would stand in a journal that another driver writes to by now."""
    driver = Driver(tmp_path)
    driver.health = by_dose(0.0)
    commit = Journal.commit

    def lose_lock_behind_probe(journal: Journal, kind: str, **values: object) -> object:
        line = commit(journal, kind, **values)
        if kind == "probe" and values["version"] == 1:
            journal.before_commit = mock.Mock(side_effect=LockLost("another process has taken over this run"))
        return line

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "commit", lose_lock_behind_probe)
        with pytest.raises(LockLost):
            driver.run()
    assert _lines(tmp_path)[-1]["kind"] == "probe"


@pytest.mark.parametrize("healthy_from", [0.5, 0.0])
def test_refusals_of_a_phase_whose_first_policy_is_trained_again_do_not_count(
    tmp_path: Path, healthy_from: float
) -> None:
    """They were of what was trained on another policy, as everything was that stands behind it in the journal."""
    driver = Driver(tmp_path)
    driver.health = by_dose(healthy_from, version=2)
    driver.run()
    (driver.folder.adapter(cycle(0)) / "adapter_model.safetensors").write_bytes(b"damaged")
    driver.health = by_dose(1.0)
    summary = driver.run(may_redo=True)
    assert [order.scale for order in driver.trainer.orders] == [1.0, 1.0]
    assert summary["finished"] and summary["ended"] is None and len(summary["rounds"]) == 2
    assert [verdict["attempt"] for verdict in summary["rounds"][1]["train"]["verdicts"]] == [1]
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == bytes([2]) * 100


def test_the_checker_knows_that_a_run_has_ended_early(tmp_path: Path) -> None:
    driver = Driver(tmp_path, gate={"retries": 1})
    driver.health = by_dose(0.0)
    _write_config(tmp_path, retries=1)
    driver.run()
    assert check_run(tmp_path).next == "nothing: the run ended early in round 1, with policy version 0"
    lines = (tmp_path / "journal.jsonl").read_bytes().splitlines(keepends=True)
    first_refusal = next(number for number, line in enumerate(lines) if b'"verdict": {' in line)
    for num, said in (
        (len(lines) - 1, "save the model"),
        (first_refusal + 1, "round 1: train again with 1/2 of the dose"),
    ):
        (tmp_path / "journal.jsonl").write_bytes(b"".join(lines[:num]))
        assert check_run(tmp_path).next.startswith(said), num
