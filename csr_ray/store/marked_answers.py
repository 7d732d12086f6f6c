"""The answers of one evaluation of a run with their marks, as Parquet: what `csr-ray compare` and the page read.

The file stands for itself: whoever reads it needs neither the benchmark's files nor its words.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from csr_ray.records import Mark, MarkedAnswer
from csr_ray.store.atomic import write_atomically
from csr_ray.store.digests import Digest
from csr_ray.store.parquet import open_by_batch

# A list and no map: `datasets` reads no maps.
_COUNTS = pa.list_(pa.struct([("name", pa.string()), ("above", pa.float64()), ("below", pa.float64())]))
MARKED_ANSWERS = pa.schema(
    [
        ("asked_as", pa.string()),
        ("id", pa.string()),
        ("image", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("truth", pa.string()),
        ("counts", _COUNTS),
        ("absent", pa.list_(pa.string())),
        ("missed", pa.list_(pa.string())),
    ]
)
_PLAIN = ("asked_as", "id", "image", "question", "answer", "truth")


def write_marked_answers(path: Path, *, answers: Sequence[MarkedAnswer]) -> Digest:
    """Write the answers of one policy version, a row each, in their order; returns the file's digest.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    buffer = io.BytesIO()
    table = pa.Table.from_pylist([_row(answer) for answer in answers], schema=MARKED_ANSWERS)
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    content = buffer.getvalue()
    write_atomically(path, write=lambda temporary: temporary.write_bytes(content))
    return Digest.of_bytes(content)


def read_marked_answers(path: Path) -> list[MarkedAnswer]:
    """Read what `write_marked_answers` has written.

    Raises:
        ValueError: the file is damaged, or is no such table; says why in one line.
        OSError: there is no such file.
    """
    return list(iterate_marked_answers(path))


def iterate_marked_answers(path: Path, *, batch_rows: int = 1024) -> Iterator[MarkedAnswer]:
    """The same, one after the other; `batch_rows` of them are in memory."""
    if not path.is_file():  # a pipe would never end
        raise OSError("it is no file" if path.exists() else "no such file")
    try:
        with open_by_batch(path, page_checksum_verification=True) as file:
            names = MARKED_ANSWERS.names
            for batch in file.iter_batches(batch_size=batch_rows, columns=names, use_threads=False):
                yield from map(_answer, batch.to_pylist())
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def _row(answer: MarkedAnswer) -> dict[str, Any]:
    counts = [{"name": name, "above": above, "below": below} for name, (above, below) in answer.mark.counts.items()]
    return {
        **{name: getattr(answer, name) for name in _PLAIN},
        "counts": counts,
        "absent": list(answer.mark.absent),
        "missed": list(answer.mark.missed),
    }


def _count(item: dict[str, Any] | tuple[str, dict[str, float]]) -> tuple[str, tuple[float, float]]:
    # Files of before it was a list have a map.
    name, pair = item if isinstance(item, tuple) else (item["name"], item)
    return name, (pair["above"], pair["below"])


def _answer(row: dict[str, Any]) -> MarkedAnswer:
    mark = Mark(
        counts=dict(map(_count, row["counts"])),
        absent=tuple(row["absent"]),
        missed=tuple(row["missed"]),
    )
    return MarkedAnswer(**{name: row[name] for name in _PLAIN}, mark=mark)
