"""Joins a cluster, or starts a private Ray for this process, behind which a watchdog clears up."""

from __future__ import annotations

import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any

import ray

from actors.process.leftovers import Watchdog, sweep
from csr_ray.machine.private_ray import cluster_address

# Ray's head notes every call of an actor, a hundred thousand of them, for `ray list tasks`. A private Ray has no
# dashboard to list them, and a run makes some every second for as long as it lasts: the notes took 2 MiB a minute.
_SETTINGS = {"task_events_report_interval_ms": 0}


class PrivateRay:
    """A Ray that this process has started and has to end."""

    def __init__(self, *, num_cpus: int, object_store: int) -> None:
        sweep()
        self._watchdog = Watchdog()
        try:
            _init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                object_store_memory=object_store,
                _system_config=_SETTINGS,
            )
            # The sockets of a node lie in its session's folder, in which Ray keeps its own logs as well.
            self._watchdog.remove_at_end(Path(ray.nodes()[0]["ObjectStoreSocketName"]).parent.parent)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        ray.shutdown()
        self._watchdog.close()


def _init(**options: Any) -> None:
    """`ray.init` takes SIGTERM for itself; who has asked for it before gets it back."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if is_main else None
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def connect(*, num_cpus_needed: float, object_store: int | None = None) -> PrivateRay | None:
    """Join the cluster that RAY_ADDRESS names (as inside `ray job submit`), else start a private Ray here.

    A private Ray is told that it has at least `num_cpus_needed` CPUs, whatever the machine has: generators, scorers
    and trainer take turns on a small machine, so Ray's CPUs are slots here, not cores. GPUs are those Ray finds.

    Args:
        object_store: bytes of a private Ray's object store; None: 256 MiB.

    Returns:
        The private Ray, which the caller has to close; None if this process uses one that others started.
    """
    if ray.is_initialized():
        return None
    if cluster_address():
        _init()
        return None
    num_cpus = max(os.cpu_count() or 1, int(num_cpus_needed + 0.999))
    return PrivateRay(num_cpus=num_cpus, object_store=object_store or 256 * 2**20)
