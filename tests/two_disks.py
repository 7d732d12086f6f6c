"""A Ray cluster of two nodes that do not share a disk, on one machine, for tests.

The second node's processes run in a mount namespace of their own, in which an empty disk (a tmpfs) lies over a folder
of the first.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]
_JOINS_WITHIN_S = 60.0
_TRIES = 3


@dataclass(frozen=True, kw_only=True)
class TwoDisks:
    """A running cluster.

    Attributes:
        address: of its head, for RAY_ADDRESS.
        hidden: the folder that is another one on the second node.
        head, raylet: the raylets of the first and of the second node.
    """

    address: str
    hidden: Path
    head: psutil.Process
    raylet: psutil.Process

    def processes(self, title: str) -> list[psutil.Process]:
        """The living processes of the second node whose title begins so."""
        return [process for process, its in _titled(self.raylet) if its.startswith(title)]

    def titles(self) -> tuple[set[str], set[str]]:
        """What Ray calls the processes of actors on the first node, and on the second."""
        first, second = (
            {title.partition(".")[0].split()[0] for _, title in _titled(raylet) if title.startswith("ray::")}
            for raylet in (self.head, self.raylet)
        )
        return first, second

    def files_there(self) -> list[str]:
        """What the second node has on its own disk at the path of `hidden`."""
        there = Path(f"/proc/{self.raylet.pid}/root") / self.hidden.relative_to("/")
        return [path.relative_to(there).as_posix() for path in there.rglob("*")]


def _titled(raylet: psutil.Process) -> list[tuple[psutil.Process, str]]:
    """The living processes of a node, with what they call themselves."""
    found = []
    for process in raylet.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append((process, (process.cmdline() or [""])[0]))
    return found


@contextlib.contextmanager
def two_disks(
    hidden: Path, *, head_cpus: int, cpus: int, environment: dict[str, str] | None = None, options: Sequence[str] = ()
) -> Iterator[TwoDisks]:
    """Start both nodes; skips the test where this user may make no namespaces.

    Args:
        cpus: of the second node.
        environment: variables of the second node's processes.
        options: more of `ray start` for the second node.
    """
    hide = f"mount -t tmpfs none '{hidden}'"
    tried = subprocess.run(["unshare", "--mount", "sh", "-c", hide], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no mount namespaces here: {tried.stderr.strip()}")
    from ray.cluster_utils import Cluster

    store = 150 << 20
    head = {"num_cpus": head_cpus, "object_store_memory": store, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    ray = Path(sys.executable).with_name("ray")
    join = (
        f"exec '{ray}' start --address={cluster.address} --num-cpus={cpus} --object-store-memory={store} --block "
        # The agent of the head has the usual port; without another one the node joins when this one has given up.
        f"--disable-usage-stats --dashboard-agent-listen-port=0 {' '.join(options)}"
    )
    command = ["unshare", "--mount", "sh", "-c", f"{hide} && {join}"]
    second, said = None, ""
    try:
        # A raylet that draws a port that is taken meanwhile ends, and is started once more.
        for _ in range(_TRIES):
            with tempfile.TemporaryFile() as output:
                second = subprocess.Popen(
                    command,
                    env={**_as_in_a_shell(), **(environment or {})},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                raylet = _joined(second, address=str(cluster.address))
                output.seek(0)
                said = output.read().decode(errors="replace")
            if raylet is not None:
                break
            _end(second)
        else:
            raise AssertionError(f"the second node does not join: {said}")
        yield TwoDisks(
            address=str(cluster.address),
            hidden=hidden,
            head=psutil.Process(cluster.head_node.all_processes["raylet"][0].process.pid),
            raylet=raylet,
        )
    finally:
        if second is not None:
            _end(second)
        cluster.shutdown()


def _as_in_a_shell() -> dict[str, str]:
    """This process's environment without what a run in it has set for a private Ray."""
    ours = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_ENABLE_AUTO_CONNECT", "RAY_ADDRESS")
    return {name: value for name, value in os.environ.items() if name not in ours}


def _end(second: subprocess.Popen[bytes]) -> None:
    processes = []
    with contextlib.suppress(psutil.Error):
        processes = [*psutil.Process(second.pid).children(recursive=True), psutil.Process(second.pid)]
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    second.wait()


def _joined(second: subprocess.Popen[bytes], *, address: str) -> psutil.Process | None:
    """The second node's raylet, once it belongs to the cluster; None if it ends, or takes too long."""
    from ray._raylet import GcsClient

    deadline_s = time.monotonic() + _JOINS_WITHIN_S
    while time.monotonic() < deadline_s and second.poll() is None:
        alive = [one for one in GcsClient(address=address).get_all_node_info().values() if one.state == 0]
        if len(alive) >= 2:
            children = psutil.Process(second.pid).children(recursive=True)
            return next((one for one in children if one.name() == "raylet"), None)
        time.sleep(0.2)
    return None
