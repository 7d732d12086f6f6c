"""Files of a run on their way between the driver's disk and a node that does not see it."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import preference_pair

from actors.train import courier as module
from actors.train.checkpoints import CheckpointFolder, Progress, checkpoints_of
from actors.train.courier import Courier
from actors.train.desk import Desk, upload_of
from actors.train.reach import SharedDisk
from actors.train.token import Token
from csr_ray.errors import StorageError, TransferError
from csr_ray.store.tables import ExampleReader, Outcome, write_example_unit

TRAINING = "the training"


class NearDesk:
    """A desk that is asked without Ray. What it sends and is sent can be spoiled on the way.

    Attributes:
        asked: the methods that were called, in order.
        spoil: changes a chunk.
    """

    def __init__(self) -> None:
        self._desk = Desk()
        self.asked: list[str] = []
        self.spoil: Callable[[bytes], bytes] = lambda chunk: chunk

    def ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        self.asked.append(method)
        args = tuple(self.spoil(arg) if isinstance(arg, bytes) else arg for arg in args)
        answer = getattr(self._desk, method)(*args, **kwargs)
        return self.spoil(answer) if isinstance(answer, bytes) else answer

    def ask_each(self, method: str, calls: Iterable[tuple[tuple[Any, ...], dict[str, Any]]]) -> Iterator[Any]:
        for args, kwargs in calls:
            yield self.ask(method, *args, **kwargs)


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> NearDesk:
    monkeypatch.setattr(module, "_CHUNK_BYTES", 100)  # so that files have several chunks, and a shorter last one
    return NearDesk()


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    """The run's folder on the driver's disk."""
    folder = tmp_path / "driver" / "run"
    folder.mkdir(parents=True)
    return folder


def _courier(desk: NearDesk, tmp_path: Path, *, rank: int = 0, is_leader: bool = True, node: str = "a") -> Courier:
    room = tmp_path / f"node_{node}"
    room.mkdir(exist_ok=True)
    return Courier(desk, room=room, is_leader=is_leader, rank=rank)


def _write_adapter(folder: Path, *, seed: int = 0) -> dict[str, bytes]:
    rng = random.Random(seed)
    contents = {"adapter_config.json": b"{}", "adapter_model.safetensors": rng.randbytes(1234), "empty": b""}
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return contents


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _files(folder: Path) -> list[str]:
    return sorted(_contents(folder))


def test_an_earlier_adapter_is_fetched_once_a_node(desk: NearDesk, driver: Path, tmp_path: Path) -> None:
    contents = _write_adapter(driver / "round_000" / "adapter")
    wanted = str(driver / "round_000" / "adapter")
    paths = [
        _courier(desk, tmp_path, rank=rank, is_leader=leads, node=node).folder(wanted)
        for rank, leads, node in ((0, True, "a"), (1, False, "a"), (2, True, "b"), (0, True, "a"))
    ]
    assert desk.asked.count("listing") == 2
    assert paths[0] == paths[1] == paths[3] != paths[2]
    assert [_contents(Path(path)) for path in paths] == [contents] * 4


def test_workers_of_a_node_that_ask_at_once_get_it_whole(desk: NearDesk, driver: Path, tmp_path: Path) -> None:
    contents = _write_adapter(driver / "adapter")
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)

    def ask(rank: int) -> None:
        mine = _courier(desk, tmp_path, rank=rank, is_leader=rank == 0)
        barrier.wait()
        assert _contents(Path(mine.folder(str(driver / "adapter")))) == contents
        os._exit(desk.asked.count("listing"))

    processes = [context.Process(target=ask, args=(rank,)) for rank in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert sorted(process.exitcode or 0 for process in processes) == [0, 0, 1]


def test_what_is_trained_lies_in_its_place_once_it_is_delivered(desk: NearDesk, driver: Path, tmp_path: Path) -> None:
    mine, wanted = _courier(desk, tmp_path), driver / "round_000" / "adapter"
    contents = _write_adapter(Path(mine.target(str(wanted))))
    assert not wanted.exists()
    mine.deliver(str(wanted))
    assert _contents(wanted) == contents
    assert not upload_of(wanted).exists()


def test_the_trained_adapter_need_not_be_fetched_where_it_was_written(
    desk: NearDesk, driver: Path, tmp_path: Path
) -> None:
    mine, wanted = _courier(desk, tmp_path), driver / "round_000" / "adapter"
    written = mine.target(str(wanted))
    _write_adapter(Path(written))
    mine.deliver(str(wanted))
    assert mine.folder(str(wanted)) == written
    assert "read" not in desk.asked


@pytest.mark.parametrize(
    "spoil", [lambda chunk: chunk[:-1], lambda chunk: b"X" * len(chunk), lambda chunk: chunk + b"X"]
)
def test_what_does_not_arrive_as_it_was_sent_is_refused(
    desk: NearDesk, driver: Path, tmp_path: Path, spoil: Callable[[bytes], bytes]
) -> None:
    mine, wanted = _courier(desk, tmp_path), driver / "round_000" / "adapter"
    _write_adapter(Path(mine.target(str(wanted))))
    desk.spoil = spoil
    with pytest.raises(TransferError, match=r"adapter_model\.safetensors|adapter_config\.json"):
        mine.deliver(str(wanted))
    assert not wanted.exists(), "half an adapter has its name"

    _write_adapter(driver / "earlier")
    with pytest.raises(TransferError, match="earlier"):
        mine.folder(str(driver / "earlier"))
    desk.spoil = lambda chunk: chunk
    assert _contents(Path(mine.folder(str(driver / "earlier")))) == _contents(driver / "earlier")


def test_a_disk_of_the_driver_that_takes_nothing_is_told_as_such(
    desk: NearDesk, driver: Path, tmp_path: Path
) -> None:
    mine = _courier(desk, tmp_path)
    wanted = driver / "file" / "adapter"
    (driver / "file").write_text("in the way")
    _write_adapter(Path(mine.target(str(wanted))))
    with pytest.raises(StorageError, match="move away what stands in its place"):
        mine.deliver(str(wanted))


def test_files_of_examples_are_fetched_when_needed_and_do_not_pile_up(
    desk: NearDesk, driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FILES_KEPT", 3)
    mine = _courier(desk, tmp_path, rank=1, is_leader=False)
    paths = []
    for number in range(10):
        pair = preference_pair(id=f"pair-{number}", chosen_ids=(1, 2), rejected_ids=(3,))
        paths.append(str(driver / f"unit_{number}.parquet"))
        write_example_unit(Path(paths[-1]), examples=[pair], outcome=Outcome(made=1))
    reader = ExampleReader()
    order = [*range(10), 0, 0, 5, 5, 0]
    for number in order:
        assert reader.example(mine.examples(paths[number]), row=0).id == f"pair-{number}"
        assert len(_files(tmp_path / "node_a")) <= 3
    assert desk.asked.count("listing") == 12, "the files that were used last are there"
    mine.forget()
    assert _files(tmp_path / "node_a") == []
    assert ExampleReader().example(mine.examples(paths[4]), row=0).id == "pair-4", "the next cycle may have the same"


def _write_part(checkpoints: CheckpointFolder, *, rank: int, step: int, num_ranks: int) -> None:
    made = checkpoints.staging / f"checkpoint-{step}"
    made.mkdir(parents=True, exist_ok=True)
    (made / f"shard_{rank}.pt").write_bytes(random.Random(rank).randbytes(321))
    if rank == 0:
        (made / "state.json").write_text(f"{step} of {num_ranks}")


@pytest.mark.parametrize("nodes", ["aab", "-ab", "a-b", "ab-", "---"])
def test_a_checkpoint_of_workers_on_several_nodes_is_put_together_and_found_again(
    desk: NearDesk, driver: Path, tmp_path: Path, nodes: str
) -> None:
    """Each letter is a worker's node; `-` is one that sees the driver's disk."""
    adapter = driver / "round_000" / "adapter"

    def folders() -> list[CheckpointFolder]:
        found: list[CheckpointFolder] = []
        for rank, node in enumerate(nodes):
            if node == "-":
                found.append(SharedDisk().checkpoints(adapter))
            else:
                one = _courier(desk, tmp_path, rank=rank, is_leader=nodes.index(node) == rank, node=node)
                found.append(one.checkpoints(Path(one.target(str(adapter)))))
        return found

    checkpoints = folders()
    for step in (2, 4, 6):
        for rank, one in enumerate(checkpoints):
            one.begin(is_first=rank == 0)
        for rank, one in enumerate(checkpoints):
            with one.writing():
                _write_part(one, rank=rank, step=step, num_ranks=len(nodes))
        for one in checkpoints:
            one.hand_in()
        progress = Progress(training=TRAINING, step=step, is_growing=False, num_planned=9)
        checkpoints[0].commit(progress, example_keys=[bytes([at]) * 16 for at in range(step)])
    (newest, older) = CheckpointFolder(checkpoints_of(adapter)).whole(training=TRAINING)
    assert [newest.progress.step, older.progress.step] == [6, 4]
    assert {f"shard_{rank}.pt" for rank in range(len(nodes))} < set(_files(newest.path))
    assert not CheckpointFolder(checkpoints_of(adapter)).staging.exists()

    again = folders()
    (found, _) = again[0].whole(training=TRAINING)
    for rank, one in enumerate(again):
        here = one.here(found)
        assert _contents(here.path) == _contents(newest.path)
        assert here.example_keys() == newest.example_keys()
        assert (here.path == newest.path) == (nodes[rank] == "-")


def test_what_a_dead_group_has_left_half_delivered_gets_into_no_checkpoint(
    desk: NearDesk, driver: Path, tmp_path: Path
) -> None:
    adapter = driver / "adapter"
    left = CheckpointFolder(checkpoints_of(adapter)).staging / "checkpoint-2" / "shard_9.pt"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"of a worker that is no more")
    mine = _courier(desk, tmp_path)
    checkpoints = mine.checkpoints(Path(mine.target(str(adapter))))
    checkpoints.begin(is_first=True)
    _write_part(checkpoints, rank=0, step=2, num_ranks=1)
    checkpoints.hand_in()
    checkpoints.commit(Progress(training=TRAINING, step=2, is_growing=False, num_planned=9), example_keys=[])
    (found,) = CheckpointFolder(checkpoints_of(adapter)).whole(training=TRAINING)
    assert {name for name in _files(found.path) if name.startswith("shard")} == {"shard_0.pt"}


def test_a_checkpoint_that_was_not_delivered_whole_is_not_committed(
    desk: NearDesk, driver: Path, tmp_path: Path
) -> None:
    mine = _courier(desk, tmp_path)
    checkpoints = mine.checkpoints(Path(mine.target(str(driver / "adapter"))))
    checkpoints.begin(is_first=True)
    _write_part(checkpoints, rank=0, step=2, num_ranks=1)
    desk.spoil = lambda chunk: chunk[:-1]
    with pytest.raises(TransferError, match="shard_0"):
        checkpoints.hand_in()
    assert not CheckpointFolder(checkpoints_of(driver / "adapter")).whole(training=TRAINING)


def test_a_damaged_checkpoint_is_passed_over_and_said_where_training_goes_on(
    desk: NearDesk, driver: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = driver / "adapter"
    own = CheckpointFolder(checkpoints_of(adapter))
    for step in (1, 2):
        own.begin(is_first=True)
        _write_part(own, rank=0, step=step, num_ranks=1)
        own.commit(Progress(training=TRAINING, step=step, is_growing=False, num_planned=9), example_keys=[])
    (checkpoints_of(adapter) / "checkpoint-2" / "state.json").write_text("?")
    mine = _courier(desk, tmp_path)
    found = mine.checkpoints(Path(mine.target(str(adapter)))).whole(training=TRAINING)
    assert [one.progress.step for one in found] == [1]
    assert "checkpoint-2 is damaged" in caplog.text


def test_nothing_is_left_of_a_worker_that_ends(desk: NearDesk, driver: Path, tmp_path: Path) -> None:
    _write_adapter(driver / "adapter")
    mine = _courier(desk, tmp_path)
    mine.folder(str(driver / "adapter"))
    mine.close()
    assert not (tmp_path / "node_a").exists()


def test_a_token_is_seen_only_in_the_folder_that_it_was_left_in(tmp_path: Path) -> None:
    token = Token.leave(tmp_path / "logs")
    assert token.is_seen()
    assert [path.name for path in (tmp_path / "logs").iterdir()] == [Path(token.file).name], "the probe is removed"
    elsewhere = Token(file=str(tmp_path / "other" / Path(token.file).name), word=token.word)
    assert not elsewhere.is_seen(), "there is no such folder"
    (tmp_path / "other").mkdir()
    Path(elsewhere.file).write_text("another driver's")
    assert not elsewhere.is_seen(), "a folder of the same path on another machine"
    token.remove()
    assert not token.is_seen()


def test_a_folder_that_can_only_be_read_is_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = Token.leave(tmp_path)

    def refuse(_: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "touch", refuse)
    assert not token.is_seen()
