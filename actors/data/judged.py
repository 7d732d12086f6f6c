"""Bulk work on pictures: whose fault a picture without a result is, is judged where the work was asked for."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any

import pyarrow as pa

from actors.data.bulk import Workers, do_work
from csr_ray.data.images import fault_elsewhere
from csr_ray.store.parts import Work


def do_picture_work(works: Sequence[Work[Any]], *, workers: Workers) -> Generator[tuple[int, pa.Table], None, None]:
    """As `actors.data.bulk.do_work`, with `judged` tables; the rows of `workers` have an `image`."""
    with closing(do_work(works, workers=workers)) as results:
        for position, table in results:
            yield position, judged(table)


def judged(table: pa.Table) -> pa.Table:
    """The table of a piece, in the driver, which may see a picture that the actor's node has not got.

    What is the machine's fault then is asked again by the next start (`csr_ray.store.parts`).
    """
    if table["reason"].null_count == len(table):
        return table
    rows = table.to_pylist()
    known: dict[tuple[str, str, Any], tuple[str, Any]] = {}  # a picture may have many questions
    for row in rows:
        if row["reason"] is not None:
            said = row["image"], row["reason"], row["fault"]
            if said not in known:
                known[said] = fault_elsewhere(said[0], reason=said[1], fault=said[2])
            row["reason"], row["fault"] = known[said]
    return pa.Table.from_pylist(rows, schema=table.schema)
