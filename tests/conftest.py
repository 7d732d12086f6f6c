"""Makes `tests/fakes.py` and `tests/tiny_models.py` importable by name, and Ctrl-C what it is in a terminal."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

# pytest-xdist tells its workers the terminal's width, which is not that of what a command prints without a terminal.
os.environ.pop("COLUMNS", None)

# A shell lets what it runs in its background ignore Ctrl-C, and the programs that tests start would, too.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what takes minutes and repeats what a shorter test shows, unless it is asked for."""
    if os.environ.get("CSR_RAY_LONG_TESTS", "0") not in ("", "0"):
        return
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="make test-long"))
