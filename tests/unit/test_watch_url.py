"""A run at a URL is watched by a copy that follows it: without its lock, and what is new is fetched alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import FakeGenerators
from report_runs import words
from s3_server import Door, Trouble, s3_door
from test_loop import SUITE
from url_runs import UrlDriver, fake_model  # noqa: F401 - a fixture
from watched_runs import eventually, watching

from csr_ray.app import watch as watch_command


@pytest.fixture(scope="module")
def one_door() -> Iterator[Door]:
    with s3_door() as one:
        yield one


@pytest.fixture
def door(one_door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    monkeypatch.setenv("CSR_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(FakeGenerators, "in_order", True)
    monkeypatch.setattr(watch_command, "_REFRESH_EVERY_S", 0.1)
    yield one_door
    one_door.trouble = Trouble()


def test_a_run_at_a_url_appears_grows_and_ends_on_the_page(door: Door, tmp_path: Path) -> None:
    run = UrlDriver(f"s3://bucket/{tmp_path.name}/run", place=tmp_path)
    run.suite = SUITE
    with watching(run.url) as asker:
        assert f"Waiting for {run.url}" in words(asker.page())
        run.run_here()
        state = eventually(lambda: (s := asker.state())["state"] in ("stopped", "finished") and s)
        eventually(lambda: asker.state()["facts"]["num"] > 0)
        assert asker.json("pairs", num=3)["pairs"][0]["chosen"]["sentences"]
        tree = asker.json("tree", number=0)
        assert tree["id"].startswith("p") and tree["nodes"], "fetched when it was asked for"
        state = eventually(lambda: not asker.state()["reading"] and asker.state())
        assert "rewards" in state["parts"] and "<title>" not in state["parts"]["head"]
    assert [path.name for path in tmp_path.iterdir() if "csr_ray_" in path.name] == []


def test_watching_a_url_only_reads_and_fetches_no_model_and_nothing_twice(door: Door, tmp_path: Path) -> None:
    run = UrlDriver(f"s3://bucket/{tmp_path.name}/run", place=tmp_path)
    run.run_here()
    asked: list[tuple[str, str]] = []
    door.trouble = Trouble(watch=lambda method, path: asked.append((method, path)))
    with watching(run.url) as asker:
        eventually(lambda: asker.state()["facts"]["num"] > 0 and not asker.state()["reading"])
        seen = len(asked)
        eventually(lambda: len(asked) > seen + 4)
    assert {method for method, _ in asked} <= {"GET", "HEAD"}
    fetched = [path for method, path in asked if method == "GET" and "list-type" not in path]
    assert not [path for path in fetched if "/model/" in path or "/adapter/" in path]
    whole = [path for path in fetched if "/run.lock/" not in path and "?" not in path.rpartition("/")[2]]
    candidates = [path for path in whole if "/candidates/" in path]
    assert len(candidates) == len(set(candidates)) > 0
    assert len([path for path in whole if path.endswith("pairs.parquet")]) <= 2


def test_a_store_that_is_away_is_said_and_what_is_known_stays(door: Door, tmp_path: Path) -> None:
    run = UrlDriver(f"s3://bucket/{tmp_path.name}/run", place=tmp_path)
    run.run_here()
    with watching(run.url) as asker:
        eventually(lambda: asker.state()["facts"]["num"] > 0)
        door.trouble = Trouble(away=True)
        head = eventually(lambda: "cannot be read now" in (part := asker.part("head")) and part)
        assert "so this may be old" in head
        assert asker.state()["facts"]["num"] > 0
        door.trouble = Trouble()
        eventually(lambda: "cannot be read now" not in asker.part("head"))
