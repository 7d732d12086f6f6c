"""A run at a URL: the store has what a local folder would have, in its order, whatever dies or fails on the way."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from checked_runs import CheckedDriver
from fakes import FakeGenerators
from s3_server import Door, Trouble, s3_door
from url_runs import UrlDriver, fake_model, on_machine  # noqa: F401 - a fixture

from csr_ray.app import place as places
from csr_ray.app.place import folder_of, move_aside_at_url, take
from csr_ray.errors import ConfigError, DamageError, LockLost, StorageError
from csr_ray.store.journal import Journal
from csr_ray.store.mirror import Mirror
from csr_ray.store.objects import ObjectStore
from csr_ray.store.pieces import joined_chain, pieces_of
from csr_ray.store.units import unit_name

STEP = 1 if os.environ.get("CSR_RAY_LONG_TESTS") else 9
FINISHED = ([], "nothing: the run is finished")


@pytest.fixture(scope="module")
def one_door() -> Iterator[Door]:
    with s3_door() as one:
        yield one


@pytest.fixture
def door(one_door: Door, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    monkeypatch.setattr(FakeGenerators, "in_order", True)
    one_door.trouble = Trouble()
    yield one_door
    one_door.trouble = Trouble()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is away ends a run at once."""
    monkeypatch.setattr(places, "Mirror", functools.partial(Mirror, patience_s=0.2))


def url_of(folder: Path) -> str:
    return f"s3://bucket/{folder.name}/run"


def store_of(door: Door, folder: Path) -> ObjectStore:
    return door.store(f"{folder.name}/run")


def kept_files(store: ObjectStore) -> dict[str, bytes]:
    """What a run folder is for: candidates, pairs, adapters and the model."""
    names = [name for name in store.list() if name.startswith(("round_", "model/"))]
    return {name: store.read(name) or b"" for name in names}


def local_files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return {name: data for name, data in files.items() if name.startswith(("round_", "model/"))}


def test_a_run_at_a_url_leaves_there_what_a_local_one_leaves(door: Door, tmp_path: Path) -> None:
    local = CheckedDriver(tmp_path / "local", num_prompts=5, rounds=2)
    local.run(fail_ids=frozenset({"p1"}))
    run = UrlDriver(url_of(tmp_path), place=tmp_path)
    with on_machine(tmp_path / "a"):
        run.run_here(fail_ids=frozenset({"p1"}))
    store = store_of(door, tmp_path)
    assert kept_files(store) == local_files(local.folder.root), "the same bytes"
    names = set(store.list())
    assert {"config.yaml", "summary.json", "quarantine.jsonl", "journal.jsonl"} <= names
    assert not [name for name in names if any(part.startswith(".") for part in name.split("/"))]
    assert not [name for name in names if "/examples/" in name], "what is temporary never appears there"
    assert store.read("journal.jsonl") == run.folder.journal.read_bytes()
    report = run.check()
    assert (report.damage, report.next) == FINISHED and not report.notes
    assert run.said_lines == []


def test_no_line_is_there_before_its_files_however_long_they_take(door: Door, tmp_path: Path) -> None:
    run = UrlDriver(url_of(tmp_path), place=tmp_path, num_prompts=6, rounds=1)
    store = store_of(door, tmp_path)
    last = "unit_" + unit_name(["p2", "p3"])
    run.before_work = lambda: setattr(door, "trouble", Trouble(refuses=lambda path: last in path))
    with on_machine(tmp_path / "a"), ThreadPoolExecutor(1) as pool:
        running = pool.submit(run.run_here)
        wait_until(lambda: len([name for name in store.list() if "candidates" in name]) == 2, "the others' files")
        wait_until(lambda: "round_000/pairs.parquet" in store.list(), "a later line's file")
        time.sleep(0.5)
        pieces = [store.read(name) or b"" for name in store.list() if name.startswith("journal/")]
        door.trouble = Trouble()
        running.result()
    lines = [json.loads(line) for piece in pieces for line in piece.splitlines()[1:]]
    behind = "nothing behind the line whose file is not there"
    assert [line.get("ids", line["kind"]) for line in lines] == ["probe", ["p0", "p1"]], behind
    assert (run.check().damage, run.check().next) == FINISHED


