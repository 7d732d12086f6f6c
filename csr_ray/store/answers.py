"""The folder of a benchmark's answers: `eval.json` and parts (`csr_ray.store.parts`) with a row for each answer."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from csr_ray.store.parts import ROW, PartFolder

# `asked_as` is what the question is part of (`csr_ray.evaluation.suite.Asking`); `logp` sums over `token_ids`.
ANSWERS = pa.schema(
    [
        ROW[0],
        ("asked_as", pa.string()),
        ("image", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("token_ids", pa.list_(pa.int64())),
        ("logp", pa.float64()),
        *ROW[1:],
    ]
)


def answer_folder(root: Path) -> PartFolder:
    """The folder of one evaluation."""
    return PartFolder(root, name="eval", results="answers")
