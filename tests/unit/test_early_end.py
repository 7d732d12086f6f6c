"""A run that the gate has ended early: whatever speaks of it says so, and nothing is left of what was refused."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from checked_runs import CheckedDriver
from journals import die_after_line
from rich.console import Console
from test_gate import Driver, by_dose
from test_loop import cycle, merged_model  # noqa: F401 - a fixture that every test here uses

from csr_ray.app import run as app_run
from csr_ray.app.check import CheckReport
from csr_ray.config.load import to_plain
from csr_ray.report import write_report
from csr_ray.report.terminal import print_round_table
from csr_ray.stages import close
from csr_ray.store.journal import Journal

FELL = "the reward fell (reward 51 to 21 at gate.reward_loss=0.02)"


def _ended(folder: Path, *, version: int = 2, healthy_from: float = 0.0, **sections: dict) -> Driver:
    """A run of two rounds whose policy `version` always got worse."""
    driver = Driver(folder, **sections)
    driver.health = by_dose(healthy_from, version=version)
    driver.run()
    driver.folder.config.write_text(yaml.safe_dump(to_plain(driver.config)))
    return driver


def _summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def _page(folder: Path) -> str:
    """The words of the page, without script and style."""
    html = re.sub(r"<(style|script).*?</\1>", "", write_report(folder).read_text(), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def _table(folder: Path) -> str:
    out = io.StringIO()
    print_round_table(_summary(folder), console=Console(file=out, width=200))
    return " ".join(out.getvalue().split())


@pytest.mark.parametrize("version", [1, 2])
def test_the_verdicts_that_ended_a_run_are_in_its_summary(tmp_path: Path, version: int) -> None:
    _ended(tmp_path, version=version)
    ended = _summary(tmp_path)["ended"]
    assert (ended["round"], ended["phase"], ended["version"]) == (version - 1, "main", version - 1)
    assert [(verdict["phase"], verdict["accepted"], verdict["attempt"]) for verdict in ended["verdicts"]] == [
        ("main", False, attempt) for attempt in (1, 2, 3)
    ]
    assert ended["verdicts"][0]["faults"] == ["the reward fell"]


@pytest.mark.parametrize(("version", "model"), [(1, "0, the base"), (2, "1")])
def test_the_page_says_first_which_round_ended_the_run_and_lists_its_verdicts(
    tmp_path: Path, version: int, model: str
) -> None:
    _ended(tmp_path, version=version)
    said = _page(tmp_path)
    end = f"This run ended early: round {version} was refused: {FELL}. Its model is policy version {model}."
    assert end in said.split("Quality by round")[0], "at the top"
    gate = said.split("Before and after each phase", 1)[1]
    assert f"Round {version} refused: the reward fell" in gate
    assert f"Round {version}, attempt 3 refused: the reward fell" in gate
    assert "is not finished" not in said, "no round is under way"
    assert "No round is finished yet" not in said


def test_a_page_of_a_damaged_end_has_the_section_without_a_table(tmp_path: Path) -> None:
    _ended(tmp_path)
    for ended in ({"reason": "so"}, {"round": "x", "verdicts": [None, 1]}, {"verdicts": 3, "version": None}):
        (tmp_path / "summary.json").write_text(json.dumps({**_summary(tmp_path), "rounds": [], "ended": ended}))
        assert "This run ended early: a phase was " in _page(tmp_path)


@pytest.mark.parametrize(("version", "model"), [(1, "0, the base"), (2, "1")])
def test_the_terminal_says_which_round_ended_the_run(tmp_path: Path, version: int, model: str) -> None:
    _ended(tmp_path, version=version)
    said = _table(tmp_path)
    assert f"This run ended early: round {version} was refused: {FELL}. Its model is policy version {model}." in said
    assert "Nothing more is trained in this run, whatever run.rounds says" in said
    assert "No round is finished yet" not in said


def test_a_number_of_an_unfinished_round_is_the_one_that_people_count(tmp_path: Path) -> None:
    driver = Driver(tmp_path, gate={"enabled": False})
    driver.run()
    driver.folder.config.write_text(yaml.safe_dump(to_plain(driver.config)))
    summary = _summary(tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps({**summary, "rounds": summary["rounds"][:1]}))
    assert "Round 2 is not finished" in _page(tmp_path)


# ---- what the check says ----


class Checked(CheckedDriver):
    """A run with prompts enough for a verdict."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, num_prompts=40, rounds=2, unit=20)


def _checked(folder: Path, *, healthy_from: float) -> Checked:
    driver = Checked(folder)
    driver.health = by_dose(healthy_from, version=2)
    driver.run()
    return driver


def _state_of(report: CheckReport) -> list[str]:
    return [phase.state for phase in report.phases]


def test_the_check_of_a_run_that_ended_early_says_so(tmp_path: Path) -> None:
    report = _checked(tmp_path / "run", healthy_from=0.0).check()
    assert report.sound and report.next == "nothing: the run ended early in round 2, with policy version 1"
    (note,) = report.notes
    assert note.startswith("round 2: 3 trainings were refused; the last: the reward fell (reward 5")
    assert note.endswith(" at gate.reward_loss=0.02)")
    assert _state_of(report) == ["published", "refused"]


