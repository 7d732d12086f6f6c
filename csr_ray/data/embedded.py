"""The bytes of pictures that others could not open by their names, for the file of examples.

That file is read by tools that know paths and URLs. A member of a tar is neither, and a path that is relative to a
job's working folder leads nowhere once the job is over. The bytes are the file's own; nothing is decoded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from csr_ray.data.files import TAR, UnreadableError, open_file, scheme_of

_NUM_THREADS: Final = 8


class EmbeddedPictures:
    """Reads the pictures that have to be in a file, some at once: their tars may be in a store.

    Attributes:
        num_unread: how many could not be read any more; they keep their names.
    """

    def __init__(self) -> None:
        self.num_unread = 0
        self._pool = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="picture-bytes")

    def __call__(self, paths: Sequence[str]) -> list[bytes | None]:
        """The bytes of each picture, or None: of one that anybody can open by its name, or that cannot be read."""
        wanted = list(dict.fromkeys(path for path in paths if _has_to_be_embedded(path)))
        read = dict(zip(wanted, self._pool.map(_content, wanted), strict=True))
        self.num_unread += sum(data is None for data in read.values())
        return [read.get(path) for path in paths]

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def _has_to_be_embedded(path: str) -> bool:
    scheme = scheme_of(path)
    return scheme == TAR or (not scheme and not os.path.isabs(path))


def _content(path: str) -> bytes | None:
    try:
        with open_file(path) as file:
            return file.read()
    except (UnreadableError, OSError):
        return None
