"""What is said of a run folder whose config this version of the program would not have written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from described_runs import PublishedDriver
from PIL import Image

from csr_ray import __version__, load_run
from csr_ray.__main__ import main
from csr_ray.errors import EXIT_BAD_CONFIG, ConfigError

SAID = f"config.yaml: csr_ray {__version__} would not write that; if another version has, use that one for this run"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    driver = PublishedDriver(tmp_path_factory.mktemp("published") / "run")
    driver.run()
    return driver.folder.root


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A run whose trainer had a key that this version does not know."""
    shutil.copytree(finished, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("train:\n", "train:\n  loudness: 11\n"))
    return tmp_path / "run"


def commands(run: Path) -> dict[str, list[str]]:
    picture = run.parent / "picture.png"
    Image.new("RGB", (8, 8)).save(picture)
    return {
        "pairs": ["pairs", str(run), "--out", str(run.parent / "pairs")],
        "push": ["push", str(run), "me/mine", "--dry-run"],
        "ask": ["ask", str(run), str(picture), "What is this?"],
    }


@pytest.mark.parametrize("name", ["pairs", "push", "ask"])
def test_commands_say_whose_config_it_is_and_what_helps(
    run: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(commands(run)[name]) == EXIT_BAD_CONFIG
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{run}/{SAID}" in error, error
    assert "train.loudness = 11: unknown key" in error


def test_so_does_the_python_interface(run: Path) -> None:
    with pytest.raises(ConfigError, match="if another version has, use that one"):
        load_run(run)


def test_check_names_the_key(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", str(run)])
    said = " ".join(capsys.readouterr().out.split())
    assert f"csr_ray {__version__} would not write that, another version may: train.loudness" in said, said


def test_the_page_is_made_all_the_same(run: Path) -> None:
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").is_file()
