"""Which files `data.prompts` names, and how a file is told from what it was before.

A folder stands for the prompt files in it, in the order of their names. Knows names, sizes and times; opens nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Final

from csr_ray.data.files import WEB, check_scheme, scheme_of
from csr_ray.data.rows import KNOWN_SUFFIXES
from csr_ray.errors import ConfigError
from csr_ray.redaction import without_credentials

# From so many bytes on a source is large: it is read on the cluster, and its index is kept.
LARGE_BYTES: Final = 64 * 2**20

_COMPRESSED: Final = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip")
# By what stores tell one writing of an object from the next; not all have all of them.
_STAMPS: Final = ("ETag", "etag", "generation", "mtime", "LastModified", "last_modified", "updated", "created")


def prompt_files(source: str) -> list[str]:
    """The file that a path or URL names, or the prompt files of the folder that it names, in name order.

    Folders in it are not looked into. Names that begin with a dot or an underscore are passed over (`_SUCCESS`), and
    so is what is no prompt file by its ending: pictures may lie there, too.

    Raises:
        ConfigError: a folder without a prompt file, or one with compressed files.
    """
    names = _names_in(source)
    if names is None:
        return [source]
    names = sorted(name for name in names if not name.startswith((".", "_")))
    if compressed := next((name for name in names if name.lower().endswith(_COMPRESSED)), None):
        raise ConfigError(f"data.prompts = {source!r}: {compressed} is compressed; unpack the files of the folder")
    chosen = [name for name in names if PurePosixPath(name).suffix.lower() in KNOWN_SUFFIXES]
    if not chosen:
        raise ConfigError(
            f"data.prompts = {source!r}: a folder in which no file ends in {', '.join(KNOWN_SUFFIXES)}; name a "
            "prompt file, or a folder of them"
        )
    return [f"{source.rstrip('/')}/{name}" for name in chosen]


def _names_in(source: str) -> list[str] | None:
    """The names of the files in a folder; None if it is no folder."""
    if "://" not in source:
        if not os.path.isdir(source):
            return None
        try:
            return [entry.name for entry in os.scandir(source) if entry.is_file()]
        except OSError as error:
            raise ConfigError(f"data.prompts = {source!r}: cannot be read: {error.strerror}") from error
    if scheme_of(source) in WEB:
        return None
    import fsspec

    try:
        filesystem, inner = fsspec.core.url_to_fs(source)
        if not filesystem.isdir(inner):
            return None
        entries = filesystem.ls(inner, detail=True)
    except Exception as error:  # each store has its own errors
        said = without_credentials(" ".join(str(error).split()))[:300] or type(error).__name__
        raise ConfigError(f"data.prompts = {source!r}: cannot be read: {said}") from error
    return [str(entry["name"]).rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == "file"]


def is_large(source: str) -> bool:
    """Whether the files of `data.prompts` have so many bytes together, as far as they say."""
    source = os.path.expanduser(source)
    try:
        check_scheme(source, urls=False)
    except ValueError:  # a web page, or a place that nobody may read
        return False
    stamps = map(stamp_of, prompt_files(source))
    return sum(stamp[0] for stamp in stamps if stamp is not None) >= LARGE_BYTES


def stamp_of(source: str) -> tuple[int, str] | None:
    """The size in bytes of a file, and what tells this writing of it from any other; None if nothing does."""
    if "://" not in source:
        try:
            status = os.stat(source)
        except OSError:
            return None
        return status.st_size, str(status.st_mtime_ns)
    if scheme_of(source) in WEB:
        return None
    import fsspec

    try:
        filesystem, inner = fsspec.core.url_to_fs(source)
        return _stamp(filesystem.info(inner))
    except Exception:  # whoever opens it says what is wrong
        return None


def _stamp(info: Mapping[str, Any]) -> tuple[int, str] | None:
    said = [f"{key}={info[key]}" for key in _STAMPS if info.get(key) is not None]
    return (int(info["size"]), " ".join(said)) if said and info.get("size") is not None else None
