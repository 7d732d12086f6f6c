"""Brings what a run commits in its working copy to the URL, in the order in which it was committed.

Threads of its own do that beside the work: of each line the files that it names go first, all at once, then the
line. So whatever the URL has of the journal is a whole beginning of it. Where the store does not take anything the
work goes on, lines are held back, and one line on the screen says so; after `PATIENCE_S` the run ends, and what is
held back is kept in the copy. What no line names (config, summary, quarantine, page, checkpoints, answers of an
evaluation) follows now and then; logs at the end.

Whoever lost the run's lock sends nothing more: each upload is preceded by a look at the lock, unless it was renewed
so lately that nobody can have it, and of a line there can be only one of its number (`csr_ray.store.pieces`).
"""

from __future__ import annotations

import contextlib
import json
import random
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from csr_ray.errors import LockLost, StorageError, UserError
from csr_ray.records import JsonDict
from csr_ray.store.digests import Digest
from csr_ray.store.lock import RunLock
from csr_ray.store.objects import SMALL_BYTES, ObjectStore, StoreError
from csr_ray.store.pieces import WHOLE, Piece, segment
from csr_ray.store.run_folder import CARD, RunFolder
from csr_ray.store.working_copy import Copied, is_loose

PATIENCE_S: Final = 600.0
_SAY_AFTER_S: Final = 5.0
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 10.0
_SWEEP_EVERY_S: Final = 30.0
_NUM_THREADS: Final = 8
# Lines that travel as one segment, where they have gathered; and segments' lines that are joined to one object.
_SEGMENT_BYTES: Final = 1 << 20
_SEGMENT_LINES: Final = 256
_JOIN_LINES: Final = 1000
# Behind these the store has the run as a person would like to find it.
_MILESTONES: Final = ("round", "finished")
# They name every file of these folders; others there are of an earlier model or adapter. A run that ended early says
# with its last line which folders are gone (`removed`).
_NAMES_ALL_OF: Final = {"train": ("adapter",), "finished": ("model", "adapter")}
# A quarantine of this size goes ahead of every line that adds to it; a larger one would cost more with every line.
_SMALL_QUARANTINE_BYTES: Final = 1 << 20


class _Ended(Exception):
    """The mirror was told to end, or cannot go on."""


@dataclass(frozen=True)
class _Line:
    data: bytes
    entry: JsonDict
    files: tuple[Future[None], ...] = ()


