"""What runs otherwise on a GPU than on a CPU. Without one these tests are skipped, and say so."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))  # random models of any size


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    skip = pytest.mark.skip(reason="no GPU here")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(skip)
