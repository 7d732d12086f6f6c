"""The lock of a run folder: one holder at a time, whoever dies and however many start at once."""

from __future__ import annotations

import ast
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from forgetful_disk import ForgetfulDisk
from s3_server import Door, s3_door

from csr_ray.errors import ConfigError, LockLost, StorageError
from csr_ray.store.lock import Holder, LockFile, LockStore, RunLock, lock_folder
from csr_ray.store.object_lock import LockObjects
from csr_ray.store.objects import ObjectStore
from csr_ray.store.run_folder import RunFolder

TESTS = Path(__file__).parents[1]


class LockInMemory:
    """A `LockStore` as an object store has it: every write counts up the tag."""

    def __init__(self) -> None:
        self._content: bytes | None = None
        self._tag = 0
        self._one_at_a_time = threading.Lock()

    def create(self, content: bytes) -> str | None:
        with self._one_at_a_time:
            return self._write(content) if self._content is None else None

    def read(self) -> tuple[bytes, str] | None:
        with self._one_at_a_time:
            return None if self._content is None else (self._content, str(self._tag))

    def replace(self, content: bytes, *, tag: str) -> str | None:
        with self._one_at_a_time:
            return self._write(content) if self._content is not None and tag == str(self._tag) else None

    def delete(self, *, tag: str) -> bool:
        with self._one_at_a_time:
            if self._content is None or tag != str(self._tag):
                return False
            self._content = None
            return True

    def _write(self, content: bytes) -> str:
        self._content = content
        self._tag += 1
        return str(self._tag)


class OneAtATime(ObjectStore):
    """fsspec's store in memory looks and writes in two steps; a real one does that in one."""

    _creating = threading.Lock()

    def create(self, name: str, data: bytes) -> bool:
        with self._creating:
            return super().create(name, data)


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    with s3_door() as one:
        yield one