def test_the_check_names_what_a_death_left_to_do_behind_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _checked(tmp_path / "run", healthy_from=0.5)
    assert whole.check().next == "nothing: the run is finished"
    found = set()
    for number in range(1, Journal(whole.folder.journal).num_lines):
        driver = Checked(tmp_path / f"killed_{number}")
        driver.health = whole.health
        with monkeypatch.context() as patch:
            die_after_line(patch, number)
            with pytest.raises(KeyboardInterrupt):
                driver.run()
        report = driver.check()
        assert report.sound, number
        found.add(report.next)
    assert "round 2: train again with 1/2 of the dose, then publish, then go on" in found
    assert "round 2: compare the policy with the one before it, then go on" in found


def test_the_check_forgets_the_refusals_of_what_is_done_again(tmp_path: Path) -> None:
    """The training before them is voided, and with it all that came of it."""
    driver = _checked(tmp_path / "run", healthy_from=0.0)
    driver.state().journal.again([{**cycle(0).key, "what": "train", "reason": "damaged"}])
    report = driver.check()
    assert report.next.startswith("round 1: train, then publish")
    assert not any("refused" in note for note in report.notes)


def test_an_ended_run_whose_model_is_gone_saves_it_again(tmp_path: Path) -> None:
    driver = _checked(tmp_path / "run", healthy_from=0.0)
    (driver.folder.model / "model.safetensors").unlink()
    assert driver.check().next == "save the model again"
    driver.run()
    assert driver.check().next == "nothing: the run ended early in round 2, with policy version 1"


# ---- what is left of it ----


def _left(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in (folder / "round_001").iterdir())


def test_nothing_is_left_of_the_training_that_ended_the_run(tmp_path: Path) -> None:
    driver = _ended(tmp_path)
    assert _left(tmp_path) == ["round_001/candidates", "round_001/pairs.parquet"]
    assert driver.folder.adapter(cycle(0)).is_dir(), "of the round that was handed over"


@pytest.mark.parametrize("dies_in", ["withdraw", "save"])
def test_it_is_removed_by_the_next_start_where_the_first_one_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_in: str
) -> None:
    driver = Driver(tmp_path)
    driver.health = by_dose(0.0, version=2)

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if dies_in == "withdraw":
            again = Journal.again

            def again_and_die(journal: Journal, lines: list[dict]) -> None:
                again(journal, lines)
                if lines[0]["verdict"]["attempt"] == 3:
                    raise KeyboardInterrupt

            patch.setattr(Journal, "again", again_and_die)
        else:
            patch.setattr(close, "digests_of_folder", die)  # behind the removal
        with pytest.raises(KeyboardInterrupt):
            driver.run()
    summary = driver.run()
    assert summary["finished"] and summary["ended"]["version"] == 1
    assert _left(tmp_path) == ["round_001/candidates", "round_001/pairs.parquet"]


# ---- run.rounds and starts behind the end ----


def test_more_rounds_train_nothing_more_and_write_no_line(tmp_path: Path) -> None:
    driver = _ended(tmp_path)
    num_lines = Journal(driver.folder.journal).num_lines
    driver.config = driver.config.model_copy(update={"run": driver.config.run.model_copy(update={"rounds": 5})})
    again = driver.run()
    assert again["finished"] and again["ended"]["round"] == 1 and len(driver.starts) == 1
    assert Journal(driver.folder.journal).num_lines == num_lines
    assert "save the model" not in driver.said.getvalue()


@pytest.mark.parametrize("rounds", [2, 5])
def test_an_ended_run_is_shown_without_a_lock(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rounds: int
) -> None:
    driver = _ended(tmp_path)
    config = driver.config.model_copy(update={"run": driver.config.run.model_copy(update={"rounds": rounds})})
    assert app_run._is_finished_and_shown(config, folder=driver.folder)
    assert "This run ended early: round 2 was refused" in " ".join(capsys.readouterr().out.split())


def test_an_end_without_its_verdicts_is_written_anew(tmp_path: Path) -> None:
    """A version of this program before wrote such a summary; a start under the lock mends it."""
    driver = _ended(tmp_path)
    summary = _summary(tmp_path)
    del summary["ended"]["verdicts"]
    driver.folder.summary.write_text(json.dumps(summary))
    assert not app_run._says_finished(driver.folder.summary, config=driver.config)


# ---- what a refusal names ----


@pytest.mark.parametrize(
    ("health", "named"),
    [
        ((20.0, 10), "reward 51 to 21 at gate.reward_loss=0.02"),
        ((50.0, 100), "at gate.length_growth=1.05"),
        ((50.0, 2), "at gate.length_factor=1.5"),
    ],
)
def test_a_refusal_names_the_key_of_every_figure_at_fault(
    tmp_path: Path, health: tuple[float, int], named: str
) -> None:
    driver = Driver(tmp_path, gate={"retries": 0})
    driver.health = staticmethod(lambda version, scale: health if version else (50.0, 10))
    assert named in driver.run()["ended"]["reason"]
    said = " ".join(driver.said.getvalue().split())
    assert "with the policy before it (version 0)" in said and "set gate.enabled=false, in another run.dir" in said
