"""What one process of the group trains on in a round: all its pairs at once, or a stream of them as they come.

Both have the same five members: `usable` (a list that a stream lets grow), `dropped`, `has`, `leading`, `waited_s`.
Imports torch. Knows pairs and the order in which they are trained; knows nothing of Ray or models.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import distributed
from torch.utils.data import Dataset, Sampler

from actors.train.stream import PairSource, StreamEnd
from csr_ray.records import PreferencePair
from csr_ray.training.collate import pair_row

Verdict = Callable[[PreferencePair], str | None]
"""Why a pair cannot be trained on; None if it can."""


class WholeRound:
    """Pairs that are all there, in prompt order. All ranks make one together.

    Args:
        judge: rank 0's; the other ranks have None and follow its verdicts. Two processes that disagreed on one flaky
            file would train on different steps.
    """

    waited_s = 0.0

    def __init__(self, pairs: Sequence[PreferencePair], *, judge: Verdict | None) -> None:
        posted = [None if judge is None else [judge(pair) for pair in pairs]]
        distributed.broadcast_object_list(posted, src=0)
        assert posted[0] is not None
        reasons: list[str | None] = posted[0]
        self._positions = [position for position, reason in enumerate(reasons) if reason is None]
        self.usable = [pairs[position] for position in self._positions]
        self.dropped: Mapping[str, int] = Counter(reason for reason in reasons if reason is not None)

    def has(self, index: int) -> bool:
        return index < len(self.usable)

    def leading(self, num: int) -> list[PreferencePair]:
        """Of the round's first `num` pairs those before the first that was dropped."""
        return [self.usable[i] for i, position in enumerate(self._positions[:num]) if position == i]


class StreamedPairs(Dataset[dict[str, Any]]):
    """A map-style data set whose items are there once their trees are finished.

    Args:
        judge: as for `WholeRound`, but no rank waits for another.

    Attributes:
        num_at_most: what the stream may grow to; its length for whoever plans steps ahead.
        waited_s: seconds spent waiting for pairs.
    """

    def __init__(self, source: PairSource, *, judge: Verdict | None) -> None:
        self.num_at_most = source.num_pairs_at_most
        self.usable: list[PreferencePair] = []
        self.waited_s = 0.0
        self._source = source
        self._judge = judge
        self._num_judged = 0
        self._end: StreamEnd | None = None

    def __len__(self) -> int:
        return self.num_at_most

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The row of usable pair `index`, in the order they came; waits for it."""
        if not self.has(index):
            raise IndexError(index)
        return pair_row(self.usable[index], index=index)

    @property
    def dropped(self) -> Mapping[str, int]:
        return self._end.dropped if self._end else {}

    def has(self, index: int) -> bool:
        """Wait until there is a usable pair `index`, or it is certain that there will be none."""
        while index >= len(self.usable) and self._end is None:
            started = time.monotonic()
            if self._judge is not None:
                arrived = self._source.arrived(start=self._num_judged)
                self.waited_s += time.monotonic() - started
                self._source.judge([self._judge(pair) for pair in arrived], start=self._num_judged)
                self._num_judged += len(arrived)
                news = self._source.usable(start=len(self.usable), wait=False)
            else:
                news = self._source.usable(start=len(self.usable), wait=True)
                self.waited_s += time.monotonic() - started
            self.usable += news.pairs
            self._end = news.end
            assert len(self.usable) <= self.num_at_most, "steps were planned for fewer pairs"
        return index < len(self.usable)

    def leading(self, num: int) -> list[PreferencePair]:
        """Of the round's first `num` pairs, in prompt order, those before the first that was dropped."""
        self.has(self.num_at_most)  # waits for the end
        assert self._end is not None
        by_id = {pair.id: pair for pair in self.usable}
        kept = itertools.takewhile(by_id.__contains__, self._end.ids[:num])
        return [by_id[pair_id] for pair_id in kept]


class ArrivalSampler(Sampler[int]):
    """The first epoch in the order of arrival, as far as the stream goes; later ones shuffled, all ranks alike."""

    def __init__(self, pairs: StreamedPairs, *, seed: int) -> None:
        self._pairs = pairs
        self._seed = seed
        self._epoch = 0

    def __iter__(self) -> Iterator[int]:
        if self._epoch == 0:
            yield from itertools.takewhile(self._pairs.has, itertools.count())
            return
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        yield from torch.randperm(len(self._pairs.usable), generator=generator).tolist()

    def __len__(self) -> int:
        return self._pairs.num_at_most

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch
