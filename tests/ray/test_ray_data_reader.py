"""Prompt files read on the cluster: the same prompts, order and rejections as by the local reader, and no more ahead
than is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from fakes import FakeGenerators, tiny_config
from patience import within
from PIL import Image
from rich.console import Console

from actors.data.reader import RayReader
from csr_ray.app.console import ConsoleView
from csr_ray.app.run import world_spec
from csr_ray.config.schema import World
from csr_ray.data.prompts import PromptFile, read_prompts
from csr_ray.errors import ConfigError
from csr_ray.records import Prompt, Rejection
from csr_ray.stages.roll_out import roll_out
from csr_ray.stages.state import RunState
from csr_ray.stages.turn import Turn
from csr_ray.store.journal import Journal
from csr_ray.store.run_folder import RunFolder
from csr_ray.world.build import cached_world

NUM = 3000
MOST_AHEAD = 512 + 8192 + 1024


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    Image.new("RGB", (8, 8), "red").save(folder / "a.png")
    (folder / "bad.png").write_bytes(b"no picture")
    return folder


def record(number: int) -> dict:
    if number % 500 == 3:
        return {"id": number, "image": "a.png", "prompt": ""}
    key = 7 if number % 700 == 11 else number  # some come again
    return {"id": str(key), "image": "bad.png" if number % 900 == 5 else "a.png", "prompt": f"Describe {number}."}


def write(folder: Path, name: str) -> Path:
    path, records = folder / name, [record(number) for number in range(NUM)]
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist([{**row, "id": str(row["id"])} for row in records]), path)
    elif name.endswith(".csv"):
        lines = [f'{row["id"]},{row["image"]},"{row["prompt"]}"' for row in records]
        path.write_text("\n".join(["id,image,prompt", *lines]))
    elif name == "list.json":
        path.write_text(json.dumps(records))
    else:
        path.write_text("\n".join(map(json.dumps, records)))
    return path


def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csr_ray.data.rows._PIECE_BYTES", 50_000)
    monkeypatch.setattr("csr_ray.data.rows._TABLE_ROWS_TOGETHER", 500)


@pytest.mark.parametrize("name", ["p.jsonl", "p.csv", "p.parquet", "list.json"])
def test_the_cluster_reads_what_the_driver_reads(
    folder: Path,
    ray_session: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    name: str,
) -> None:
    small_pieces(monkeypatch)
    path = str(write(folder, name))
    local = PromptFile(path, images=None, limit=None)
    there = PromptFile(path, images=None, limit=None, reader=RayReader())
    assert there.num == local.num == NUM - 6 - 5
    assert list(there.rejections()) == list(local.rejections())
    assert list(there.take()) == list(local.take())
    assert np.array_equal(there.hashes(), local.hashes())

    prompts, rejections = read_prompts(path, images=None, limit=None)
    items = list(there.stream())
    assert [replace(item, source="") for item in items if isinstance(item, Prompt)] == prompts
    of_pictures = [item for item in items if isinstance(item, Rejection)]
    assert of_pictures == [item for item in rejections if "image" in item.reason]
    assert len(of_pictures) == 4
    assert [item.id for item in items] == [item.id for item in local.stream()]
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", ""), "Ray Data's bars and logs are not for our screen"


def test_a_limit_and_a_part_are_the_same_on_the_cluster(
    folder: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_pieces(monkeypatch)
    path = str(write(folder, "p.jsonl"))
    local = PromptFile(path, images=None, limit=700)
    there = PromptFile(path, images=None, limit=700, reader=RayReader())
    assert (there.num, list(there.rejections())) == (700, list(local.rejections()))
    chosen = np.arange(400) % 3 == 1
    ids = [item.id for item in there.stream(start=600, num=400, chosen=chosen)]
    assert ids == [item.id for item in local.stream(start=600, num=400, chosen=chosen)]
    assert len(ids) == 133


def test_a_file_that_changed_is_the_users_error_also_in_a_task(tmp_path: Path, ray_session: None) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    path = write(tmp_path, "p.jsonl")
    there = PromptFile(str(path), images=None, limit=None, reader=RayReader())
    path.write_text(path.read_text()[:10_000])
    with pytest.raises(ConfigError, match=r"^data\.prompts = .*changed since it was first read; start again$"):
        list(there.stream())
    path.write_bytes(b"PAR1 not really")
    path = path.rename(tmp_path / "p.parquet")
    with pytest.raises(ConfigError, match=r"^data\.prompts = .*not readable as Parquet"):
        PromptFile(str(path), images=None, limit=None, reader=RayReader())


@pytest.fixture
def all_cpus_taken(ray_session: None) -> Iterator[None]:
    """Actors that hold every CPU there is, as generators, scorers and trainer do on a machine of the right size."""

    @ray.remote
    class Holder:
        def hold(self) -> None: ...

    actors = [Holder.options(num_cpus=1).remote() for _ in range(int(ray.cluster_resources()["CPU"]))]
    ray.get([actor.hold.remote() for actor in actors])
    deadline_s = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert not ray.available_resources().get("CPU", 0)
    yield
    for actor in actors:
        ray.kill(actor)


def test_prompts_are_read_where_actors_hold_every_cpu(folder: Path, all_cpus_taken: None) -> None:
    path = str(write(folder, "p.jsonl"))

    def read() -> bool:
        there = PromptFile(path, images=None, limit=None, reader=RayReader())
        return len(list(there.stream())) == there.num

    assert within(read, seconds=120)


def test_no_more_is_read_ahead_than_is_said(tmp_path: Path, ray_session: None) -> None:
    path, read = tmp_path / "p.jsonl", tmp_path / "read"
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    with path.open("w") as file:
        for number in range(40_000):
            file.write(f'{{"id": {number}, "image": "a.png", "prompt": "?"}}\n')

    def refuses(prompt: Prompt) -> None:
        """Notes that a row is read, in whatever process it is."""
        descriptor = os.open(read, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, b".")
        os.close(descriptor)

    there = PromptFile(str(path), images=None, limit=None, reader=RayReader(), refuses=refuses)
    read.unlink()
    stream = there.stream()
    assert [next(stream).id for _ in range(100)] == [str(number) for number in range(100)]
    size = -1
    while size != read.stat().st_size:  # until nothing more is read
        size = read.stat().st_size
        time.sleep(3)
    assert 512 <= size <= MOST_AHEAD
    assert [next(stream).id for _ in range(1000)][-1] == "1099"
    stream.close()


def test_what_is_read_is_handed_on_before_its_window_is_read_to_the_end(tmp_path: Path, ray_session: None) -> None:
    path, go = tmp_path / "p.jsonl", tmp_path / "go"
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    path.write_text("".join(f'{{"id": {number}, "image": "a.png", "prompt": "?"}}\n' for number in range(5000)))

    def refuses(prompt: Prompt) -> None:
        while int(prompt.id) > 2000 and not go.exists():
            time.sleep(0.05)

    go.touch()
    there = PromptFile(str(path), images=None, limit=None, reader=RayReader(), refuses=refuses)
    go.unlink()
    stream = there.stream()
    try:
        ids = within(lambda: [next(stream).id for _ in range(1500)], seconds=60)
        assert ids[-1] == "1499", "the second window has not been read to its end"
    finally:
        go.touch()
    assert len(list(stream)) == 3500


def test_a_bad_picture_is_set_aside_without_a_generator(tmp_path: Path, folder: Path, ray_session: None) -> None:
    path = str(write(folder, "p.jsonl"))
    config = tiny_config(tmp_path / "run", run={"unit": 16}, data={"prompts": path, "limit": 1000})
    run = RunFolder(tmp_path / "run")
    state = RunState(config=config, folder=run, journal=Journal(run.journal), model="m", versions={})
    generators = FakeGenerators(config)
    there = PromptFile(path, images=None, limit=1000, reader=RayReader())
    turn = Turn(state, there, cycle=state.cycles(0)[0])
    view = ConsoleView(num_rounds=1, console=Console(quiet=True))
    list(roll_out(state, turn, generators=generators, view=view))
    lines = [json.loads(line) for line in run.quarantine.read_text().splitlines()]
    assert {line["source"] for line in lines} == {"p.jsonl:6", "p.jsonl:906"}
    assert all("not an image" in line["reason"] for line in lines)
    assert len(generators.grown) == 998
    assert (0, "5") not in generators.grown
    again = Turn(state, there, cycle=state.cycles(0)[0])
    assert (again.num_to_do, list(again.to_do())) == (0, [])


def test_prompts_of_which_none_can_be_used_end_a_run_before_any_model_loads(tmp_path: Path) -> None:
    """The command itself, with a private Ray of its own that is there only to read."""
    world = cached_world(world_spec(World(quick=True, num_train_images=32, num_heldout_images=48)), progress=False)
    rows = [{"id": number, "image": "none.png", "prompt": ""} for number in range(3000)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "c.yaml").write_text(
        f"run: {{dir: {tmp_path / 'run'}}}\n"
        f"data: {{prompts: {tmp_path / 'p.jsonl'}, reader: ray}}\n"
        f"policy: {{model: {world / 'policy'}}}\n"
        f"scorer: {{model: {world / 'clip'}}}\n"
    )
    command = [sys.executable, "-m", "csr_ray", "run", str(tmp_path / "c.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith(
        f"csr-ray: data.prompts = {str(tmp_path / 'p.jsonl')!r}: no usable prompt (3000 set"
    )
    assert done.stderr.count("\n") == 1, "nor does Ray Data say anything"
    assert not list((tmp_path / "run" / "logs").glob("generator*"))
