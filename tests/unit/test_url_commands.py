"""The commands on a run at a URL: each does what it does on a folder, or refuses in one line."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from asked_runs import Quiet
from fakes import FakeGenerators
from PIL import Image
from s3_server import Door, Trouble, s3_door
from test_loop import SUITE
from url_runs import UrlDriver, fake_model  # noqa: F401 - a fixture

from csr_ray.__main__ import main
from csr_ray.app import place as places
from csr_ray.app.ask import AskableRun, Asked
from csr_ray.app.commands import ask_run
from csr_ray.config.load import to_plain
from csr_ray.errors import ConfigError, StorageError
from csr_ray.store.cache import cache_folder
from csr_ray.store.mirror import Mirror


@pytest.fixture(scope="module")
def one_door() -> Iterator[Door]:
    with s3_door() as one:
        yield one


@pytest.fixture
def door(one_door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("CSR_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(FakeGenerators, "in_order", True)
    yield one_door
    one_door.trouble = Trouble()
    assert list((tmp_path / "cwd").iterdir()) == [], "a URL was taken for a path"


@pytest.fixture
def finished(door: Door, tmp_path: Path) -> UrlDriver:
    run = UrlDriver(f"s3://bucket/{tmp_path.name}/run", place=tmp_path)
    run.run_here(fail_ids=frozenset({"p1"}))
    return run


def config_of(run: UrlDriver, tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(to_plain(run.config)))
    return str(path)


def test_report_writes_the_page_at_the_url(
    finished: UrlDriver, door: Door, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", finished.url]) == 0
    assert capsys.readouterr().out.strip() == f"{finished.url}/report.html"
    page = (door.store(f"{tmp_path.name}/run").read("report.html") or b"").decode()
    assert f"<title>{tmp_path.name} · csr_ray report</title>" in page, "of a run that is called run, its folder"


def test_runs_at_urls_are_compared_and_only_their_answers_fetched(
    door: Door, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = UrlDriver(f"s3://bucket/{tmp_path.name}/run", place=tmp_path)
    run.suite = SUITE
    run.run_here()
    assert run.check().sound
    capsys.readouterr()
    asked: list[str] = []
    door.trouble = Trouble(watch=lambda method, path: asked.append(path) if method == "GET" else None)
    assert main(["compare", run.url, run.url, "--version", "0,2"]) == 0
    assert f"A: {run.url}, policy version 0" in capsys.readouterr().out
    assert not [path for path in asked if "/model/" in path or "/candidates/" in path]
    assert any("eval/version_002.parquet" in path for path in asked)


def test_of_a_run_that_is_asked_only_its_config_and_adapters_are_fetched(
    finished: UrlDriver, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    door.trouble = Trouble(watch=lambda method, path: asked.append(path) if method == "GET" else None)
    seen: list[int] = []

    def stop(run: AskableRun, rounds: tuple[int, ...]) -> None:
        seen.append(len(run.trained(upto=2)))
        raise ConfigError(f"enough: {[one.label for one in run.versions]}")

    monkeypatch.setattr(AskableRun, "chosen", stop)
    with pytest.raises(ConfigError, match=r"enough: \['base', 'after round 1', 'after round 2'\]"):
        ask_run(finished.url, asked=Asked(images=("a.png",), question="What?"), view=Quiet())
    assert seen == [2] and not [path for path in asked if "/model/" in path or "/candidates/" in path]


def test_report_fetches_no_models(finished: UrlDriver, door: Door) -> None:
    asked: list[str] = []
    door.trouble = Trouble(watch=lambda method, path: asked.append(path) if method == "GET" else None)
    assert main(["report", finished.url]) == 0
    assert asked and not [path for path in asked if "/model/" in path or "/adapter/" in path]


def test_check_says_of_a_url_what_it_says_of_a_folder(
    finished: UrlDriver, door: Door, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", finished.url, "--json", str(tmp_path / "out.json")]) == 0
    assert "sound: " in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text())["run"] == finished.url
    store = door.store(f"{tmp_path.name}/run")
    name = next(name for name in store.list() if "candidates" in name)
    store.write(name, b"other bytes")
    assert main(["check", finished.url]) == 1
    assert f"damaged  {name}" in capsys.readouterr().out


def test_a_finished_run_shows_its_result_and_fetches_no_model(
    finished: UrlDriver,
    door: Door,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    main(["report", finished.url])
    capsys.readouterr()
    asked: list[str] = []
    door.trouble = Trouble(watch=lambda method, path: asked.append(f"{method} {path}"))
    monkeypatch.setenv("CSR_RAY_CACHE", str(tmp_path / "another machine"))
    assert main(["run", config_of(finished, tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"page: {finished.url}/report.html" in said and "reward" in said
    assert not [one for one in asked if "/model/" in one or "run.lock" in one or one.startswith("PUT")]
    assert main(["run", config_of(finished, tmp_path), "train.beta=0.3"]) == 2
    said = capsys.readouterr().err
    assert f"run.dir = {finished.url!r} holds a run of another config (train.beta: 0.1 != 0.3" in said


def test_a_finished_run_that_has_lost_a_file_is_mended(
    finished: UrlDriver, door: Door, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The working copy has it still, so it is sent again."""
    main(["report", finished.url])
    store = door.store(f"{tmp_path.name}/run")
    before = set(store.list())
    gone = [name for name in before if name.startswith("model/") or "candidates" in name]
    store.remove(gone)
    assert main(["run", config_of(finished, tmp_path)]) == 0
    assert before - set(store.list()) <= {name for name in before if name.startswith("run.lock/")}
    assert main(["check", finished.url]) == 0


