"""What every actor process does first: it sends its output to a log file."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def log_to_file(path: Path | str) -> None:
    """Send this process's stdout and stderr, and those of its children, to `path` (appended).

    If its folder is not there, as on a node that does not see the run's folder, or cannot be written, the output goes
    where Ray puts it.
    """
    try:
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)


def tail(path: Path | str, *, num_lines: int = 15) -> str:
    """The last lines of a log, for an error message; empty if there is none."""
    try:
        return "\n".join(Path(path).read_text(errors="replace").splitlines()[-num_lines:])
    except OSError:
        return ""
