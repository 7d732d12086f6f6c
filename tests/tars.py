"""Writes small tars, for tests."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    """Write regular files, each given as its name and its content, in this order."""
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path
