"""What a wheel brings along: everything that the program needs and the tutorial speaks of, without a clone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest
from report_runs import EVAL, summary_of, write_summary
from tutorial import take_photos

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ("csr_ray", "actors", "configs", "docs", "setup.cfg", "setup.py", "README.md", "LICENSE")


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel in it, which has the other packages of this one; and a folder to work in."""

    prefix: Path
    folder: Path

    @property
    def packages(self) -> Path:
        return Path(sysconfig.get_path("purelib", vars={"base": str(self.prefix)}))

    def types(self, *command: str) -> str:
        """What a command says that exits with 0."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment["PYTHONPATH"] = str(self.packages)
        environment["PATH"] = f"{self.prefix / 'bin'}{os.pathsep}{environment['PATH']}"
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel, built of a copy of what is tracked and installed without a network."""
    tree, prefix = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("environment") / ".venv"
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tree)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    make = [*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", "dist", "."]
    made = subprocess.run(make, cwd=tree, capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stdout + made.stderr
    (wheel,) = (tree / "dist").glob("csr_ray-*-py3-none-any.whl")
    put = [*pip, "install", "--no-deps", "--no-index", "--ignore-installed", "--prefix", str(prefix), str(wheel)]
    done = subprocess.run(put, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return Installed(prefix=prefix, folder=prefix.parent)


def test_it_is_what_is_imported(installed: Installed) -> None:
    where = installed.types(sys.executable, "-c", "import csr_ray, actors; print(csr_ray.__file__, actors.__file__)")
    assert all(Path(one).is_relative_to(installed.packages) for one in where.split()), where


def test_it_has_every_file_that_lies_beside_the_code(installed: Installed) -> None:
    for package in ("csr_ray", "actors"):
        ours, theirs = (
            {str(path.relative_to(place)) for path in (place / package).rglob("*") if path.is_file()}
            for place in (ROOT, installed.packages)
        )
        compiled = {name for name in ours | theirs if "__pycache__" in name}
        assert theirs - compiled == ours - compiled


def test_the_tutorial_finds_its_configs_and_looks_at_a_run(installed: Installed) -> None:
    installed.types("cp", "-r", ".venv/share/csr_ray/configs", "configs")
    ours = {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml")}
    assert {
        path.relative_to(installed.folder / "configs") for path in (installed.folder / "configs").rglob("*.yaml")
    } == ours
    said = installed.types("csr-ray", "run", "configs/tiny-world.yaml", "--dry-run")
    assert "runs/tiny-world" in said, said


def test_the_documents_that_help_speaks_of_are_there(installed: Installed) -> None:
    shared = installed.prefix / "share" / "csr_ray"
    code = [path.read_text() for package in ("csr_ray", "actors") for path in (ROOT / package).rglob("*.py")]
    named = {name for text in code for name in re.findall(r"docs/[\w/-]+\.md", text)}
    assert len(named) > 10
    assert [name for name in sorted(named) if not (shared / name).is_file()] == []
    assert (shared / "docs" / "tutorial" / "own-photos.md").is_file()


def test_photos_become_a_run_and_a_page_is_made(installed: Installed) -> None:
    take_photos(installed.folder / "photos", num=2)
    assert "2 pictures" in installed.types("csr-ray", "init", "photos-run", "photos")
    (installed.folder / "runs" / "mine").mkdir(parents=True)
    write_summary(installed.folder / "runs" / "mine", summary=summary_of(EVAL))
    installed.types("csr-ray", "report", "runs/mine")
    assert "<style>" in (installed.folder / "runs" / "mine" / "report.html").read_text()
