"""The scores of a run's sentences, for distributions and colours: of all of them, or of a drawn share of its units.

A million prompts have some forty million sentences, of which a few hundred thousand show the same. Which units are
read is drawn by their names, so it is a fair sample, and stays the same while a run goes on, but for those that make
room for newer ones.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.parquet as pq
import xxhash

from csr_ray.report.pairs import READ_ERRORS, check_is_file, floats

MOST_UNITS: Final = 1000
_SCORES: Final = ("image_score", "self_score", "reward")


@dataclass(frozen=True, kw_only=True)
class ScoreSample:
    """
    Attributes:
        image, self_, reward: float32 [n], of the sentences that have all three.
        num_units, num_read: how many units there are, and of how many the scores are here.
        unread: by file, why it cannot be read.
    """

    image: np.ndarray
    self_: np.ndarray
    reward: np.ndarray
    num_units: int
    num_read: int
    unread: dict[Path, str]


class Scores:
    """Reads the scores of units as they come, at most `most_units` of them, each once.

    Args:
        need: see `csr_ray.report.trees.Trees`.
    """

    def __init__(self, *, most_units: int = MOST_UNITS, need: Callable[[Path], None] = lambda path: None) -> None:
        self._most_units = most_units
        self._need = need
        self._chosen: list[tuple[int, Path]] = []  # a heap with the largest hash, negated, on top
        self._known: dict[Path, np.ndarray] = {}
        self._unread: dict[Path, str] = {}
        self._num_units = 0

    def restart(self) -> None:
        """Forget which units there are, though not what was read of them."""
        self._chosen, self._num_units = [], 0

    def add(self, paths: Iterable[Path]) -> None:
        """Take in further units; nothing is read yet."""
        for path in paths:
            self._num_units += 1
            key = (-xxhash.xxh3_64_intdigest(f"{path.parent.parent.name}/{path.name}".encode()), path)
            if len(self._chosen) < self._most_units:
                heapq.heappush(self._chosen, key)
            else:
                heapq.heappushpop(self._chosen, key)

    def load(self, *, go_on: Callable[[], bool] = lambda: True) -> None:
        """Read what was not read yet, as long as `go_on` says so before each file."""
        wanted = {path for _, path in self._chosen}
        self._known = {path: scores for path, scores in self._known.items() if path in wanted}
        self._unread = {path: why for path, why in self._unread.items() if path in wanted}
        for path in sorted(wanted - self._known.keys() - self._unread.keys()):
            if not go_on():
                return
            try:
                self._known[path] = self._scores_of(path)
            except READ_ERRORS as error:
                self._unread[path] = " ".join(str(error).split()) or type(error).__name__

    @property
    def num_left(self) -> int:
        """Units whose scores are still to be read."""
        return sum(path not in self._known and path not in self._unread for _, path in self._chosen)

    def sample(self) -> ScoreSample:
        """What was read so far."""
        scores = [self._known[path] for _, path in self._chosen if path in self._known]
        image, self_, reward = np.concatenate(scores, axis=1) if scores else np.zeros((3, 0), dtype=np.float32)
        return ScoreSample(
            image=image,
            self_=self_,
            reward=reward,
            num_units=self._num_units,
            num_read=len(scores),
            unread=dict(self._unread),
        )

    def _scores_of(self, path: Path) -> np.ndarray:
        self._need(path)
        check_is_file(path)
        with pq.ParquetFile(path) as file:
            if not set(_SCORES) <= set(file.schema_arrow.names):
                return np.zeros((3, 0), dtype=np.float32)
            table = file.read(columns=list(_SCORES), use_threads=False)
        found = np.stack([floats(table.column(name)) for name in _SCORES])
        return found[:, np.isfinite(found).all(axis=0)].astype(np.float32)
