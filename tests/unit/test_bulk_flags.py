"""What `csr-ray eval` and `csr-ray score` refuse, in words that name their own flags, and where a job writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from actors import runtime
from actors.process.fitness import Wanted, look
from csr_ray.__main__ import main
from csr_ray.app.console import ConsoleView
from csr_ray.app.flags import named
from csr_ray.config.schema import Scorers
from csr_ray.errors import ConfigError
from csr_ray.machine.fit import Node
from csr_ray.machine.placement import scorer_demand

EVAL = ["eval", "--model", "./none", "--benchmark", "pope", "--data", ".", "--json", "out.json"]
SCORE = ["score", "none.jsonl", "--scorer", "./none", "--out", "scores"]


@pytest.mark.parametrize("command", [EVAL, SCORE], ids=["eval", "score"])
@pytest.mark.parametrize("flag", [["--actors", "0"], ["--gpus", "-1"], ["--wait", "0"], ["--wait", "inf"]])
def test_numbers_that_mean_nothing_are_refused(
    command: list[str], flag: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command, *flag])
    assert caught.value.code == 2
    assert f"argument {flag[0]}: " in capsys.readouterr().err


def test_an_engine_has_whole_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*EVAL, "--gpus", "0.5"])
    assert "argument --gpus: 0.5: a whole number" in capsys.readouterr().err


def test_an_engine_for_gpus_without_one_is_refused_by_the_flags_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("csr_ray.app.commands.serves_on_gpus", lambda: True)
    monkeypatch.setattr("csr_ray.app.commands.check_policy", lambda model: None)
    assert main([*EVAL[:-1], str(tmp_path / "out.json"), "--gpus", "0"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("csr-ray: --gpus = 0: ") and "set --gpus=1" in said and "generators" not in said


@pytest.mark.parametrize("command", [EVAL, SCORE], ids=["eval", "score"])
def test_a_job_writes_where_it_lasts_and_says_so_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("CSR_RAY_RUNS", str(tmp_path / "runs"))
    assert main([*command, "--out", "mine/parts", "--json", "mine/out.json"]) == 2
    first = capsys.readouterr().out.splitlines()[0]
    assert f"--json {tmp_path}/runs/mine/out.json on " in first
    assert f"--out {tmp_path}/runs/mine/parts on " in first
    assert main([*command, "--json", "../out.json"]) == 2
    assert "--json = '../out.json': a job's relative path is placed below" in capsys.readouterr().err


class Connected:
    """A Ray of one small node, which is somebody's cluster."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_closed = False
        self.waited: list[dict[str, Any]] = []
        monkeypatch.setattr(runtime, "_connect", lambda *_, **__: self)
        monkeypatch.setattr(runtime, "_nodes", lambda: [Node(name="node 0", cpus=2, gpus=0)])
        monkeypatch.setattr(runtime, "cluster_address", lambda: "somewhere")
        monkeypatch.setattr(runtime, "wait_for_place", lambda demand, **how: self.waited.append(how))

    def close(self) -> None:
        self.is_closed = True

    def ask(self, *, autoscales: bool, **what: Any) -> Wanted | None:
        _, wanted = runtime.connect_bulk(
            scorer_demand(Scorers(min=3, max=3)),
            autoscales=autoscales,
            wait_s=7.0,
            view=ConsoleView(num_rounds=0, console=Console(quiet=True)),
            on_ray_lost=lambda reason: None,
            **what,
        )
        return wanted


def test_a_cluster_that_is_too_small_is_refused_unless_it_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    connected = Connected(monkeypatch)
    with pytest.raises(ConfigError, match=r"no room for 1 scorer .* adds nodes to this cluster, give --autoscales$"):
        connected.ask(autoscales=False)
    assert connected.is_closed and not connected.waited
    connected = Connected(monkeypatch)
    connected.ask(autoscales=True)
    assert not connected.is_closed
    assert [(how["wait_s"], how["key"]) for how in connected.waited] == [(7.0, "--wait")]


def test_every_node_is_looked_at_for_the_picture_and_the_scorer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Wanted] = []
    monkeypatch.setattr(runtime, "check_nodes", lambda wanted, **_: looked.append(wanted))
    picture = tmp_path / "a.png"
    picture.write_bytes(b"123")
    connected = Connected(monkeypatch)
    wanted = connected.ask(autoscales=True, model="owner/name@1", picture=str(picture))
    assert wanted is not None and (wanted.picture, wanted.picture_bytes) == (str(picture), 3)
    scorer = tmp_path / "clip"
    scorer.mkdir()
    (scorer / "open_clip_config.json").write_text("{}")
    wanted = connected.ask(autoscales=True, scorer=str(scorer))
    assert wanted is not None
    assert (wanted.scorer_folder, list(wanted.scorer_files)) == (str(scorer), ["open_clip_config.json"])
    assert [one.scorer for one in looked] == [None, str(scorer)]
    assert look(wanted, roles=["scorer"]).policy == "", "nobody serves a policy there"
    assert connected.ask(autoscales=True) is None


