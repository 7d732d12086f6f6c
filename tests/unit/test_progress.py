"""What a run notes of itself while it goes on, for whoever watches it from another process."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from csr_ray.app.console import ConsoleView
from csr_ray.errors import ConfigError
from csr_ray.metrics import NoExporter
from csr_ray.stages.progress import ProgressExporter, ProgressFile, ProgressView
from csr_ray.store.pool_events import PoolEvents, write_event


def quiet_view(file: ProgressFile) -> ProgressView:
    return ProgressView(ConsoleView(num_rounds=3, console=Console(quiet=True)), file=file)


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def eventually(path: Path, is_so: Callable[[dict], bool]) -> dict:
    until_s = time.monotonic() + 30
    while not (path.exists() and is_so(read(path))):
        assert time.monotonic() < until_s, "it does not come"
        time.sleep(0.05)
    return read(path)


def test_the_running_stage_its_round_and_how_far_it_is_are_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    file = ProgressFile(path)
    view = quiet_view(file)
    with file.kept():
        view.watch(lambda: "healthy: 2 generators")
        with view.stage("roll out", total=8, unit="prompts", round_index=1) as stage:
            for _ in range(3):
                stage.advance(tokens=10)
            found = eventually(path, lambda now: bool(now["running"]) and now["running"][0]["done"] == 3)
            (running,) = found["running"]
            assert (running["stage"], running["round"], running["unit"]) == ("roll out", 1, "prompts")
            assert (running["total"], running["tokens"]) == (8, 30)
            assert running["silent_s"] >= 0 and found["health"] == "healthy: 2 generators"
            with view.stage("train", total=None, unit="steps", round_index=1) as inner:
                inner.set(done=2, total=5, loss=0.5)
                found = eventually(path, lambda now: len(now["running"]) == 2)
                assert [one["stage"] for one in found["running"]] == ["roll out", "train"]
                assert found["running"][1]["loss"] == 0.5
    found = read(path)
    assert found["running"] == [] and found["ended"] == {"how": "finished", "reason": ""}
    assert [(one["stage"], one["done"]) for one in found["done"]] == [("train", 2), ("roll out", 3)]
    assert found["health"] == "", "nobody serves any more"


def test_who_serves_and_who_was_lost_is_in_the_file_and_is_handed_on(tmp_path: Path) -> None:
    handed_on: list[tuple[str, float]] = []

    class Inner(NoExporter):
        def add(self, name: str, value: float = 1.0, **tags: str) -> None:
            handed_on.append((name, value))

        def set(self, name: str, value: float, **tags: str) -> None:
            handed_on.append((name, value))

    path = tmp_path / "progress.json"
    file = ProgressFile(path)
    exporter = ProgressExporter(Inner(), file=file)
    with file.kept():
        exporter.set("csr_ray_replicas", 1, role="generator", state="serving")
        exporter.set("csr_ray_replicas_wanted", 2, role="generator")
        exporter.set("csr_ray_policy_version_trained", 4)
        for role in ("generator", "generator", "train_worker"):
            exporter.add("csr_ray_deaths_total", role=role)
        exporter.add("csr_ray_replacements_total", role="generator")
        exporter.add("csr_ray_retries_total")
        exporter.add("csr_ray_rounds_total")
        found = eventually(path, lambda now: now["retries"] == 1)
    assert found["replicas"] == {"generator": {"serving": 1, "wanted": 2}}
    assert found["deaths"] == {"generator": 2, "train_worker": 1} and found["replacements"] == {"generator": 1}
    assert len(handed_on) == 9


@pytest.mark.parametrize(
    "error, how, reason",
    [
        (KeyboardInterrupt("stopped by SIGINT"), "stopped", "stopped by SIGINT"),
        (ConfigError("policy.model = 'x': no such folder"), "failed", "policy.model = 'x': no such folder"),
        (RuntimeError("token=abc is bad\nreally"), "failed", "RuntimeError: token=abc is bad really"),
    ],
)
def test_how_a_start_ended_is_in_the_file(tmp_path: Path, error: BaseException, how: str, reason: str) -> None:
    file = ProgressFile(tmp_path / "progress.json")
    with pytest.raises(type(error)), file.kept():
        raise error
    assert read(tmp_path / "progress.json")["ended"] == {"how": how, "reason": reason}


def test_lines_that_a_person_sees_are_kept_without_secrets_and_only_the_last(tmp_path: Path) -> None:
    file = ProgressFile(tmp_path / "progress.json")
    view = quiet_view(file)
    with file.kept():
        for number in range(150):
            view.say(f"line {number}")
        view.say("see https://me:secret@host/path", is_warning=True)
    said = read(tmp_path / "progress.json")["said"]
    assert len(said) == 100 and said[-2]["line"] == "line 149"
    assert said[-1]["is_warning"] and "secret" not in said[-1]["line"]


def test_a_folder_that_takes_nothing_does_not_stop_the_run(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file stands here")
    file = ProgressFile(tmp_path / "run" / "progress.json")
    with file.kept():
        pass


def test_events_of_actors_are_read_as_they_come_and_half_a_line_waits(tmp_path: Path) -> None:
    events = PoolEvents(tmp_path / "pool.jsonl")
    assert not events.read() and events.events == []
    write_event(tmp_path, "lost", replica="generator 0", reason="it was killed")
    write_event(tmp_path, "sent", what="prompts", num=3)
    assert events.read() and [one["replica"] for one in events.events] == ["generator 0"]
    line = json.dumps({"time": 3.0, "event": "serves again", "replica": "generator 0", "seconds": 2.0}) + "\n"
    with (tmp_path / "pool.jsonl").open("a") as file:
        file.write(line[:20])
    assert not events.read()
    with (tmp_path / "pool.jsonl").open("a") as file:
        file.write(line[20:] + "no JSON\n" + "[1]\n" + '{"event": "lost"}\n')
    assert events.read() and len(events.events) == 2
    assert not events.read()
    (tmp_path / "pool.jsonl").write_text(line)
    assert events.read() and len(events.events) == 1, "the run was started anew in this folder"
