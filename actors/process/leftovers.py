"""Nothing of a run outlives it: folders named by their owners, and a watchdog that clears up behind a killed driver.

Ray ends its workers when a driver is killed, but not its two agents, and nobody removes what the killed had in /tmp
and /dev/shm. So:

- `own_folder` makes temporary folders whose names say whose they are, and `sweep` removes those of the dead.
- `Watchdog` is for a Ray that this process has started for itself: a small process that waits for the driver's end,
  then kills whatever is left of that Ray (it is found by an environment variable that all its processes inherit) and
  removes its files. It is never started for a cluster that was joined.

Nothing is touched that belongs to a living process, to another user, or to a container's own view of processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

_PREFIX = "csr-ray-"
_MARK = "CSR_RAY_DRIVER"
_SHARED_MEMORY = Path("/dev/shm")
# In an own folder: the names of what its owner has in /dev/shm, which do not say whose they are.
_NOTE = ".shared_memory.json"
_LOOK_EVERY_S = 5.0
_CLEAR_WITHIN_S = 10.0
# What is being born or is dying shows no environment for a moment, so one look that finds nothing is not enough.
_QUIET_LOOKS = 3


def own_folder(what: str) -> Path:
    """A new temporary folder of this process, `csr-ray-WHAT-NAMESPACE-PID-START-RANDOM`.

    Its owner removes it at its end; if it is killed before, `sweep` does.
    """
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{what}-{_identity(os.getpid())}-"))


def note_shared_memory(folder: Path) -> None:
    """Note in an own folder what this process and its children have in /dev/shm now, so that `sweep` finds it."""
    names = _shared_memory_of(_descendants([os.getpid()]))
    if names:
        unfinished = folder / f"{_NOTE}.new"
        unfinished.write_text(json.dumps(sorted(names)))
        unfinished.replace(folder / _NOTE)


def sweep() -> list[str]:
    """Remove what dead processes left on this machine: own folders, and processes of a private Ray. Says what.

    It is cheap, and meant for the start of whatever makes such things.
    """
    found = _kill_marked(lambda mark: not _lives(mark))
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        owner = _owner(folder)
        try:
            is_left = owner is not None and not _lives(owner) and folder.lstat().st_uid == os.getuid()
        except FileNotFoundError:  # somebody else sweeps at the same moment
            continue
        if not is_left or folder.is_symlink():
            continue
        with contextlib.suppress(OSError, ValueError):
            _remove_shared_memory(json.loads((folder / _NOTE).read_text()))
        shutil.rmtree(folder, ignore_errors=True)
        found.append(str(folder))
    return found


class Watchdog:
    """Clears up behind the Ray that this process starts. Made before `ray.init`, closed after `ray.shutdown`."""

    def __init__(self) -> None:
        self._mark = _identity(os.getpid())
        environment = {name: value for name, value in os.environ.items() if name != _MARK}
        os.environ[_MARK] = self._mark
        # In a session of its own, so that a Ctrl-C or the end of a terminal does not reach it.
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", __file__, self._mark],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=environment,
        )

    def remove_at_end(self, folder: Path | str) -> None:
        """Let it remove this folder, too, such as Ray's session folder."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(f"{folder}\n".encode())
            self._process.stdin.flush()

    def close(self) -> None:
        """Let it clear up now, and wait until it has."""
        assert self._process.stdin is not None
        os.environ.pop(_MARK, None)
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=_CLEAR_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def watch(mark: str) -> None:
    """What the watchdog does: wait for the driver's end, then clear up. Folders to remove come on stdin."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends when its work is done
    note = own_folder("watch")
    driver = int(mark.split("-")[1])
    shared: set[str] = set()
    known: dict[int, int | None] = {}  # processes that were seen, with their starts
    given = b""
    os.set_blocking(0, False)
    next_look_s = 0.0
    while _lives(mark):
        with contextlib.suppress(BlockingIOError):
            part = os.read(0, 65536)
            if not part:
                break
            given += part
        if time.monotonic() >= next_look_s:
            known |= {pid: _start_of(pid) for pid in _descendants(_marked(lambda other: other == mark))}
            seen = _shared_memory_of({driver, *known})
            if not seen <= shared:
                shared |= seen
                (note / _NOTE).write_text(json.dumps(sorted(shared)))
            next_look_s = time.monotonic() + _LOOK_EVERY_S
        time.sleep(0.1)
    with contextlib.suppress(OSError):
        while part := os.read(0, 65536):
            given += part
    shared |= _shared_memory_of(_marked(lambda other: other == mark))
    until_s = time.monotonic() + _CLEAR_WITHIN_S
    num_quiet = 0
    while num_quiet < _QUIET_LOOKS and time.monotonic() < until_s:
        killed = _kill_marked(lambda other: other == mark)
        killed += _kill(pid for pid, start in known.items() if start is not None and _start_of(pid) == start)
        num_quiet = 0 if killed else num_quiet + 1
        time.sleep(0.1)
    _remove_shared_memory(shared)
    for folder in given.decode(errors="replace").splitlines():
        shutil.rmtree(folder, ignore_errors=True)
    sweep()
    shutil.rmtree(note, ignore_errors=True)


# ---- who is who ----


def _identity(pid: int) -> str:
    """NAMESPACE-PID-START of a living process; an id is used again, but not with the same start."""
    return f"{_namespace()}-{pid}-{_start_of(pid) or 0}"


def _lives(identity: str) -> bool:
    """Whether this process is there, or cannot be seen from here."""
    namespace, pid, start = identity.split("-")
    return namespace != _namespace() or _start_of(int(pid)) == int(start)


def _owner(folder: Path) -> str | None:
    parts = folder.name.split("-")[-4:-1]
    return "-".join(parts) if len(parts) == 3 and all(part.isdigit() for part in parts) else None


def _namespace() -> str:
    """The namespace in which this process's ids count; a container has its own."""
    return str(os.stat("/proc/self/ns/pid").st_ino)


