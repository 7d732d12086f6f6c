"""Opens what the user's data names: regular files, objects of known stores, and web pages; bounded in size and time.

A name in a prompt file is somebody else's text. It must not make an actor wait for a pipe, read a device without
end, or talk to a server that nobody has allowed. Knows no formats; how the web is asked is `csr_ray.data.web`.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import threading
from collections.abc import Callable
from typing import IO, Any, Final

from csr_ray.records import Fault
from csr_ray.redaction import without_credentials

# The most that is read of one picture: as much as the pixels of the largest that is allowed, in RGB of 8 bit.
MAX_FILE_BYTES: Final = 256 * 2**20
# A store that has not given a whole picture after so many seconds is given up for now.
STORE_S: Final = 60.0

# Every scheme that is understood. fsspec knows many more, and some of them run programs, unpack archives, or keep
# copies of what they read on the disk. `memory` is a store within the process.
STORES: Final = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "hf", "memory")
WEB: Final = ("http", "https")
# A picture inside a tar of this machine or of a store (`csr_ray.data.tars`).
TAR: Final = "tar"

# What these say of a path stays true; every other error of the system may be gone when the file is read again.
_LASTING: Final = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)


class UnreadableError(ValueError):
    """Something that cannot be read. `fault` says whether it is bad ("input"), or the way to it ("machine")."""

    def __init__(self, reason: str, *, fault: Fault = "input") -> None:
        super().__init__(reason)
        self.fault: Fault = fault

    def __reduce__(self) -> Any:
        return _unreadable, (str(self), self.fault)


def _unreadable(reason: str, fault: Fault) -> UnreadableError:
    return UnreadableError(reason, fault=fault)


def scheme_of(name: str) -> str:
    """The scheme of a URL in lower case; "" for a local path."""
    scheme, found, _ = name.partition("://")
    return scheme.lower() if found else ""


def check_scheme(name: str, *, urls: bool) -> None:
    """Refuse a name that leads where nobody has allowed to go.

    Args:
        urls: whether web pages may be read (`data.urls`).

    Raises:
        ValueError: it does; says where, and what would be understood.
    """
    scheme = scheme_of(name)
    if scheme == TAR:
        from csr_ray.data.tars import archive_of

        check_scheme(archive_of(name), urls=False)
        return
    if scheme in WEB and not urls:
        raise ValueError(f"a URL ({scheme}://...), and data.urls = false; fetch the file, or set data.urls=true")
    if scheme and scheme not in ("file", *STORES, *WEB):
        raise ValueError(
            f"a URL of the scheme {scheme[:40]!r}; understood are file, {', '.join(STORES)} and, with data.urls = "
            f"true, {' and '.join(WEB)}"
        )
    if scheme and "::" in name:
        raise ValueError("a chain of URLs (::); name the file itself")


def open_file(name: str) -> IO[bytes]:
    """Open a picture, or anything else that is not empty and has at most `MAX_FILE_BYTES`.

    Whether web pages are allowed has been asked before (`check_scheme`), where the config is known.

    Raises:
        UnreadableError: it cannot be had; says why, and whose fault it is.
    """
    try:
        check_scheme(name, urls=True)
    except ValueError as error:
        raise UnreadableError(str(error)) from None
    scheme = scheme_of(name)
    if scheme in ("", "file"):
        return _not_too_large(open_local(name))
    if scheme == TAR:
        from csr_ray.data.tars import open_member

        return open_member(name)
    if scheme in WEB:
        from csr_ray.data.web import fetch

        data = fetch(name, max_bytes=MAX_FILE_BYTES)
    else:
        data = read_store(name, max_bytes=MAX_FILE_BYTES)
        if len(data) > MAX_FILE_BYTES:
            raise too_large(MAX_FILE_BYTES)
    if not data:
        raise UnreadableError("empty file (0 bytes)")
    return io.BytesIO(data)


def open_local(name: str) -> IO[bytes]:
    """Open a regular file of this machine by its path, or by a `file://` URL.

    It is opened before it is looked at, so nobody can exchange it in between, and in a way that waits for no writer
    of a pipe.

    Raises:
        UnreadableError: there is none, or it is a folder, a pipe, a device or a socket.
    """
    path = name
    if scheme_of(name) == "file":
        path = name.partition("://")[2]
        if not path.startswith("/"):
            raise UnreadableError("a file:// URL needs an absolute path (file:///...)")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise UnreadableError("no such file") from error
    except ValueError as error:  # a NUL in the name, or a lone surrogate
        raise UnreadableError("no such file; its name has characters that no file name has") from error
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise UnreadableError("a socket or a device that is not there, not a file") from error
        raise system_error(error) from error
    kind = _kind(os.fstat(descriptor).st_mode)
    if kind is not None:
        os.close(descriptor)
        raise UnreadableError(f"{kind}, not a file")
    return os.fdopen(descriptor, "rb")


def system_error(error: OSError) -> UnreadableError:
    """What the system said, as a reason: the disk's or the network's fault, unless it is the path's own."""
    said = error.strerror or type(error).__name__
    if error.errno in _LASTING:
        return UnreadableError(f"no such file ({said})")
    return UnreadableError(f"cannot be read: {said}", fault="machine")


def _kind(mode: int) -> str | None:
    """What something is that is no regular file; None for a regular file."""
    kinds: tuple[tuple[Callable[[int], bool], str], ...] = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a pipe (FIFO)"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    )
    return None if stat.S_ISREG(mode) else next((name for test, name in kinds if test(mode)), "something odd")


def _not_too_large(file: IO[bytes]) -> IO[bytes]:
    num_bytes = os.fstat(file.fileno()).st_size
    if 0 < num_bytes <= MAX_FILE_BYTES:
        return file
    file.close()
    if num_bytes == 0:
        raise UnreadableError("empty file (0 bytes)")
    raise too_large(MAX_FILE_BYTES)


def too_large(max_bytes: int) -> UnreadableError:
    return UnreadableError(f"larger than {max_bytes / 2**20:g} MiB, the most that is read of a picture")


def read_store(name: str, *, max_bytes: int, start: int = 0) -> bytes:
    """Read at most `max_bytes` of an object from byte `start` on, and one more that tells that there are more.

    Raises:
        UnreadableError: it cannot be had, or not within `STORE_S`.
    """
    return _within(STORE_S, work=lambda: _read_store(name, max_bytes=max_bytes, start=start))


def _read_store(name: str, *, max_bytes: int, start: int) -> bytes:
    import fsspec

    try:
        if start:
            filesystem, inner = fsspec.core.url_to_fs(name)
            part: bytes = filesystem.cat_file(inner, start=start, end=start + max_bytes)
            return part
        with fsspec.open(name, "rb") as remote:
            data: bytes = remote.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise UnreadableError("no such file") from error
    except IsADirectoryError as error:
        raise UnreadableError("a folder, not a file") from error
    except ImportError as error:  # of the package that knows the store
        raise UnreadableError(f"cannot be read: {' '.join(str(error).split())[:300]}", fault="machine") from error
    except Exception as error:  # each store has its own errors, most of them of the network or of credentials
        reason = without_credentials(" ".join(str(error).split()))[:300] or type(error).__name__
        raise UnreadableError(f"cannot be read: {reason}", fault="machine") from error
    return data


def _within(seconds: float, *, work: Callable[[], bytes]) -> bytes:
    """The result of `work`, which runs in a thread that is left behind when its time is up."""
    results: list[bytes] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True, name="store-read")
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise UnreadableError(f"cannot be read: nothing whole after {seconds:g} s", fault="machine")
    return results[0]
