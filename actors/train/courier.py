"""For a train worker on a node that does not see the run's folder: files are brought to it, and what it makes is
delivered.

The bytes go through the mailbox actor, which runs on the driver's node and does there what is asked of it
(`actors.train.desk`). The workers of a node share a folder, the room, in which the driver's paths are mirrored: an
adapter or a checkpoint is fetched once a node, while a file of examples is fetched when it is needed and stays only
as long as it is among those that were used last. Every file is held to its digest at the end of its way.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import xxhash

from actors.train.checkpoints import Checkpoint, CheckpointFolder, Found, Progress, checkpoints_of
from actors.train.desk import upload_of
from csr_ray.errors import TransferError
from csr_ray.store.atomic import make_folder, new_folder, storage_errors
from csr_ray.store.digests import Digest, damage_of, digests_of_folder

# Large enough that a call's own cost is nothing, and small enough that a few of them fit any object store.
_CHUNK_BYTES = 8 * 2**20
_AT_A_TIME = 4
_FILES_KEPT = 64


class DeskCalls(Protocol):
    """`actors.train.desk.Desk` from afar."""

    def ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method, and return or raise what it does."""
        ...

    def ask_each(self, method: str, calls: Iterable[tuple[tuple[Any, ...], dict[str, Any]]]) -> Iterator[Any]:
        """Call a method for each pair of arguments, a few at a time; yields the answers in order."""
        ...


class RemoteDesk:
    """The desk of the group's mailbox actor.

    Args:
        mailbox: its handle.
    """

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _answer(self._mailbox.desk.remote(method, *args, **kwargs))

    def ask_each(self, method: str, calls: Iterable[tuple[tuple[Any, ...], dict[str, Any]]]) -> Iterator[Any]:
        asked: deque[Any] = deque()
        for args, kwargs in calls:
            asked.append(self._mailbox.desk.remote(method, *args, **kwargs))
            if len(asked) == _AT_A_TIME:
                yield _answer(asked.popleft())
        while asked:
            yield _answer(asked.popleft())


def _answer(reference: Any) -> Any:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        # What the desk has raised, such as a full disk, not Ray's words on it.
        if isinstance(error.cause, Exception):
            raise error.cause from None
        raise


