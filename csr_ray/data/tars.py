"""WebDataset tars: a picture and the texts about it are members of one name, such as 0001.jpg and 0001.json.

Pictures stay where they are. A picture in a tar has a name of its own, by which every actor reads just its bytes:

    tar:///data/shard-000.tar#1536+20480/0001.jpg     (archive # first byte + number of bytes / member)

Knows tars and such names. Does not know what the texts say (`csr_ray.data.rows`).
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any, Final

from csr_ray.data.files import MAX_FILE_BYTES, TAR, WEB, UnreadableError, open_local, read_store, scheme_of, too_large

_PICTURES: Final = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "jp2", "avif", "ico")
_TEXTS: Final = ("json", "txt")
# As WebDataset has it: the first dot of the last part of the path ends the key.
_MEMBER: Final = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
_NAME: Final = re.compile(r"tar://(.+?)#(\d{1,18})\+(\d{1,18})/(.*)", re.DOTALL)


class TarError(ValueError):
    """Not a tar, or one that is cut or damaged."""


@dataclass
class Sample:
    """The members of one key that stand together.

    Attributes:
        picture: the name of its picture, "" if it has none.
        texts: by their endings; None for one that is too long.
        end: the byte at which the next sample begins, or the archive's last blocks.
    """

    key: str
    picture: str = ""
    texts: dict[str, bytes | None] = field(default_factory=dict)
    end: int = 0


def samples(file: IO[bytes], *, archive: str, end: int | None, max_text_bytes: int) -> Iterator[Sample]:
    """The samples of a tar from where the file stands, which is at the header of a member.

    Members that are neither a picture nor a text are passed over, and so are links, devices and folders.

    Args:
        archive: the tar's path or URL, for the names of its pictures.
        end: a sample that begins there, or behind it, is not given.

    Raises:
        TarError: not a tar that can be read to its end.
    """
    archive = archive if "://" in archive else os.path.normpath(archive)
    sample: Sample | None = None
    try:
        # Not compressed: in a compressed tar no member can be found without reading all before it.
        bounded: Any = _Bounded(file, max_bytes=max_text_bytes)
        with tarfile.open(fileobj=bounded, mode="r:", errors="surrogateescape") as members:
            while (member := members.next()) is not None:
                members.members = []  # type: ignore[attr-defined]  # it would keep every member that it has seen
                if (found := _MEMBER.fullmatch(member.name)) is None or not member.isreg() or member.issparse():
                    continue
                key, ending = found[1], found[2].lower()
                if sample is None or key != sample.key:
                    if sample is not None:
                        sample.end = member.offset
                        yield sample
                    if end is not None and member.offset >= end:
                        return
                    sample = Sample(key=key)
                if ending in _PICTURES and not sample.picture:
                    sample.picture = f"{TAR}://{archive}#{member.offset_data}+{member.size}/{member.name}"
                elif ending in _TEXTS:
                    sample.texts[ending] = _content(members, member, max_bytes=max_text_bytes)
            _check_end(file, members.offset)
            if sample is not None:
                sample.end = members.offset
                yield sample
    except (tarfile.TarError, EOFError) as error:
        raise TarError(f"{' '.join(str(error).split())}; a compressed one has to be unpacked") from error


class _Bounded:
    """A file of which nobody reads more at once; `tarfile` would read as much as a header says it has."""

    def __init__(self, file: IO[bytes], *, max_bytes: int) -> None:
        self._file = file
        self._max_bytes = max_bytes
        self.tell, self.seek = file.tell, file.seek

    def read(self, num_bytes: int) -> bytes:
        if num_bytes > self._max_bytes:
            raise TarError(f"a header of more than {self._max_bytes // 2**20} MiB")
        return self._file.read(num_bytes)


def _check_end(file: IO[bytes], position: int) -> None:
    """`tarfile` takes a damaged header for the end, behind which there are zeros, or nothing."""
    file.seek(position)
    if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise TarError(f"damaged at byte {position}")


def _content(members: tarfile.TarFile, member: tarfile.TarInfo, *, max_bytes: int) -> bytes | None:
    if member.size > max_bytes:
        return None
    content = members.extractfile(member)
    assert content is not None, "it is a regular file"
    data = content.read()
    if len(data) < member.size:
        raise TarError(f"it ends in the midst of {member.name!r}")
    return data


def archive_of(name: str) -> str:
    """The path or URL of the tar that a picture is in.

    Raises:
        ValueError: this is not how a picture in a tar is named, or the tar is one that is not read here.
    """
    archive = _parts(name)[0]
    if scheme_of(archive) in (TAR, *WEB):
        raise ValueError(f"a picture in a tar that is itself {scheme_of(archive)}://...; fetch the tar")
    return archive


def open_member(name: str) -> IO[bytes]:
    """Open a picture that is in a tar. Nothing else can be opened so: before its bytes there must be their header.

    Raises:
        UnreadableError: it cannot be had, or the tar is no longer the one that the name is of.
    """
    try:
        archive, begin, num_bytes = _parts(name)
    except ValueError as error:
        raise UnreadableError(str(error)) from None
    if num_bytes > MAX_FILE_BYTES:
        raise too_large(MAX_FILE_BYTES)
    if not num_bytes:
        raise UnreadableError("empty file (0 bytes)")
    start = begin - tarfile.BLOCKSIZE
    if start < 0:
        raise _changed()
    if scheme_of(archive) in ("", "file"):
        with open_local(archive) as file:
            file.seek(start)
            data = file.read(tarfile.BLOCKSIZE + num_bytes)
    else:
        data = read_store(archive, start=start, max_bytes=tarfile.BLOCKSIZE + num_bytes)
    try:
        header = tarfile.TarInfo.frombuf(data[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        raise _changed() from None
    if len(data) < tarfile.BLOCKSIZE + num_bytes or header.size != num_bytes or not header.isreg():
        raise _changed()
    return io.BytesIO(data[tarfile.BLOCKSIZE : tarfile.BLOCKSIZE + num_bytes])


def _changed() -> UnreadableError:
    return UnreadableError("no such member where it was; the tar has changed")


def _parts(name: str) -> tuple[str, int, int]:
    found = _NAME.fullmatch(name)
    if found is None and "::" in name:
        raise ValueError("a chain of URLs (::); name the file itself")
    if found is None:
        raise ValueError("a picture in a tar, but not named as tar://ARCHIVE#BYTE+BYTES/MEMBER")
    return found[1], int(found[2]), int(found[3])
