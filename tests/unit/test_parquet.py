"""Parquet files are read by the batch: what is in memory does not grow with the file."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from csr_ray.data.prompts import PromptFile
from csr_ray.store.parquet import open_by_batch

NUM_GROUPS, ROWS_A_GROUP = 60, 500
NUM_BYTES = NUM_GROUPS * ROWS_A_GROUP * 2048


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Some 60 MB of questions in sixty groups of rows."""
    schema = pa.schema([(name, pa.string()) for name in ("id", "image", "prompt")])
    with pq.ParquetWriter(tmp_path / "prompts.parquet", schema) as writer:
        for group in range(NUM_GROUPS):
            numbers = range(group * ROWS_A_GROUP, (group + 1) * ROWS_A_GROUP)
            columns = [
                [f"p{n}" for n in numbers], ["0.png" for _ in numbers], [os.urandom(1024).hex() for _ in numbers],
            ]  # fmt: skip
            writer.write_table(pa.table(columns, schema=schema))
    return tmp_path / "prompts.parquet"


def test_a_file_that_is_read_by_the_batch_is_not_held(large: Path) -> None:
    before, most, num = pa.total_allocated_bytes(), 0, 0
    with open_by_batch(large) as file:
        for batch in file.iter_batches(batch_size=100):
            num += batch.num_rows
            most = max(most, pa.total_allocated_bytes() - before)
    assert num == NUM_GROUPS * ROWS_A_GROUP
    assert 0 < most < NUM_BYTES / 5, most


def test_a_prompt_file_is_not_held_while_it_is_read(large: Path) -> None:
    prompts = PromptFile(str(large), images=None, limit=None, urls=False)
    # Arrow does not count what a Python file gives it, so this is the process's own peak, from now on.
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    assert sum(1 for _ in prompts.take()) == NUM_GROUPS * ROWS_A_GROUP
    assert peak_bytes() - before < NUM_BYTES / 2


def peak_bytes() -> int:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024
