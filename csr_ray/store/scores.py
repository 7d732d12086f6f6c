"""The folder of scored captions: `score.json` and parts (`csr_ray.store.parts`) with a row for each caption."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from csr_ray.store.parts import ROW, PartFolder

# `score` is 100 times the cosine; `cut` says that CLIP did not see the end of the caption.
CAPTIONS = pa.schema(
    [
        ROW[0],
        ("image", pa.string()),
        ("caption", pa.string()),
        ("score", pa.float64()),
        ("cut", pa.bool_()),
        *ROW[1:],
    ]
)


def score_folder(root: Path) -> PartFolder:
    """The folder of one scoring."""
    return PartFolder(root, name="score", results="scores")