def test_a_dry_run_reads_everything_where_it_is_and_writes_nothing(
    door: Door, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = door.store(tmp_path.name)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"):
        store.write(f"model/{name}", b"{}")
    store.write("clip/open_clip_config.json", b'{"model_cfg": {}}')
    store.write("clip/open_clip_model.safetensors", b"weights")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    store.upload(tmp_path / "a.png", name="data/a.png")
    rows = [{"id": name, "image": f"{name}.png", "prompt": "What is this?"} for name in ("a", "b")]
    store.write("data/prompts.jsonl", "\n".join(map(json.dumps, rows)).encode())
    config = tmp_path / "bucket.yaml"
    plain = {
        "run": {"dir": f"{store.url}/run"},
        "data": {"prompts": f"{store.url}/data/prompts.jsonl"},
        "policy": {"model": f"{store.url}/model"},
        "scorer": {"model": f"{store.url}/clip"},
    }
    config.write_text(yaml.safe_dump(plain))
    before = store.list()
    assert main(["run", str(config), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"into {store.url}/run" in said.replace("\n", "") and "prompts: 1 usable, 1 would be set aside" in said
    assert store.list() == before and not cache_folder().exists()


def test_a_dry_run_of_the_world_asks_the_store_too(capsys: pytest.CaptureFixture[str], door: Door) -> None:
    tiny = Path(__file__).resolve().parents[2] / "configs" / "tiny-world.yaml"
    assert main(["run", str(tiny), "--dry-run", "run.dir=s3://no-such-bucket/run"]) == 2
    assert "run.dir = 's3://no-such-bucket/run': cannot be listed" in capsys.readouterr().err


def test_a_run_that_ends_by_its_store_says_so_once(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "Mirror", functools.partial(Mirror, patience_s=0.2))
    run = UrlDriver(f"s3://bucket/{tmp_path.name}/run", place=tmp_path, num_prompts=200)
    run.before_work = lambda: setattr(door, "trouble", Trouble(away=True))
    with pytest.raises(StorageError, match="not taken anything"):
        run.run_here()
    assert not run.said_lines


def test_what_cannot_be_reached_is_one_line(
    door: Door, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in (["report"], ["check"]):
        assert main([*command, "s3://no-such-bucket/run"]) == 2
        said = capsys.readouterr().err
        assert said.startswith("csr-ray: RUN_DIR = 's3://no-such-bucket/run': ") and said.count("\n") == 1
        assert main([*command, f"s3://bucket/{tmp_path.name}/none"]) == 2
        said = capsys.readouterr().err
        assert f"run folder s3://bucket/{tmp_path.name}/none: no " in said and said.count("\n") == 1
    run = UrlDriver("s3://no-such-bucket/run", place=tmp_path)
    for flags in ([], ["--fresh"], ["--dry-run"]):
        assert main(["run", config_of(run, tmp_path), *flags]) == 2
    assert not (cache_folder() / "runs").exists()


@pytest.mark.parametrize("flags", [[], ["--fresh"]])
def test_a_bucket_that_may_only_be_read_is_one_line(
    door: Door, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    run = UrlDriver(f"s3://bucket/{tmp_path.name}/run", place=tmp_path)
    door.store(f"{tmp_path.name}/run").write("config.yaml", b"method: csr")
    door.trouble = Trouble(denies_writes=True)
    assert main(["run", config_of(run, tmp_path), *flags]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"csr-ray: run.dir = {run.url!r}: ") and said.count("\n") == 1
    assert "not now" in said and "can be reached and written" in said


@pytest.mark.parametrize(
    "words",
    [
        ["world", "build", "s3://bucket/world"],
        ["eval", "--model", "m", "--benchmark", "pope", "--json", "s3://bucket/out.json"],
        ["score-answers", "--benchmark", "pope", "--answers", "s3://b/a", "--truth", "t", "--json", "o"],
    ],
)
def test_what_has_to_be_a_path_refuses_a_url(
    door: Door, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2 and "is a URL; name a path of this machine" in capsys.readouterr().err
