"""The folder of bulk work: one Parquet file for each piece of the work, so that a command that was stopped goes on.

It holds a manifest (what is done, and by what), `part_000000000.parquet` and so on (a row an item, from the item with
this position on), and `quarantine.jsonl` ({id, source, reason, fault} of every row without a result).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from csr_ray.errors import ConfigError
from csr_ray.records import Rejection
from csr_ray.store.atomic import make_folder, storage_errors, write_atomically, write_json

# What the rows of every kind of part have: what the item is called and where it comes from, and where there is no
# result, why that is and whose fault.
ROW = (("id", pa.string()), ("source", pa.string()), ("reason", pa.string()), ("fault", pa.string()))


T = TypeVar("T")


@dataclass(frozen=True)
class Work(Generic[T]):
    """A piece of bulk work, which becomes one part.

    Attributes:
        position: of its first item among all; names the part.
        num: how many items it has.
        job: what has to be known to do it; it travels to whoever does it.
    """

    position: int
    num: int
    job: T


def part_name(position: int) -> str:
    """The name of the part of the items from this position on, without its ending."""
    return f"part_{position:09d}"


@dataclass(frozen=True)
class PartFolder:
    """The files of one piece of bulk work.

    Attributes:
        name: of the manifest, without its ending ("score", "eval").
        results: what the folder holds, as an error message calls it ("scores", "answers").
    """

    root: Path
    name: str
    results: str

    @property
    def quarantine(self) -> Path:
        return self.root / "quarantine.jsonl"

    @property
    def manifest(self) -> Path:
        return self.root / f"{self.name}.json"

    def part(self, position: int) -> Path:
        """The file of the items from this position on."""
        return self.root / f"{part_name(position)}.parquet"

    def begin(self, what: dict[str, Any]) -> None:
        """Claim the folder for this work.

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
                f"--out = {str(self.root)!r} holds the {self.results} of something else ({keys} differ); name "
                "another folder"
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

    def columns(self, *names: str, positions: Iterable[int]) -> Iterator[pa.Table]:
        """Some columns of some parts, part by part."""
        for position in positions:
            yield pq.read_table(self.part(position), columns=list(names))

    def rejections(self, positions: Iterable[int]) -> Iterator[Rejection]:
        """The items of some parts that have no result."""
        for table in self.columns(*(name for name, _ in ROW), positions=positions):
            if table["reason"].null_count < table.num_rows:
                yield from (Rejection(**row) for row in table.to_pylist() if row["reason"] is not None)
