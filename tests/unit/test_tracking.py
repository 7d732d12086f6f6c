"""What a run's figures look like in each tracker, read back from its own store, and what a bad tracker costs."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import tiny_config, train_result
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from csr_ray.errors import ConfigError
from csr_ray.records import Cycle
from csr_ray.stages.state import RunState
from csr_ray.store.journal import Journal
from csr_ray.store.run_folder import RunFolder
from csr_ray.tracking import base, tracking
from csr_ray.tracking.base import Measured, TrackedRun, check_trackers, makers
from csr_ray.tracking.outlet import Outlet
from csr_ray.tracking.values import tracked_config

ROOT = Path(__file__).resolve().parents[2]
CYCLES = [Cycle(round_index=index, policy_version=index) for index in range(2)]
# What `whole_run` gives every tracker; all of these numbers are exact in float32.
LOSSES = [(1, 1.0), (2, 0.5), (3, 0.25), (4, 1.0), (5, 0.5), (6, 0.25)]
CHAIR = [(0, 0.5), (1, 0.25), (2, 0.125)]


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch) -> None:
    """Every tracker keeps what it gets in the run folder, and may ask nobody."""
    for name in ("MLFLOW_TRACKING_URI", "WANDB_API_KEY", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tracking, "_CLOSE_S", 60.0)  # they import for seconds where other tests run beside
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "logs" / "trackio"))


class Run:
    """One run folder; each `state` is a new start of it.

    Attributes:
        said: what the trackers have told the person.
    """

    def __init__(self, directory: Path, *, trackers: tuple[str, ...] = ()) -> None:
        self.folder = RunFolder(directory)
        self.config = tiny_config(directory, run={"trackers": trackers})
        self.said: list[str] = []

    def start(self, deeds: Callable[[RunState], None]) -> None:
        journal = Journal(self.folder.journal)
        state = RunState(config=self.config, folder=self.folder, journal=journal, model="model", versions={})
        with tracking.tracked(state, say=self.said.append) as state:
            deeds(state)

    def scalars(self) -> dict[str, list[tuple[int, float]]]:
        """What TensorBoard shows: of each tag its steps and values."""
        return tensorboard_scalars(self.folder.tracker("tensorboard"))


def tensorboard_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """In the order of their writing: TensorBoard reads its files by name, which starts with the second of the start.

    Two starts within one second, as only tests make them, are told apart by a count within the process, whose tenth
    file sorts before its ninth.
    """
    events = EventAccumulator(str(folder))
    events.Reload()
    written = {tag: sorted(events.Scalars(tag), key=lambda one: one.wall_time) for tag in events.Tags()["scalars"]}
    return {tag: [(one.step, one.value) for one in values] for tag, values in written.items()}


def evaluate_base(state: RunState) -> None:
    state.journal.commit("eval", version=0, metrics={"chair_s": 0.5}, seconds=1.0)


def train(state: RunState, cycle: Cycle, *, first: int = 1, last: int = 3, seconds: float = 7.0) -> None:
    """The steps of a training, and its line if it comes to its end (at step 3)."""
    for step in range(first, last + 1):
        metrics = {
            "learning_rate": 1e-3,
            "rewards/margins": 0.1 * step,
            "rewards/accuracies": 0.75,
            "loss": 2.0 ** (1 - step),
        }
        state.on_train_step(cycle, step, metrics)
    if last == 3:
        trained = train_result(adapter="-", version=cycle.policy_version + 1, num_steps=3, seconds=seconds)
        state.journal.commit("train", **cycle.key, **trained.to_plain(), files={})


def close_round(state: RunState, cycle: Cycle) -> None:
    version = cycle.policy_version + 1
    state.journal.commit("publish", **cycle.key, version=version, bytes=10, seconds=0.1, generators=1)
    state.journal.commit("eval", version=version, metrics={"chair_s": 0.5 / 2**version}, seconds=1.0 + version)
    state.journal.commit("round", round=cycle.round_index, wall_s=20.0 + version)


def whole_run(state: RunState) -> None:
    evaluate_base(state)
    for cycle in CYCLES:
        unit = {"unit": f"u{cycle.round_index}", "ids": ["a", "b"], "position": 0, "prompts": 2, "failed": 0}
        costs = {"nodes": 20, "seconds": 4.0, "tokens": 100, "sentences": 40, "texts_cut": 0}
        waits = {"rollout_s": 1.0, "score_wait_s": 0.2, "counters": {"engine_running": 3, "engine_slots": 4}}
        state.journal.commit("rollout", **cycle.key, **unit, **costs, **waits, files={})
        made = {"made": 2, "dropped": {"too short (2)": 1}, "chosen_reward": 61.5, "rejected_reward": 11.0}
        state.journal.commit("examples", **cycle.key, **made, rates={}, seconds=0.5, prompts=2, files={})
        train(state, cycle)
        close_round(state, cycle)


def test_tensorboard_has_every_step_and_every_version_without_being_asked_for(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.start(whole_run)
    scalars = run.scalars()
    assert scalars["train/loss"] == LOSSES
    assert [value for _, value in scalars["train/version"]] == [1, 1, 1, 2, 2, 2]
    assert scalars["train/rewards/margins"][2][1] == pytest.approx(0.3)
    assert {"train/rewards/accuracies", "train/learning_rate"} < scalars.keys()
    assert scalars["eval/chair_s"] == CHAIR
    assert scalars["rollout/tokens_per_s"] == [(1, 25.0), (2, 25.0)] and scalars["rollout/occupancy"][0] == (1, 0.75)
    assert scalars["pairs/made"] == [(1, 2.0), (2, 2.0)] and scalars["pairs/chosen_reward"][1] == (2, 61.5)
    assert scalars["pairs/dropped/too short _2_"] == [(1, 1.0), (2, 1.0)]
    assert scalars["training/seconds"] == [(1, 7.0), (2, 7.0)] and scalars["publish/bytes"] == [(1, 10.0), (2, 10.0)]
    assert scalars["round/seconds"] == [(1, 21.0), (2, 22.0)]
    assert run.said == []


def test_a_resumed_run_goes_on_and_logs_nothing_twice(tmp_path: Path) -> None:
    run = Run(tmp_path)

    def first(state: RunState) -> None:
        evaluate_base(state)
        train(state, CYCLES[0])
        close_round(state, CYCLES[0])
        train(state, CYCLES[1], last=2)

    def second(state: RunState) -> None:
        train(state, CYCLES[1], first=2)  # from the checkpoint of step 1
        close_round(state, CYCLES[1])

    run.start(first)
    run.start(second)
    run.start(lambda state: None)
    scalars = run.scalars()
    assert [step for step, _ in scalars["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in scalars["eval/chair_s"]] == [0, 1, 2]
    assert [step for step, _ in scalars["training/seconds"]] == [1, 2]
    assert run.said == []


def test_training_that_is_done_again_is_logged_again(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.start(lambda state: train(state, CYCLES[0]))
    run.start(lambda state: train(state, CYCLES[0], seconds=8.0))  # as after --redo
    assert [step for step, _ in run.scalars()["train/loss"]] == [1, 2, 3] * 2


def test_what_the_journal_has_is_logged_anew_where_tensorboards_files_are_gone(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.start(whole_run)
    for file in run.folder.tracker("tensorboard").iterdir():
        file.unlink()
    run.start(lambda state: None)
    scalars = run.scalars()
    assert [step for step, _ in scalars["eval/chair_s"]] == [0, 1, 2] and "train/loss" not in scalars
    assert len(run.said) == 1 and "logged anew" in run.said[0]


def test_a_tracker_that_comes_later_gets_what_the_journal_has(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="make install installs mlflow-skinny")
    Run(tmp_path).start(whole_run)
    run = Run(tmp_path, trackers=("mlflow",))
    run.start(lambda state: None)
    client = mlflow.MlflowClient(tracking_uri=run.folder.tracker("mlflow").as_uri())
    (found,) = client.search_runs([client.get_experiment_by_name("csr_ray").experiment_id])
    history = client.get_metric_history(found.info.run_id, "eval/chair_s")
    assert [(one.step, one.value) for one in history] == CHAIR


def test_mlflow_has_one_run_with_all_of_it_in_its_own_store(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="make install installs mlflow-skinny")
    run = Run(tmp_path, trackers=("mlflow",))
    run.start(whole_run)
    run.start(lambda state: None)
    assert run.said == []
    client = mlflow.MlflowClient(tracking_uri=run.folder.tracker("mlflow").as_uri())
    (found,) = client.search_runs([client.get_experiment_by_name("csr_ray").experiment_id])
    losses = client.get_metric_history(found.info.run_id, "train/loss")
    assert [(one.step, one.value) for one in losses] == LOSSES
    assert found.data.params["train.beta"] == "0.1" and found.info.status == "FINISHED"
    assert found.data.metrics["round/seconds"] == 22.0


def test_wandb_offline_writes_runs_of_one_id_that_its_own_reader_reads(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="make install installs wandb")
    run = Run(tmp_path, trackers=("wandb",))

    def first(state: RunState) -> None:
        evaluate_base(state)
        train(state, CYCLES[0])

    run.start(first)
    run.start(lambda state: close_round(state, CYCLES[0]))
    assert run.said == []
    files = sorted(run.folder.tracker("wandb").glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2 and len({file.name for file in files}) == 1, "both are the same run"
    until_s = time.monotonic() + 20
    while len(rows := [row for file in files for row in wandb_rows(file)]) < 8 and time.monotonic() < until_s:
        time.sleep(0.1)  # W&B's own process may still be writing when `finish` has returned
    assert [(row["train/step"], row["train/loss"]) for row in rows if "train/loss" in row] == LOSSES[:3]
    assert [(row["policy/version"], row["eval/chair_s"]) for row in rows if "eval/chair_s" in row] == CHAIR[:2]


def wandb_rows(file: Path) -> list[dict[str, float]]:
    """The history of an offline run: W&B's messages in a LevelDB log behind a header of seven bytes.

    W&B has no reader in Python any more (0.31); its sync reads the same file.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, message, rows = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, part = struct.unpack_from("<HB", data, at + 4)
        message += data[at + 7 : at + 7 + length]
        at += 7 + length
        if part in (1, 4):  # whole, or the last of several
            record = Record()
            record.ParseFromString(message)
            message = b""
            items = record.history.item
            rows += (
                [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}]
                if items
                else []
            )
    return rows


