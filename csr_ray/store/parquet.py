"""How a Parquet file is opened that is to be read batch by batch."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import pyarrow.parquet as pq


def open_by_batch(source: Path | IO[bytes], **options: Any) -> pq.ParquetFile:
    """A file whose `iter_batches` holds a group of rows and a batch of it, and no more.

    Arrow would fetch every wanted column of the whole file into memory when the first batch is asked for
    (`pre_buffer`, which is on where nobody says otherwise).

    Args:
        options: of `pyarrow.parquet.ParquetFile`.
    """
    return pq.ParquetFile(source, pre_buffer=False, **options)
