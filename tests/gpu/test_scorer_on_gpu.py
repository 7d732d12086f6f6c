"""The scorer on a GPU gives the CPU's scores, as near as each dtype promises. Takes seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_clip import QUICK, draw_pictures, list_tiny_clip, scores


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-3), ("tf32", 0.2), ("bfloat16", 1.0)])
def test_a_score_is_the_cpus_as_near_as_its_dtype_promises(tmp_path: Path, dtype: str, most: float) -> None:
    model = f"{QUICK}/{list_tiny_clip(tmp_path)}"
    pictures = draw_pictures(tmp_path)
    on_cpu = scores(model, pictures)
    on_gpu = scores(model, pictures, dtype=dtype, device="cuda")
    off = (on_gpu - on_cpu).abs().max()
    assert off < most
    if torch.cuda.get_device_capability() >= (8, 0) and dtype != "float32":
        assert off > 1e-4, "the GPU was asked to round"
