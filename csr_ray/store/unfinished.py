"""What a killed run leaves in its folder: files and folders that were being written under a name of their own."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from pathlib import Path

# `.NAME.XXXXXXXX`, as `csr_ray.store.atomic` and `csr_ray.store.lock` name what is not whole yet. A folder of a round
# is the run's alone, in all others the user may keep something, too, even another run.
_SUFFIX = r"(\.old)?\.[a-z0-9_]{8}"
_OF_ROUND = re.compile(rf"\..+{_SUFFIX}")
_OF_RUN = re.compile(
    rf"\.(config\.yaml|journal\.jsonl|summary\.json|quarantine\.jsonl|report\.html|run\.lock|model|adapter){_SUFFIX}"
)
_OF_CARD = re.compile(rf"\.README\.md{_SUFFIX}")
_OF_EVALUATION = re.compile(rf"\.version_\d+\.(jsonl|parquet){_SUFFIX}")
_ROUND = re.compile(r"round_\d+")
# Another start that asks for the lock may be writing such a file just now.
_OF_A_LOCK = ".run.lock."
_LOCK_AGE_S = 60.0


def remove_unfinished(folder: Path) -> None:
    """Remove them from a run folder on which nobody else works; whoever began them is dead.

    What cannot be removed stays: no line of the journal names it.
    """
    _sweep(folder, names=_OF_RUN, is_deep=False)
    _sweep(folder / "eval", names=_OF_EVALUATION, is_deep=False)
    for name in ("model", "adapter"):
        _sweep(folder / name, names=_OF_CARD, is_deep=False)
    for found in folder.glob("round_*"):
        if _ROUND.fullmatch(found.name):
            _sweep(found, names=_OF_ROUND, is_deep=True)


def _sweep(folder: Path, *, names: re.Pattern[str], is_deep: bool) -> None:
    for base, folders, files in os.walk(folder):
        for name in files:
            if names.fullmatch(name):
                with contextlib.suppress(OSError):
                    _remove_file(Path(base, name))
        for name in [name for name in folders if names.fullmatch(name)]:
            shutil.rmtree(Path(base, name), ignore_errors=True)
            folders.remove(name)
        if not is_deep:
            return


def _remove_file(path: Path) -> None:
    if not (path.name.startswith(_OF_A_LOCK) and time.time() - path.stat().st_mtime < _LOCK_AGE_S):
        path.unlink()
