"""`ray job submit` to a head that wants a token: refused without, stopped with grace, resumed by the same command.

The head's agent is asked for the run's metrics meanwhile, while a generator is killed and a picture cannot be read.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dashboard import queries, selectors
from heads import ROOT, Head
from prometheus_client.parser import text_string_to_metric_families

from csr_ray.app.run import world_spec
from csr_ray.config.load import load_config
from csr_ray.metrics import CATALOGUE, RAY_LABELS
from csr_ray.store.run_folder import RunFolder
from csr_ray.world.build import cached_world

CONFIG = ROOT / "configs" / "tiny-world.yaml"
SMALL = (
    *("run.rounds=1", "run.unit=4", "world.quick=true", "world.num_train_images=48", "world.num_heldout_images=48"),
    *("data.per_round=48", "eval.limit=2", "generators.in_flight=3", "run.dir=runs/small"),
)
NUM_PROMPTS = 48
KEPT_LABELS = {"WorkerId", *(label for metric in CATALOGUE.values() for label in metric.tag_keys)}
# What this run gives no reason for; all else is exported by any run, or provoked here.
NOT_PROVOKED = {
    "csr_ray_engine_waiting_total",
    "csr_ray_engine_preemptions_total",
    "csr_ray_continuation_misses_total",
    "csr_ray_groups_redone_total",
    "csr_ray_examples_dropped_total",
    "csr_ray_texts_cut_total",
    # Of journals without lines of what was used of the cluster, and of GPUs.
    "csr_ray_gpu_seconds",
    "csr_ray_cpu_seconds",
    "csr_ray_actor_seconds",
    "csr_ray_actor_busy_seconds",
    "csr_ray_cost_usd",
}
RAY = str(Path(sys.executable).parent / "ray")


class Jobs:
    """Jobs on a head, submitted from a folder that holds nothing but a config, as to an image with csr_ray in it."""

    def __init__(self, folder: Path, *, cache: Path) -> None:
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
                "CSR_RAY_CACHE": str(cache),
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


class Scrapes:
    """Asks a head's agent for its metrics every few seconds, as Prometheus does, and keeps what it ever said.

    Attributes:
        labels: by name of a metric of csr_ray's, those of its samples.
        values: the last of each sample, by name and our labels, and by Ray's `WorkerId` of the process.
    """

    def __init__(self, head: Head) -> None:
        self._head = head
        self.labels: dict[str, set[str]] = {}
        self.values: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)
        self._thread.start()

    def _go_on(self) -> None:
        while not self._is_over.wait(3.0):
            self.scrape()

    def scrape(self) -> None:
        text = "\n".join(line for line in self._head.metrics().splitlines() if "ray_csr_ray_" in line)
        for family in text_string_to_metric_families(text + "\n"):
            for sample in family.samples:
                self.labels.setdefault(sample.name, set()).update(sample.labels)
                ours = frozenset((key, value) for key, value in sample.labels.items() if key in KEPT_LABELS)
                self.values[sample.name, ours] = sample.value

    def sum(self, name: str, **labels: str) -> float:
        return sum(value for (its, ours), value in self.values.items() if its == name and labels.items() <= set(ours))

    def end(self) -> None:
        self._is_over.set()
        self._thread.join()


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    world = cached_world(world_spec(load_config(CONFIG, overrides=list(SMALL)).world), progress=False)
    cache = tmp_path_factory.mktemp("cache")
    copied = cache / "worlds" / world.name
    shutil.copytree(world, copied)
    sorted((copied / "train" / "images").iterdir())[-1].write_bytes(b"no picture")
    made = Jobs(tmp_path_factory.mktemp("jobs"), cache=cache)
    yield made
    made.head.close()


@pytest.fixture(scope="module")
def scrapes(jobs: Jobs) -> Iterator[Scrapes]:
    made = Scrapes(jobs.head)
    yield made
    made.end()


def test_who_has_no_token_or_another_is_refused(jobs: Jobs) -> None:
    for token in ("", "not-the-token"):
        refused = jobs.submit("refused", token=token)
        said = refused.stdout + refused.stderr
        assert refused.returncode and "token" in said.lower(), said[-2000:]


@pytest.mark.long
def test_a_job_is_stopped_with_grace_and_the_same_command_goes_on(jobs: Jobs, scrapes: Scrapes) -> None:
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
    submitted_s = time.monotonic()
    while len(prompt_ids(folder)) == len(kept):
        assert time.monotonic() - submitted_s < 300, jobs.ray("logs", "second").stdout
        time.sleep(0.1)
    jobs.head.kill_actor("GeneratorActor")
    said, log = jobs.wait("second")
    assert "succeeded" in said.lower(), said + log
    ids = prompt_ids(folder)
    assert ids[: len(kept)] == kept and len(ids) == len(set(ids)) == NUM_PROMPTS
    assert json.loads(folder.summary.read_text())["finished"]
    print(log)
    print(f"{first_s:.1f} s from submit to the first committed unit, {len(kept)} prompts kept at the stop")


@pytest.mark.long
def test_the_head_serves_what_the_catalogue_lists_and_the_dashboard_asks_for(jobs: Jobs, scrapes: Scrapes) -> None:
    """Of the run of the test before."""
    scrapes.end()
    asked_for = {name for query in queries() for name, _ in selectors(query)}
    exported = {name: metric for metric in CATALOGUE.values() for name in metric.exported}
    assert scrapes.labels.keys() <= exported.keys()
    for name, labels in scrapes.labels.items():
        theirs = {*RAY_LABELS, *(["le"] if name.endswith("_bucket") else [])}
        found = {label for label in labels - theirs if not label.startswith("otel_")}
        assert found == set(exported[name].tag_keys), name
    missing = (exported.keys() | asked_for) - scrapes.labels.keys()
    print(f"{len(scrapes.labels)} names in {len(scrapes.values)} series; not seen: {sorted(missing)}")
    assert {exported[name].name for name in missing} <= NOT_PROVOKED
    assert all(exported[name].provoked_by for name in missing)
    # And they say what happened.
    tag = {"run": "small"}
    folder = RunFolder(jobs.runs / "runs/small")
    assert scrapes.sum("ray_csr_ray_set_aside_total", fault="input", **tag) == 1
    assert scrapes.sum("ray_csr_ray_deaths_total", role="generator", **tag) == 1
    assert scrapes.sum("ray_csr_ray_replacements_total", role="generator", **tag) == 1
    assert scrapes.sum("ray_csr_ray_retries_total", **tag) >= 1
    assert scrapes.sum("ray_csr_ray_policy_version_trained", **tag) == 1
    assert scrapes.sum("ray_csr_ray_eval_score", metric="chair_s", version="1", **tag) >= 0
    summary = json.loads(folder.summary.read_text())
    made = summary["rounds"][0]["pairs"]["made"]
    assert scrapes.sum("ray_csr_ray_examples_made_total", round="0", **tag) == made
    steps = scrapes.sum("ray_csr_ray_train_steps_total", round="0", role="train_worker", **tag)
    assert steps == summary["rounds"][0]["train"]["steps"]
    assert scrapes.sum("ray_csr_ray_train_step_seconds_count", **tag) == steps


def test_the_jobs_end_is_the_runs_end(jobs: Jobs) -> None:
    assert jobs.submit("wrong", "train.beta=-1").returncode == 0
    said, log = jobs.wait("wrong")
    assert "exit code 2" in said, said
    assert "train.beta = -1" in log and "Traceback" not in log


def prompt_ids(folder: RunFolder) -> list[str]:
    return [one for line in folder.journal.read_text().splitlines() for one in json.loads(line).get("ids", ())]