def test_trackio_has_one_run_with_all_of_it_in_its_own_database(tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="make install leaves it out, it wants an older Pillow (setup.cfg)")
    # In a process of its own: trackio reads where its database is when it is imported.
    code = """
import json, sys
from pathlib import Path
sys.path[:0] = ["tests", "tests/unit"]
from test_tracking import Run, whole_run
run = Run(Path(sys.argv[1]), trackers=("trackio",))
run.start(whole_run)
run.start(lambda state: None)
assert run.said == [], run.said
from trackio.sqlite_storage import SQLiteStorage
(name,) = SQLiteStorage.get_runs("csr_ray")
rows = SQLiteStorage.get_logs("csr_ray", name)
print(json.dumps([(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.strip().splitlines()[-1])
    assert sorted(map(tuple, rows)) == LOSSES


def test_the_config_is_tracked_without_the_secrets_of_its_urls(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    with_secret = config.data.model_copy(update={"prompts": "https://host/p.jsonl?token=abc"})
    plain = tracked_config(config.model_copy(update={"data": with_secret}))
    assert plain["data.prompts"] == "https://host/p.jsonl?token=***" and plain["train.beta"] == 0.1


def test_a_tracker_that_is_not_installed_is_refused_before_anything_starts(monkeypatch) -> None:
    monkeypatch.setitem(base._PACKAGES, "wandb", "no_such_package")
    with pytest.raises(ConfigError, match=r"run.trackers = \['wandb'\].*pip install 'csr_ray\[wandb\]'"):
        check_trackers(("wandb",))
    check_trackers(())


def test_wandb_without_a_key_is_a_line_and_asks_nobody(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("wandb", reason="make install installs wandb")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    run = Run(tmp_path, trackers=("wandb",))
    run.start(whole_run)
    assert len(run.said) == 1 and "tracker wandb: PermissionError: no key" in run.said[0]
    assert len(run.scalars()["train/loss"]) == 6, "the others go on"


class FakeTracker:
    """Fails or hangs at its so many-th value; remembers those before."""

    def __init__(self, *, fails_at: int | None = None, hangs_at: int | None = None) -> None:
        self.fails_at, self.hangs_at = fails_at, hangs_at
        self.got: list[Measured] = []
        self.asked = 0
        self.released = threading.Event()

    def begin(self, run: TrackedRun, *, known: str | None) -> str:
        return known or "new"

    def log(self, measured: Measured) -> None:
        self.asked += 1
        if self.asked == self.fails_at:
            raise OSError(28, "No space left on device", "https://me:secret@host/x")
        if self.asked == self.hangs_at:
            self.released.wait(30)
        self.got.append(measured)

    def close(self) -> None: ...


def outlet_of(tracker: FakeTracker, *, folder: Path, said: list[str]) -> Outlet:
    run = TrackedRun(name="run", config={}, folder=folder / "fake")
    return Outlet("fake", make=lambda: tracker, run=run, so_far=(), say=said.append)


def a_step(number: int) -> Measured:
    values = {"train/loss": 1.0}
    return Measured(key="", axis="train/step", at=number, values=values, version=1, step=number)


def test_a_tracker_that_fails_costs_one_line_and_is_not_asked_again(tmp_path: Path) -> None:
    tracker, said = FakeTracker(fails_at=2), list[str]()
    outlet = outlet_of(tracker, folder=tmp_path, said=said)
    for number in range(1, 6):
        outlet.offer(a_step(number))
        time.sleep(0.02)
    outlet.close(until_s=time.monotonic() + 5)
    assert tracker.asked == 2 and len(said) == 1
    assert "No space left" in said[0] and "secret" not in said[0]


def test_a_tracker_that_hangs_holds_up_nobody(tmp_path: Path) -> None:
    tracker, said = FakeTracker(hangs_at=1), list[str]()
    outlet = outlet_of(tracker, folder=tmp_path, said=said)
    started_s = time.monotonic()
    for number in range(1, 5000):
        outlet.offer(a_step(number))
    outlet.close(until_s=time.monotonic() + 0.2)
    assert time.monotonic() - started_s < 2 and len(said) == 1
    tracker.released.set()


def test_close_waits_for_what_is_left_but_not_for_ever(tmp_path: Path) -> None:
    tracker, said = FakeTracker(hangs_at=3), list[str]()
    outlet = outlet_of(tracker, folder=tmp_path, said=said)
    for number in range(1, 4):
        outlet.offer(a_step(number))
    outlet.close(until_s=time.monotonic() + 0.3)
    assert len(tracker.got) == 2 and "in time" in said[0]
    tracker.released.set()


def test_no_tracker_is_imported_before_it_is_made() -> None:
    names = ("wandb", "mlflow", "trackio", "tensorboard")
    code = f"import sys, csr_ray.tracking.tracking; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
    assert list(makers(("mlflow", "mlflow"))) == ["tensorboard", "mlflow"]


def test_steps_of_a_training_that_is_done_again_are_there_once_more_and_not_twice(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.start(lambda state: train(state, CYCLES[0]))

    def again(state: RunState) -> None:
        state.journal.again([{"what": "train", "round": 0, "phase": "main"}])
        train(state, CYCLES[0], last=2, seconds=8.0)

    run.start(again)
    run.start(lambda state: train(state, CYCLES[0], first=2, seconds=9.0))  # from the checkpoint behind step 1
    assert [step for step, _ in run.scalars()["train/loss"]] == [1, 2, 3, 1, 2, 3]


def test_what_a_tracker_has_been_given_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    run = Run(tmp_path)
    run.start(evaluate_base)
    state = run.folder.tracker("tensorboard").with_name("tensorboard.json")
    before = state.read_text()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    run.start(lambda state: train(state, CYCLES[0]))
    assert state.read_text() == before and len(run.said) == 1 and "No space left" in run.said[0]
    monkeypatch.undo()
    run.start(lambda state: None)
    assert run.scalars()["eval/chair_s"] == [(0, 0.5)]
