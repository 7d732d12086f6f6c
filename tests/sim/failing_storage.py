"""A disk that does not take everything: the machine dies at a write, or a few writes fail, or all from one on.

Everything that the driver writes goes through the calls that are counted here. A line of the journal, and whatever
else is cut short by what happens, is there by half.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from forgetful_disk import ForgetfulDisk

from csr_ray.store import journal, quarantine

Kind = Literal["power", "error", "signal"]


class PowerCut(BaseException):
    """The driver is dead: what it would do next is not done."""


@dataclass
class Storage:
    """What happens at the write number `at`: the power goes, an error comes, or a signal.

    Attributes:
        is_done: the write itself still happens, or, where it writes bytes, half of it.
        error: of the system, for kind "error"; the next `lasts` writes fail with it.
        on_signal: called at the write, for kind "signal"; it may raise.
        disk: is told what was synced.
        hit: what was being written, by kind, when it happened; None: it has not.
    """

    at: int
    kind: Kind = "power"
    is_done: bool = False
    error: int = errno.ENOSPC
    lasts: int = 10**9
    on_signal: Callable[[], None] = lambda: None
    disk: ForgetfulDisk | None = None
    num: int = 0
    hit: str | None = None

    def __str__(self) -> str:
        how = f"{os.strerror(self.error)}, {self.lasts} writes" if self.kind == "error" else ""
        return f"write {self.at}{' done' * self.is_done}: {self.hit or 'not reached'} {how}".strip()

    @property
    def is_off(self) -> bool:
        return self.kind == "power" and self.hit is not None

    @property
    def fails(self) -> bool:
        return self.kind == "error" and self.at <= self.num < self.at + self.lasts

    def write(self, do: Callable[[], Any], *, what: Any, name: str, torn: Callable[[], Any] | None = None) -> Any:
        """Do one counted write; `torn` does it by half."""
        if self.is_off:
            raise PowerCut
        self.num += 1
        if self.num == self.at:
            self.hit = f"{name} {_kind_of(what)}"
            if self.kind == "signal":
                self.on_signal()
            elif self.kind == "power":
                if self.is_done:
                    (torn or do)()
                raise PowerCut
        if self.fails:
            if torn is not None and self.is_done:
                torn()
            raise OSError(self.error, os.strerror(self.error))
        return do()

    def tidy(self, do: Callable[[], Any]) -> Any:
        """Remove something: nobody does that after a power cut, and a disk that is full lets it happen."""
        if self.is_off:
            raise PowerCut
        if self.fails and self.error != errno.ENOSPC:
            raise OSError(self.error, os.strerror(self.error))
        return do()


@contextlib.contextmanager
def failing(storage: Storage) -> Iterator[None]:
    """Let what this process writes in the block go to such a storage."""
    with contextlib.ExitStack() as stack:

        def patch(owner: Any, name: str, wrapped: Callable[..., Any]) -> None:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, wrapped)

        for owner, name in ((os, "fsync"), (os, "replace"), (os, "rename"), (os, "ftruncate"), (os, "mkdir")):
            patch(owner, name, _counted(storage, getattr(owner, name), name=name))
        for name in ("mkstemp", "mkdtemp"):
            patch(tempfile, name, _counted(storage, getattr(tempfile, name), name="create"))
        for module in (journal, quarantine):
            patch(module, "write_all", _bytes_written(storage, module.write_all))
        for name in ("write_bytes", "write_text"):
            patch(Path, name, _file_written(storage, getattr(Path, name)))
        patch(Path, "unlink", _tidied(storage, Path.unlink))
        patch(os, "unlink", _tidied(storage, os.unlink))
        patch(shutil, "rmtree", _removed(storage, shutil.rmtree))
        yield


def _counted(storage: Storage, call: Callable[..., Any], *, name: str) -> Callable[..., Any]:
    def counted(*arguments: Any, **named: Any) -> Any:
        what = named.get("dir") or (arguments[-1] if name in ("replace", "rename") else (arguments or ("",))[0])

        def do() -> Any:
            result = call(*arguments, **named)
            if storage.disk is not None and name == "fsync":
                storage.disk.synced(*arguments)
            return result

        return storage.write(do, what=what, name=name)

    return counted


def _bytes_written(storage: Storage, write_all: Callable[..., Any]) -> Callable[..., Any]:
    def written(write: Any, data: bytes) -> None:
        half = memoryview(data)[: len(data) // 2]
        file = write.__self__.name
        storage.write(lambda: write_all(write, data), what=file, name="write", torn=lambda: write_all(write, half))

    return written


def _file_written(storage: Storage, call: Callable[..., Any]) -> Callable[..., Any]:
    def written(path: Path, data: Any, **named: Any) -> Any:
        return storage.write(
            lambda: call(path, data, **named),
            what=path,
            name="write",
            torn=lambda: call(path, data[: len(data) // 2], **named),
        )

    return written


def _tidied(storage: Storage, call: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments, **named: storage.tidy(lambda: call(*arguments, **named))


def _removed(storage: Storage, call: Callable[..., Any]) -> Callable[..., Any]:
    def removed(path: Any, ignore_errors: bool = False, **named: Any) -> Any:
        try:
            return storage.tidy(lambda: call(path, ignore_errors, **named))
        except OSError:
            if not ignore_errors:
                raise

    return removed


def _kind_of(what: Any) -> str:
    """What a path or an open file is for."""
    path = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else os.fspath(what)
    for mark, kind in (
        ("journal.jsonl", "journal"),
        ("quarantine.jsonl", "quarantine"),
        ("summary.json", "summary"),
        ("/candidates", "unit"),
        ("/examples", "examples"),
        ("pairs.parquet", "pairs"),
        ("adapter", "adapter"),
        ("/model", "model"),
    ):
        if mark in path:
            return kind
    return "folder"
