"""A driver with a private Ray, whose actor has a folder, a semaphore and shared memory; tests kill it."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import ray

from actors.process.leftovers import Watchdog, own_folder


class Holder:
    """What an actor of a run has: a folder of its own, and what multiprocessing keeps in /dev/shm."""

    def __init__(self) -> None:
        import multiprocessing
        from multiprocessing.shared_memory import SharedMemory

        self._semaphore = multiprocessing.get_context("spawn").Semaphore(1)
        self._memory = SharedMemory(create=True, size=1000)
        self._folder = own_folder("test")

    def names(self) -> dict[str, Any]:
        names = [self._memory.name, f"sem.{self._semaphore._semlock.name.lstrip('/')}"]
        return {"pid": os.getpid(), "folder": str(self._folder), "shared": names}


def main(*, is_watched: bool) -> None:
    watchdog = Watchdog() if is_watched else None
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False
    )
    session = os.path.dirname(os.path.dirname(ray.nodes()[0]["ObjectStoreSocketName"]))
    if watchdog is not None:
        watchdog.remove_at_end(session)
    actor = ray.remote(Holder).remote()
    names = ray.get(actor.names.remote())
    time.sleep(6)  # the watchdog looks every five seconds; a run lasts longer than that
    print(json.dumps({**names, "session": session}), flush=True)
    if sys.stdin.readline():
        ray.shutdown()
        assert watchdog is not None
        watchdog.close()
        print("closed", flush=True)


if __name__ == "__main__":
    main(is_watched=sys.argv[1] == "watched")
