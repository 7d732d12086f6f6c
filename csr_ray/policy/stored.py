"""A model in a folder of a store (`s3://bucket/model`): fetched once a node into the cache, whole or not at all.

What is fetched lies under a name with a tag of all its files in it, so a model that has changed at its URL is another
one, and a run that goes on knows which one it began with. Of many processes of a node one fetches, and the others
wait. Knows no config and no actors.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Final

from csr_ray.errors import ConfigError
from csr_ray.store.atomic import make_folder, new_folder, storage_errors
from csr_ray.store.cache import cache_folder
from csr_ray.store.objects import Found, ObjectStore, StoreError, open_store
from csr_ray.waiting import said_if_slow

_NUM_THREADS: Final = 8
_TAG_BYTES: Final = 8


def stored_reference(url: str, *, key: str, files: Collection[str], revision: str | None = None) -> str:
    """What names a model at a URL, with its tag: `URL@TAG`. Nothing is fetched.

    Args:
        key: the config's key, for messages.
        files: patterns of the names that belong to a model.
        revision: the tag that it is to have; None: the one that it has now.

    Raises:
        ConfigError: the URL cannot be used, there is nothing of a model, or it has another tag.
    """
    url = url.rstrip("/")
    if revision is not None and _folder(url, tag=revision).is_dir():
        return f"{url}@{revision}"
    tag = _tag(listed(url, key=key, files=files))
    if revision is not None and tag != revision:
        raise ConfigError(
            f"{key} = {url!r}: it is not the model that this run began with (its files are {tag} by now, and were "
            f"{revision}); put that one back, or name another run.dir"
        )
    return f"{url}@{tag}"


def stored_folder(reference: str, *, key: str, files: Collection[str]) -> Path:
    """The folder on this node with the model's files, which are fetched if they are not here.

    Raises:
        ConfigError: they cannot be fetched, or the model has changed since its reference was made.
        StorageError: this node has no room for them.
    """
    url, _, tag = reference.rpartition("@")
    target = _folder(url, tag=tag)
    if target.is_dir():
        return target
    with storage_errors(target):
        make_folder(target.parent, is_durable=False)
        lock = target.with_name(f".{target.name}.lock").open("a")
    with lock:
        with said_if_slow(f"{url} to be fetched", question="another process of this node is at it"):
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            _fetch(url, tag=tag, target=target, key=key, files=files)
    return target


def is_stored_here(reference: str) -> bool:
    """Whether `stored_folder` would have nothing to fetch on this node."""
    url, _, tag = reference.rpartition("@")
    return _folder(url, tag=tag).is_dir()


def listed(url: str, *, key: str, files: Collection[str]) -> dict[str, Found]:
    """The model's files at a URL, by name.

    Raises:
        ConfigError: the URL cannot be used, or none of the files is there.
    """
    store = open_store(url, key=key, allow_memory=True)
    try:
        found = {name: one for name, one in store.list().items() if any(fnmatch(name, wanted) for wanted in files)}
    except StoreError as error:
        raise ConfigError(f"{key} = {url!r}: cannot be listed: {error}") from error
    if not found:
        raise ConfigError(f"{key} = {url!r}: there is no such folder, or nothing of a model in it")
    return found


def read_text(url: str, name: str, *, key: str) -> str:
    """One small file of a model at a URL.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        data = open_store(url, key=key, allow_memory=True).read(name)
        return (data or b"").decode()
    except (StoreError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key} = {url!r}: {name} cannot be read: {error}") from error


def _fetch(url: str, *, tag: str, target: Path, key: str, files: Collection[str]) -> None:
    found = listed(url, key=key, files=files)
    if _tag(found) != tag:
        raise _changed(url, key=key)
    store = open_store(url, key=key, allow_memory=True)
    with new_folder(target, is_durable=False) as staging:
        wrong = _fetch_into(staging, store=store, found=found, key=key)
        if wrong is not None or _tag(listed(url, key=key, files=files)) != tag:
            raise _changed(url, key=key, name=wrong)


def _fetch_into(staging: Path, *, store: ObjectStore, found: Mapping[str, Found], key: str) -> str | None:
    """Fetch all files; returns the name of one that is not as long as it was when it was listed, None if all are."""

    def fetch(name: str) -> bool:
        path = staging / name
        return store.download(name, path=path) and path.stat().st_size == found[name].num_bytes

    with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="model-fetch") as pool:
        try:
            whole = list(pool.map(fetch, found))
        except StoreError as error:
            raise ConfigError(f"{key} = {store.url!r}: cannot be fetched: {error}") from error
    return next((name for name, is_whole in zip(found, whole, strict=True) if not is_whole), None)


def _changed(url: str, *, key: str, name: str | None = None) -> ConfigError:
    what = f"{name} in it" if name else "it"
    return ConfigError(f"{key} = {url!r}: {what} has changed while it was fetched; start again")


def _folder(url: str, *, tag: str) -> Path:
    name = PurePosixPath(url).name
    return cache_folder() / "models" / f"{name}-{_short(url)}-{tag}"


def _tag(found: Mapping[str, Found]) -> str:
    return _short("\n".join(f"{name} {one.num_bytes} {one.tag}" for name, one in sorted(found.items())))


def _short(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=_TAG_BYTES).hexdigest()
