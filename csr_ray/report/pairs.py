"""The pairs of a run as the page asks for them: so many of an order, a round and a search, from the first one on.

Rewards are in memory, eight bytes each; texts and pictures stay in the files, and of those only the groups of rows
that were asked for last are held. So a run of a hundred thousand pairs is looked through by the screenful.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from csr_ray.rollout.sentences import WHOLE_ENDING
from csr_ray.store.parquet import open_by_batch
from csr_ray.store.places import Place

Order = Literal["typical", "down", "up", "round"]
ORDERS: Final[tuple[Order, ...]] = ("typical", "down", "up", "round")
"""Near the median margin and not cut off first; largest margin first; smallest first; as the rounds have them."""

READ_ERRORS: Final = (pa.ArrowException, OSError, ValueError, KeyError)
_GROUPS_KEPT: Final = 8
_SEARCHES_KEPT: Final = 16
_PICTURES_AT_ONCE: Final = 64
_ROWS_AT_ONCE: Final = 4096
_TEXTS: Final = ("id", "prompt", "chosen", "rejected")
_COLUMNS: Final = (
    *_TEXTS, "chosen_reward", "rejected_reward", "chosen_logp", "rejected_logp", "chosen_nodes", "rejected_nodes",
)  # fmt: skip
# Of a file of single answers, with their names on the page, where they are chosen ones without rejected ones.
_ANSWER_COLUMNS: Final = {
    "answer": "chosen", "reward": "chosen_reward", "logp": "chosen_logp", "answer_nodes": "chosen_nodes",
}  # fmt: skip
_Rows = TypeVar("_Rows", pa.Table, pa.RecordBatch)


class PairTable:
    """The pairs of one phase, or its single answers.

    Attributes:
        chosen, rejected: float64 [num], rewards of the two answers; NaN where the file has none.

    Raises:
        OSError: it is no file, or cannot be read.
        ArrowException: it is no Parquet file, or a damaged one.
    """

    def __init__(self, place: Place, *, path: Path) -> None:
        check_is_file(path)
        self.place = place
        self.path = path
        with pq.ParquetFile(path) as file:
            self.is_single = "answer" in file.schema_arrow.names
            self._image_type = _type_of(file.schema_arrow, name="image")
            self._columns = _present(file, wanted=(*_COLUMNS, *_ANSWER_COLUMNS))
            groups = [file.metadata.row_group(at).num_rows for at in range(file.metadata.num_row_groups)]
            table = _as_pairs(file.read(columns=_present(file, wanted=("reward", *_REWARDS))))
        self._starts = np.concatenate([[0], np.cumsum(groups)]).astype(np.int64)
        self.num = int(self._starts[-1])
        self.chosen, self.rejected = (
            floats(table.column(name)) if name in table.column_names else np.full(self.num, np.nan)
            for name in _REWARDS
        )
        self._group = lru_cache(_GROUPS_KEPT)(self._read_group)
        self._matches = lru_cache(_SEARCHES_KEPT)(self._search)

    @cached_property
    def margins(self) -> np.ndarray:
        """float64 [num]: by how much the chosen answer's reward is the larger; NaN where it is not known."""
        return self.chosen - self.rejected

    @cached_property
    def ranks(self) -> np.ndarray:
        """float64 [num] in 0..1: where a pair stands among all of them by its margin, and a single answer by its
        reward. What is not known comes last."""
        values = self.chosen if self.is_single else self.margins
        order = np.argsort(values, kind="stable")
        ranks = np.empty(self.num)
        ranks[order] = np.arange(self.num) / max(1, self.num - 1)
        return ranks

    @cached_property
    def is_whole(self) -> np.ndarray:
        """bool [num]: whether each answer ends where a sentence ends, and so is not cut off."""
        whole = np.ones(self.num, dtype=bool)
        for start, texts in self._texts(("chosen", "rejected")):
            for column in texts:
                found = pc.match_substring_regex(pc.fill_null(column, ""), WHOLE_ENDING)
                whole[start : start + len(column)] &= np.asarray(found)
        return whole

    @cached_property
    def typical(self) -> np.ndarray:
        """float64 [num]: the smaller, the more typical; 1 and more for pairs with an answer that is cut off."""
        return np.abs(self.ranks - 0.5) + ~self.is_whole

    def spread(self, num: int) -> np.ndarray:
        """Positions [<= num] at even ranks, smallest first, both ends included."""
        order = np.argsort(self.ranks, kind="stable")
        if len(order) <= num:
            return order
        return order[np.linspace(0, len(order) - 1, num).round().astype(int)]

    def matching(self, text: str) -> np.ndarray:
        """bool [num]: whether id, prompt or an answer has the text in it, in capitals or not."""
        return self._matches(text.casefold()) if text else np.ones(self.num, dtype=bool)

    def rows(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """The rows at these positions, without pictures, single answers as chosen ones without rejected ones."""
        found = []
        for position in positions:
            group = int(np.searchsorted(self._starts, position, side="right")) - 1
            found += self._group(group).slice(position - int(self._starts[group]), 1).to_pylist()
        return found

    def images(self, positions: Sequence[int]) -> list[object]:
        """What the file has of the pictures of these rows: a path, encoded bytes, or `{"bytes", "path"}`."""
        if self._image_type is None:
            return [None] * len(positions)
        found: dict[int, object] = {}
        with open_by_batch(self.path) as file:
            for group in sorted({int(np.searchsorted(self._starts, at, side="right")) - 1 for at in positions}):
                start = int(self._starts[group])
                wanted = sorted(at for at in set(positions) if start <= at < self._starts[group + 1])
                # Rows may carry whole images, so only a few are in memory at once.
                batches = file.iter_batches(batch_size=_PICTURES_AT_ONCE, row_groups=[group], columns=["image"])
                for batch in batches:
                    while wanted and wanted[0] < start + len(batch):
                        position = wanted.pop(0)
                        found[position] = batch.column("image")[position - start].as_py()
                    start += len(batch)
                    if not wanted:
                        break
        return [found.get(position) for position in positions]

    def position_of(self, id: str) -> int | None:
        """Where the first pair of a prompt stands; None if it has none."""
        at = pc.index(self._ids, pa.scalar(id, pa.string())).as_py()
        return None if at < 0 else int(at)

    @cached_property
    def _ids(self) -> pa.ChunkedArray:
        if "id" not in self._columns:
            return pa.chunked_array([pa.nulls(self.num, pa.string())])
        with pq.ParquetFile(self.path) as file:
            return pc.cast(file.read(columns=["id"]).column("id"), pa.string())

    def _read_group(self, group: int) -> pa.Table:
        with pq.ParquetFile(self.path) as file:
            return _as_pairs(file.read_row_group(group, columns=self._columns))

    def _search(self, text: str) -> np.ndarray:
        found = np.zeros(self.num, dtype=bool)
        for start, texts in self._texts(_TEXTS):
            for column in texts:
                here = pc.match_substring(pc.fill_null(column, ""), text, ignore_case=True)
                found[start : start + len(column)] |= np.asarray(here)
        return found

    def _texts(self, names: Sequence[str]) -> list[tuple[int, list[pa.Array]]]:
        found, start = [], 0
        of_file = {name: name for name in _COLUMNS} | {new: old for old, new in _ANSWER_COLUMNS.items()}
        wanted = [name for name in (of_file[name] if self.is_single else name for name in names)]
        with open_by_batch(self.path) as file:
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=_present(file, wanted=wanted)):
                found.append((start, [texts_of(column) for column in batch.columns]))
                start += len(batch)
        return found


