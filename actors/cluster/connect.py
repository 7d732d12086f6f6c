"""Joins a cluster, or starts a private Ray for this process, behind which a watchdog clears up."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
import ray._private.utils
import ray._private.worker
from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager

from actors.cluster.token import check_token, refused
from actors.cluster.watch import RayWatch, can_be_asked, check_head_is_there
from actors.process.leftovers import Watchdog, sweep
from csr_ray.errors import ConfigError
from csr_ray.machine.fit import ANY_NUMBER, Node
from csr_ray.machine.private_ray import cluster_address
from csr_ray.waiting import said_if_slow

# Ray's head notes every call of an actor, a hundred thousand of them, for `ray list tasks`. A private Ray has no
# dashboard to list them, and a run makes some every second for as long as it lasts: the notes took 2 MiB a minute.
_SETTINGS = {"task_events_report_interval_ms": 0}

_log = logging.getLogger(__name__)


class Connection:
    """To Ray, and watched: whose head or node is lost is told so, and ended (`actors.cluster.watch`).

    Args:
        say, end: see `RayWatch`.
        num_cpus_needed, object_store: see `connect`.
    """

    def __init__(
        self,
        *,
        say: Callable[[str], None],
        end: Callable[[str], None],
        num_cpus_needed: float,
        object_store: int | None = None,
    ) -> None:
        self._private: PrivateRay | None = None
        self._watch = RayWatch(say=say, end=end)
        try:
            if address := cluster_address():
                self._watch.watch(head=address)  # Ray would go on trying to join a head that dies meanwhile
            self._private = connect(num_cpus_needed=num_cpus_needed, object_store=object_store)
            self._watch.watch_this_process()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._watch.close()
        if self._private:
            self._private.close()


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
    slow = said_if_slow("Ray to start or to be joined", question="is the cluster there, and the temporary folder?")
    # A node's word on every death is a paragraph with colours, which Ray prints between the lines of the screen.
    ray._private.worker.print_to_stdstream = _log_what_nodes_say
    with _sigterm_stays(), slow:
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except ray.exceptions.AuthenticationError as error:
            raise refused(error) from None
        except ConnectionError as error:
            if not (address := cluster_address()):
                raise
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"RAY_ADDRESS = {address!r}: the cluster cannot be joined ({reason}); see whether it is there, and "
                "whether RAY_AUTH_MODE and RAY_AUTH_TOKEN are its own"
            ) from None


def _log_what_nodes_say(data: Mapping[str, Any], ignore_prefix: bool) -> None:
    _log.warning("%s: %s", data.get("pid"), "\n".join(str(line) for line in data["lines"]))


@contextlib.contextmanager
def _sigterm_stays() -> Iterator[None]:
    """`ray.init` takes SIGTERM for itself, and asks nobody; whoever listens to it goes on doing so.

    It takes it twice. Its Python part can be kept from that. Its C++ part puts a handler in the place of Python's,
    which prints a stack and aborts the process; Python's is put back.
    """
    name = "set_sigterm_handler"
    theirs = getattr(ray._private.utils, name)
    setattr(ray._private.utils, name, lambda handler: None)
    try:
        yield
    finally:
        setattr(ray._private.utils, name, theirs)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def connect(*, num_cpus_needed: float, object_store: int | None = None) -> PrivateRay | None:
    """Join the cluster that RAY_ADDRESS names (as inside `ray job submit`), else start a private Ray here.

    A private Ray is told that it has at least `num_cpus_needed` CPUs, whatever the machine has: generators, scorers
    and trainer take turns on a small machine, so Ray's CPUs are slots here, not cores. GPUs are those Ray finds.

    Args:
        object_store: bytes of a private Ray's object store; None: 256 MiB.

    Raises:
        ConfigError: RAY_ADDRESS names a cluster that is not there, or that wants another token.

    Returns:
        The private Ray, which the caller has to close; None if this process uses one that others started.
    """
    if ray.is_initialized():
        return None
    if address := cluster_address():
        check_head_is_there(address)
        if can_be_asked(address):
            check_token(address)
        _init()
        return None
    num_cpus = max(os.cpu_count() or 1, int(num_cpus_needed + 0.999))
    return PrivateRay(num_cpus=num_cpus, object_store=object_store or 256 * 2**20)


def this_machine() -> Node:
    """What a private Ray would have here. Its CPUs are slots, and as many as are needed."""
    visible = NvidiaGPUAcceleratorManager.get_current_process_visible_accelerator_ids()
    num_gpus = NvidiaGPUAcceleratorManager.get_current_node_num_accelerators() if visible is None else len(visible)
    kind = NvidiaGPUAcceleratorManager.get_current_node_accelerator_type() if num_gpus else None
    return Node(name="this machine", cpus=ANY_NUMBER, gpus=num_gpus, accelerator_type=kind or "")
