"""The bridge to lmms-eval: what it is started with, what is made of its files, and what is said where it fails."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from csr_ray.__main__ import main
from csr_ray.app import lmms_environment
from csr_ray.app.lmms_environment import REQUIREMENTS, VERSION, environment_folder, install, known_python
from csr_ray.app.lmms_eval import SuiteFlags, _written, suite_command
from csr_ray.app.served import server_command
from csr_ray.errors import RunFailed, UserError
from csr_ray.evaluation.lmms_results import read_results, results_in

STAMP = "20261127_161653"


def write(folder: Path, *, stamp: str = STAMP, samples: dict[str, list[str]] | None = None, **changes: Any) -> Path:
    """Files in the form of lmms-eval 0.7.3."""
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "results": {
            "pope": {
                "name": "pope",
                "alias": "pope",
                "sample_len": 9,
                "pope_accuracy,none": 0.75,
                "pope_accuracy_stderr,none": "N/A",
            },
            "mme": {
                "alias": "mme",
                "mme_total,strict": 1200,
                "mme_total,none": 1300.5,
                "mme_total_stderr,none": 2.5,
                "mme_total_stderr_clt,none": 2.25,
            },
        },
        "group_subtasks": {"both": ["pope", "mme"]},
        "n-samples": {"pope": {"original": 9000, "effective": 8}, "mme": {"original": 2, "effective": 2}},
        "versions": {"pope": 0.0, "mme": "Yaml"},
        "model_name": "policy",
        **changes,
    }
    file = folder / f"{stamp}_results.json"
    file.write_text(json.dumps(content))
    for task, texts in (samples or {}).items():
        rows = [{"doc_id": place, "resps": f" {text}", "filtered_resps": text} for place, text in enumerate(texts)]
        (folder / f"{stamp}_samples_{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_its_results_come_in_our_form(tmp_path: Path) -> None:
    file = write(tmp_path, samples={"pope": ["Yes", "about [LMMS_EVAL_REQUEST_FAILED]"]})
    assert read_results(file, tasks=["pope", "both"]) == {
        "benchmark": "lmms-eval",
        "n": 10,
        "metrics": {"pope/pope_accuracy": 0.75, "mme/mme_total:strict": 1200.0, "mme/mme_total": 1300.5}
        | {"pope/sample_len": 9.0},
        "skipped": {},
        "metrics_are": "as lmms-eval defines them, task by task",
        "suite": {"name": "lmms-eval"},
        "tasks": {
            "pope": {
                "n": 8,
                "metrics": {"sample_len": 9.0, "pope_accuracy": 0.75},
                "stderr": {},
                "version": 0.0,
            },
            "mme": {
                "n": 2,
                "metrics": {"mme_total:strict": 1200.0, "mme_total": 1300.5},
                "stderr": {"mme_total": 2.5, "mme_total_clt": 2.25},
                "version": "Yaml",
            },
        },
    }


@pytest.mark.parametrize(
    "text", ["[LMMS_EVAL_REQUEST_FAILED after 3 retries] Connection error.", "[LMMS_EVAL_BUDGET_EXCEEDED]"]
)
def test_failed_requests_that_it_marks_as_wrong_answers_are_no_figures(tmp_path: Path, text: str) -> None:
    file = write(tmp_path, samples={"pope": ["Yes", text, text], "mme": ["No"]})
    with pytest.raises(UserError, match=r"marked requests that failed as wrong answers \(pope: 2\)"):
        read_results(file, tasks=["pope"])


@pytest.mark.parametrize(
    ("content", "says"),
    [("{", "not a result of lmms-eval"), ("[]", "not a result"), ('{"results": {}}', "no result of pope; its log")],
)
def test_files_that_are_no_results_are_named(tmp_path: Path, content: str, says: str) -> None:
    file = write(tmp_path)
    file.write_text(content)
    with pytest.raises(UserError, match=says):
        read_results(file, tasks=["pope"])


def test_results_of_an_earlier_start_are_not_taken_for_this_ones(tmp_path: Path) -> None:
    folder, log = tmp_path / "out", tmp_path / "log"
    write(folder / "policy", stamp="1")
    ends_well_without_results = [sys.executable, "-c", "print('ERROR: No module named filelock._api')"]
    with pytest.raises(RunFailed, match=r"code 0 and without results; last lines of .*log:\nERROR: No module named"):
        _written(ends_well_without_results, results=folder, log=log)
    with pytest.raises(RunFailed, match="code 3"):
        _written([sys.executable, "-c", "raise SystemExit(3)"], results=folder, log=log)
    place = folder / "policy" / "2_results.json"
    new = _written([sys.executable, "-c", f"open({str(place)!r}, 'w').write('x')"], results=folder, log=log)
    assert new == place and len(results_in(folder)) == 2


def test_it_is_not_given_our_packages_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "ours")
    monkeypatch.setenv("OPENAI_API_KEY", "for-its-judges")
    place = tmp_path / "1_results.json"
    names = ("PYTHONPATH", "OPENAI_API_KEY")
    code = f"import os; open({str(place)!r}, 'w').write(repr([os.getenv(name) for name in {names!r}]))"
    _written([sys.executable, "-c", code], results=tmp_path, log=tmp_path / "log")
    assert place.read_text() == "[None, 'for-its-judges']"


def test_it_is_asked_for_the_tasks_at_the_endpoint_with_every_answer_kept(tmp_path: Path) -> None:
    flags = SuiteFlags(tasks=("pope", "mme"), tasks_dir=tmp_path, limit=5)
    words = suite_command("python", flags=flags, url="http://127.0.0.1:1/v1", results=tmp_path / "out")
    pairs = dict(itertools.pairwise(words))
    assert words[:3] == ["python", "-m", "lmms_eval"]
    assert pairs["--tasks"] == "pope,mme"
    assert "base_url=http://127.0.0.1:1/v1,api_key=none" in pairs["--model_args"]
    assert (pairs["--include_path"], pairs["--limit"]) == (str(tmp_path), "5")
    assert "--log_samples" in words


@pytest.mark.parametrize(("gpus", "parallel", "eager"), [(0, "1", True), (1, "1", False), (4, "4", False)])
def test_the_server_loads_no_pickle_and_takes_no_sampling_defaults(gpus: int, parallel: str, eager: bool) -> None:
    words = server_command(Path("/m"), dtype="float32", gpus=gpus, port=80, template=Path("/t"))
    pairs = dict(itertools.pairwise(words))
    assert (pairs["--load-format"], pairs["--generation-config"]) == ("safetensors", "vllm")
    assert (pairs["--host"], pairs["--chat-template"]) == ("127.0.0.1", "/t")
    assert (pairs["--tensor-parallel-size"], "--enforce-eager" in words) == (parallel, eager)
    assert "--trust-remote-code" not in words
    assert "--chat-template" not in server_command(Path("/m"), dtype="float32", gpus=0, port=80, template=None)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--suite", "lmms-eval", "--tasks", "pope"], "--suite lmms-eval: it is not installed; add --lmms-install"),
        (
            ["--suite", "lmms-eval", "--lmms-python", "/no/python"],
            "--lmms-python /no/python: no such program; name an",
        ),
        (["--suite", "lmms-eval", "--lmms-python", sys.executable], "it has no lmms-eval; .* add --lmms-install"),
        (["--suite", "lmms-eval", "--lmms-python", "p", "--lmms-install"], "the one or the other; leave one out"),
        (["--suite", "lmms-eval", "--lmms-install"], "--tasks: name the tasks of lmms-eval, as --tasks pope,mme"),
        (["--suite", "lmms-eval", "--judge-url", "http://x/v1"], "--judge-url: lmms-eval has data and judges of its"),
        (["--suite", "lmms-eval", "--data", "x"], "--data: lmms-eval has data"),
        (["--suite", "lmms-eval", "--actors", "2"], "asked of one server on this machine"),
        (["--benchmark", "pope", "--data", "x", "--tasks", "mme"], "--tasks: is for --suite lmms-eval"),
        (["--benchmark", "pope", "--data", "x", "--tasks-dir", "d"], "--tasks-dir: is for --suite lmms-eval"),
        (["--benchmark", "pope", "--data", "x", "--lmms-install"], "--lmms-install: is for --suite lmms-eval"),
    ],
)
def test_flags_that_cannot_be_are_refused_in_one_line(
    flags: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CSR_RAY_CACHE", str(tmp_path / "cache"))
    assert main(["eval", "--model", "m", *flags, "--json", str(tmp_path / "out.json")]) == 2
    said = capsys.readouterr().err
    assert re.search(says, said) and said.count("\n") == 1


def test_a_benchmark_or_a_suite_has_to_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags in ([], ["--benchmark", "pope", "--suite", "lmms-eval"]):
        with pytest.raises(SystemExit) as ended:
            main(["eval", "--model", "m", *flags, "--json", str(tmp_path / "out.json")])
        assert ended.value.code == 2


def test_the_versions_are_the_extras(tmp_path: Path) -> None:
    setup = Path(__file__).resolve().parents[2] / "setup.cfg"
    assert "\neval =\n    " + "\n    ".join(REQUIREMENTS) + "\n#" in setup.read_text()
    assert REQUIREMENTS[0] == f"lmms-eval=={VERSION}"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the only package index, with a lmms-eval that is nothing but its name; and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    name = f"lmms_eval-{VERSION}"
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: lmms-eval\nVersion: {VERSION}\n")
        wheel.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{name}.dist-info/RECORD", "")
    (tmp_path / "uv.toml").write_text(f"no-index = true\nfind-links = [{json.dumps(str(folder))}]\n")
    monkeypatch.setenv("UV_CONFIG_FILE", str(tmp_path / "uv.toml"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("CSR_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(lmms_environment, "REQUIREMENTS", REQUIREMENTS[:1])
    monkeypatch.setattr(lmms_environment, "_AS_HERE", ())
    return folder


@pytest.mark.parametrize("has_uv", [True, False])
def test_its_environment_is_made_once_and_found_again(
    has_uv: bool, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_uv and importlib.util.find_spec("uv") is None:
        pytest.skip("uv is not installed here, so nothing could be installed by it")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found(name) if name != "uv" or has_uv else None)
    said: list[str] = []
    assert known_python(None) is None
    python = install(say=said.append)
    assert known_python(None) == python == install(say=said.append)
    assert said == [
        f"lmms-eval {VERSION} is installed into {environment_folder()}, once; the log is {environment_folder()}.log"
    ]
    asked = [python, "-c", "import sys; print(sys.prefix, [path for path in sys.path if 'site-packages' in path])"]
    prefix, _, paths = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip().partition(" ")
    assert prefix == str(environment_folder())
    assert paths.count("site-packages") == 1, "it sees none of our packages"


def test_an_environment_whose_python_is_gone_is_made_again(index: Path) -> None:
    python = Path(install(say=print))
    python.unlink()
    assert known_python(None) is None
    assert install(say=print) == str(python) == known_python(None)


def test_an_installation_that_fails_says_why_and_leaves_nothing(index: Path) -> None:
    next(index.iterdir()).unlink()
    with pytest.raises(
        RunFailed, match=r"(?s)could not be installed \(code \d\).*--lmms-python.*last lines of .*lmms"
    ):
        install(say=print)
    assert [path.name for path in environment_folder().parent.iterdir()] == [f"{environment_folder().name}.log"]
    assert known_python(None) is None


def test_other_versions_here_are_another_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = environment_folder()
    monkeypatch.setattr(lmms_environment, "_AS_HERE", ("torch",))
    assert before.parent == environment_folder().parent and before != environment_folder()


def test_the_versions_that_both_need_are_those_here_without_their_build(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.13.0+cu130", "numpy": "2.3.5"}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    *_, install_them = lmms_environment.install_commands(Path("/e"))
    assert install_them[-4:] == [*REQUIREMENTS, "torch==2.13.0", "numpy==2.3.5"]


def test_it_does_not_import_what_lies_in_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.version_info < (3, 11):
        pytest.skip("Python 3.10 always looks in this folder first")
    (tmp_path / "datasets.py").write_text("raise SystemExit('a script of the user')\n")
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "1_results.json"
    code = f"import sys; assert '' not in sys.path, sys.path; open({str(place)!r}, 'w')"
    assert _written([sys.executable, "-c", code], results=tmp_path, log=tmp_path / "log") == place