def test_a_rejection_is_in_the_quarantine_before_a_line_speaks_of_it(door: Door, tmp_path: Path) -> None:
    run = UrlDriver(url_of(tmp_path), place=tmp_path, num_prompts=6, rounds=1)
    store = store_of(door, tmp_path)
    run.before_work = lambda: setattr(door, "trouble", Trouble(refuses=lambda path: "quarantine" in path))
    with on_machine(tmp_path / "a"), ThreadPoolExecutor(1) as pool:
        running = pool.submit(run.run_here, fail_ids=frozenset({"p3"}))
        wait_until(lambda: "round_000/pairs.parquet" in store.list(), "a later line's file")
        time.sleep(0.5)
        pieces = [store.read(name) or b"" for name in store.list() if name.startswith("journal/")]
        door.trouble = Trouble()
        running.result()
    assert b'"rejected": [{' not in b"".join(pieces)
    assert (run.check().damage, run.check().next) == FINISHED


def test_another_machine_goes_on_wherever_the_first_one_died(door: Door, tmp_path: Path, impatient: None) -> None:
    """The first start's machine is gone at its Nth request, for every N; what the store has by then is sound."""
    whole = UrlDriver(url_of(tmp_path / "whole"), place=tmp_path, num_prompts=3, rounds=1)
    before = sum(door.trouble.seen.values())
    with on_machine(tmp_path / "whole"):
        whole.run_here(fail_ids=frozenset({"p1"}))
    num_requests = sum(door.trouble.seen.values()) - before
    expected = kept_files(store_of(door, tmp_path / "whole"))
    num_resumed = 0
    for last in range(12, num_requests, STEP):
        place = tmp_path / f"run{last}"
        place.mkdir()
        run = UrlDriver(url_of(place), place=place, num_prompts=3, rounds=1)
        door.trouble = Trouble(away_after=last)
        with on_machine(place / "a"):
            try:
                run.run_here(fail_ids=frozenset({"p1"}))
            except (StorageError, ConfigError):
                num_resumed += 1
        door.trouble = Trouble()
        run.bury()
        if any(name.startswith("journal/") for name in store_of(door, place).list()):
            assert run.check().damage == [], last
        with on_machine(place / "b"):
            run.run_here(fail_ids=frozenset({"p1"}))
        report = run.check()
        assert (report.damage, report.next) == FINISHED, last
        assert kept_files(store_of(door, place)) == expected, last
    assert num_resumed > 2


def test_the_work_goes_on_while_the_store_is_away_and_is_sent_by_the_next_start(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "Mirror", functools.partial(Mirror, patience_s=2.0))
    monkeypatch.setattr("csr_ray.store.mirror._SAY_AFTER_S", 0.3)
    run = UrlDriver(url_of(tmp_path), place=tmp_path, num_prompts=40, rounds=1)
    grown: list[str] = []

    def grow(generators: FakeGenerators, prompt, *, cycle):
        if len(grown) == 8 and not run.said_lines:
            door.trouble = Trouble(away=True)
        grown.append(prompt.id)
        time.sleep(0.15 if door.trouble.away else 0.0)
        return real(generators, prompt, cycle=cycle)

    real = FakeGenerators._rollout
    monkeypatch.setattr(FakeGenerators, "_rollout", grow)
    with on_machine(tmp_path / "a"):
        gone = r"run\.dir = 's3://.*not taken anything for 2 s.*are kept in .*same command"
        with pytest.raises(StorageError, match=gone):
            run.run_here()
        assert len(grown) > 12, "it went on for the seconds that the store was away"
        assert "cannot be reached" in run.said_lines[0] and "work goes on" in run.said_lines[0]
        num_lines = len(run.folder.journal.read_bytes().splitlines())
        door.trouble = Trouble()
        run.bury()
        kept = [id for line in run.folder.journal.read_bytes().splitlines() for id in json.loads(line).get("ids", ())]
        del grown[:]
        run.run_here()
        assert not set(kept) & set(grown), "what was held back is done"
    assert len(kept) > 8 and num_lines > 3
    assert (run.check().damage, run.check().next) == FINISHED


