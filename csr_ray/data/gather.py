"""Finds the pictures in folders that a person names: which files they are, which can be read, which are there twice.

For commands that begin with photos and not with a prompt file. Knows files and pictures; knows no prompts.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from csr_ray.data.files import UnreadableError
from csr_ray.data.images import check_image, image_size
from csr_ray.errors import ConfigError
from csr_ray.records import Rejection
from csr_ray.store.digests import Digest

SUFFIXES: Final = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm",
    ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".avif", ".ico",
)  # fmt: skip
# Cameras write these, and nobody reads them here: a person wants to hear of each, and what to do.
_TO_BE_CONVERTED: Final = (".heic", ".heif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2")
# A decoded picture of a phone has some 36 MiB of pixels, and there are as many at once.
_NUM_THREADS: Final = 8


@dataclass(frozen=True, kw_only=True)
class FoundPicture:
    """A picture that can be read.

    Attributes:
        path: absolute, or a URL.
        name: how a person knows it: below the folder that was named, else the file's own name.
        width, height: in pixels, upright.
    """

    path: str
    name: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """What was found.

    Attributes:
        pictures: those that can be read, in the order of the places and then of their names.
        rejections: what was set aside, a file each, with the reason; `source` is its path.
        num_others: files in the folders that are no pictures by their names, and were not looked at.
    """

    pictures: tuple[FoundPicture, ...]
    rejections: tuple[Rejection, ...]
    num_others: int = 0


def gather(
    places: Sequence[str],
    *,
    key: str,
    limit: int | None = None,
    finds_twins: bool = False,
    most_decoded: int | None = None,
    on_looked: Callable[[int, int], None] = lambda done, total: None,
) -> Gathered:
    """Look at every picture of some files and folders, folders with all that is below them.

    In a folder, hidden files and files without the name of a picture are passed over; a file that is named itself is
    always looked at.

    Args:
        key: what the command calls the places, for messages.
        limit: look only until so many can be read; None: at all.
        finds_twins: set pictures aside whose file has the same bytes as an earlier one, and name that one.
        most_decoded: of more files than so many only the headers are read, which is quick and does not notice what is
            damaged behind one; else every picture is decoded, as the run does. None: always decode.
        on_looked: called with how many files were looked at, of how many.

    Raises:
        ConfigError: there is no such file or folder.
    """
    files, num_others = _files(places, key=key)
    twins = _twins([path for path, _ in files]) if finds_twins else {}
    names = dict(files)
    decodes = most_decoded is None or len(files) <= most_decoded
    pictures: list[FoundPicture] = []
    rejections: list[Rejection] = []

    def look(file: tuple[str, str]) -> FoundPicture | Rejection:
        path, name = file
        if (first := twins.get(path)) is not None:
            return _rejected(path, f"the same picture as {names[first]}")
        return _look(path, name=name, decodes=decodes)

    with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="picture") as pool:
        try:
            for done, found in enumerate(_ahead(pool, look, files), start=1):
                if isinstance(found, FoundPicture):
                    pictures.append(found)
                else:
                    rejections.append(found)
                on_looked(done, len(files))
                if limit is not None and len(pictures) >= limit:
                    break
        finally:
            pool.shutdown(cancel_futures=True)
    return Gathered(pictures=tuple(pictures), rejections=tuple(rejections), num_others=num_others)


def _ahead(
    pool: ThreadPoolExecutor,
    look: Callable[[tuple[str, str]], FoundPicture | Rejection],
    files: Sequence[tuple[str, str]],
) -> Iterator[FoundPicture | Rejection]:
    """The results in order, of which a few are worked out ahead: there may be many files, and a limit."""
    size = 4 * _NUM_THREADS
    for begin in range(0, len(files), size):
        yield from pool.map(look, files[begin : begin + size])


def _files(places: Sequence[str], *, key: str) -> tuple[list[tuple[str, str]], int]:
    """Path and name of every file to look at, each once, and how many others there are."""
    found: dict[str, str] = {}
    num_others = 0
    for place in places:
        expanded = os.path.expanduser(place)
        if os.path.isdir(expanded):
            here, others = _below(expanded)
            num_others += others
            for path in here:
                found.setdefault(path, os.path.relpath(path, expanded))
        elif os.path.lexists(expanded) or "://" in place:
            found.setdefault(expanded, os.path.basename(expanded))
        else:
            raise ConfigError(f"{key} = {place!r}: no such file or folder; name pictures, or a folder of them")
    return list(found.items()), num_others


def _below(folder: str) -> tuple[list[str], int]:
    paths, num_others = [], 0
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.startswith("."):
                continue
            if Path(name).suffix.lower() in (*SUFFIXES, *_TO_BE_CONVERTED):
                paths.append(os.path.join(parent, name))
            else:
                num_others += 1
    return paths, num_others


def _look(path: str, *, name: str, decodes: bool) -> FoundPicture | Rejection:
    try:
        path.encode()
    except UnicodeEncodeError:  # no table and no prompt file has a place for such a name
        return _rejected(path, "its name is not UTF-8; rename it")
    suffix = Path(path).suffix.lower()
    if suffix in _TO_BE_CONVERTED:
        return _rejected(path, f"{suffix[1:].upper()} is not read here; convert it to JPEG")
    try:
        width, height = image_size(path)
    except UnreadableError as error:
        return _refused(path, error=error)
    if decodes and (fault := check_image(path)) is not None:
        return _refused(path, error=fault)
    return FoundPicture(path=path if "://" in path else os.path.abspath(path), name=name, width=width, height=height)


def _refused(path: str, *, error: UnreadableError) -> Rejection:
    reason = str(error).removeprefix(f"image {path}: ")  # it is named beside the reason
    return Rejection(id=None, source=path, reason=reason, fault=error.fault)


def _rejected(path: str, reason: str) -> Rejection:
    return Rejection(id=None, source=path, reason=reason)


def _twins(paths: Sequence[str]) -> dict[str, str]:
    """Of every file that has the bytes of an earlier one, that one. Only files of one size are read."""
    by_size: dict[int, list[str]] = defaultdict(list)
    for path in paths:
        try:
            if os.path.isfile(path):  # a pipe would be waited for
                by_size[os.path.getsize(path)].append(path)
        except OSError:  # whoever opens it says what is wrong
            continue
    firsts: dict[Digest, str] = {}
    found: dict[str, str] = {}
    for same in by_size.values():
        if len(same) < 2:
            continue
        for path in same:
            try:
                digest = Digest.of_file(Path(path))
            except OSError:
                continue
            if (first := firsts.setdefault(digest, path)) != path:
                found[path] = first
    return found
