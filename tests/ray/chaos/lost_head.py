"""What a run says and keeps when Ray's head, or the node of its driver, dies in the middle of a rollout.

    python tests/ray/chaos/lost_head.py

Prints for both what the program said after that, how long it took to end, and whether it left its lock.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import psutil
from chaos import Driver


def main() -> None:
    for name in ("gcs_server", "raylet"):
        with tempfile.TemporaryDirectory(prefix="csr-ray-head-") as directory:
            _play(Path(directory) / "run", name=name)


def _play(folder: Path, *, name: str) -> None:
    """Kill the process of that name, of the run's private Ray, when the first unit is committed."""
    small = ("generators.min=1", "generators.max=1", "scorers.min=1", "scorers.max=1", "data.per_round=24")
    driver = Driver(folder, address="local", overrides=small)
    journal = folder / "journal.jsonl"
    while not (journal.exists() and b'"kind": "rollout"' in journal.read_bytes()):
        assert driver.process.poll() is None, driver.lines
        time.sleep(0.05)
    (victim,) = (one for one in psutil.Process(driver.process.pid).children(recursive=True) if one.name() == name)
    victim.kill()
    killed_s = time.monotonic()
    code = driver.end()
    took_s = time.monotonic() - killed_s
    print(f"{name} killed")
    for at_s, line in driver.lines:
        if at_s >= killed_s and line:
            print(f"  {at_s - killed_s:5.1f} s  {line}")
    is_left = (folder / "run.lock").exists()
    print(f"  {took_s:5.1f} s  ended with {code}, its lock is {'there' if is_left else 'not there'}", flush=True)


if __name__ == "__main__":
    main()