@pytest.fixture(params=["file", "memory", "objects"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> LockStore:
    if request.param == "file":
        return LockFile(tmp_path / "run.lock")
    if request.param == "memory":
        return LockInMemory()
    url = f"memory://{tmp_path.name}/run"
    return LockObjects(OneAtATime(fsspec.filesystem("memory"), root=url.removeprefix("memory:/"), url=url))


@pytest.fixture(params=["file", "memory", "objects", "s3"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> LockStore:
    """Also objects of a real server, where the test can wait for it."""
    if request.param == "s3":
        return LockObjects(request.getfixturevalue("door").store(tmp_path.name))
    url = f"memory://{tmp_path.name}/run"
    objects = OneAtATime(fsspec.filesystem("memory"), root=url.removeprefix("memory:/"), url=url)
    return {"file": LockFile(tmp_path / "run.lock"), "memory": LockInMemory(), "objects": LockObjects(objects)}[
        request.param
    ]


def take(store: LockStore, *, said: list[str] | None = None, stale_s: float = 0.3, beat_s: float = 0.05) -> RunLock:
    say = (said if said is not None else []).append
    return RunLock.take(store, name="run.dir = 'r'", say=say, stale_s=stale_s, beat_s=beat_s)


def elsewhere(holder: Holder) -> Holder:
    return replace(holder, host="otherhost", machine="another")


def dead(holder: Holder) -> Holder:
    """The same process id, but of a process that started at another time."""
    return replace(holder, started=holder.started - 1, token="of the dead")


# ---- the contract of a store ----


def test_every_operation_is_carried_out_only_if_the_object_is_as_it_was_seen(any_store: LockStore) -> None:
    store = any_store
    assert store.read() is None and store.replace(b"x", tag="none") is None and not store.delete(tag="none")
    first = store.create(b"one")
    assert first is not None and store.create(b"other") is None
    assert store.read() == (b"one", first)
    second = store.replace(b"two", tag=first)
    assert second is not None and store.replace(b"three", tag=first) is None
    assert store.read() == (b"two", second)
    assert not store.delete(tag=first) and store.read() is not None
    assert store.delete(tag=second) and store.read() is None and not store.delete(tag=second)
    assert store.create(b"again") is not None


def test_of_many_that_change_it_at_once_one_succeeds(any_store: LockStore) -> None:
    store, num = any_store, 16
    together = threading.Barrier(num)

    def wins(number: int, tag: str | None) -> str | None:
        content = f"{number} after {tag}".encode()  # as with ETags, equal contents may have equal tags
        together.wait()
        return store.create(content) if tag is None else store.replace(content, tag=tag)

    with ThreadPoolExecutor(num) as pool:
        tag: str | None = None
        for _ in range(20 if not isinstance(store, LockObjects) else 5):
            tags = [won for won in pool.map(wins, range(num), [tag] * num) if won is not None]
            assert len(tags) == 1
            (tag,) = tags
            found = store.read()
            assert found is not None and found[1] == tag

        def deletes(_: int) -> bool:
            together.wait()
            assert tag is not None
            return store.delete(tag=tag)

        assert sum(pool.map(deletes, range(num))) == 1


# ---- a lock of objects ----


@pytest.fixture
def objects(tmp_path: Path) -> ObjectStore:
    url = f"memory://{tmp_path.name}/run"
    return OneAtATime(fsspec.filesystem("memory"), root=url.removeprefix("memory:/"), url=url)


def test_a_number_that_is_free_again_gives_a_stale_driver_nothing(objects: ObjectStore) -> None:
    lock = LockObjects(objects)
    stale = lock.create(b"stale")
    tag = stale
    for number in range(3):
        assert tag is not None
        tag = lock.replace(b"new %d" % number, tag=tag)
    assert stale == "0" and tag == "3" and set(objects.list()) == {"run.lock/000000003"}
    assert lock.replace(b"stale again", tag=stale) is None and not lock.delete(tag=stale)
    assert lock.read() == (b"new 2", tag) and set(objects.list()) == {"run.lock/000000003"}
    objects.write("run.lock/000000000", b"stale")  # as if whoever followed could not remove it
    assert lock.replace(b"stale again", tag=stale) is None and lock.read() == (b"new 2", tag)


def test_numbers_never_begin_anew_while_somebody_may_remember_one(objects: ObjectStore) -> None:
    lock = LockObjects(objects)
    first = lock.create(b"one")
    assert first is not None and lock.delete(tag=first) and lock.read() is None
    second = lock.create(b"two")
    assert second == "2" and lock.replace(b"one again", tag=first) is None and lock.read() == (b"two", second)
    lock.forget()
    assert lock.read() == (b"two", second), "it is held"
    assert lock.delete(tag=second)
    lock.forget()
    assert objects.list() == {}


def test_a_lock_that_is_removed_by_hand_is_gone_for_its_holder(objects: ObjectStore) -> None:
    lock = LockObjects(objects)
    tag = lock.create(b"one")
    objects.remove(objects.list())
    assert tag is not None and lock.replace(b"one again", tag=tag) is None and lock.read() is None


def test_a_holder_is_sure_of_its_lock_for_less_than_others_wait(objects: ObjectStore) -> None:
    lock = take(LockObjects(objects), stale_s=0.3, beat_s=60)
    assert lock.is_sure
    time.sleep(0.2)
    assert not lock.is_sure
    lock.release()
    lock = take(LockObjects(objects), stale_s=0.6, beat_s=0.05)
    time.sleep(0.8)
    assert lock.is_sure, "it is renewed"
    lock.release()


# ---- the lock ----


def test_a_living_holder_keeps_others_out_until_it_lets_go(store: LockStore) -> None:
    lock = take(store)
    with pytest.raises(ConfigError, match=rf"run.dir = 'r': in use by .*, pid {os.getpid()}, since 20.*stop it"):
        take(store)
    lock.check()
    lock.release()
    assert store.read() is None
    take(store).release()


def test_a_dead_holder_of_this_machine_is_taken_over_at_once_and_one_line_says_so(store: LockStore) -> None:
    store.create(dead(Holder.this_process()).to_bytes())
    said: list[str] = []
    started_s = time.monotonic()
    lock = take(store, said=said, stale_s=60)
    assert time.monotonic() - started_s < 5
    assert len(said) == 1 and "took over the lock of a dead holder" in said[0] and str(os.getpid()) in said[0]
    lock.check()
    lock.release()


def test_a_holder_on_another_machine_is_watched_and_refuses_or_gives_way(store: LockStore) -> None:
    tag = store.create(elsewhere(Holder.this_process()).to_bytes())
    assert tag is not None
    said: list[str] = []
    lock = take(store, said=said)
    assert "otherhost" in said[0] and "watched for 0 s" in said[0] and "took over" in said[1]
    lock.release()

    lock = take(store)
    lock._holder = elsewhere(lock._holder)  # it renews its lock as another machine's process from now on
    time.sleep(0.2)
    with pytest.raises(ConfigError, match="in use by otherhost"):
        take(store)
    lock.release()


def test_a_lock_that_nobody_can_read_is_watched_too(store: LockStore) -> None:
    store.create(b'{"half')
    said: list[str] = []
    take(store, said=said).release()
    assert "somebody unreadable" in said[0]


def test_of_many_that_take_over_at_once_one_gets_it(store: LockStore) -> None:
    num = 12
    for _ in range(10):
        store.create(dead(Holder.this_process()).to_bytes())
        together = threading.Barrier(num)

        def start(_: int, together: threading.Barrier = together) -> RunLock | None:
            together.wait()
            try:
                return take(store)
            except ConfigError:
                return None

        with ThreadPoolExecutor(num) as pool:
            locks = [lock for lock in pool.map(start, range(num)) if lock is not None]
        assert len(locks) == 1
        locks[0].check()
        locks[0].release()
        assert store.read() is None


def test_a_holder_that_slept_finds_its_lock_taken_and_does_not_remove_the_others(store: LockStore) -> None:
    slept = take(store, beat_s=60)
    found = store.read()
    assert found is not None
    other = elsewhere(replace(Holder.this_process(), token="other"))
    store.replace(other.to_bytes(), tag=found[1])
    with pytest.raises(LockLost, match=r"held by otherhost.*writes nothing more"):
        slept.check()
    slept.release()
    left = store.read()
    assert left is not None and left[0] == other.to_bytes()


def test_a_holder_whose_lock_was_removed_by_hand_stops(store: LockStore) -> None:
    lock = take(store, beat_s=60)
    found = store.read()
    assert found is not None and store.delete(tag=found[1])
    with pytest.raises(LockLost, match="is now gone"):
        lock.check()
    lock.release()


def test_a_lock_is_renewed_while_it_is_held(store: LockStore) -> None:
    lock = take(store, beat_s=0.02)
    contents = set()
    until_s = time.monotonic() + 10
    while len(contents) < 4 and time.monotonic() < until_s:
        found = store.read()
        assert found is not None
        contents.add(found[0])
    lock.check()
    lock.release()
    assert len(contents) == 4 and store.read() is None


# ---- a store in trouble ----


class TroubledStore:
    """Another store in front of which replies are lost, or which takes nothing for a while.

    Attributes:
        trouble: of the next `num` writes. "full": nothing is written, and that is an error; "no reply": it is
            written, and that is an error; "denied": it is written, and the answer is that it was not, as of a request
            that was sent a second time by itself.
        is_unread: reading fails, too.
        num_stale: how many writes were tried with a tag that the object did not have any more.
    """

    def __init__(self, store: LockStore) -> None:
        self._store = store
        self.trouble = ""
        self.num = 0
        self.is_unread = False
        self.num_replaced = self.num_stale = 0

    def create(self, content: bytes) -> str | None:
        return self._written(lambda: self._store.create(content))

    def replace(self, content: bytes, *, tag: str) -> str | None:
        self.num_replaced += 1
        return self._written(lambda: self._replaced(content, tag=tag))

    def read(self) -> tuple[bytes, str] | None:
        if self.is_unread:
            raise TimeoutError("no reply")
        return self._store.read()

    def delete(self, *, tag: str) -> bool:
        return self._store.delete(tag=tag)

    def _replaced(self, content: bytes, *, tag: str) -> str | None:
        new_tag = self._store.replace(content, tag=tag)
        self.num_stale += new_tag is None
        return new_tag

    def _written(self, write: Callable[[], str | None]) -> str | None:
        if not self.num:
            return write()
        if self.trouble == "full":
            self.num -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write()
        self.num -= 1
        if self.trouble == "no reply":
            raise TimeoutError("no reply")
        return None


def beat_of(store: LockStore) -> int:
    found = store.read()
    holder = None if found is None else Holder.from_bytes(found[0])
    assert holder is not None
    return holder.beat


def wait_for(what: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 10
    while not what():
        assert time.monotonic() < until_s, "it does not come"
        time.sleep(0.01)


@pytest.mark.parametrize("is_unread", [False, True], ids=["read", "unread"])
@pytest.mark.parametrize("trouble", ["full", "no reply", "denied"])
def test_a_lock_is_renewed_again_after_a_write_that_failed_or_whose_reply_was_lost(
    store: LockStore, trouble: str, is_unread: bool
) -> None:
    troubled = TroubledStore(store)
    lock = take(troubled, beat_s=0.02)
    troubled.trouble, troubled.is_unread, troubled.num = trouble, is_unread, 3
    wait_for(lambda: not troubled.num)
    troubled.is_unread = False
    beat = beat_of(store)
    wait_for(lambda: beat_of(store) > beat + 2)
    assert is_unread or not troubled.num_stale, "it looks at once, and so loses no time"
    lock.check()
    lock.release()
    assert store.read() is None


def test_a_lock_that_was_away_for_a_while_is_renewed_again(tmp_path: Path) -> None:
    """As where a network file system is mounted anew."""
    path, aside = tmp_path / "run.lock", tmp_path / "aside"
    lock = take(LockFile(path), beat_s=0.02)
    path.rename(aside)
    time.sleep(0.1)
    with pytest.raises(LockLost, match="is now gone"):
        lock.check()
    aside.rename(path)
    beat = beat_of(LockFile(path))
    wait_for(lambda: beat_of(LockFile(path)) > beat + 2)
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_holder_that_lost_its_lock_writes_nothing_more(store: LockStore) -> None:
    troubled = TroubledStore(store)
    lock = take(troubled, beat_s=0.02)
    taker = elsewhere(replace(Holder.this_process(), token="other")).to_bytes()
    wait_for(lambda: (found := store.read()) is not None and store.replace(taker, tag=found[1]) is not None)
    wait_for(lambda: not lock._thread.is_alive())
    num = troubled.num_replaced
    time.sleep(0.1)
    assert troubled.num_replaced == num
    lock.release()
    found = store.read()
    assert found is not None and found[0] == taker


def test_a_lock_is_removed_although_the_reply_to_its_last_renewal_was_lost(store: LockStore) -> None:
    troubled = TroubledStore(store)
    lock = take(troubled, beat_s=0.02)
    troubled.trouble, troubled.is_unread, troubled.num = "no reply", True, 1
    wait_for(lambda: not troubled.num)
    lock._released.set()
    lock._thread.join()
    troubled.is_unread = False
    lock.release()
    assert store.read() is None


@pytest.mark.parametrize("is_taken_over", [False, True])
def test_a_lock_that_was_made_although_the_store_denies_it_is_ours(store: LockStore, is_taken_over: bool) -> None:
    """A network file system may send a request twice, and answer the second."""
    if is_taken_over:
        store.create(dead(Holder.this_process()).to_bytes())
    troubled = TroubledStore(store)
    troubled.trouble, troubled.num = "denied", 1
    lock = take(troubled)
    lock.check()
    lock.release()
    assert store.read() is None


FULL = """
import resource, signal, sys, time
from pathlib import Path
from csr_ray.store.lock import LockFile, RunLock

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
lock = RunLock.take(LockFile(path), name="run", say=print, beat_s=0.02)
full = (0, resource.RLIM_INFINITY)
resource.setrlimit(resource.RLIMIT_FSIZE, full)
time.sleep(0.5)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
while b'"beat": 0' in (content := path.read_bytes()):
    time.sleep(0.01)
while path.read_bytes() == content:
    time.sleep(0.01)
print(sorted(one.name for one in path.parent.iterdir()))
lock.release()
"""


def test_renewals_on_a_full_disk_leave_no_files_and_go_on_when_there_is_space(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "run.lock")],
        capture_output=True,
        text=True,
        timeout=60,
        env=_env(),
    )
    assert done.returncode == 0, done.stderr
    names = ast.literal_eval(done.stdout)
    assert "run.lock" in names and len(names) <= 2, "one may be on its way"
    assert list(tmp_path.iterdir()) == []


# ---- in processes ----


def test_who_is_interrupted_while_it_takes_the_lock_leaves_none(store: LockStore) -> None:
    create = store.create

    def interrupted(content: bytes) -> str | None:
        create(content)
        raise KeyboardInterrupt

    store.create = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        take(store)
    assert store.read() is None


@pytest.fixture
def starters(tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Eight processes that take one lock at the same moment; the lock is a dead process's."""
    path = tmp_path / "run.lock"
    LockFile(path).create(dead(Holder.this_process()).to_bytes())
    command = [sys.executable, str(TESTS / "lock_process.py"), str(path), str(time.time() + 2)]
    processes = [
        subprocess.Popen(
            command, cwd=TESTS.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_env()
        )
        for _ in range(8)
    ]
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def _env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(TESTS.parent)}


def test_of_processes_that_take_over_at_once_one_gets_it_and_a_killed_one_is_followed(
    starters: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    words = [process.stdout.readline().strip() for process in starters if process.stdout]
    assert sorted(words) == ["refused"] * 7 + ["taken"]
    holder = starters[words.index("taken")]
    store = LockFile(tmp_path / "run.lock")
    with pytest.raises(ConfigError, match=f"pid {holder.pid}"):
        take(store)
    os.kill(holder.pid, signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # it has ended; nobody has fetched its exit code yet
    take(store).release()
    assert [path.name for path in tmp_path.iterdir()] == []


# ---- folders ----


def test_a_folder_is_made_and_left_without_a_lock(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "new"
    lock_folder(RunFolder(folder), say=print).release()
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/sys").is_dir(), reason="needs a folder that nobody can write")
def test_a_folder_that_cannot_be_written_is_one_line() -> None:
    with pytest.raises(StorageError, match="cannot write /proc/sys/run") as error:
        lock_folder(RunFolder(Path("/proc/sys/run")), say=print)
    assert "\n" not in str(error.value)


def test_the_folder_that_is_made_for_a_run_outlives_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, fsync = ForgetfulDisk(tmp_path), os.fsync

    def watched(handle: int) -> None:
        fsync(handle)
        disk.synced(handle)

    monkeypatch.setattr(os, "fsync", watched)
    lock = lock_folder(RunFolder(tmp_path / "runs" / "mine"), say=print)
    lock.release()
    disk.forget()
    assert (tmp_path / "runs" / "mine").is_dir()
