"""Makes `tests/fakes.py` and `tests/tiny_models.py` importable by name, and Ctrl-C what it is in a terminal."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

# A shell lets what it runs in its background ignore Ctrl-C, and the programs that tests start would, too.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
