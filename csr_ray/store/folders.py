"""Folders that appear whole or not at all: written under another name, opened to others, moved into place."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path


def replace_directory(staging: Path, *, target: Path) -> None:
    """Move a finished folder to `target`; an older one there disappears. Both lie on one filesystem."""
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
        os.rename(target, old / target.name)
        os.rename(staging, target)
        shutil.rmtree(old)
    else:
        os.rename(staging, target)


def publish_modes(folder: Path) -> None:
    """Let others read a staging folder: `mkdtemp` and safetensors make what they write private to this user."""
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o755 if path.is_dir() else 0o644)
