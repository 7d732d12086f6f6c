"""What a killed run leaves in its folder: files and folders that were being written under a name of their own."""

from __future__ import annotations

import contextlib
import os
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
    """Remove them from a run folder on which nobody else works; whoever began them is dead.

    What cannot be removed stays: no line of the journal names it.
    """
    for base, folders, files in os.walk(folder):
        for name in files:
            if _UNFINISHED.fullmatch(name):
                with contextlib.suppress(OSError):
                    _remove_file(Path(base, name))
        for name in [name for name in folders if _UNFINISHED.fullmatch(name)]:
            shutil.rmtree(Path(base, name), ignore_errors=True)
            folders.remove(name)


def _remove_file(path: Path) -> None:
    if not (path.name.startswith(_OF_A_LOCK) and time.time() - path.stat().st_mtime < _LOCK_AGE_S):
        path.unlink()