_REWARDS: Final = ("chosen_reward", "rejected_reward")


@dataclass(frozen=True, kw_only=True)
class Query:
    """Which pairs are asked for.

    Attributes:
        place: position in `Pairs.tables`; None: of all rounds.
        text: that id, prompt or an answer has to have in it; empty: any.
        low, high: ends of the margin; None: of any margin, or none.
    """

    order: Order = "typical"
    place: int | None = None
    text: str = ""
    low: float | None = None
    high: float | None = None


class Pairs:
    """All pairs of a run; a pair is named by a table and its row there."""

    def __init__(self, tables: Sequence[PairTable]) -> None:
        self.tables = tuple(tables)
        self._find = lru_cache(_SEARCHES_KEPT)(self._found)

    @property
    def num(self) -> int:
        return sum(table.num for table in self.tables)

    def margin_ends(self) -> tuple[float, float] | None:
        """The smallest and the largest margin; None if none is known."""
        known = [table.margins[np.isfinite(table.margins)] for table in self.tables]
        known = [margins for margins in known if len(margins)]
        if not known:
            return None
        return min(float(margins.min()) for margins in known), max(float(margins.max()) for margins in known)

    def find(self, query: Query, *, start: int, num: int) -> tuple[int, list[tuple[int, int]]]:
        """How many pairs match, and (table, row) of those from `start` on in the order asked for."""
        tables, rows = self._find(query)
        end = start + num
        return len(rows), [(int(at), int(row)) for at, row in zip(tables[start:end], rows[start:end], strict=True)]

    def open_unit(self, place: Place, *, name: str) -> PairTable | None:
        """The pairs of one unit of a phase that is not decided yet; None if they are not made, or not kept."""
        path = place.example_unit(name)
        try:
            return PairTable(place, path=path) if name and path.is_file() else None
        except READ_ERRORS:
            return None

    def _found(self, query: Query) -> tuple[np.ndarray, np.ndarray]:
        tables, rows, keys = [], [], []
        for number, table in enumerate(self.tables):
            if query.place not in (None, number):
                continue
            is_wanted = table.matching(query.text)
            if query.low is not None or query.high is not None:
                with np.errstate(invalid="ignore"):
                    low = -np.inf if query.low is None else query.low
                    high = np.inf if query.high is None else query.high
                    is_wanted = is_wanted & (table.margins >= low) & (table.margins <= high)
            found = np.flatnonzero(is_wanted)
            rows.append(found)
            tables.append(np.full(len(found), number))
            keys.append(_key(table, order=query.order)[found])
        if not rows:
            return np.zeros(0, dtype=int), np.zeros(0, dtype=int)
        order = np.argsort(np.concatenate(keys), kind="stable")
        return np.concatenate(tables)[order], np.concatenate(rows)[order]


