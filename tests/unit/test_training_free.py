"""A run of a method that trains nothing: the base is measured as it is, and once more in another way of decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes import FakeGenerators
from journals import entries_of
from rich.console import Console
from test_loop import Driver, save_fake_model

from csr_ray.app.check import check_run
from csr_ray.app.compare import compare
from csr_ray.config.load import to_plain
from csr_ray.evaluation.suite import Suite
from csr_ray.records import Answer, Contrast, Question
from csr_ray.report import write_report
from csr_ray.report.terminal import print_round_table

QUESTIONS = tuple(Question(id=f"q{number}", image=f"{number}.png", text="Is it?") for number in range(20))


class FreeDriver(Driver):
    suite = Suite(yes_no=QUESTIONS, labels={question.id: "no" for question in QUESTIONS})

    def __init__(self, directory: Path, *, rounds: int = 1) -> None:
        super().__init__(directory, method="vdd", decoding={"kind": "vdd"}, run={"rounds": rounds})
        self.folder.config.write_text(yaml.safe_dump(to_plain(self.config)))


@pytest.fixture(autouse=True)
def contrasted_answers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The policy says yes to everything, and no once the picture counts; returns what it was asked by."""
    asked: list[Any] = []

    def answer(self: FakeGenerators, questions: Sequence[Question], **how: Any) -> Any:
        for question in questions:
            if self.stop_after is not None and len(asked) >= self.stop_after:
                raise KeyboardInterrupt
            asked.append(question.way.decoding)
            text = "Yes" if question.way.decoding is None else "No"
            yield Answer(id=question.id, text=text, token_ids=(1,), logp=-0.1, policy_version=self.version)

    monkeypatch.setattr(FakeGenerators, "answer", answer)
    monkeypatch.setattr("csr_ray.policy.weights.save_merged", save_fake_model)
    return asked


def test_base_and_debiased_figures_stand_side_by_side_and_nothing_is_trained(
    tmp_path: Path, contrasted_answers: list[Any]
) -> None:
    driver = FreeDriver(tmp_path / "run")
    summary = driver.run()
    assert summary["base"]["eval"]["pope_acc"] == 0.0
    (first,) = summary["rounds"]
    assert first["eval"]["pope_acc"] == 1.0
    assert first["eval_change"]["pope_acc"]["difference"] == 1.0
    assert contrasted_answers == [None] * 20 + [Contrast()] * 20
    assert not driver.generators.grown and not driver.generators.published and not driver.generators.probed
    assert {entry["kind"] for entry in entries_of(driver.folder.journal)}.isdisjoint(
        {"unit", "train", "publish", "probe"}
    )
    assert summary["finished"]


def test_its_page_its_table_and_its_check_are_those_of_any_run(tmp_path: Path) -> None:
    driver = FreeDriver(tmp_path / "run")
    summary = driver.run()
    console = Console(record=True, width=160)
    print_round_table(summary, console=console)
    assert "100.0" in console.export_text()
    write_report(driver.folder.root)
    assert "pope" in (driver.folder.root / "report.html").read_text().lower()
    assert check_run(driver.folder.root).sound
    found = compare(str(driver.folder.root), str(driver.folder.root), versions=(0, 1))
    assert found.metrics["pope_acc"].difference.mean == 1.0


def test_killed_while_the_decoding_is_measured_it_goes_on_where_it_was(
    tmp_path: Path, contrasted_answers: list[Any]
) -> None:
    driver = FreeDriver(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        driver.run(stop_after=30)
    assert len(contrasted_answers) == 30
    summary = driver.run()
    assert len(contrasted_answers) == 40, "what was answered is not asked again"
    assert summary["rounds"][0]["eval"]["pope_acc"] == 1.0


def test_more_rounds_measure_nothing_again(tmp_path: Path, contrasted_answers: list[Any]) -> None:
    summary = FreeDriver(tmp_path / "run", rounds=3).run()
    assert len(contrasted_answers) == 40
    assert [entry["eval"]["pope_acc"] for entry in summary["rounds"]] == [1.0] * 3


def test_a_method_that_trains_is_measured_in_the_same_way_before_and_after(
    tmp_path: Path, contrasted_answers: list[Any]
) -> None:
    driver = Driver(tmp_path / "run", decoding={"kind": "vdd", "alpha": 0.5}, run={"rounds": 1})
    driver.suite = replace(FreeDriver.suite, yes_no=QUESTIONS[:3])
    driver.run()
    assert contrasted_answers == [Contrast(alpha=0.5)] * 6
