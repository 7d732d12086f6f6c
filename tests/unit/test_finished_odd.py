"""A finished run in whose folder something odd stands where a file was: `csr-ray run` waits for nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from checked_runs import CheckedDriver, finished_run
from patience import within
from test_loop import cycle, merged_model

from csr_ray.__main__ import main

__all__ = ["merged_model"]  # a fixture


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> CheckedDriver:
    driver = finished_run(tmp_path_factory.mktemp("finished") / "run")
    shutil.copy(driver.folder.config, driver.folder.root.parent / "config.yaml")
    return driver


@pytest.fixture
def run(finished: CheckedDriver, tmp_path: Path) -> CheckedDriver:
    shutil.copytree(finished.folder.root, tmp_path / "run")
    return finished.at(tmp_path / "run")


def shown(run: CheckedDriver) -> int:
    """The exit code of `csr-ray run` on the finished run."""
    config = run.source.parent / "config.yaml"
    return within(lambda: main(["run", str(config), f"run.dir={run.folder.root}"]))


def unit_of(run: CheckedDriver) -> Path:
    return sorted((run.folder.root / "round_000" / "candidates").iterdir())[0]


@pytest.mark.parametrize(
    "place",
    [
        lambda run: run.folder.quarantine,
        unit_of,
        lambda run: run.folder.pairs(cycle(1)),
        lambda run: run.folder.root / "round_000" / "candidates" / "unit_stranger.parquet",
        lambda run: run.folder.summary,
    ],
    ids=["quarantine", "unit", "pairs", "stranger", "summary"],
)
def test_a_pipe_in_the_place_of_a_file_keeps_nobody_waiting(
    run: CheckedDriver, place: Callable[[CheckedDriver], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = place(run)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    assert shown(run) == 0
    assert "page: " in capsys.readouterr().out
    assert shown(run) == 0


def test_a_quarantine_of_endless_brackets_is_written_again(
    run: CheckedDriver, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run.folder.quarantine.read_bytes()
    run.folder.quarantine.write_text("[" * 100_000 + "\n")
    assert shown(run) == 0
    assert "quarantine.jsonl was damaged: it is written again" in capsys.readouterr().out
    assert run.folder.quarantine.read_bytes().splitlines()[-1:] == whole.splitlines()[-1:]


def test_a_config_of_endless_brackets_is_one_line(run: CheckedDriver, capsys: pytest.CaptureFixture[str]) -> None:
    run.folder.config.write_text("[" * 3000)
    assert shown(run) == 1
    says = capsys.readouterr().err
    assert says.startswith("csr-ray: ") and says.count("\n") == 1
    assert "config.yaml is not what the run wrote" in says and "put it back from a copy" in says
