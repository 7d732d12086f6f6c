"""The folder of scored captions: one Parquet file for each piece of the captions, so that a stopped run goes on.

It holds `score.json` (what is scored, and by what), `part_000000000.parquet` and so on (a row a caption, from the
caption with this position on), and `quarantine.jsonl` ({id, source, reason, fault} of every row that has no score).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from csr_ray.errors import ConfigError
from csr_ray.records import Rejection
from csr_ray.store.atomic import make_folder, storage_errors, write_atomically, write_json

# `score` is 100 times the cosine; `cut` says that CLIP did not see the end of the caption. Where there is no score,
# `reason` and `fault` say why.
CAPTIONS = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.string()),
        ("caption", pa.string()),
        ("score", pa.float64()),
        ("cut", pa.bool_()),
        ("source", pa.string()),
        ("reason", pa.string()),
        ("fault", pa.string()),
    ]
)


@dataclass(frozen=True)
class ScoreFolder:
    """The files of one scoring."""

    root: Path

    @property
    def quarantine(self) -> Path:
        return self.root / "quarantine.jsonl"

    @property
    def manifest(self) -> Path:
        return self.root / "score.json"

    def part(self, position: int) -> Path:
        """The file of the captions from this position on."""
        return self.root / f"part_{position:09d}.parquet"

    def begin(self, what: dict[str, Any]) -> None:
        """Claim the folder for this scoring.

        Raises:
            ConfigError: it holds another.
        """
        what = json.loads(json.dumps(what))  # tuples become lists, as they do in the file
        known: object = None
        try:
            known = json.loads(self.manifest.read_text())
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            raise ConfigError(f"--out = {str(self.root)!r}: {self.manifest.name} is not what was written") from error
        if known is None:
            with storage_errors(self.root):
                make_folder(self.root)
            write_json(self.manifest, value=what)
        elif known != what:
            theirs = known if isinstance(known, dict) else {}
            keys = ", ".join(key for key in {**what, **theirs} if theirs.get(key) != what.get(key))
            raise ConfigError(
                f"--out = {str(self.root)!r} holds the scores of something else ({keys} differ); name another folder"
            )

    def is_done(self, position: int) -> bool:
        """Whether a part is there, and nothing in it failed that may succeed when it is tried again."""
        try:
            faults = pq.read_table(self.part(position), columns=["fault"])["fault"]
        except (OSError, pa.ArrowException):
            return False
        return "machine" not in faults.unique().to_pylist()

    def write(self, position: int, table: pa.Table) -> None:
        path = self.part(position)
        write_atomically(path, write=lambda temporary: pq.write_table(table, temporary, compression="zstd"))

    def column(self, name: str, *, parts: Iterator[int]) -> Iterator[pa.ChunkedArray]:
        """One column of some parts, part by part."""
        for position in parts:
            yield pq.read_table(self.part(position), columns=[name])[name]

    def rejections(self, positions: Iterator[int]) -> Iterator[Rejection]:
        """The captions of some parts that have no score."""
        for position in positions:
            table = pq.read_table(self.part(position), columns=["id", "source", "reason", "fault"])
            if table["reason"].null_count < table.num_rows:
                yield from (Rejection(**row) for row in table.to_pylist() if row["reason"] is not None)
