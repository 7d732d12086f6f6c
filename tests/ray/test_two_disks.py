"""Two real nodes that share no disk: the train worker's node does not see the run's folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from two_disks import ROOT, TwoDisks, two_disks

from csr_ray.app.run import world_spec
from csr_ray.config.load import load_config
from csr_ray.world.build import cached_world

CONFIG = ROOT / "configs" / "tiny-world.yaml"
# Training asks for more CPUs than the driver's node has, so it is on the other.
HEAD_CPUS, CPUS = 2, 6
SMALL = (
    "run.rounds=2",
    "run.unit=4",
    "world.quick=true",
    "world.num_train_images=32",
    "world.num_heldout_images=48",
    "data.per_round=12",
    "eval.limit=8",
    "generators.kv_cache_gib=0.1",
    "train.batch_size=1",
    "train.epochs=3",
    "train.checkpoint_steps=2",
    f"train.cpus_per_worker={HEAD_CPUS + 1}",
)


class Start:
    """The program, started by its command."""

    def __init__(self, folder: Path, *, address: str, overrides: Sequence[str] = ()) -> None:
        self.log = folder.parent / f"screen_{time.monotonic_ns()}.txt"
        with self.log.open("w") as screen:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "csr_ray", "run", str(CONFIG), *SMALL, *overrides, f"run.dir={folder}"],
                cwd=ROOT,
                env={**os.environ, "RAY_ADDRESS": address, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
                stdout=screen,
                stderr=subprocess.STDOUT,
            )

    def wait_for(self, path: Path, *, within_s: float = 240.0) -> None:
        deadline_s = time.monotonic() + within_s
        while not path.exists():
            assert self.process.poll() is None and time.monotonic() < deadline_s, self.screen()
            time.sleep(0.02)

    def screen(self) -> str:
        return self.log.read_text()


def _kinds(journal: Path) -> list[str]:
    return [json.loads(line)["kind"] for line in journal.read_text().splitlines()] if journal.exists() else []


@pytest.mark.long
def test_a_train_worker_on_a_node_without_the_runs_folder(tmp_path: Path) -> None:
    hidden = tmp_path / "runs"
    hidden.mkdir()
    folder = hidden / "run"
    spec = world_spec(load_config(CONFIG, overrides=[*SMALL, f"run.dir={folder}"]).world)
    world = cached_world(spec, progress=False)
    shutil.copytree(world / "policy", hidden / "policy")
    with two_disks(hidden, head_cpus=HEAD_CPUS, cpus=CPUS, environment={"PYTHONPATH": str(ROOT)}) as nodes:
        started_s = time.monotonic()
        refused = Start(folder, address=nodes.address, overrides=[f"policy.model={hidden / 'policy'}"])
        assert refused.process.wait(timeout=100) == 2, refused.screen()
        print(f"refused after {time.monotonic() - started_s:.1f} s: {refused.screen()}")
        assert f"policy.model = '{hidden / 'policy'}': no such folder there; put the same folder" in refused.screen()
        assert not nodes.processes("ray::GeneratorActor") and not nodes.processes("ray::ScorerActor")
        shutil.rmtree(folder)

        first = Start(folder, address=nodes.address)
        first.wait_for(folder / "round_000" / "checkpoints" / "checkpoint-2")
        workers = nodes.processes("ray::RayTrainWorker")
        assert len(workers) == 1, "the train worker is not where it was to be"
        _look_where_helpers_are(nodes)
        workers[0].kill()
        workers[0].wait(timeout=10)
        assert (folder / "logs" / "train_worker_0.log").stat().st_size > 0, "what it said is lost with it"
        first.wait_for(folder / "round_001" / "candidates")
        assert "the group starts again (restart 1 of 3 in this cycle), from step" in first.screen()
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
        assert _kinds(folder / "journal.jsonl").count("train") == 1

        second = Start(folder, address=nodes.address)
        assert second.process.wait(timeout=400) == 0, second.screen()
        _look(folder, nodes)


@pytest.mark.long
def test_workers_on_two_disks_put_their_checkpoints_together(tiny_llava: Path, tmp_path: Path) -> None:
    """One worker sees the run's folder and the other does not; each writes its own part of the optimizer's state."""
    hidden = tmp_path / "runs"
    folder = hidden / "run"
    folder.mkdir(parents=True)
    path = f"{ROOT}:{ROOT / 'tests'}"
    with two_disks(hidden, head_cpus=2, cpus=2, environment={"PYTHONPATH": path}) as nodes:
        process = subprocess.Popen(
            [
                sys.executable,
                str(ROOT / "tests" / "train_on_two_disks.py"),
                nodes.address,
                str(tiny_llava),
                str(folder),
            ],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline_s = time.monotonic() + 200
        while not (folder / "killable").exists():
            assert process.poll() is None and time.monotonic() < deadline_s, process.communicate(timeout=30)
            time.sleep(0.05)
        (worker,) = nodes.processes("ray::RayTrainWorker")
        worker.kill()
        (folder / "killed").touch()
        out, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert nodes.files_there() == []
    said = json.loads(out.splitlines()[-1])
    print(said)
    assert said["resumed_from_step"] >= 1 and said["steps"] == [6, 6]
    assert said["gap"] < 1e-5 < said["largest"], "the same adapter as without the death"
    assert any("starts again (restart 1 of 3 in this cycle), from step" in line for line in said["notices"])


def _look_where_helpers_are(nodes: TwoDisks) -> None:
    """What asks for no CPU would keep a node from ever being idle, and an autoscaler from taking it away."""
    first, second = nodes.titles()
    assert first >= {"ray::MailboxActor", "ray::RegistryActor", "ray::TrainController", "ray::SynchronizationActor"}
    of_every_node = {"ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::IDLE"}
    workers = {"ray::RayTrainWorker", "ray::GeneratorActor", "ray::ScorerActor"}
    assert second <= workers | of_every_node, second
    assert "ray::PreemptionWatcher" not in first, "which node it sits on is chance"


def _look(folder: Path, nodes: TwoDisks) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    assert [entry["policy_version"] for entry in summary["rounds"]] == [1, 2]
    assert summary["rounds"][0]["train"]["metrics"]["resumed_from_step"] >= 2
    for entry in summary["rounds"]:
        assert entry["publish"]["max_probe_gap"] < 1e-3, "what was delivered is what was trained"
    assert nodes.files_there() == [], "the other node has made a folder of the run's name on its own disk"
