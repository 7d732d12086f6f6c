"""What the card does at best: products of large matrices, and copies. All other parts are held against these."""

from __future__ import annotations

from typing import Any

import torch
from card import copy_rate, matrix_rate, memory_bytes, row
from sizes import Size


def measure(*, device: str, size: Size, report: Any) -> None:
    rows = [row("copy_gb_per_s", copy_rate(device, num_bytes=size.copy_bytes) / 1e9, "GB/s, each byte counted once")]
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        rate = matrix_rate(device, side=size.matrix_side, dtype=dtype)
        rows.append(row(f"matrix_tflops [{str(dtype).removeprefix('torch.')}]", rate / 1e12, "TFLOP/s"))
        report(rows=rows)
    torch.set_float32_matmul_precision("high")
    rate = matrix_rate(device, side=size.matrix_side, dtype=torch.float32)
    rows.append(row("matrix_tflops [tf32]", rate / 1e12, "TFLOP/s"))
    if (total := memory_bytes(device)) is not None:
        rows.append(row("memory_gib", total / 2**30, "GiB of the card"))
    report(rows=rows)