def test_of_two_machines_that_both_went_on_the_url_has_the_run(door: Door, tmp_path: Path, impatient: None) -> None:
    run = UrlDriver(url_of(tmp_path), place=tmp_path, num_prompts=6, rounds=1)
    with on_machine(tmp_path / "a"), pytest.raises(KeyboardInterrupt):
        run.run_here(stop_after=2)
    run.before_work = lambda: setattr(door, "trouble", Trouble(away=True))
    with on_machine(tmp_path / "a"):  # it does a little more, of which nothing arrives
        with pytest.raises((StorageError, KeyboardInterrupt)):
            run.run_here(stop_after=2)
        run.before_work = lambda: None
        door.trouble = Trouble()
        ahead = run.folder.journal.read_bytes()
    run.bury()
    with on_machine(tmp_path / "b"):
        run.run_here()
    with on_machine(tmp_path / "a"):
        run.said_lines.clear()
        run.run_here()
        aside = list((tmp_path / "a" / "runs").glob("run-*.*"))
    assert [folder.joinpath("journal.jsonl").read_bytes() for folder in aside] == [ahead]
    assert "another machine has gone on" in run.said_lines[0] and str(aside[0]) in run.said_lines[0]
    assert (run.check().damage, run.check().next) == FINISHED


def test_a_second_start_is_refused_while_the_first_is_at_work(door: Door, tmp_path: Path) -> None:
    run = UrlDriver(url_of(tmp_path), place=tmp_path)
    with on_machine(tmp_path / "a"):
        first = take(folder_of(run.url), say=lambda line: None)
    with on_machine(tmp_path / "b"), pytest.raises(ConfigError, match=r"run\.dir = 's3://.*in use by .*pid"):
        run.run_here()
    first.release()
    assert not store_of(door, tmp_path).list(), "nothing was begun, and nothing stays"


def test_of_two_drivers_that_both_believe_in_their_lock_one_writes_a_line(door: Door, tmp_path: Path) -> None:
    run = UrlDriver(url_of(tmp_path), place=tmp_path, num_prompts=4, rounds=1)
    with on_machine(tmp_path / "a"):
        slept = take(folder_of(run.url), say=lambda line: None)
        journal = Journal(folder_of(run.url).journal)
        slept.follow(journal)
        folder_of(run.url).config.write_text("method: csr")
        journal.commit("model", name="model", revision=None)
        wait_for_lines(store_of(door, tmp_path))
    run.bury()
    with on_machine(tmp_path / "b"):
        other = take(folder_of(run.url), say=lambda line: None)
        others = Journal(folder_of(run.url).journal)
        other.follow(others)
        others.commit("start", seconds=2.0)
        wait_for_lines(store_of(door, tmp_path), num=2)
    journal.commit("start", seconds=1.0)
    with pytest.raises(LockLost, match="another driver has written line 1 of the journal"):
        slept.settle(wait_s=None)
    with pytest.raises(LockLost):
        slept.check()
    slept.release()
    other.settle(wait_s=None)
    other.release()
    assert store_of(door, tmp_path).read("journal.jsonl") == others.path.read_bytes()


def test_files_of_a_driver_whose_lock_may_be_anothers_wait_for_a_look_at_it(door: Door, tmp_path: Path) -> None:
    run = UrlDriver(url_of(tmp_path), place=tmp_path, num_prompts=4, rounds=1)
    with on_machine(tmp_path / "a"):
        slept = take(folder_of(run.url), say=lambda line: None)
        folder = folder_of(run.url)
    run.bury()
    with on_machine(tmp_path / "b"):
        run.run_here()
    store = store_of(door, tmp_path)
    before = kept_files(store)
    slept._lock._renewed_s = -1e9  # type: ignore[attr-defined]
    name = next(name for name in before if "candidates" in name)
    (folder.root / name).parent.mkdir(parents=True)
    (folder.root / name).write_bytes(b"another's")
    journal = Journal(folder.journal)
    slept.follow(journal)
    journal.commit("rollout", round=0, phase="main", unit="u", ids=[], files={name: {"bytes": 9, "xxh3": "0" * 32}})
    with pytest.raises(LockLost, match="is now gone"):
        slept.settle(wait_s=None)
    slept.release()
    assert kept_files(store) == before


