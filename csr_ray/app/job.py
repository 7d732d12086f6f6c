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
    if "://" in name or Path(name).expanduser().is_absolute():
        return name if "://" in name else str(Path(name).expanduser()), ""
    said = environment.get(_RUNS) or _RUNS_BY_DEFAULT
    is_store = "://" in said
    root = Path(said).expanduser()
    if not is_store and not root.is_absolute():
        raise ConfigError(
            f"{_RUNS} = {str(root)!r}: it has to be an absolute path, because a job's folder does not last"
        )
    relative = os.path.normpath(name)
    if relative.startswith(".."):
        raise ConfigError(
            f"run.dir = {name!r}: a job's relative folder is placed below {root} ({_RUNS}), and this one leads out "
            "of there; name an absolute path"
        )
    folder = f"{said.rstrip('/')}/{relative}" if is_store else str(root / relative)
    where = folder if is_store else f"{folder} on {socket.gethostname()}"
    return folder, (
        f"run folder: {where}. run.dir = {name!r} is relative, and a job's working folder "
        f"does not last; {_RUNS} names another root. The same command submitted again goes on there."
    )


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
