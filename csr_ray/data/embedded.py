"""The bytes of pictures for files that others read: of those that they could not open by their names, or of all.

The file of examples is read by tools that know paths and URLs. A member of a tar is neither, and a path that is
relative to a job's working folder leads nowhere once the job is over. A data set that is given away has to hold all
of its pictures. The bytes are the file's own; nothing is decoded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from csr_ray.data.files import TAR, UnreadableError, open_file, scheme_of

_NUM_THREADS: Final = 8


def has_to_be_embedded(path: str) -> bool:
    """Whether nobody but the run could open a picture by this name."""
    scheme = scheme_of(path)
    return scheme == TAR or (not scheme and not os.path.isabs(path))


class EmbeddedPictures:
    """Reads the pictures that have to be in a file, some at once: their tars may be in a store.

    Args:
        is_wanted: whether a picture's bytes are, by its name; default those that nobody could open by it.

    Attributes:
        num_unread: how many could not be read any more; they keep their names.
    """

    def __init__(self, *, is_wanted: Callable[[str], bool] = has_to_be_embedded) -> None:
        self.num_unread = 0
        self._is_wanted = is_wanted
        self._pool = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="picture-bytes")

    def __call__(self, paths: Sequence[str]) -> list[bytes | None]:
        """The bytes of each picture, or None: of one that is not wanted, or that cannot be read."""
        wanted = list(dict.fromkeys(path for path in paths if self._is_wanted(path)))
        read = dict(zip(wanted, self._pool.map(_content, wanted), strict=True))
        self.num_unread += sum(data is None for data in read.values())
        return [read.get(path) for path in paths]

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def _content(path: str) -> bytes | None:
    try:
        with open_file(path) as file:
            return file.read()
    except (UnreadableError, OSError):
        return None