@pytest.mark.parametrize("seed", range(4))
def test_a_store_in_trouble_loses_nothing(door: Door, tmp_path: Path, seed: int) -> None:
    local = CheckedDriver(tmp_path / "local", num_prompts=15, rounds=2)
    local.run()
    run = UrlDriver(url_of(tmp_path), place=tmp_path, num_prompts=15, rounds=2)
    trouble = Trouble(seed=seed, refused=0.12, dropped=0.12, lost=0.12, delayed=0.1)
    run.before_work = lambda: setattr(door, "trouble", trouble)  # before that it is one line and another exit
    with on_machine(tmp_path / "a"):
        folder = folder_of(run.url)
        run.run_here()
    assert sum(trouble.seen[kind] for kind in ("refused", "dropped", "lost")) > 3
    door.trouble = Trouble()
    assert (run.check().damage, run.check().next) == FINISHED
    assert kept_files(store_of(door, tmp_path)) == local_files(local.folder.root)
    assert folder.journal.read_bytes() == store_of(door, tmp_path).read("journal.jsonl")


def wait_for_lines(store: ObjectStore, num: int = 1) -> None:
    until_s = time.monotonic() + 20
    while sum(name.startswith("journal/") for name in store.list()) < num:
        assert time.monotonic() < until_s, "no line arrives"
        time.sleep(0.02)


def test_a_commit_costs_the_same_however_long_the_journal_is_and_never_waits(door: Door, tmp_path: Path) -> None:
    with on_machine(tmp_path / "a"):
        folder = folder_of(url_of(tmp_path))
        place = take(folder, say=lambda line: None)
        folder.config.write_text("method: csr")
        journal = Journal(folder.journal)
        place.follow(journal)
        door.trouble = Trouble(delayed=1.0, delay_s=0.05)
        longest_s = 0.0
        for number in range(2500):
            started_s = time.perf_counter()
            journal.commit("start", seconds=float(number))
            longest_s = max(longest_s, time.perf_counter() - started_s)
        seen = door.trouble.seen.copy()
        assert place._mirror.num_waiting > 0 and longest_s < 1.0  # type: ignore[attr-defined]
        door.trouble = Trouble()
        wait_until(lambda: place._mirror.num_waiting == 0, "all is there")  # type: ignore[attr-defined]
        wait_until(lambda: joined_chain(pieces_of(store_of(door, tmp_path).list())), "segments are joined meanwhile")
        place.settle(wait_s=None)
        place.release()
    assert seen["PUT object"] < 200, "lines that have gathered travel together"
    names = store_of(door, tmp_path).list()
    pieces = pieces_of(names)
    assert joined_chain(pieces)[-1].end == 2500 and len(pieces) <= 4
    with on_machine(tmp_path / "b"):
        again = take(folder_of(url_of(tmp_path)), say=lambda line: None)
        assert Journal(folder_of(url_of(tmp_path)).journal).num_lines == 2500
        again.release()