class ConnectedError(Exception):
    pass


@pytest.fixture
def asked_of_the_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a command asks the cluster for, which then ends."""
    asked: dict[str, Any] = {}

    def connect(demand: Any, **what: Any) -> None:
        asked.update(what)
        raise ConnectedError

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runtime, "connect_bulk", connect)
    for name in ("check_policy", "check_clip_source", "listen_on_this_machine_only"):
        monkeypatch.setattr(f"csr_ray.app.commands.{name}", lambda *_: None)
    monkeypatch.setattr("csr_ray.app.commands.checked_reference", lambda model: "owner/name@1")
    return asked


def test_an_evaluation_asks_for_a_picture_that_it_has_here(
    tmp_path: Path, asked_of_the_cluster: dict[str, Any]
) -> None:
    questions = [
        {"question_id": number, "image": f"{number}.png", "text": "A dog?", "label": "no"} for number in (1, 2)
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)))
    (tmp_path / "2.png").write_bytes(b"123")
    with pytest.raises(ConnectedError):
        main(EVAL)
    assert asked_of_the_cluster["picture"] == str(tmp_path / "2.png")
    assert asked_of_the_cluster["model"] == "owner/name@1"


def test_a_scoring_asks_for_its_scorer(tmp_path: Path, asked_of_the_cluster: dict[str, Any]) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(ConnectedError):
        main(SCORE)
    assert asked_of_the_cluster["scorer"] == str(tmp_path / "none"), "as its actors find it"


@pytest.mark.parametrize("limit", ["0", "-1"])
def test_an_evaluation_of_nothing_is_refused(limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*EVAL, "--limit", limit])
    assert caught.value.code == 2
    assert f"argument --limit: {limit}: a whole number, at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "starts"),
    [
        (["eval", "--model", "/none", *EVAL[3:]], "--model = '/none': no such folder"),
        (["score", "none.jsonl", "--scorer", "/none", "--out", "scores"], "--scorer = '/none': no such folder"),
    ],
)
def test_what_is_wrong_is_told_by_the_flags_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    starts: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    assert capsys.readouterr().err.startswith(f"csr-ray: {starts}")


def test_the_folder_of_a_benchmark_is_told_by_the_flags_name(
    tmp_path: Path, asked_of_the_cluster: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(EVAL) == 2
    assert capsys.readouterr().err == f"csr-ray: --data = {str(tmp_path)!r}: it has no questions.jsonl\n"


def test_a_nodes_fault_is_told_by_the_flags_name() -> None:
    flags = {"policy.model": "--model", "data.images": "--data", "scorers.gpus": "--gpus"}
    said = "policy.model = '/a/policy.model': no; data.images: no; set scorers.gpus=0."
    with pytest.raises(ConfigError) as caught, named(flags):
        raise ConfigError(said)
    assert str(caught.value) == "--model = '/a/policy.model': no; --data: no; set --gpus=0."


@pytest.mark.parametrize(
    ("command", "flag", "name"),
    [
        (["check", "RUN", "--json", "mine/found.json"], "--json", "mine/found.json"),
        (
            ["score-answers", "--benchmark", "pope", "--answers", "A", "--truth", "A", "--json", "mine/marks.json"],
            "--json",
            "mine/marks.json",
        ),
        (["world", "build", "mine/world", "--images", "8"], "DIR", "mine/world"),
    ],
    ids=["check", "score-answers", "world build"],
)
def test_a_job_writes_where_it_lasts_whatever_the_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    flag: str,
    name: str,
) -> None:
    work, runs = tmp_path / "work", tmp_path / "runs"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("CSR_RAY_RUNS", str(runs))
    built: list[Path] = []
    monkeypatch.setattr("csr_ray.world.build.build_world", lambda folder, **_: built.append(folder))
    monkeypatch.setattr("csr_ray.app.place.check", lambda run_dir, *, output: built.append(output) or 0)
    answer = {"question_id": 1, "text": "Yes", "label": "yes"}
    (work / "A").write_text(json.dumps(answer))
    assert main(command) == 0
    assert built == [runs / name] or (runs / name).is_file()
    assert f"{flag} {runs}/{name} on " in capsys.readouterr().out.splitlines()[0]
    assert not (work / "mine").exists()