class Courier:
    """See `actors.train.reach.Reach`.

    Args:
        room: folder of this node that its workers share.
        is_leader: whether the room is this worker's, who cleans and delivers for all of its node.
        rank: this worker's, by which its own files are told from others'.
        at: is told in words what is being fetched or delivered.
    """

    def __init__(
        self,
        desk: DeskCalls,
        *,
        room: Path,
        is_leader: bool,
        rank: int,
        at: Callable[[str], None] = lambda doing: None,
    ) -> None:
        self._desk = desk
        self._room = room
        self._is_leader = is_leader
        self._at = at
        self._own = room / f".rank_{rank}"
        self._files: OrderedDict[str, Path] = OrderedDict()  # of examples; the one used last is the last
        self._reading = threading.Lock()
        self._trained: set[Path] = set()

    def folder(self, path: str) -> str:
        here = self.mirror(path)
        make_folder(here.parent, is_durable=False)
        # The first worker of the node fetches it; the others wait, and find it.
        with _alone(here.with_name(f".{here.name}.lock")):
            if not here.is_dir():
                self._at(f"the fetching of {path}")
                with new_folder(here, is_durable=False) as staging:
                    for name, digest in self._desk.ask("listing", path).items():
                        self._fetch(f"{path}/{name}", digest=digest, into=staging / name)
        return str(here)

    def examples(self, path: str) -> str:
        with self._reading:
            if path not in self._files:
                here = self._own / xxhash.xxh3_128_hexdigest(path.encode())
                self._fetch(path, digest=self._desk.ask("listing", path)[""], into=here)
                self._files[path] = here
                if len(self._files) > _FILES_KEPT:
                    self._files.popitem(last=False)[1].unlink(missing_ok=True)
            self._files.move_to_end(path)
            return str(self._files[path])

    def target(self, path: str) -> str:
        here = self.mirror(path)
        if self._is_leader:
            shutil.rmtree(here, ignore_errors=True)  # of an order before, which was to write the same
        return str(here)

    def checkpoints(self, adapter: Path) -> CheckpointFolder:
        self._trained.add(adapter)
        there = checkpoints_of(Path("/") / adapter.relative_to(self._room))
        return CarriedCheckpoints(self, desk=self._desk, there=there, is_leader=self._is_leader)

    def deliver(self, adapter: str) -> None:
        here, upload = self.mirror(adapter), upload_of(adapter)
        self._desk.ask("clear", str(upload))
        digests = self.send(here, to=upload)
        self._desk.ask("place_adapter", adapter, digests=digests)

    def forget(self) -> None:
        with self._reading:
            self._files.clear()
            shutil.rmtree(self._own, ignore_errors=True)
        for adapter in self._trained:
            shutil.rmtree(checkpoints_of(adapter), ignore_errors=True)
        self._trained.clear()

    def close(self) -> None:
        shutil.rmtree(self._own, ignore_errors=True)
        if self._is_leader:
            shutil.rmtree(self._room, ignore_errors=True)

    def send(self, folder: Path, *, to: Path) -> dict[str, Digest]:
        """Send all files below a folder of this node into one of the driver's; returns their digests, by name."""
        self._at(f"the delivery of {to}")
        digests = {file.relative_to(folder).as_posix(): digest for file, digest in digests_of_folder(folder).items()}
        for name in digests:
            with (folder / name).open("rb") as file:
                self._desk.ask("write", str(to / name), file.read(_CHUNK_BYTES), offset=0)
                rest = (
                    ((str(to / name), chunk), {"offset": number * _CHUNK_BYTES})
                    for number, chunk in enumerate(iter(lambda: file.read(_CHUNK_BYTES), b""), start=1)
                )
                for _ in self._desk.ask_each("write", rest):
                    pass
        return digests

    def mirror(self, path: str | Path) -> Path:
        """The place in the room for a path of the driver's machine."""
        return self._room / Path(path).relative_to("/")

    def _fetch(self, path: str, *, digest: Digest, into: Path) -> None:
        """Fetch a file.

        Raises:
            TransferError: it did not arrive as it lies there.
            StorageError: this node cannot take it.
        """
        parts = ({"offset": offset, "num_bytes": _CHUNK_BYTES} for offset in range(0, digest.num_bytes, _CHUNK_BYTES))
        with storage_errors(into):
            make_folder(into.parent, is_durable=False)
            into.write_bytes(b"")
        for chunk in self._desk.ask_each("read", (((path,), part) for part in parts)):
            with storage_errors(into), into.open("ab") as file:
                file.write(chunk)
        if damage := damage_of(into, expected=digest):
            raise TransferError(f"{path}, as it came to this node, {damage}")


class CarriedCheckpoints(CheckpointFolder):
    """The checkpoints of one cycle's training, which lie on the driver's disk.

    Workers write in their node's room. From there the leader of each node delivers, and rank 0 has the driver's side
    commit, which looks at every file once more.

    Args:
        there: their folder on the driver's disk.
        is_leader: see `Courier`.
    """

    def __init__(self, courier: Courier, *, desk: DeskCalls, there: Path, is_leader: bool) -> None:
        super().__init__(courier.mirror(there))
        self._courier = courier
        self._desk = desk
        self._there = there
        self._is_leader = is_leader

    def begin(self, *, is_first: bool) -> None:
        if self._is_leader:
            self.clear_staging()
        if is_first:
            self._desk.ask("clear_staging", str(self._there))

    def hand_in(self) -> None:
        if self._is_leader:
            there = CheckpointFolder(self._there).staging
            digests = self._courier.send(self.staging, to=there)
            self._desk.ask("check", str(there), digests=digests)
            shutil.rmtree(self.staging, ignore_errors=True)

    def here(self, checkpoint: Checkpoint) -> Checkpoint:
        return replace(checkpoint, path=Path(self._courier.folder(str(checkpoint.path))))

    def commit(self, progress: Progress, *, example_keys: Sequence[bytes]) -> None:
        self._desk.ask("commit", str(self._there), progress=progress, example_keys=list(example_keys))

    def find(self, *, training: str) -> Found:
        found: Found = self._desk.ask("find", str(self._there), training=training)
        return found


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Keep the other processes of this node out of the block; a process that dies in it keeps nobody out."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
