"""The lock of a run folder: at most one driver works on a run, and a dead one's lock does not stay in the way.

The lock is one small object that names its holder. It is changed by conditional operations only (`LockStore`), so
that of two starts that both find a dead holder one takes over and the other is refused. A file has them here; an
object store with conditional writes has them, too.

When is a holder dead? On its own machine that can be known: no process has its id and start time. From another
machine nobody can see that, so a holder renews its lock every `BEAT_S` seconds, and a lock that stays as it is for
`STALE_S` seconds is a dead one's. A network file system may show another machine's file as it was a minute ago, so
that has to be longer; and it is watched by one clock, because the clocks of two machines need not agree.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from csr_ray.errors import ConfigError, LockLost
from csr_ray.store.atomic import make_folder, storage_error_of
from csr_ray.store.run_folder import RunFolder

BEAT_S = 10.0
STALE_S = 90.0
_LOOK_EVERY_S = 1.0
# Of the time after which others may take a lock over, the share in which its holder need not look whose it is.
_SURE_SHARE = 0.6


class LockStore(Protocol):
    """One object that is changed only if it is as the caller has last seen it. A tag stands for one content.

    An OSError says that something failed, and not whether it was done: the reply may have been lost. Where a request
    is sent a second time by itself, even the answer None may be to the second one, after the first was done.
    """

    def create(self, content: bytes) -> str | None:
        """Write the object if there is none; returns its tag, or None if there is one."""
        ...

    def read(self) -> tuple[bytes, str] | None:
        """The content with its tag, or None if there is no object."""
        ...

    def replace(self, content: bytes, *, tag: str) -> str | None:
        """Write the object if it still has this tag; returns its new tag, or None if it has another or is gone."""
        ...

    def delete(self, *, tag: str) -> bool:
        """Remove the object if it still has this tag; returns whether it had."""
        ...


class LockFile:
    """A `LockStore` on a file, local or on a network file system.

    A new file is linked into its place, which fails if there is one. Whoever changes or removes the file holds the
    kernel's lock on it meanwhile, and looks once more that it is still the file in that place; the kernel lets go of
    that lock when a process dies. Readers need no lock, because a file is only ever replaced as a whole.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def create(self, content: bytes) -> str | None:
        temporary = self._temporary(content)
        try:
            os.link(temporary, self._path)
        except FileExistsError:
            return None
        finally:
            temporary.unlink()
        return _tag(content)

    def read(self) -> tuple[bytes, str] | None:
        if self._path.exists() and not self._path.is_file():
            raise ConfigError(f"{self._path} is no file: move it away, or name another run.dir")
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return None
        return content, _tag(content)

    def replace(self, content: bytes, *, tag: str) -> str | None:
        temporary = self._temporary(content)
        try:
            done = self._if_tagged(tag, do=lambda: os.replace(temporary, self._path))
        finally:
            temporary.unlink(missing_ok=True)
        return _tag(content) if done else None

    def delete(self, *, tag: str) -> bool:
        return self._if_tagged(tag, do=self._path.unlink)

    def _if_tagged(self, tag: str, *, do: Callable[[], object]) -> bool:
        try:
            file = self._path.open("rb+")
        except FileNotFoundError:
            return False
        with file:
            with contextlib.suppress(OSError):  # a file system without such locks: the look below has to do
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                in_place = self._path.stat()
            except FileNotFoundError:
                return False
            opened = os.fstat(file.fileno())
            if (in_place.st_dev, in_place.st_ino) != (opened.st_dev, opened.st_ino) or _tag(file.read()) != tag:
                return False
            do()
        return True

    def _temporary(self, content: bytes) -> Path:
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        return Path(name)


