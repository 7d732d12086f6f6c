"""What a private Ray keeps while a run lasts."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_no_history_of_calls_piles_up() -> None:
    script = """
        import time
        import ray
        from ray._private.state import state
        from actors.cluster.connect import connect

        import signal

        def ours(number, frame):
            raise KeyboardInterrupt

        signal.signal(signal.SIGTERM, ours)
        seen = []
        init = ray.init

        def looked_at(**options):
            try:
                return init(**options)
            finally:
                seen.append(signal.getsignal(signal.SIGTERM))

        ray.init = looked_at
        private = connect(num_cpus_needed=2)
        assert seen == [ours], "a SIGTERM while Ray starts has to reach who listens for it"

        @ray.remote
        class Actor:
            def number(self):
                return 1

        actor = Actor.remote()
        for _ in range(100):
            ray.get(actor.number.remote())
        time.sleep(3)  # they are reported every second
        print("noted", len(state._get_all_task_events()))
        private.close()
        """
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        env={**kept, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.split() == ["noted", "0"], done.stdout + done.stderr[-3000:]