def test_what_no_line_names_follows_and_goes_when_it_is_gone(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "Mirror", functools.partial(Mirror, sweep_every_s=0.05))
    with on_machine(tmp_path / "a"):
        folder = folder_of(url_of(tmp_path))
        place = take(folder, say=lambda line: None)
        journal = Journal(folder.journal)
        place.follow(journal)
        files = {
            folder.config: "method: csr",
            folder.answers(0): "an answer\n",
            folder.judge_replies: "paid\n",
            folder.progress: "{}",
            folder.pool_events: "{}\n",
            folder.round(0) / "checkpoints" / "checkpoint-2" / "state.bin": "state",
            folder.round(0) / "second" / "checkpoints" / "checkpoint-2" / "state.bin": "state",
        }
        kept_here = [folder.round(0) / "examples" / "unit_1.parquet", folder.root / ".summary.json.abcdefgh"]
        kept_here += [folder.round(0) / "checkpoints" / ".staging" / "half.bin", folder.root / "notes.txt"]
        for path, text in {**files, **dict.fromkeys(kept_here, "x")}.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        journal.commit("model", name="model", revision=None)
        store = store_of(door, tmp_path)
        names = {path.relative_to(folder.root).as_posix() for path in files}
        wait_until(lambda: names <= set(store.list()), "they are there")
        folder.answers(0).write_text("an answer\nanother\n")
        wait_until(lambda: store.read("eval/version_000.jsonl") == b"an answer\nanother\n", "it has changed there")
        folder.answers(0).unlink()
        wait_until(lambda: "eval/version_000.jsonl" not in store.list(), "it is gone there")
        folder.logs.mkdir(exist_ok=True)
        folder.driver_log.write_text("said")
        (folder.logs / "train" / "rank_0").mkdir(parents=True)
        (folder.logs / "train" / "rank_0" / "worker.log").write_text("said, too")
        place.settle(wait_s=None)
        place.release()
        assert store.read("logs/driver.log") == b"said"
        assert store.read("logs/train/rank_0/worker.log") == b"said, too"
        left = {path.relative_to(folder.root).as_posix() for path in kept_here}
        assert not left & set(store.list())
    with on_machine(tmp_path / "b"):
        place = take(folder_of(url_of(tmp_path)), say=lambda line: None)
        there = folder_of(url_of(tmp_path)).round(0) / "second" / "checkpoints" / "checkpoint-2" / "state.bin"
        assert there.read_text() == "state"
        assert folder_of(url_of(tmp_path)).judge_replies.read_text() == "paid\n", "nothing is paid for twice"
        place.release()


def wait_until(true: object, what: str) -> None:
    until_s = time.monotonic() + 20
    while not true():  # type: ignore[operator]
        assert time.monotonic() < until_s, f"not yet: {what}"
        time.sleep(0.02)