def _key(table: PairTable, *, order: Order) -> np.ndarray:
    if order == "round":
        return np.zeros(table.num)
    if order == "typical":
        return table.typical
    known = np.where(np.isfinite(table.margins), table.margins, np.nan)
    return np.nan_to_num(-known if order == "down" else known, nan=np.inf)


def texts_of(column: pa.Array) -> pa.Array:
    """Strings of a column of strings, or of chats (lists of messages), whose messages are joined."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return column
    is_chat = pa.types.is_list(column.type) and pa.types.is_struct(column.type.value_type)
    if is_chat and len(column) and pc.all(pc.equal(pc.list_value_length(column), 1)).as_py():
        content = column.flatten().field("content") if _has(column.type.value_type, "content") else None
        if content is not None and pa.types.is_string(content.type):
            return content
    return pa.array([plain_text(value) for value in column.to_pylist()], pa.string())


def plain_text(value: object) -> str:
    """A string as it is; a chat (list of messages) as the text of its messages, in order."""
    if isinstance(value, Mapping):
        return plain_text(value.get("content") if "content" in value else value.get("text"))
    if isinstance(value, (list, tuple)):
        return " ".join(filter(None, (plain_text(item) for item in value)))
    return "" if value is None else str(value)


def floats(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """float64 [n], NaN where the column has nothing."""
    return np.asarray(pc.fill_null(pc.cast(column, pa.float64()), float("nan")))


def check_is_file(path: Path) -> None:
    """Raises OSError for what is no file: a pipe would be waited for without end."""
    if path.exists() and not path.is_file():
        raise OSError("it is no file")


def _as_pairs(rows: _Rows) -> _Rows:
    """Rows of single answers under the names that a pair's chosen answer has; others as they are."""
    if "answer" not in rows.schema.names and "reward" not in rows.schema.names:
        return rows
    return rows.rename_columns([_ANSWER_COLUMNS.get(name, name) for name in rows.schema.names])


def _present(file: pq.ParquetFile, *, wanted: Sequence[str]) -> list[str]:
    names = set(file.schema_arrow.names)
    return [name for name in wanted if name in names]


def _type_of(schema: pa.Schema, *, name: str) -> pa.DataType | None:
    return schema.field(name).type if name in schema.names else None


def _has(struct: pa.StructType, name: str) -> bool:
    return struct.get_field_index(name) >= 0