def _tag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a lock.

    Attributes:
        token: unique to one start of a driver.
        machine: names a running machine and, in a container, its own view of processes; `pid` counts there.
        started: the process's start, in the kernel's ticks since the machine's own; an id is used again, with another
            start.
        since: when the lock was taken, for people.
        beat: counts how often the lock was renewed.
    """

    token: str
    host: str
    machine: str
    pid: int
    started: int
    since: str
    beat: int = 0

    @classmethod
    def this_process(cls) -> Holder:
        pid = os.getpid()
        return cls(
            token=uuid.uuid4().hex,
            host=socket.gethostname(),
            machine=_this_machine(),
            pid=pid,
            started=process_start(pid) or 0,
            since=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        )

    @property
    def is_dead(self) -> bool | None:
        """Whether the process has ended; None: it is on another machine, where that cannot be seen."""
        if self.machine != _this_machine():
            return None
        return process_start(self.pid) != self.started

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Holder | None:
        """None: no holder can be read in it."""
        try:
            holder = cls(**json.loads(content))
        except (ValueError, TypeError, RecursionError):
            return None
        numbers = (holder.pid, holder.started, holder.beat)
        return holder if all(type(number) is int for number in numbers) else None

    def __str__(self) -> str:
        return f"{self.host}, pid {self.pid}, since {self.since}"


def process_start(pid: int) -> int | None:
    """When a process of this machine started, in the kernel's ticks; None: there is none, or it has ended."""
    try:
        # The command in parentheses may hold anything; behind it stand the state and, as the 20th field, the start.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _this_machine() -> str:
    """The machine since its last start, and the namespace in which its process ids count."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    return socket.gethostname()


class RunLock:
    """The lock while this process holds it; a thread renews it. Make one with `RunLock.take`."""

    def __init__(
        self,
        store: LockStore,
        *,
        holder: Holder,
        tag: str,
        name: str,
        beat_s: float,
        stale_s: float,
        asked_s: float,
    ) -> None:
        self._store = store
        self._holder = holder
        self._tag = tag
        self._name = name
        self._sure_s = _SURE_SHARE * stale_s
        self._renewed_s = asked_s
        self._changing = threading.Lock()
        self._released = threading.Event()
        self._beat_s = beat_s
        self._thread = threading.Thread(target=self._keep, name="run-lock", daemon=True)
        self._thread.start()

    @classmethod
    def take(
        cls,
        store: LockStore,
        *,
        name: str,
        say: Callable[[str], None],
        beat_s: float = BEAT_S,
        stale_s: float = STALE_S,
    ) -> RunLock:
        """Take the lock, from a dead holder if need be, which `say` is told in one line.

        Args:
            name: what is locked, for messages.

        Raises:
            ConfigError: somebody holds it, or took it over before this process did.
        """
        holder = Holder.this_process()
        try:
            return cls._take(store, holder=holder, name=name, say=say, beat_s=beat_s, stale_s=stale_s)
        except BaseException:  # such as a Ctrl-C behind the request that made it this process's
            with contextlib.suppress(OSError, ConfigError):
                if (tag := _tag_if_of(store, holder=holder)) is not None:
                    store.delete(tag=tag)
            raise

    @classmethod
    def _take(
        cls,
        store: LockStore,
        *,
        holder: Holder,
        name: str,
        say: Callable[[str], None],
        beat_s: float,
        stale_s: float,
    ) -> RunLock:
        while (found := store.read()) is None:
            asked_s = _now_s()
            if (tag := store.create(holder.to_bytes()) or _tag_if_of(store, holder=holder)) is not None:
                return cls(store, holder=holder, tag=tag, name=name, beat_s=beat_s, stale_s=stale_s, asked_s=asked_s)
        content, seen = found
        other = Holder.from_bytes(content)
        is_dead = None if other is None else other.is_dead
        if is_dead is None:
            say(
                f"{name}: held by {other or 'somebody unreadable'}; whether that one still lives cannot be seen from "
                f"here, so the lock is watched for {stale_s:.0f} s: a living holder renews it every {beat_s:.0f} s"
            )
            is_dead = _stays(store, tag=seen, for_s=stale_s)
        if not is_dead:
            raise ConfigError(
                f"{name}: in use by {other or 'another start'}; wait until that run ends, stop it (Ctrl-C there), or "
                "name another run.dir"
            )
        asked_s = _now_s()
        tag = store.replace(holder.to_bytes(), tag=seen) or _tag_if_of(store, holder=holder)
        if tag is None:
            raise ConfigError(f"{name}: in use by another start, which took over the lock of a dead one just now")
        say(f"{name}: took over the lock of a dead holder ({other or 'unreadable'})")
        return cls(store, holder=holder, tag=tag, name=name, beat_s=beat_s, stale_s=stale_s, asked_s=asked_s)

    @property
    def token(self) -> str:
        """Unique to this start of a driver."""
        return self._holder.token

    @property
    def is_sure(self) -> bool:
        """Whether it was renewed so lately that nobody can have taken it over; else `check` has to be asked."""
        return _now_s() - self._renewed_s < self._sure_s

    def check(self) -> None:
        """Raise if another process has taken the lock, as it may after this one was stopped for long.

        Raises:
            LockLost: it is another's; names it.
        """
        other, _ = _look(self._store)
        if other is None:
            raise LockLost(
                f"{self._name}: the lock of this run is now gone: its file was removed, or its file system is away; "
                "this run stops and writes nothing more, and the same command goes on where it was"
            )
        if other.token != self._holder.token:
            raise LockLost(
                f"{self._name}: this run was held up, and its lock is now held by {other}; this one stops and writes "
                "nothing more"
            )

    def release(self) -> None:
        """Remove the lock if it is still this process's."""
        self._released.set()
        # A signal may have come in the middle of renewing it, so this does not wait for long.
        locked = self._changing.acquire(timeout=1.0)
        try:
            with contextlib.suppress(OSError, ConfigError):
                if not self._store.delete(tag=self._tag) and self._see_again():
                    self._store.delete(tag=self._tag)
        finally:
            if locked:
                self._changing.release()

    def _keep(self) -> None:
        while not self._released.wait(self._beat_s):
            with self._changing:
                if self._released.is_set():
                    return
                # A full disk, or one that is away for a while; the next commit will say so.
                with contextlib.suppress(OSError, ConfigError):
                    if not self._renew():
                        return  # lost; the next commit finds that out and says whose it is

    def _renew(self) -> bool:
        """Returns whether to go on with it: the lock is not another's."""
        holder = replace(self._holder, beat=self._holder.beat + 1)
        asked_s = _now_s()
        try:
            tag = self._store.replace(holder.to_bytes(), tag=self._tag)
        except OSError:
            tag = None
        if tag is None:  # it may be done, and the reply to it was lost
            return self._see_again()
        self._holder, self._tag, self._renewed_s = holder, tag, asked_s
        return True

    def _see_again(self) -> bool:
        """Go on from the lock as it is now if it is this process's; returns whether it is not another's."""
        there, tag = _look(self._store)
        if there is None:
            return True  # gone, perhaps with its file system, which may come back
        if there.token != self._holder.token:
            return False
        self._holder, self._tag = replace(self._holder, beat=there.beat), tag
        return True


