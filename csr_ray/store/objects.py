"""A folder of objects at a URL (`s3://`, `gs://`, `abfs://`): read, listed, written whole, or only if there is none.

The last is the one condition that every store has and that fsspec gives a name to (`mode="create"`: If-None-Match on
S3 and Azure, a generation on Google). The lock of a run and its journal are made of it, see docs/storage.md. Knows
drivers and their errors; does not know what is kept.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from csr_ray.errors import ConfigError
from csr_ray.redaction import without_credentials
from csr_ray.store.atomic import write_atomically

# What each scheme needs: fsspec's driver, and the extra of setup.cfg that brings it.
DRIVERS: Final = {
    "s3": ("s3fs", "s3"),
    "s3a": ("s3fs", "s3"),
    "gs": ("gcsfs", "gcs"),
    "gcs": ("gcsfs", "gcs"),
    "abfs": ("adlfs", "azure"),
    "abfss": ("adlfs", "azure"),
    "az": ("adlfs", "azure"),
}
_WITHIN_PROCESS: Final = "memory"
_CONNECT_S: Final = 5
_SILENT_S: Final = 20
_NUM_CONNECTIONS: Final = 24
# The driver's own tries at a request, a moment apart; whoever can wait longer tries again by itself.
_NUM_TRIES: Final = 2
# Two conditional writes at once may both be told to come again.
_NUM_CONFLICTS: Final = 5
_CONFLICT_PAUSE_S: Final = 0.1
# What is held whole while it is sent; more goes in parts of 50 MiB, a few at once, one file after the other.
SMALL_BYTES: Final = 8 << 20
_NUM_PARTS_AT_ONCE: Final = 4
_NAMES_A_REMOVAL: Final = 500


class StoreError(OSError):
    """What a store or the way to it said, as one line. It does not say whether the request was carried out."""

    def __init__(self, reason: str) -> None:
        super().__init__(None, reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class _OfTheStore(Exception):
    """Carries a store's error through what speaks of this machine's disk."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a list says of an object. `tag` changes with its content; `modified_s` counts from 1970, 0.0: unknown."""

    num_bytes: int
    tag: str
    modified_s: float


