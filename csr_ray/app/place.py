"""Where a run is kept, as its commands see it: a folder of this machine, or a URL with a working copy here.

A run at a URL works in the copy, as in any folder, and is mirrored from there (docs/storage.md).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from csr_ray.errors import ConfigError, StorageError, UserError
from csr_ray.store.atomic import storage_errors
from csr_ray.store.journal import Journal
from csr_ray.store.lock import RunLock, lock_folder
from csr_ray.store.mirror import Mirror
from csr_ray.store.object_lock import LOCK_FOLDER, LockObjects
from csr_ray.store.objects import Found, ObjectStore, StoreError, is_url, local_path, open_store
from csr_ray.store.pieces import PIECES_FOLDER, WHOLE
from csr_ray.store.run_folder import RunFolder
from csr_ray.store.working_copy import bring_up_to_date, fetched, working_copy
from csr_ray.waiting import said_if_slow

# What is committed at a stop or an error has so long to arrive at the URL; the copy keeps the rest.
_SETTLE_S = 30.0
_RELEASE_S = 10.0
_NUM_COPIES_AT_ONCE = 16
EVENTS_OF_ACTORS = "logs/pool.jsonl"
# Large, and nothing of it is on the page.
_NOT_FOR_THE_PAGE = ("model", "adapter", "checkpoints", "logs")


def folder_of(run_dir: str) -> RunFolder:
    """The run folder that `run.dir` names; of a URL, its working copy."""
    return working_copy(run_dir) if is_url(run_dir) else RunFolder(local_path(run_dir))


class Place(Protocol):
    """A run that this process has taken for itself."""

    def check(self) -> None:
        """Raise if it is another's by now, or cannot be kept any more."""
        ...

    def follow(self, journal: Journal) -> None:
        """Keep from now on what this journal commits."""
        ...

    def settle(self, *, wait_s: float | None) -> None:
        """Wait until all that was committed has arrived, at most so long."""
        ...

    def release(self) -> None:
        """Let others have it, at once."""
        ...


class FolderPlace:
    """A run in a folder of this machine."""

    def __init__(self, folder: RunFolder, *, say: Callable[[str], None]) -> None:
        self._lock = lock_folder(folder, say=say)
        self.check = self._lock.check
        self.release = self._lock.release

    def follow(self, journal: Journal) -> None:
        """What is committed is where it belongs."""

    def settle(self, *, wait_s: float | None) -> None:
        """There is nothing to wait for."""


class UrlPlace:
    """A run at a URL, whose copy is up to date when this is made."""

    def __init__(self, folder: RunFolder, *, say: Callable[[str], None]) -> None:
        self._store = open_store(folder.url, key="run.dir")
        with _as_storage_error(folder):
            self._is_new = self._store.is_empty()
            _refuse_without_conditions(self._store)
            self._objects = LockObjects(self._store)
            self._lock = _lock(self._objects, url=folder.url, say=say)
            self._mirror: Mirror | None = None
            try:
                with said_if_slow(
                    f"{folder.url} to be brought to {folder.root}", question="is it large, or far away?"
                ):
                    copied = bring_up_to_date(folder, store=self._store, is_new=self._is_new, say=say)
                self._mirror = Mirror(self._store, folder=folder, copied=copied, lock=self._lock, say=say)
            except BaseException:
                self.release()
                raise
        self.check = self._mirror.check

    def follow(self, journal: Journal) -> None:
        assert self._mirror is not None
        mirror = self._mirror
        journal.after_commit = lambda entries, data: mirror.add(entries, data=data)

    def settle(self, *, wait_s: float | None) -> None:
        assert self._mirror is not None
        question = f"{self._mirror.num_waiting} lines of the journal and their files were left"
        with said_if_slow(f"{self._store.url} to take all of the run", question=question):
            self._mirror.close(wait_s=wait_s)

    def release(self) -> None:
        if self._mirror is not None:
            self._mirror.abandon()
        # A store that is away must not hold up the end of the process; this one's lock is known to be a dead one's.
        releasing = threading.Thread(target=self._release, name="release", daemon=True)
        releasing.start()
        releasing.join(_RELEASE_S)

    def _release(self) -> None:
        self._lock.release()
        if self._is_new and not (self._mirror and self._mirror.has_sent):
            with contextlib.suppress(StoreError):  # nothing was begun there
                self._objects.forget()


def take(folder: RunFolder, *, say: Callable[[str], None]) -> Place:
    """Take a run for this process alone; one at a URL is brought here first.

    Raises:
        ConfigError: another driver works on it, or the URL cannot be used.
        StorageError: the folder cannot be written, or the store fails.
    """
    return UrlPlace(folder, say=say) if folder.url else FolderPlace(folder, say=say)


@contextlib.contextmanager
def settled(place: Place, *, say: Callable[[str], None], stopped_s: float = _SETTLE_S) -> Iterator[None]:
    """Wait at the end of the block until what it committed has arrived; after an error for `_SETTLE_S` at most.

    Args:
        stopped_s: the same, after the user has stopped it.

    Raises:
        StorageError: it has not, though the block has done all its work.
    """
    try:
        yield
    except BaseException as ended:
        try:
            place.settle(wait_s=min(stopped_s, _SETTLE_S) if isinstance(ended, KeyboardInterrupt) else _SETTLE_S)
        except UserError as error:
            if error is not ended:  # else it is said where the run ends
                say(str(error))
        raise
    place.settle(wait_s=None)


