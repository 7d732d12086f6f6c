"""Where this machine's user keeps, between runs, what can be made again: finished worlds."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """The folder `CSR_RAY_CACHE`, else `csr_ray` in the user's cache folder (Linux: ~/.cache, or XDG_CACHE_HOME)."""
    chosen = os.environ.get("CSR_RAY_CACHE")
    if chosen:
        return Path(os.path.expanduser(chosen)).absolute()
    return platformdirs.user_cache_path("csr_ray", appauthor=False)
