"""A process that takes the lock of a run folder; started by tests, as two starts of a run would be."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from csr_ray.errors import ConfigError
from csr_ray.store.lock import LockFile, RunLock


def main(path: str, at_s: str) -> None:
    """Take the lock at a moment that several of these share, say so, and hold it until stdin ends."""
    while time.time() < float(at_s):
        pass
    try:
        lock = RunLock.take(LockFile(Path(path)), name="test", say=lambda line: None, beat_s=0.02)
    except ConfigError:
        print("refused", flush=True)
        return
    print("taken", flush=True)
    sys.stdin.read()
    lock.check()
    lock.release()
    print("released", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
