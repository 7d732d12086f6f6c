"""What a private Ray keeps while a run lasts, and what of its words reaches the screen."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_what_a_node_says_of_a_death_goes_to_the_log_and_not_between_the_lines_of_the_screen() -> None:
    printed = _run(
        """
        import logging
        import os
        import signal
        import time

        import ray

        from actors.cluster.connect import connect

        heard = []

        class Listener(logging.Handler):
            def emit(self, record):
                heard.append(self.format(record))

        logging.getLogger("actors").addHandler(Listener())
        private = connect(num_cpus_needed=2)

        @ray.remote
        class Actor:
            def pid(self):
                return os.getpid()

        actor = Actor.remote()
        os.kill(ray.get(actor.pid.remote()), signal.SIGKILL)
        waited_since = time.monotonic()
        while not heard and time.monotonic() - waited_since < 30:
            time.sleep(0.1)
        print("heard", len(heard), "raylet" in heard[0], "died" in heard[0])
        private.close()
        """
    )
    assert printed == "heard 1 True True\n"


def test_no_history_of_calls_piles_up_and_a_sigterm_reaches_who_listens() -> None:
    script = """
        import os
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
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except KeyboardInterrupt:
            print("heard")

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
    assert _run(script).split() == ["heard", "noted", "0"]


def test_a_lost_head_is_said_and_a_lost_node_ends_the_process_with_a_word() -> None:
    script = """
        import os
        import signal
        import time
        import psutil
        from actors.cluster.connect import Connection

        def kill(name):
            for child in psutil.Process().children(recursive=True):
                if child.name() == name:
                    child.kill()
                    return
            os._exit(1)

        def end(reason):
            print("ended:", reason, flush=True)
            os._exit(0)

        said = []
        connection = Connection(say=said.append, end=end, num_cpus_needed=2)
        time.sleep(2.5)
        kill("gcs_server")
        killed_s = time.monotonic()
        while not said:
            time.sleep(0.1)
        assert time.monotonic() - killed_s < 15, said
        print(said[0], flush=True)
        kill("raylet")
        time.sleep(15)
        os._exit(1)
        """
    said, ended = _run(script).splitlines()
    assert "the head of the cluster" in said and "the work goes on" in said
    assert "ended: Ray's node" in ended and "has died" in ended


def _run(script: str) -> str:
    """What the script prints, in a process of its own that no cluster is named to."""
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        env={**kept, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "SIGTERM received" not in done.stderr, "Ray's own handler stood before ours"
    return done.stdout
