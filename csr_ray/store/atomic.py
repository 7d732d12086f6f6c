"""Files and folders that appear whole or not at all: written under another name beside the target, then renamed.

What is durable is on the disk, under its name, when the call returns: the file is synced before it is renamed, and
the folder that holds the name after that.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from csr_ray.errors import StorageError
from csr_ray.waiting import said_if_slow

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
# Libraries written in Rust raise errors of their own, which only say the number.
_OS_ERROR = re.compile(r"\bos error (\d+)")
# What a write meets that has nowhere to go. Other errors inside `new_folder` may be of what is read there.
_STORAGE_ERRNOS = (*_NO_SPACE, errno.EROFS, errno.EIO)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an error of the storage in the block into a StorageError, whose one line names `path` and what to do.

    If the block takes long, a line says every 30 seconds what is waited for.
    """
    with said_if_slow(f"{path} to be written", question="is its file system slow or away?"):
        try:
            yield
        except OSError as error:
            raise storage_error_of(path, error=error) from error
        except Exception as error:
            if (number := _os_error_number(error)) is None:
                raise
            raise storage_error_of(path, error=OSError(number, os.strerror(number))) from error


def _os_error_number(error: Exception) -> int | None:
    """The system's number of an error, also where a library's own error has it only in its words."""
    if isinstance(error, OSError):
        return error.errno
    found = _OS_ERROR.search(str(error))
    return int(found[1]) if found else None


def storage_error_of(path: Path, *, error: OSError, done: str = "write") -> StorageError:
    """The one line for an error of the storage: what could not be done, why, and what helps.

    It names `path`, or what the error speaks of below it.
    """
    if isinstance(error.filename, str) and Path(error.filename).is_relative_to(path):
        path = Path(error.filename)
    if error.errno in _NO_SPACE:
        remedy = "free some space"
    elif error.errno in _NOT_ALLOWED:
        remedy = "fix the permissions or how it is mounted, or name another run.dir"
    elif error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
        remedy = "move away what stands in its place"
    else:
        remedy = "see that the file system is there and sound"
    return StorageError(
        f"cannot {done} {path}: {error.strerror or error}; {remedy}, then start the same command again: it goes on "
        "where it was"
    )


def write_atomically(path: Path, *, write: Callable[[Path], object], is_durable: bool = True) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it, so nobody ever sees half of the new file.

    Args:
        is_durable: sync the file to disk before the rename, and its folder after it. Without that the file may be
            gone, or cut short, after a power cut; for what can be made again that is the better choice, because
            syncing costs more.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    with storage_errors(path):
        make_folder(path.parent, is_durable=is_durable)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            temporary.chmod(0o666 & ~_umask())  # mkstemp's files are their owner's alone
            if is_durable:
                sync(temporary)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if is_durable:
            sync_folder(path.parent)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def make_folder(path: Path, *, is_durable: bool = True) -> None:
    """Make a folder and those above it that are missing; with `is_durable` their names outlive a power cut."""
    if path.is_dir():
        return
    make_folder(path.parent, is_durable=is_durable)
    path.mkdir(exist_ok=True)
    if is_durable:
        sync_folder(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's content is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk: those that were made, renamed and removed."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems, most of them on object stores, cannot sync a folder and need not.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def write_json(path: Path, *, value: object, is_durable: bool = True) -> None:
    text = json.dumps(value, indent=2) + "\n"
    write_atomically(path, write=lambda temporary: temporary.write_text(text), is_durable=is_durable)


@contextlib.contextmanager
def new_folder(target: Path, *, is_durable: bool = True) -> Iterator[Path]:
    """A folder to write into, which is moved to `target` at the end; an older one there disappears.

    After an error nothing is left of it. Its files are made readable by others at the end, because `mkdtemp` and
    safetensors make what they write private to this user.

    Args:
        is_durable: sync every file in it before it is moved, and the folder that holds it after that.

    Raises:
        StorageError: the disk is full, or the place cannot be written.
    """
    with storage_errors(target):
        make_folder(target.parent, is_durable=is_durable)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        try:
            yield staging
        except Exception as error:
            number = _os_error_number(error)
            if number not in _STORAGE_ERRNOS:
                raise
            raise storage_error_of(target, error=OSError(number, os.strerror(number))) from error
        with storage_errors(target):
            staging.chmod(0o755)
            for path in staging.iterdir():
                path.chmod(0o755 if path.is_dir() else 0o644)
            if is_durable:
                sync_tree(staging)
            _replace(staging, target=target)
            if is_durable:
                sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def sync_tree(folder: Path) -> None:
    """Wait until every file and every name below a folder is on the disk."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            sync(path)
    sync_folder(folder)


def _replace(staging: Path, *, target: Path) -> None:
    if not target.exists():
        os.rename(staging, target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    os.rename(target, old / target.name)
    os.rename(staging, target)
    shutil.rmtree(old)


def write_all(write: Callable[[memoryview], int | None], data: bytes) -> None:
    """Write all of `data` to a file without a buffer, which may take less than it is given."""
    left = memoryview(data)
    while left:
        left = left[write(left) or 0 :]