class ObjectStore:
    """The objects below a URL, by their names relative to it. Made by `open_store`; its calls may come from threads.

    Every method raises StoreError where the store cannot be asked, or says no for a reason that is not named here.
    """

    def __init__(self, filesystem: Any, *, root: str, url: str) -> None:
        self.url = url
        self._filesystem = filesystem
        self._root = root.rstrip("/")
        self._sending_in_parts = threading.Lock()
        # s3fs asks for the size first where it may read in parts; what is read here is small.
        self._whole = {"max_concurrency": 1} if "s3" in filesystem.protocol else {}

    def create(self, name: str, data: bytes) -> bool:
        """Write an object if there is none of this name; returns whether there was none.

        False may also be the answer to a request that was sent twice by the driver, after its first was carried out:
        who has to know compares the content.
        """
        for left in reversed(range(_NUM_CONFLICTS)):
            try:
                with _told(name, is_write=True):
                    self._filesystem.pipe_file(self._path(name), data, mode="create")
                return True
            except FileExistsError:
                return False
            except StoreError as error:
                if not left or not _is_conflict(error):
                    raise
                time.sleep(_CONFLICT_PAUSE_S)
        raise AssertionError

    def write(self, name: str, data: bytes) -> None:
        """Write an object, in the place of one that may be there."""
        with _told(name, is_write=True):
            self._filesystem.pipe_file(self._path(name), data)

    def upload(self, path: Path, *, name: str, only_new: bool = False) -> bool:
        """Write a file as an object, which appears whole; returns False if `only_new` and there is one already.

        Raises:
            FileNotFoundError: there is no such file here.
        """
        mode = "create" if only_new else "overwrite"
        if path.stat().st_size <= SMALL_BYTES:
            data = path.read_bytes()
            if only_new:
                return self.create(name, data)
            self.write(name, data)
            return True
        try:
            with self._sending_in_parts, _told(name, is_write=True):
                self._filesystem.put_file(str(path), self._path(name), mode=mode)
        except FileExistsError:
            return False
        return True

    def read(self, name: str) -> bytes | None:
        """An object's content; None if there is none."""
        try:
            with _told(name):
                data: bytes = self._filesystem.cat_file(self._path(name), **self._whole)
        except FileNotFoundError:
            return None
        return data

    def download(self, name: str, *, path: Path, modified_s: float = 0.0) -> bool:
        """Write an object to a file, which appears whole; returns False if there is no such object.

        Args:
            modified_s: the time that the file is to bear, as `list` has it.
        """

        def fetch(temporary: Path) -> None:
            try:
                with _told(name):
                    self._filesystem.get_file(self._path(name), str(temporary))
            except OSError as error:
                raise _OfTheStore(error) from error
            if modified_s:
                os.utime(temporary, (modified_s, modified_s))

        try:
            write_atomically(path, write=fetch, is_durable=False)
        except _OfTheStore as carried:
            if isinstance(carried.error, FileNotFoundError):
                return False
            raise carried.error from None
        return True

    def list(self, under: str = "") -> dict[str, Found]:
        """Every object below the URL, or below one of its folders, by name."""
        root = self._path(under) if under else self._root
        try:
            with _told(under or "the folder", is_write=True):
                found = self._filesystem.find(root, withdirs=False, detail=True)
        except FileNotFoundError:
            return {}
        start = len(self._root) + 1
        return {path[start:]: _found(info) for path, info in found.items() if path[start:]}

    def is_empty(self) -> bool:
        """Whether there is no object below the URL."""
        try:
            with _told("the folder", is_write=True):
                return not self._filesystem.ls(self._root, detail=False)
        except FileNotFoundError:
            return True

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects; those that are not there count as removed."""
        left = list(names)
        while left:
            some, left = left[:_NAMES_A_REMOVAL], left[_NAMES_A_REMOVAL:]
            try:
                with _told(some[0]):
                    self._filesystem.rm([self._path(name) for name in some])
            except FileNotFoundError:  # some drivers stop at one that is not there
                for name in some:
                    with contextlib.suppress(FileNotFoundError), _told(name):
                        self._filesystem.rm_file(self._path(name))

    def copy(self, name: str, *, to: ObjectStore) -> None:
        """Copy an object to the same name in another folder of the same store, without fetching it."""
        with _told(name, is_write=True):
            self._filesystem.cp_file(self._path(name), to._path(name))

    def sibling(self, url: str) -> ObjectStore:
        """Another folder, by the same driver."""
        return ObjectStore(self._filesystem, root=self._filesystem._strip_protocol(url), url=url)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def open_store(url: str, *, key: str, allow_memory: bool = False) -> ObjectStore:
    """Open the folder at a URL, which need not hold anything, and ask once whether it can be listed.

    Credentials, the region and the endpoint come from where the store's own tools look (AWS_ACCESS_KEY_ID,
    AWS_ENDPOINT_URL, ...).

    Args:
        key: the config's key, or what else names the URL, for messages.

    Raises:
        ConfigError: the URL, its driver, the bucket, the credentials or the endpoint cannot be used; says what helps.
    """
    check_store_url(url, key=key, allow_memory=allow_memory)
    place = f"{key} = {url!r}"
    scheme = url.partition("://")[0].lower()
    driver, extra = DRIVERS.get(scheme, ("", ""))
    import fsspec

    try:
        filesystem, root = fsspec.core.url_to_fs(url, **_options(driver))
    except ImportError as error:
        raise ConfigError(
            f"{place}: the package {driver} is not installed: pip install 'csr_ray[{extra}]', on every node"
        ) from error
    except Exception as error:
        raise ConfigError(f"{place}: cannot be used: {_one_line(error)}; {_remedy(error, driver=driver)}") from error
    if driver == "s3fs":
        filesystem.retries = _NUM_TRIES
    store = ObjectStore(filesystem, root=root, url=url.rstrip("/"))
    try:
        filesystem.ls(root, detail=False)
    except Exception as error:
        if not isinstance(error, FileNotFoundError) or _code(error) == "NoSuchBucket":
            raise ConfigError(
                f"{place}: cannot be listed: {_one_line(error)}; {_remedy(error, driver=driver)}"
            ) from error
    return store


def check_store_url(url: str, *, key: str, allow_memory: bool = False) -> None:
    """Check what a URL alone tells; asks nobody.

    Raises:
        ConfigError: it names no folder of a store that is known here.
    """

    def refused(reason: str) -> ConfigError:
        return ConfigError(f"{key} = {url!r}: {reason}")

    scheme, _, rest = url.partition("://")
    if scheme.lower() == _WITHIN_PROCESS and not allow_memory:
        raise refused("a store within the process, which ends with it; name a folder, or a URL of a store")
    if scheme.lower() not in (*DRIVERS, _WITHIN_PROCESS):
        known = ", ".join(f"{name}://" for name in DRIVERS)
        raise refused(f"no store of the scheme {scheme[:40]!r} is known; name a folder, or a URL of {known}")
    if "::" in url:
        raise refused("a chain of URLs (::); name the folder itself")
    bucket, *parts = rest.rstrip("/").split("/")
    if not bucket or not parts:
        raise refused(f"it names no folder in the bucket; write {scheme}://BUCKET/FOLDER")
    if any(part in ("", ".", "..") for part in parts):
        raise refused("a part of its path is empty or dots; write the path without")


def endpoint() -> str:
    """Where requests to S3 go, if not to Amazon; as Amazon's own tools read it from the environment."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def is_url(name: str) -> bool:
    """Whether a name is a URL of a store, and no path of this machine (`file://` URLs are paths)."""
    return "://" in name and not name.lower().startswith("file://")


