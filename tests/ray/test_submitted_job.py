"""`ray job submit` to a head that wants a token: refused without, stopped with grace, resumed by the same command."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from heads import ROOT, Head

from csr_ray.app.run import world_spec
from csr_ray.config.load import load_config
from csr_ray.store.run_folder import RunFolder
from csr_ray.world.build import cached_world

CONFIG = ROOT / "configs" / "tiny-world.yaml"
SMALL = (
    *("run.rounds=1", "run.unit=4", "world.quick=true", "world.num_train_images=48", "world.num_heldout_images=48"),
    *("data.per_round=48", "eval.limit=2", "generators.in_flight=3", "run.dir=runs/small"),
)
NUM_PROMPTS = 48
RAY = str(Path(sys.executable).parent / "ray")


class Jobs:
    """Jobs on a head, submitted from a folder that holds nothing but a config, as to an image with csr_ray in it."""

    def __init__(self, folder: Path) -> None:
        self.runs = folder / "runs_of_jobs"
        self._submitted = folder / "submitted"
        self._submitted.mkdir()
        (self._submitted / "mine.yaml").write_text(CONFIG.read_text())
        self._token = secrets.token_hex(16)
        self.head = Head(
            num_cpus=4,
            dashboard=True,
            environment={
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": self._token,
                "CSR_RAY_RUNS": str(self.runs),
                "PYTHONPATH": str(ROOT),
            },
        )

    def ray(self, *command: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [RAY, "job", *command],
            env={
                **self.head.environment,
                "RAY_AUTH_TOKEN": self._token if token is None else token,
                "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{self.head.dashboard_port}",
            },
            cwd=self._submitted,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def submit(self, name: str, *overrides: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
        """As cluster/README.md has it: it stops with all of its grace."""
        wait = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}})
        command = ["python", "-m", "csr_ray", "run", "mine.yaml", *SMALL, *overrides]
        options = ["--submission-id", name, "--no-wait", "--working-dir", ".", "--runtime-env-json", wait]
        return self.ray("submit", *options, "--", *command, token=token)

    def wait(self, name: str) -> tuple[str, str]:
        """How it ended, and its log."""
        until_s = time.monotonic() + 400
        while True:
            said = self.ray("status", name).stdout
            ended = re.search(r"Job '.*' (succeeded|failed|was stopped)|Status for job '.*': (\w+)", said)
            state = next((word for word in ended.groups() if word), "") if ended else ""
            if state in ("succeeded", "failed", "was stopped", "SUCCEEDED", "FAILED", "STOPPED"):
                return said, self.ray("logs", name).stdout
            assert time.monotonic() < until_s, said
            time.sleep(1)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    cached_world(world_spec(load_config(CONFIG, overrides=list(SMALL)).world), progress=False)
    made = Jobs(tmp_path_factory.mktemp("jobs"))
    yield made
    made.head.close()


def test_who_has_no_token_or_another_is_refused(jobs: Jobs) -> None:
    for token in ("", "not-the-token"):
        refused = jobs.submit("refused", token=token)
        said = refused.stdout + refused.stderr
        assert refused.returncode and "token" in said.lower(), said[-2000:]


def test_a_job_is_stopped_with_grace_and_the_same_command_goes_on(jobs: Jobs) -> None:
    folder = RunFolder(jobs.runs / "runs/small")
    submitted_s = time.monotonic()
    assert jobs.submit("first").returncode == 0
    while not (folder.journal.exists() and b'"kind": "rollout"' in folder.journal.read_bytes()):
        assert time.monotonic() - submitted_s < 300, jobs.ray("logs", "first").stdout
        time.sleep(0.2)
    first_s = time.monotonic() - submitted_s
    assert jobs.ray("stop", "first").returncode == 0
    said, log = jobs.wait("first")
    assert "stopped" in said.lower(), said
    first_line = log.partition("Running entrypoint")[2].splitlines()[1]
    assert f"run folder: {folder.root}" in first_line and "CSR_RAY_RUNS" in first_line, log
    assert "stopped by SIGTERM" in log and "The same command goes on" in log, log
    assert "Traceback" not in log
    kept = prompt_ids(folder)
    assert 0 < len(kept) < NUM_PROMPTS and not folder.lock.exists()

    assert jobs.submit("second").returncode == 0
    said, log = jobs.wait("second")
    assert "succeeded" in said.lower(), said + log
    ids = prompt_ids(folder)
    assert ids[: len(kept)] == kept and len(ids) == len(set(ids)) == NUM_PROMPTS
    assert json.loads(folder.summary.read_text())["finished"]
    print(log)
    print(f"{first_s:.1f} s from submit to the first committed unit, {len(kept)} prompts kept at the stop")


def test_the_jobs_end_is_the_runs_end(jobs: Jobs) -> None:
    assert jobs.submit("wrong", "train.beta=-1").returncode == 0
    said, log = jobs.wait("wrong")
    assert "exit code 2" in said, said
    assert "train.beta = -1" in log and "Traceback" not in log


def prompt_ids(folder: RunFolder) -> list[str]:
    return [one for line in folder.journal.read_text().splitlines() for one in json.loads(line).get("ids", ())]
