"""What a killed run leaves in its folder: files and folders that were being written under a name of their own."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

# `.NAME.XXXXXXXX`, as `csr_ray.store.atomic` and `csr_ray.store.lock` name what is not whole yet.
_UNFINISHED = re.compile(r"\..+\.[a-z0-9_]{8}")
# Another start that asks for the lock may be writing such a file just now.
_OF_A_LOCK = ".run.lock."
_LOCK_AGE_S = 60.0


def remove_unfinished(folder: Path) -> None:
    """Remove them from a run folder on which nobody else works; whoever began them is dead."""
    for path in sorted(folder.rglob(".*")):
        if not _UNFINISHED.fullmatch(path.name) or _is_new_lock(path):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _is_new_lock(path: Path) -> bool:
    return path.name.startswith(_OF_A_LOCK) and time.time() - path.stat().st_mtime < _LOCK_AGE_S
