"""Files and folders that appear whole or not at all: written under another name beside the target, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from csr_ray.errors import StorageError


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a StorageError, whose one line names `path` and what to do."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}; free some space or fix the permissions, then start the "
            f"same command again: it goes on where it was"
        ) from error


def write_atomically(path: Path, *, write: Callable[[Path], object], is_durable: bool = True) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it, so nobody ever sees half of the new file.

    Args:
        is_durable: sync the file to disk before the rename. Without that the file may be gone, or cut short, after a
            power cut; for what can be made again that is the better choice, because syncing costs more.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            if is_durable:
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())  # mkstemp's files are their owner's alone
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def write_json(path: Path, *, value: object) -> None:
    write_atomically(path, write=lambda temporary: temporary.write_text(json.dumps(value, indent=2) + "\n"))


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, which is moved to `target` at the end; an older one there disappears.

    After an error nothing is left of it. Its files are made readable by others at the end, because `mkdtemp` and
    safetensors make what they write private to this user.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield staging
        staging.chmod(0o755)
        for path in staging.iterdir():
            path.chmod(0o755 if path.is_dir() else 0o644)
        _replace(staging, target=target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _replace(staging: Path, *, target: Path) -> None:
    if not target.exists():
        os.rename(staging, target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    os.rename(target, old / target.name)
    os.rename(staging, target)
    shutil.rmtree(old)