def _lock(objects: LockObjects, *, url: str, say: Callable[[str], None]) -> RunLock:
    return RunLock.take(objects, name=f"run.dir = {url!r}", say=say)


def _refuse_without_conditions(store: ObjectStore) -> None:
    """Ask the store once whether it keeps to the one condition on which lock and journal rest."""
    probe = f"{LOCK_FOLDER}/probe-{time.time_ns():x}"
    try:
        # A first write whose answer was lost has been sent twice, and then finds itself there.
        store.create(probe, b"1")
        wrote_over = store.create(probe, b"2")
    finally:
        with contextlib.suppress(StoreError):
            store.remove([probe])
    if wrote_over:
        raise ConfigError(
            f"run.dir = {store.url!r}: this store writes over an object although asked not to (If-None-Match), so "
            "two drivers could spoil each other's run; name a folder, or a store that knows conditional writes"
        )


@contextlib.contextmanager
def _as_storage_error(folder: RunFolder) -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        raise StorageError(
            f"run.dir = {folder.url!r}: {error}; see that the store can be reached and written, then start the same "
            "command again"
        ) from error


# ---- commands that only read ----


@contextlib.contextmanager
def opened_to_read(
    run_dir: str, *, key: str, is_wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[RunFolder]:
    """The run folder that a command is given; of a URL, a copy that is gone at the end of the block.

    Args:
        key: what the command calls it, for messages.
        is_wanted: which files are needed at all.
    """
    if not is_url(run_dir):
        yield RunFolder(local_path(run_dir))
        return
    store = open_store(run_dir, key=key)
    with _as_storage_error(RunFolder(Path(), url=store.url)), fetched(store, is_wanted=is_wanted) as folder:
        yield folder


def found_at(url: str, *, key: str) -> dict[str, Found]:
    """Every object of a run folder at a URL, by name."""
    with _as_storage_error(RunFolder(Path(), url=url)):
        return open_store(url, key=key).list()


def read_at(url: str, name: str, *, key: str) -> bytes | None:
    """The content of one file of a run folder at a URL; None if there is none."""
    with _as_storage_error(RunFolder(Path(), url=url)):
        return open_store(url, key=key).read(name)


def report(run_dir: str) -> str:
    """Do what `csr-ray report` does; returns where the page is."""
    from csr_ray.report import write_report

    with opened_to_read(run_dir, key="RUN_DIR", is_wanted=_is_for_the_page) as folder:
        if folder.url and not any(folder.root.iterdir()):
            raise ConfigError(f"run folder {folder.url}: no file of a run; name the run.dir of a run")
        page = write_report(folder)
        if not folder.url:
            return str(page)
        store = open_store(run_dir, key="RUN_DIR")
        with _as_storage_error(folder):
            store.upload(page, name=folder.report.name)
        return f"{folder.url}/{folder.report.name}"


def check(run_dir: str, *, output: Path | None) -> int:
    """Do what `csr-ray check` does; returns the exit code."""
    from csr_ray.app.check import check_and_print

    with opened_to_read(run_dir, key="RUN_DIR") as folder:
        return check_and_print(folder.root, output=output, name=folder.shown)


def _is_for_the_page(name: str) -> bool:
    if name == EVENTS_OF_ACTORS:
        return True
    if name.startswith("eval/"):
        return name.endswith(".parquet")
    return not any(part in _NOT_FOR_THE_PAGE for part in name.split("/")[:-1])


# ---- --fresh ----


def move_aside_at_url(folder: RunFolder, *, say: Callable[[str], None]) -> None:
    """Move a run to another folder of its bucket, and its working copy along; nobody may be at work on it.

    A store cannot rename, so everything is copied there, and then removed here, the journal first: what a death
    leaves half done is not taken for a run.
    """
    store = open_store(folder.url, key="run.dir")
    with _as_storage_error(folder):
        names = [name for name in store.list() if not name.startswith(f"{LOCK_FOLDER}/")]
        if not names and not folder.root.exists():
            return
        target = f"{store.url}.{time.strftime('%Y%m%d-%H%M%S')}"
        lock = _lock(LockObjects(store), url=folder.url, say=say)
        try:
            if names:
                _copy_all(store, names=names, to=store.sibling(target))
                first = [name for name in names if name == WHOLE or name.startswith(f"{PIECES_FOLDER}/")]
                store.remove(first)
                store.remove(set(names) - set(first))
            if folder.root.exists():
                with storage_errors(folder.root):
                    folder.root.rename(working_copy(target).root)
        finally:
            lock.release()
    say(f"the earlier run is now {target}")


def _copy_all(store: ObjectStore, *, names: list[str], to: ObjectStore) -> None:
    with ThreadPoolExecutor(_NUM_COPIES_AT_ONCE, thread_name_prefix="move-aside") as pool:
        for _ in pool.map(lambda name: store.copy(name, to=to), names):
            pass
