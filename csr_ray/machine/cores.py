"""How many cores this process may use, which in a container are fewer than the machine has."""

from __future__ import annotations

import contextlib
import os

from csr_ray.machine.memory import cgroup_limit


def usable_cores() -> float:
    """Cores of this machine that this process may run on; with a limit of the container's (cgroup v2) also 1.5."""
    num_cores: float = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = cgroup_limit("cpu.max").partition(" ")
    with contextlib.suppress(ValueError, ZeroDivisionError):
        num_cores = min(num_cores, int(quota) / int(period))
    return num_cores


def whole_cores() -> int:
    """The same, rounded down to at least one: how many threads find a core each."""
    return max(1, int(usable_cores()))