def local_path(name: str) -> Path:
    """The path of a local folder, given as a path, which may begin with `~`, or as a `file://` URL."""
    return Path(name.partition("://")[2] if name.lower().startswith("file://") else os.path.expanduser(name))


def _options(driver: str) -> dict[str, Any]:
    options: dict[str, Any] = {"use_listings_cache": False}
    if driver == "s3fs":
        # By name, because fsspec keeps one instance for equal options.
        options["endpoint_url"] = endpoint() or None
        options["max_concurrency"] = _NUM_PARTS_AT_ONCE
        options["config_kwargs"] = {
            "connect_timeout": _CONNECT_S,
            "read_timeout": _SILENT_S,
            "max_pool_connections": _NUM_CONNECTIONS,
            "retries": {"max_attempts": 1},
        }
    return options


@contextlib.contextmanager
def _told(name: str, *, is_write: bool = False) -> Iterator[None]:
    """Turn the drivers' errors, of which many are no OSErrors, into StoreErrors; what a caller looks for stays.

    Args:
        is_write: that something is not found means the bucket, not the object.
    """
    try:
        yield
    except FileExistsError:
        raise
    except FileNotFoundError as error:
        if is_write and _code(error) == "NoSuchBucket":
            raise StoreError(f"{name}: {_one_line(error)}") from error
        raise
    except Exception as error:
        raise StoreError(f"{name}: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    return without_credentials(said)[:300]


def _code(error: BaseException) -> str:
    """Amazon's code of an error, which s3fs keeps as its cause; "" for others."""
    response = getattr(error.__cause__, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _is_conflict(error: StoreError) -> bool:
    return error.__cause__ is not None and _code(error.__cause__) == "ConditionalRequestConflict"


def _remedy(error: BaseException, *, driver: str) -> str:
    code = _code(error)
    if isinstance(error, FileNotFoundError):
        return "make the bucket, or name another"
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"
    if isinstance(error, PermissionError) or code in ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
        return "see that the credentials of this machine are right and may list, read, write and delete there"
    if driver == "s3fs":
        return "see that AWS_ENDPOINT_URL, the region and the network are right"
    return "see that the credentials and the network are right"


def _found(info: dict[str, Any]) -> Found:
    tag = next((info[key] for key in ("ETag", "etag", "md5Hash", "content_md5", "created") if info.get(key)), "")
    when = next((info[key] for key in ("LastModified", "last_modified", "updated", "created") if info.get(key)), None)
    if isinstance(when, str):
        with contextlib.suppress(ValueError):
            when = datetime.fromisoformat(when.replace("Z", "+00:00"))
    modified_s = when.timestamp() if isinstance(when, datetime) else when if isinstance(when, float) else 0.0
    return Found(num_bytes=int(info.get("size") or 0), tag=str(tag).strip('"'), modified_s=modified_s)