def _now_s() -> float:
    """A clock that also counts while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _look(store: LockStore) -> tuple[Holder | None, str]:
    """The holder and the tag of the lock; without a holder that can be read, None."""
    found = store.read()
    return (None, "") if found is None else (Holder.from_bytes(found[0]), found[1])


def _tag_if_of(store: LockStore, *, holder: Holder) -> str | None:
    """The lock's tag if it is this holder's, by a request that the store says was not carried out; else None."""
    there, tag = _look(store)
    return tag if there is not None and there.token == holder.token else None


def _stays(store: LockStore, *, tag: str, for_s: float) -> bool:
    """Whether the object has this tag for so long without a change."""
    until_s = time.monotonic() + for_s
    while True:
        found = store.read()
        if found is None or found[1] != tag:
            return False
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            return True
        time.sleep(min(_LOOK_EVERY_S, left_s))


def lock_folder(folder: RunFolder, *, say: Callable[[str], None]) -> RunLock:
    """Take the lock of a run folder, which is made if it is not there.

    Raises:
        ConfigError: another driver works on it.
        StorageError: the folder cannot be written.
    """
    try:
        make_folder(folder.root)
        return RunLock.take(LockFile(folder.lock), name=f"run.dir = {str(folder.root)!r}", say=say)
    except OSError as error:
        raise storage_error_of(folder.root, error=error) from error
