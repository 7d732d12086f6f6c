"""The card's own rates, and how a piece of work is timed on it.

On a GPU work is timed by its own events, so nothing waits in between; without one by the clock. Rates are of random
numbers: a card multiplies zeros faster.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def name_of(device: str) -> str:
    """What the maker calls the card; `cpu` without one."""
    return torch.cuda.get_device_name(0) if device == "cuda" else "cpu"


def memory_bytes(device: str) -> int | None:
    """Of the card; None without one."""
    return torch.cuda.get_device_properties(0).total_memory if device == "cuda" else None


def synchronize(device: str) -> None:
    """Wait for all work that was given to the card."""
    if device == "cuda":
        torch.cuda.synchronize()


def timed_s(work: Callable[[], object], *, device: str, repeats: int, warm_ups: int = 3) -> float:
    """The median of `repeats` calls, in seconds."""
    for _ in range(warm_ups):
        work()
    synchronize(device)
    if device != "cuda":
        return statistics.median(_clocked_s(work) for _ in range(repeats))
    events = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(repeats)]
    for start, end in events:
        start.record()
        work()
        end.record()
    synchronize(device)
    return statistics.median(start.elapsed_time(end) / 1e3 for start, end in events)


def peak_bytes(work: Callable[[], object], *, device: str) -> int | None:
    """How much more memory the card holds at most during a call than before it; None without one."""
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def matrix_rate(device: str, *, side: int, dtype: torch.dtype = torch.bfloat16, repeats: int = 20) -> float:
    """Operations a second of a product of two square matrices of `side` rows."""
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * side**3 / timed_s(lambda: torch.mm(left, right, out=out), device=device, repeats=repeats)


def copy_rate(device: str, *, num_bytes: int, repeats: int = 20) -> float:
    """Bytes a second of a copy in the device's memory; each is read once and written once, and counted once."""
    source = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return num_bytes / timed_s(lambda: target.copy_(source), device=device, repeats=repeats)


def row(name: str, value: float | None, unit: str, **more: Any) -> dict[str, Any]:
    """A row of the table; `value` is None where there is none, and then `why` says why."""
    return {"name": name, "value": value, "unit": unit, **more}


def said(error: Exception) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


def _clocked_s(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s
