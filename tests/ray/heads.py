"""A head of a Ray cluster as an operator starts it, by `ray start`, on ports of its own; with an autoscaler if asked.

The autoscaler is Ray's own, of its second version. What it starts are real nodes, as processes of this machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import requests
import yaml

ROOT = Path(__file__).resolve().parents[2]
STORE_BYTES = 150 << 20
_START_S = 120.0
_ADDRESS = "127.0.0.1"
_OURS = ("RAY_ADDRESS", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_ENABLE_AUTO_CONNECT")


class Head:
    """Started when it is made; `close` ends it and all that it has started.

    Args:
        num_cpus: of the head itself.
        node_types: what the autoscaler may add: by name the most nodes, and the resources of each; None: there is
            no autoscaler.
        environment: more variables of its processes, and so of the drivers of jobs.
    """

    def __init__(
        self,
        *,
        num_cpus: int,
        node_types: dict[str, tuple[int, dict[str, float]]] | None = None,
        environment: dict[str, str] | None = None,
        dashboard: bool = False,
    ) -> None:
        # A short name: the sockets of a node lie in it.
        self._folder = Path(tempfile.mkdtemp(prefix="csr-"))
        self.port, self.dashboard_port, self.metrics_port = free_port(), free_port(), free_port()
        self.address = f"{_ADDRESS}:{self.port}"
        bin_folder = Path(sys.executable).parent
        self.environment = {
            # Without what a run in this process has set for a private Ray.
            **{name: value for name, value in os.environ.items() if name not in _OURS},
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "disabled",
            **(environment or {}),
        }
        command = [
            *(str(bin_folder / "ray"), "start", "--head", "--block", "--disable-usage-stats"),
            *(f"--port={self.port}", f"--node-ip-address={_ADDRESS}", f"--temp-dir={self._folder / 't'}"),
            *(
                f"--num-cpus={num_cpus}",
                f"--object-store-memory={STORE_BYTES}",
                f"--ray-client-server-port={free_port()}",
            ),
            *("--min-worker-port=0", "--max-worker-port=0", f"--include-dashboard={dashboard}"),
            *(f"--dashboard-port={self.dashboard_port}", "--dashboard-agent-listen-port=0"),
            f"--metrics-export-port={self.metrics_port}",
        ]
        if node_types is not None:
            command.append(f"--autoscaling-config={self._autoscaling(node_types, num_cpus=num_cpus)}")
        self._log = (self._folder / "head.log").open("w")
        self._process = subprocess.Popen(
            command, env=self.environment, stdout=self._log, stderr=subprocess.STDOUT, cwd=self._folder
        )
        self._wait(self.dashboard_port if dashboard else self.port)

    def _wait(self, port: int) -> None:
        until_s = time.monotonic() + _START_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection((_ADDRESS, port), timeout=1):
                return
            said = (self._folder / "head.log").read_text()
            assert time.monotonic() < until_s and self._process.poll() is None, said
            time.sleep(0.1)

    def _autoscaling(self, node_types: dict[str, tuple[int, dict[str, float]]], *, num_cpus: int) -> Path:
        from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE

        self.environment |= {
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        }
        types: dict[str, Any] = {
            FAKE_HEAD_NODE_TYPE: {"resources": {"CPU": num_cpus}, "node_config": {}, "max_workers": 0}
        }
        for name, (most, resources) in node_types.items():
            types[name] = {
                "resources": {**resources, "object_store_memory": STORE_BYTES},
                "node_config": {},
                "min_workers": 0,
                "max_workers": most,
            }
        config = {
            "cluster_name": "csr-ray-test",
            "max_workers": sum(most for most, _ in node_types.values()),
            "upscaling_speed": 100.0,
            "idle_timeout_minutes": 0.1,
            "provider": {
                "type": "external",
                "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
                "launch_multiple": True,
                "head_node_id": FAKE_HEAD_NODE_ID,
                "gcs_address": self.address,
            },
            "available_node_types": types,
            "head_node_type": FAKE_HEAD_NODE_TYPE,
            "head_start_ray_commands": [],
            "worker_start_ray_commands": [],
            "head_setup_commands": [],
            "worker_setup_commands": [],
            "setup_commands": [],
            "initialization_commands": [],
            "file_mounts": {},
            "cluster_synced_files": [],
            "file_mounts_sync_continuously": False,
            "rsync_exclude": [],
            "rsync_filter": [],
            "auth": {},
            "docker": {},
        }
        path = self._folder / "autoscaling.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    def metrics(self) -> str:
        """What the agent of the head's node serves to Prometheus; "" while it does not."""
        with contextlib.suppress(OSError):
            return requests.get(f"http://{_ADDRESS}:{self.metrics_port}/metrics", timeout=5).text
        return ""

    def kill_actor(self, name: str) -> None:
        """SIGKILL of the one process of an actor of this class."""
        processes = self._process_of().children(recursive=True)
        title = f"ray::{name}"
        (actor,) = [one for one in processes if (_command(one) or [""])[0].startswith(title)]
        actor.kill()

    def nodes(self) -> dict[str, int]:
        """How many nodes of each type the autoscaler says there are, the head not counted."""
        from ray.autoscaler.v2.sdk import get_cluster_status

        status = get_cluster_status(self.address)
        names = Counter(node.ray_node_type_name for node in (*status.active_nodes, *status.idle_nodes))
        return {name: num for name, num in names.items() if not name.startswith("node_")}

    def close(self) -> None:
        processes = [self._process_of()]
        with contextlib.suppress(psutil.Error):
            processes += processes[0].children(recursive=True)
        # Nodes that the autoscaler has started are no children of the head any more.
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if str(self._folder) in " ".join(process.cmdline()):
                    processes += [process, *process.children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._process.wait()
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _process_of(self) -> psutil.Process:
        return psutil.Process(self._process.pid)


def _command(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return list(process.cmdline())
    return []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_ADDRESS, 0))
        return int(probe.getsockname()[1])
