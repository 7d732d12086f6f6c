"""`csr-ray watch`: the page of a run on this machine's loopback, while the run goes on.

The run is only read: its lock is neither taken nor waited for, and nothing is written to its folder.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rich.console import Console

from csr_ray.app.local_server import serve_until_stopped
from csr_ray.app.place import EVENTS_OF_ACTORS
from csr_ray.app.watch_server import WatchServer
from csr_ray.errors import ConfigError, StorageError
from csr_ray.report.watch import LOOK_EVERY_S, Source, Watch
from csr_ray.store.lock import Holder, LockFile, LockStore
from csr_ray.store.object_lock import LockObjects
from csr_ray.store.objects import StoreError, is_url, local_path, open_store
from csr_ray.store.run_folder import RunFolder
from csr_ray.store.working_copy import FollowedCopy, followed

_REFRESH_EVERY_S: Final = 10.0
# Each unit of a run at a URL has to be fetched for its scores.
_MOST_UNITS_AT_URL: Final = 100
_NOT_WANTED: Final = ("model", "adapter", "checkpoints", "logs", "candidates", "trace")


def watch(run_dir: str, *, port: int, opens: bool, console: Console) -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    Args:
        run_dir: folder of a run, or its URL; it need not be there yet.
        port: of the page; 0: any free one.
        opens: show it in this machine's browser.

    Raises:
        UserError: something is wrong that the user can mend.
    """
    with opened_watch(run_dir, port=port) as server:
        if not is_url(run_dir) and (line := _waits_for(RunFolder(local_path(run_dir)), name=run_dir)):
            console.print(line, soft_wrap=True, markup=False)
        serve_until_stopped(server, who="look at the run", opens=opens, console=console)


def _waits_for(folder: RunFolder, *, name: str) -> str:
    """What is not there yet, in words; "" where a run has begun. Else a mistyped name would wait in silence."""
    if not folder.root.exists():
        return f"{name} is not there yet; the page waits for it."
    if not folder.journal.exists():
        return f"no run has begun in {name} (the folder that run.dir names); the page waits for one."
    return ""


@contextlib.contextmanager
def opened_watch(run_dir: str, *, port: int = 0, look_every_s: float = LOOK_EVERY_S) -> Iterator[WatchServer]:
    """A server that listens, though it does not answer yet (`serve_forever`), and follows the run meanwhile."""
    with contextlib.ExitStack() as held:
        source: Source
        if is_url(run_dir):
            store = open_store(run_dir, key="RUN_DIR")
            copy = held.enter_context(followed(store, is_wanted=_is_wanted))
            source = _AtUrl(copy, lock=LockObjects(store))
        else:
            folder = RunFolder(local_path(run_dir))
            if folder.root.exists() and not folder.root.is_dir():
                raise ConfigError(f"RUN_DIR = {run_dir}: it is a file; name the folder that run.dir names")
            source = _InFolder(folder)
        watching = Watch(source, look_every_s=look_every_s)
        server = WatchServer(watching, port=port)
        held.callback(server.server_close)
        held.callback(watching.close)
        watching.start()
        yield server


class _InFolder:
    """A run in a folder of this machine; see `csr_ray.report.watch.Source`."""

    most_units: int | None = None

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def refresh(self) -> None:
        """It is here."""

    def need(self, path: Path) -> None:
        """It is here."""

    def seen(self) -> tuple[str, bool | None]:
        return _seen(LockFile(self.folder.lock))


class _AtUrl:
    """A run at a URL, of which a copy is here; see `csr_ray.report.watch.Source`."""

    most_units: int | None = _MOST_UNITS_AT_URL

    def __init__(self, copy: FollowedCopy, *, lock: LockStore) -> None:
        self.folder = copy.folder
        self._copy = copy
        self._lock = lock
        self._refreshed_s = float("-inf")
        self._seen: tuple[str, bool | None] = ("", None)

    def refresh(self) -> None:
        if time.monotonic() - self._refreshed_s < _REFRESH_EVERY_S:
            return
        self._refreshed_s = time.monotonic()
        try:
            self._copy.refresh()
            self._seen = _seen(self._lock)
        except StoreError as error:
            raise StorageError(f"{self.folder.url} cannot be read now, so this may be old: {error}") from error

    def need(self, path: Path) -> None:
        self._copy.need(path)

    def seen(self) -> tuple[str, bool | None]:
        return self._seen


def _seen(lock: LockStore) -> tuple[str, bool | None]:
    found = lock.read()
    if found is None:
        return "", None
    holder = Holder.from_bytes(found[0])
    if holder is None:
        return "somebody unreadable", None
    is_dead = holder.is_dead
    return str(holder), None if is_dead is None else not is_dead


def _is_wanted(name: str) -> bool:
    if name == EVENTS_OF_ACTORS:
        return True
    if name.startswith("eval/"):
        return name.endswith(".parquet")
    return not any(part in _NOT_WANTED for part in name.split("/")[:-1])