def _start_of(pid: int) -> int | None:
    """When a process started, in the kernel's ticks; None: there is none, or it has ended."""
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat behind the command, which may hold anything: state, parent, ..."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None


def _pids() -> Iterator[int]:
    """The processes of this user, but for this one."""
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{name}").st_uid == os.getuid():
                    yield int(name)


def _descendants(roots: Iterable[int]) -> set[int]:
    parents = {pid: int(fields[1]) for pid in _pids() if (fields := _stat(pid)) is not None}
    found = set(roots)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


# ---- what is left ----


def _marked(is_wanted: Callable[[str], bool]) -> list[int]:
    """The processes whose environment names a driver that `is_wanted` says yes to."""
    start = f"{_MARK}=".encode()
    found = []
    for pid in _pids():
        try:
            names = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        mark = next((name[len(start) :].decode(errors="replace") for name in names if name.startswith(start)), None)
        if mark is not None and mark.count("-") == 2 and mark.replace("-", "").isdigit() and is_wanted(mark):
            found.append(pid)
    return found


def _kill_marked(is_wanted: Callable[[str], bool]) -> list[str]:
    return _kill(_marked(is_wanted))


def _kill(pids: Iterable[int]) -> list[str]:
    killed = []
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
            killed.append(f"pid {pid}")
    return killed


def _shared_memory_of(pids: Iterable[int]) -> set[str]:
    """The files of /dev/shm that these processes have mapped, by name.

    Compared by inode: a semaphore is mapped under the name that it had for a moment while it was made.
    """
    mapped: set[int] = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines():
                fields = line.split(maxsplit=5)
                if fields[-1].startswith(f"{_SHARED_MEMORY}/"):
                    mapped.add(int(fields[4]))
    with contextlib.suppress(OSError):
        return {entry.name for entry in os.scandir(_SHARED_MEMORY) if entry.inode() in mapped}
    return set()


def _remove_shared_memory(names: Iterable[str]) -> None:
    """Remove these files, but for those that a living process still has mapped, or that are another user's."""
    wanted = {name for name in names if (_SHARED_MEMORY / name).is_file()}
    if not wanted:
        return
    for name in wanted - _shared_memory_of([os.getpid(), *_pids()]):
        path = _SHARED_MEMORY / name
        with contextlib.suppress(OSError):
            if path.stat().st_uid == os.getuid():
                path.unlink()


if __name__ == "__main__":
    watch(sys.argv[1])
