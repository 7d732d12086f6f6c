"""Who can reach a run from outside its machine: nobody, and inside only with Ray's token."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(code: str, **more: str) -> str:
    """Run a script with a Ray of its own."""
    drop = {"RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"}
    kept = {name: value for name, value in os.environ.items() if name not in drop}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        env={**kept, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", **more},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_private_ray_with_an_actor_listens_on_this_machine_only_and_asks_for_a_token(tmp_path: Path) -> None:
    said = run(
        """
        import os
        import psutil
        from csr_ray.machine.private_ray import listen_on_this_machine_only
        listen_on_this_machine_only()
        import ray
        from actors.cluster.connect import connect

        assert connect(num_cpus_needed=2)

        @ray.remote
        class Actor:
            def number(self):
                return 1

        actor = Actor.remote()
        ray.get(actor.number.remote())
        us = psutil.Process()
        for process in [us, *us.children(recursive=True)]:
            for socket in process.net_connections(kind="inet"):
                if socket.status == psutil.CONN_LISTEN:
                    print("listens", process.name().split()[0], socket.laddr.ip)
        print("mode", os.environ.get("RAY_AUTH_MODE"))
        ray.shutdown()
        """,
        HOME=str(tmp_path),  # where Ray keeps its token, and makes one if there is none
    )
    listening = [line.split() for line in said.splitlines() if line.startswith("listens")]
    assert len({name for _, name, _ in listening}) >= 3, said
    assert [entry for entry in listening if entry[2].removeprefix("::ffff:") not in ("127.0.0.1", "::1")] == []
    assert "mode token" in said, "Ray's own default for a private Ray"
    assert (tmp_path / ".ray" / "auth_token").exists()


def test_whoever_turns_the_token_off_is_obeyed(tmp_path: Path) -> None:
    said = run(
        """
        import os
        import ray
        from actors.cluster.connect import connect

        connect(num_cpus_needed=1)
        print("mode", os.environ.get("RAY_AUTH_MODE"))
        ray.shutdown()
        """,
        HOME=str(tmp_path),
        RAY_AUTH_MODE="disabled",
    )
    assert "mode disabled" in said
