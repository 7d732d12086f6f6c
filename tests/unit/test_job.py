"""A run that is a job of Ray's keeps its folder where it lasts, and ends before it is killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from csr_ray.app.job import grace_of_job, is_ray_job, paths_of_job, run_dir_of_job, settle_of_job
from csr_ray.app.place import settled
from csr_ray.errors import ConfigError


def test_who_is_no_job_is_not_taken_for_one() -> None:
    assert not is_ray_job({})
    assert is_ray_job({"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"})


@pytest.mark.parametrize("name", ["/data/runs/a", "s3://bucket/runs/a"])
def test_a_folder_that_lasts_is_left_where_it_is(name: str) -> None:
    assert run_dir_of_job(name, environment={}) == (name, "")


def test_the_home_folder_is_no_relative_one() -> None:
    assert run_dir_of_job("~/runs", environment={}) == (str(Path.home() / "runs"), "")


def test_a_relative_folder_is_placed_below_a_root_that_is_said() -> None:
    folder, line = run_dir_of_job("runs/a", environment={"CSR_RAY_RUNS": "/shared"})
    assert folder == "/shared/runs/a"
    assert "/shared/runs/a" in line and "CSR_RAY_RUNS" in line and "goes on there" in line
    folder, line = run_dir_of_job("runs/a", environment={"CSR_RAY_RUNS": "s3://bucket/mine/"})
    assert folder == "s3://bucket/mine/runs/a" and "run folder: s3://bucket/mine/runs/a. " in line
    folder, _ = run_dir_of_job("./runs//a", environment={})
    assert folder == str(Path.home() / "csr_ray_runs/runs/a")


@pytest.mark.parametrize(
    ("name", "root", "says"),
    [("../a", "/shared", "leads out of there"), ("runs/../../a", "/s", "leads out"), ("a", "here", "absolute path")],
)
def test_one_that_leads_elsewhere_is_refused(name: str, root: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        run_dir_of_job(name, environment={"CSR_RAY_RUNS": root})


@pytest.mark.parametrize(
    ("grace_s", "wait", "left_s"),
    [
        (10.0, None, 1.0),
        (10.0, "30", 10.0),
        (10.0, "8", 6.0),
        (0.0, "30", 0.0),
        (10.0, "1", 0.0),
        (10.0, "soon", 1.0),
    ],
)
def test_a_job_ends_before_it_is_killed(grace_s: float, wait: str | None, left_s: float) -> None:
    environment = {} if wait is None else {"RAY_JOB_STOP_WAIT_TIME_S": wait}
    assert grace_of_job(grace_s, environment=environment) == left_s
    wait_s = float(wait) if wait and wait.isdigit() else 3.0
    assert 1.0 <= settle_of_job(left_s, environment=environment) <= max(1.0, wait_s - left_s - 1.0)


def test_names_that_only_look_as_if_they_led_out() -> None:
    assert run_dir_of_job("..runs/a", environment={"CSR_RAY_RUNS": "/shared"})[0] == "/shared/..runs/a"
    with pytest.raises(ConfigError, match="name an absolute path"):
        run_dir_of_job("~nobody-has-this-name/a", environment={"CSR_RAY_RUNS": "/shared"})
    with pytest.raises(ConfigError, match="it has to be an absolute path"):
        run_dir_of_job("a", environment={"CSR_RAY_RUNS": "~nobody-has-this-name/a"})


@pytest.mark.parametrize(("error", "waits_s"), [(KeyboardInterrupt, 1.0), (RuntimeError, 30.0)])
def test_a_job_that_is_stopped_waits_for_its_store_no_longer_than_it_is_let(
    error: type[BaseException], waits_s: float
) -> None:
    class SlowPlace:
        waited_s: float | None = 0.0

        def settle(self, *, wait_s: float | None) -> None:
            self.waited_s = wait_s

    place = SlowPlace()
    with pytest.raises(error), settled(place, say=print, stopped_s=settle_of_job(1.0, environment={})):  # type: ignore[arg-type]
        raise error
    assert place.waited_s == waits_s


def test_what_a_job_writes_is_placed_where_it_lasts_and_that_is_said_once() -> None:
    paths = {"--json": Path("out.json"), "--out": Path("answers/pope"), "--other": None, "--there": Path("/data/x")}
    placed, line = paths_of_job(paths, environment={"CSR_RAY_RUNS": "/shared"})
    assert placed == {
        "--json": Path("/shared/out.json"),
        "--out": Path("/shared/answers/pope"),
        "--other": None,
        "--there": Path("/data/x"),
    }
    assert "--json /shared/out.json on " in line and "--out /shared/answers/pope on " in line
    assert "CSR_RAY_RUNS" in line and "\n" not in line
    lasts = {"--json": Path("/data/a.json"), "--out": Path("~/b")}
    assert paths_of_job(lasts, environment={}) == ({"--json": Path("/data/a.json"), "--out": Path.home() / "b"}, "")


@pytest.mark.parametrize(
    ("name", "root", "says"),
    [
        ("../a", "/shared", "--out = '../a'.*leads out"),
        ("a", "s3://bucket/mine", "--out = 'a'.*name an absolute path"),
    ],
)
def test_what_a_job_would_write_elsewhere_is_refused(name: str, root: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        paths_of_job({"--out": Path(name)}, environment={"CSR_RAY_RUNS": root})
