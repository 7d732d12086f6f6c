"""What is different where the run is a job of Ray's (`ray job submit`): where its folder is, and how long it may end.

A job's working folder is a copy of what was submitted. It lies in a cache of the cluster, under a name that changes
with the next upload, and Ray removes it, so no run may be kept there.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

from csr_ray.errors import ConfigError

# Ray's job manager sets it for a job's own process.
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
# Where a node has its copies of the working folders of jobs, a folder for each upload.
_COPIES = "working_dir_files"
_RUNS = "CSR_RAY_RUNS"
_RUNS_BY_DEFAULT = "~/csr_ray_runs"
# How long `ray job stop` waits between SIGTERM and SIGKILL, and what of it a run needs to write and say what is kept.
_STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
_STOP_WAIT_S = 3.0
_TO_SETTLE_S = 2.0
_TO_SAY_S = 1.0


def is_ray_job(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process was started by `ray job submit`."""
    return _JOB in environment


def works_in_a_copy(*, environment: Mapping[str, str] = os.environ, folder: Path | None = None) -> bool:
    """Whether a relative path leads to the same file in every actor, because each node has a copy of this folder.

    That is so at the top of a job's working folder. Below it (`cd data && csr-ray ...`) actors stand elsewhere.

    Args:
        folder: that this process works in; None: the current one.
    """
    return is_ray_job(environment) and (folder or Path.cwd()).parent.name == _COPIES


def run_dir_of_job(name: str, *, environment: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """Where a job's run folder is, and the line that says so; empty if `run.dir` is a folder that lasts by itself.

    Args:
        name: `run.dir`. A relative one is placed below `CSR_RAY_RUNS`.

    Raises:
        ConfigError: a relative one leads out of there.
    """
    if (lasting := _lasting(name)) is not None:
        return lasting, ""
    folder, where = _below_runs(name, key="run.dir", environment=environment)
    return folder, (
        f"run folder: {where}. run.dir = {name!r} is relative, and a job's working folder "
        f"does not last; {_RUNS} names another root. The same command submitted again goes on there."
    )


def paths_of_job(
    paths: Mapping[str, Path | None], *, environment: Mapping[str, str] = os.environ
) -> tuple[dict[str, Path | None], str]:
    """Where a job writes what its command names, and the line that says so; empty if all of it lasts by itself.

    Args:
        paths: by flag; None: the flag was not given. Relative ones are placed below `CSR_RAY_RUNS`.

    Raises:
        ConfigError: a relative one leads out of there, or `CSR_RAY_RUNS` is a URL, where no such file can be written.
    """
    placed: dict[str, Path | None] = {}
    said = []
    for flag, path in paths.items():
        if path is None:
            placed[flag] = None
            continue
        if (lasting := _lasting(str(path))) is not None:
            placed[flag] = Path(lasting)
            continue
        name, where = _below_runs(str(path), key=flag, environment=environment)
        if "://" in name:
            raise ConfigError(
                f"{flag} = {str(path)!r} is relative, a job's working folder does not last, and {_RUNS} is a URL, "
                "where this command cannot write; name an absolute path"
            )
        placed[flag] = Path(name)
        said.append(f"{flag} {where}")
    if not said:
        return placed, ""
    return placed, (
        f"written to: {', '.join(said)}. What is relative is placed there, because a job's working folder does not "
        f"last; {_RUNS} names another root."
    )


def placed_for_a_job(paths: dict[str, Path | None]) -> tuple[dict[str, Path | None], str]:
    """What a command writes, by flag, where it lasts also in a job of Ray's; and a line if that is another place."""
    return paths_of_job(paths) if is_ray_job() else (paths, "")


def _lasting(name: str) -> str | None:
    """The path or URL itself if it lasts, with the home folder's name in it; None if it is relative."""
    if "://" in name:
        return name
    path = Path(os.path.expanduser(name))
    return str(path) if path.is_absolute() else None


def _below_runs(name: str, *, key: str, environment: Mapping[str, str]) -> tuple[str, str]:
    """A relative path's place below the root of a job's runs, and how that place is called in a line."""
    said = environment.get(_RUNS) or _RUNS_BY_DEFAULT
    is_store = "://" in said
    root = Path(os.path.expanduser(said))
    if not is_store and not root.is_absolute():
        raise ConfigError(
            f"{_RUNS} = {str(root)!r}: it has to be an absolute path, because a job's folder does not last"
        )
    relative = os.path.normpath(name)
    if relative.split(os.sep)[0] == ".." or name.startswith("~"):  # of a user whom nobody knows here
        raise ConfigError(
            f"{key} = {name!r}: a job's relative path is placed below {said if is_store else root} ({_RUNS}), and "
            "this one leads out of there; name an absolute path"
        )
    folder = f"{said.rstrip('/')}/{relative}" if is_store else str(root / relative)
    return folder, folder if is_store else f"{folder} on {socket.gethostname()}"


def grace_of_job(grace_s: float, *, environment: Mapping[str, str] = os.environ) -> float:
    """`run.grace_s`, or what `ray job stop` leaves of it before it kills."""
    return min(grace_s, max(0.0, _stop_wait_s(environment) - _TO_SETTLE_S))


def settle_of_job(grace_s: float, *, environment: Mapping[str, str] = os.environ) -> float:
    """How long a job that was stopped may wait for a store, behind its grace, and still say what is kept."""
    return max(_TO_SETTLE_S, _stop_wait_s(environment) - grace_s) - _TO_SAY_S


def _stop_wait_s(environment: Mapping[str, str]) -> float:
    try:
        return float(environment.get(_STOP_WAIT, _STOP_WAIT_S))
    except ValueError:
        return _STOP_WAIT_S