def test_what_is_wrong_on_this_machine_is_not_waited_for(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(mirror: Mirror) -> None:
        raise PermissionError(13, "Permission denied", "a file of the copy")

    monkeypatch.setattr(Mirror, "_put_whole", fails)
    run = UrlDriver(url_of(tmp_path), place=tmp_path, rounds=1)
    with on_machine(tmp_path / "a"), pytest.raises(StorageError) as error:
        run.run_here()
    said = str(error.value)
    assert "PermissionError: [Errno 13] Permission denied: 'a file of the copy'" in said and "\n" not in said


def test_a_copy_of_a_run_that_was_removed_at_its_url_is_no_beginning_of_a_new_one(door: Door, tmp_path: Path) -> None:
    run = UrlDriver(url_of(tmp_path), place=tmp_path, rounds=1)
    with on_machine(tmp_path / "a"):
        run.run_here()
        store = store_of(door, tmp_path)
        store.remove(store.list())
        run.run_here()
        assert len(run.generators.grown) == 5, "everything is rolled out anew"
    assert "nothing is there any more" in run.said_lines[0]
    assert (run.check().damage, run.check().next) == FINISHED


def test_a_run_folder_that_was_copied_there_goes_on_there(door: Door, tmp_path: Path) -> None:
    local = CheckedDriver(tmp_path / "local", num_prompts=5, rounds=2)
    with pytest.raises(KeyboardInterrupt):
        local.run(stop_after=7)
    store = store_of(door, tmp_path)
    for path in local.folder.root.rglob("*"):
        if path.is_file():
            store.upload(path, name=path.relative_to(local.folder.root).as_posix())
    run = UrlDriver(url_of(tmp_path), place=tmp_path)
    with on_machine(tmp_path / "a"):
        run.run_here()
        assert 0 < len(run.generators.grown) < 5
    assert (run.check().damage, run.check().next) == FINISHED


def test_a_damaged_line_at_the_url_is_one_line(door: Door, tmp_path: Path) -> None:
    run = UrlDriver(url_of(tmp_path), place=tmp_path, rounds=1)
    with on_machine(tmp_path / "a"):
        run.run_here()
    store = store_of(door, tmp_path)
    name = next(piece.name for piece in pieces_of(store.list()) if piece.first == 0)
    store.write(name, (store.read(name) or b"").replace(b'"kind": "rollout"', b'"kind": "rallout"', 1))
    with on_machine(tmp_path / "b"), pytest.raises(DamageError) as error:
        run.run_here()
    said = str(error.value)
    assert said.startswith(f"{run.url}/journal, line ") and "--fresh" in said and "\n" not in said


def test_work_without_a_journal_is_not_written_over(door: Door, tmp_path: Path) -> None:
    run = UrlDriver(url_of(tmp_path), place=tmp_path, num_prompts=20, rounds=1)
    with on_machine(tmp_path / "a"):
        run.run_here()
    store = store_of(door, tmp_path)
    store.remove([name for name in store.list() if name.startswith("journal")])
    with (
        on_machine(tmp_path / "b"),
        pytest.raises(DamageError, match=r"journal is not there, but there are 11 files"),
    ):
        run.run_here()
    with on_machine(tmp_path / "a"):
        run.run_here()
    assert (run.check().damage, run.check().next) == FINISHED, "the copy has it still"


def test_files_that_are_damaged_or_gone_here_come_from_the_url(door: Door, tmp_path: Path) -> None:
    run = UrlDriver(url_of(tmp_path), place=tmp_path)
    with on_machine(tmp_path / "a"):
        with pytest.raises(KeyboardInterrupt):
            run.run_here(stop_after=8)
        units = sorted(run.folder.root.glob("round_000/candidates/*.parquet"))
        units[0].unlink()
        units[1].write_bytes(b"other bytes")
        run.run_here()
        assert all(index == 1 for index, _ in run.generators.grown), "nothing of the first round is done again"
    assert run.said_lines == []


def test_fresh_moves_the_run_to_another_folder_of_the_bucket(door: Door, tmp_path: Path) -> None:
    run = UrlDriver(url_of(tmp_path), place=tmp_path)
    said: list[str] = []
    with on_machine(tmp_path / "a"):
        run.run_here()
        before = kept_files(store_of(door, tmp_path))
        move_aside_at_url(folder_of(run.url), say=said.append)
        (target,) = (line.removeprefix("the earlier run is now ") for line in said)
        assert target.startswith(f"{run.url}.20")
        assert kept_files(store_of(door, tmp_path).sibling(target)) == before
        assert not kept_files(store_of(door, tmp_path))
        run.run_here()
        assert len(run.generators.grown) == 10, "nothing is known of the earlier run"
    run.url = target
    assert (run.check().damage, run.check().next) == FINISHED


def test_a_store_that_knows_no_conditions_is_refused(door: Door, tmp_path: Path) -> None:
    door.trouble = Trouble(forgets_conditions=True)
    with on_machine(tmp_path / "a"), pytest.raises(ConfigError, match=r"run\.dir = .*If-None-Match.*name a folder"):
        UrlDriver(url_of(tmp_path), place=tmp_path).run_here()
    assert not store_of(door, tmp_path).list()


def test_a_first_write_that_is_sent_twice_is_not_held_against_the_store(door: Door, tmp_path: Path) -> None:
    """The answer to a write may be lost; the driver's second one then finds what the first has written."""

    door.trouble = trouble = Trouble(loses=lambda method, path: method == "PUT" and not trouble.seen["PUT object"])
    run = UrlDriver(url_of(tmp_path), place=tmp_path)
    with on_machine(tmp_path / "a"):
        run.run_here()
    assert trouble.seen["lost"] == 1
    assert (run.check().damage, run.check().next) == FINISHED


def test_what_was_refused_at_the_end_of_a_run_is_gone_there_and_comes_back_to_no_machine(
    door: Door, tmp_path: Path
) -> None:
    run = UrlDriver(url_of(tmp_path), place=tmp_path, num_prompts=9, unit=9)
    run.config = run.config.model_copy(update={"gate": run.config.gate.model_copy(update={"retries": 0})})
    run.health = staticmethod(lambda version, scale: (20.0, 10) if version == 2 else (50.0, 10))
    with on_machine(tmp_path / "a"):
        assert run.run_here()["ended"]["round"] == 1
        kept = local_files(run.folder.root)
    assert kept_files(store_of(door, tmp_path)) == kept
    assert not [name for name in kept if name.startswith("round_001/adapter")]
    with on_machine(tmp_path / "b"):
        run.run_here()
        assert local_files(run.folder.root) == kept