class Mirror:
    """Made when the run's lock is held and the copy is up to date (`Copied`); ended by `close`.

    Args:
        say: shows a person one line; called from threads.
        patience_s: how long a request may fail, again and again, before the run ends.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        folder: RunFolder,
        copied: Copied,
        lock: RunLock,
        say: Callable[[str], None],
        patience_s: float = PATIENCE_S,
        sweep_every_s: float = _SWEEP_EVERY_S,
    ) -> None:
        self._store = store
        self._folder = folder
        self._lock = lock
        self._say = say
        self._patience_s = patience_s
        self._sweep_every_s = sweep_every_s
        self._stored = copied.stored
        self._num_lines = copied.stored.num_lines
        self._num_bytes = copied.stored.num_bytes
        self._num_joined = copied.stored.num_joined
        self._num_joined_bytes = copied.stored.num_joined_bytes
        self._segments = list(copied.stored.segments)
        self._changed = threading.Condition()
        self._lines: deque[_Line] = deque()
        self._is_closing = False  # no more lines come
        self._ended = threading.Event()  # whoever waits or tries again leaves off
        self._error: Exception | None = None
        self._trouble_since_s: float | None = None
        self._is_told = False
        self._loose: dict[str, tuple[int, int] | None] = {name: None for name in copied.found if is_loose(name)}
        self._sweeping = threading.Lock()
        self._files = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="mirror-files")
        self._mending = [
            self._files.submit(self._send_file, name, digest.to_plain()) for name, digest in copied.lost.items()
        ]
        self.add([_entry_of(line) for line in copied.ahead], data=b"".join(copied.ahead))
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)
            for name, work in (("mirror-lines", self._send_lines), ("mirror-loose", self._sweep_now_and_then))
        ]
        for thread in self._threads:
            thread.start()

    # ---- what the driver calls ----

    @property
    def num_waiting(self) -> int:
        """Lines that the URL has not yet."""
        return len(self._lines)

    @property
    def has_sent(self) -> bool:
        """Whether the URL has anything of this run."""
        return bool(self._num_lines or self._loose)

    def add(self, entries: Sequence[JsonDict], *, data: bytes) -> None:
        """Take in lines that were committed in the copy; returns at once."""
        lines = data.splitlines(keepends=True)
        new = []
        for line, entry in zip(lines, entries, strict=True):
            files = entry.get("files", {})
            sending = [self._files.submit(self._send_file, name, plain) for name, plain in files.items()]
            new.append(_Line(line, entry, tuple(sending)))
        with self._changed:
            self._lines.extend(new)
            self._changed.notify_all()

    def check(self) -> None:
        """Raise if the run cannot go on: another driver has it, or the store is away for too long.

        Raises:
            LockLost, StorageError: see there.
        """
        if self._error is not None:
            raise self._error

    def close(self, *, wait_s: float | None) -> None:
        """Send what is left, the logs, too; then end.

        Args:
            wait_s: leave off after so long; None: wait as long as the store takes something.

        Raises:
            LockLost, StorageError: not everything could be sent; says what is kept, and where.
        """
        try:
            if self._error is None:
                self._finish(wait_s)
        finally:
            self.abandon()
        self.check()
        if self.num_waiting:
            raise self._held_back("the run was told to stop before all of it had arrived")

    def abandon(self) -> None:
        """Send nothing more; what is left is kept in the copy."""
        self._ended.set()
        with self._changed:
            self._changed.notify_all()
        self._files.shutdown(wait=False, cancel_futures=True)

    def _finish(self, wait_s: float | None) -> None:
        until_s = None if wait_s is None else time.monotonic() + wait_s
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(None if until_s is None else max(0.0, until_s - time.monotonic()))

    # ---- lines ----

    def _send_lines(self) -> None:
        if self._stored.is_copy and self._num_lines:
            self._join()
        while (batch := self._next_batch()) is not None:
            self._before_lines(batch)
            data = b"".join(line.data for line in batch)
            self._insist(lambda data=data: self._put_segment(data))  # type: ignore[misc]
            with self._changed:
                for _ in batch:
                    self._lines.popleft()
            self._after_lines(batch)
        for file in self._mending:
            file.result()
        if self._num_lines > self._num_joined:
            self._join()
        self._sweep(with_logs=True)
        self._put_whole()

    def _next_batch(self) -> list[_Line] | None:
        """The lines that can go now: the first one waits for its files. None: there are no more."""
        with self._changed:
            while not self._lines and not self._is_closing and not self._ended.is_set():
                self._changed.wait()
            if self._ended.is_set():
                raise _Ended
            if not self._lines:
                return None
            lines = list(islice(self._lines, _SEGMENT_LINES))
        for one in lines[0].files:
            one.result()
        batch, num_bytes = [lines[0]], len(lines[0].data)
        for line in lines[1:]:
            num_bytes += len(line.data)
            if num_bytes > _SEGMENT_BYTES or not all(one.done() and not one.exception() for one in line.files):
                break
            batch.append(line)
        return batch

    def _before_lines(self, batch: Sequence[_Line]) -> None:
        """A journal without its config, or a rejection without its line, would be called damaged by the checker."""
        if self._num_lines == 0:
            self._send_loose(self._folder.config)
        quarantine = self._folder.quarantine
        is_small = quarantine.is_file() and quarantine.stat().st_size <= _SMALL_QUARANTINE_BYTES
        if is_small and any(line.entry.get("rejected") for line in batch):
            self._send_loose(quarantine)

    def _after_lines(self, batch: Sequence[_Line]) -> None:
        for line in batch:
            if named := _NAMES_ALL_OF.get(str(line.entry["kind"])):
                files = line.entry.get("files", {})
                folders = {str(Path(name).parent) for name in files if Path(name).parent.name in named}
                self._remove_others(files, folders=folders.union(line.entry.get("removed", ())))
        is_milestone = any(line.entry["kind"] in _MILESTONES for line in batch)
        if is_milestone or self._num_lines - self._num_joined >= _JOIN_LINES:
            self._join()
        if is_milestone:
            self._sweep()
            self._put_whole()

    def _put_segment(self, data: bytes) -> None:
        self._make_sure()
        piece = Piece(self._num_lines)
        content = segment(data, first=piece.first, driver=self._lock.token)
        if not self._store.create(piece.name, content) and self._store.read(piece.name) != content:
            raise LockLost(
                f"run.dir = {self._folder.url!r}: another driver has written line {piece.first} of the journal, "
                "while this one was held up; this one stops and writes nothing more"
            )
        self._segments.append(piece.name)
        self._num_lines += data.count(b"\n")
        self._num_bytes += len(data)

    def _join(self) -> None:
        """Write the lines that are in segments as one object, and remove the segments."""
        with self._folder.journal.open("rb") as file:
            file.seek(self._num_joined_bytes)
            data = file.read(self._num_bytes - self._num_joined_bytes)
        piece = Piece(self._num_joined, self._num_lines)
        if data:
            self._insist(lambda: self._sure(lambda: self._store.create(piece.name, data)))
        segments, self._segments = self._segments, []
        self._num_joined, self._num_joined_bytes = self._num_lines, self._num_bytes
        self._insist(lambda: self._sure(lambda: self._store.remove(segments)))

    def _put_whole(self) -> None:
        with tempfile.NamedTemporaryFile(dir=self._folder.root.parent, prefix=".journal.") as copy:
            with self._folder.journal.open("rb") as file:
                _copy_bytes(file.read, copy.write, num_bytes=self._num_bytes)
            copy.flush()
            if self._num_bytes:
                self._insist(lambda: self._sure(lambda: self._store.upload(Path(copy.name), name=WHOLE)))

    # ---- files ----

    def _send_file(self, name: str, plain: Mapping[str, object]) -> None:
        """Upload a file that a line names. If there is one, it is this one, or an earlier one of the same name."""
        path, digest = self._folder.root / name, Digest.from_plain(plain)

        def send() -> None:
            try:
                if digest.num_bytes <= SMALL_BYTES and self._create(path, name=name, digest=digest):
                    return
                self._make_sure()
                self._store.upload(path, name=name)
            except FileNotFoundError:
                pass  # it was done again meanwhile, or is lost; a later line says so

        self._insist(lambda: self._sure(send))

    def _create(self, path: Path, *, name: str, digest: Digest) -> bool:
        """Upload a file if there is none of its name; returns whether it is there now."""
        if self._store.upload(path, name=name, only_new=True):
            return True
        there = self._store.read(name)
        return there is not None and Digest.of_bytes(there) == digest

    def _remove_others(self, files: Mapping[str, object], *, folders: Collection[str]) -> None:
        def remove() -> None:
            for folder in folders:
                others = [name for name in self._store.list(folder) if name not in files]
                # A card may be there before the line of its folder is; it is removed when it is gone here.
                self._store.remove([name for name in others if not is_loose(name)])

        self._insist(lambda: self._sure(remove))

    # ---- what no line names ----

    def _sweep_now_and_then(self) -> None:
        while not self._is_closing:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closing or self._ended.is_set(), self._sweep_every_s)
            if self._ended.is_set():
                return
            if self._num_lines:  # not before the config, which goes ahead of the first line
                self._sweep()

    def _sweep(self, *, with_logs: bool = False) -> None:
        """Send loose files that have changed, and remove those that are gone here."""
        with self._sweeping:
            paths = self._loose_files()
            if with_logs:
                paths += [path for path in sorted(self._folder.logs.rglob("*")) if path.is_file()]
            for path in paths:
                self._send_loose(path)
            there = {self._name(path) for path in paths}
            gone = [name for name in list(self._loose) if name not in there and not name.startswith("logs/")]
            if gone:
                self._insist(lambda: self._sure(lambda: self._store.remove(gone)))
            for name in gone:
                self._loose.pop(name, None)

    def _loose_files(self) -> list[Path]:
        root = self._folder.root
        found = [path for path in root.iterdir() if is_loose(path.name)] + list(root.glob("eval/*"))
        found.append(self._folder.pool_events)  # the one log that others look at meanwhile
        for place in ("model", "adapter", "round_*/adapter", "round_*/*/adapter"):
            found += root.glob(f"{place}/{CARD}")
        for folder in (*root.glob("round_*/checkpoints"), *root.glob("round_*/*/checkpoints")):
            found += sorted(folder.rglob("*"))  # half of one is passed over: it lists the digests of its files
        return [path for path in found if is_loose(self._name(path)) and path.is_file()]

    def _send_loose(self, path: Path) -> None:
        name = self._name(path)

        def send() -> None:
            try:
                status = path.stat()
                seen = (status.st_mtime_ns, status.st_size)
                if self._loose.get(name) != seen:
                    self._store.upload(path, name=name)
                    self._loose[name] = seen
            except FileNotFoundError:
                pass  # it is not there any more

        self._insist(lambda: self._sure(send))

    def _name(self, path: Path) -> str:
        return path.relative_to(self._folder.root).as_posix()

    # ---- trouble ----

    def _sure(self, do: Callable[[], object]) -> None:
        self._make_sure()
        do()

    def _make_sure(self) -> None:
        if not self._lock.is_sure:
            self._lock.check()

    def _insist(self, do: Callable[[], object]) -> None:
        """Do it, again and again where the store fails, until it is done or there is no hope.

        Raises:
            _Ended: there is none, or the mirror was told to end.
        """
        failing_since_s: float | None = None
        pause_s = _FIRST_PAUSE_S
        while not self._ended.is_set():
            try:
                do()
            except StoreError as error:
                now_s = time.monotonic()
                failing_since_s = now_s if failing_since_s is None else failing_since_s
                if now_s - failing_since_s > self._patience_s:
                    why = f"it has not taken anything for {_duration(self._patience_s)}: {error}"
                    self._give_up(self._held_back(why))
                self._trouble(error, since_s=failing_since_s)
                self._ended.wait(pause_s * random.uniform(0.5, 1.0))
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            except Exception as error:
                self._give_up(error)
            else:
                if failing_since_s is not None:
                    self._trouble_is_over()
                return
        raise _Ended

    def _give_up(self, error: Exception) -> None:
        with self._changed:
            if self._error is None and not self._ended.is_set():
                is_said = isinstance(error, UserError)
                self._error = error if is_said else self._held_back(f"unexpected {type(error).__name__}: {error}")
            self._ended.set()
            self._changed.notify_all()
        raise _Ended from error

    def _held_back(self, why: str) -> StorageError:
        num = self.num_waiting
        return StorageError(
            f"run.dir = {self._folder.url!r}: {why.rstrip('.')}. {num} lines of the journal are not there yet, and "
            f"are kept in {self._folder.root}; see that the store can be reached, then start the same command again "
            "on this machine: it sends them and goes on where it was"
        )

    def _trouble(self, error: Exception, *, since_s: float) -> None:
        if self._is_told or time.monotonic() - since_s < _SAY_AFTER_S:
            return
        self._is_told = True
        self._say(
            f"run.dir = {self._folder.url!r} cannot be reached ({error}): the work goes on in {self._folder.root}, "
            f"and what is committed is held back; after {_duration(self._patience_s)} of that the run ends"
        )

    def _trouble_is_over(self) -> None:
        if self._is_told:
            self._is_told = False
            self._say(f"run.dir = {self._folder.url!r} takes writes again; {self.num_waiting} lines are on their way")

    def _guarded(self, work: Callable[[], None]) -> None:
        """Whatever ends a thread of the mirror ends the run at its next commit."""
        try:
            work()
        except _Ended:
            pass
        except Exception as error:
            with contextlib.suppress(_Ended):
                self._give_up(error)


def _entry_of(line: bytes) -> JsonDict:
    entry: JsonDict = json.loads(line)
    return entry


def _copy_bytes(read: Callable[[int], bytes], write: Callable[[bytes], object], *, num_bytes: int) -> None:
    while num_bytes and (chunk := read(min(num_bytes, 1 << 20))):
        write(chunk)
        num_bytes -= len(chunk)


def _duration(seconds: float) -> str:
    return f"{seconds / 60:g} min" if seconds >= 60 else f"{seconds:g} s"
