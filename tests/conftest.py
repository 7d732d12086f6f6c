"""Makes `tests/fakes.py` and `tests/tiny_models.py` importable by name."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
