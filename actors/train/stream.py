"""A round's pairs on their way from the loop to the train workers, while the round's rollouts still run.

The mailbox actor holds an `OpenStream`; workers reach it as a `PairSource`. Rank 0 judges pairs as they come, and all
ranks read the one list of usable pairs that follows from its verdicts, so no two of them train on different steps and
none has to wait for another while it loads data. Knows nothing of Ray, torch or trainers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from csr_ray.records import PreferencePair


@dataclass(frozen=True, kw_only=True)
class StreamEnd:
    """What is known once the round's last tree is finished and its last pair judged.

    Attributes:
        ids: of all pairs of the round in prompt order, those that were dropped included.
        dropped: reason to count.
    """

    ids: tuple[str, ...]
    dropped: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class UsableSoFar:
    """Usable pairs from some position on, in the order they came; `end` is None while there may be more."""

    pairs: tuple[PreferencePair, ...]
    end: StreamEnd | None


class PairSource(Protocol):
    """A stream as a train worker sees it."""

    @property
    def num_pairs_at_most(self) -> int: ...

    def arrived(self, *, start: int) -> tuple[PreferencePair, ...]:
        """All pairs from position `start` on; waits for the first of them. Empty: there will be no more."""
        ...

    def judge(self, verdicts: Sequence[str | None], *, start: int) -> None:
        """Post for the pairs from position `start` on why each cannot be trained on, None where it can."""
        ...

    def usable(self, *, start: int, wait: bool) -> UsableSoFar:
        """Usable pairs from position `start` on; with `wait`, at least one of them or the end."""
        ...


@dataclass
class OpenStream:
    """The pairs of one order as they came. Keeps them all, so that a restarted worker can begin again."""

    _pairs: list[PreferencePair] = field(default_factory=list)
    _usable: list[PreferencePair] = field(default_factory=list)
    _dropped: Counter[str] = field(default_factory=Counter)
    _num_judged: int = 0
    _ids: tuple[str, ...] | None = None

    def offer(self, pairs: Sequence[PreferencePair]) -> None:
        assert self._ids is None, "offered after the end"
        self._pairs += pairs

    def end(self, ids: Sequence[str]) -> None:
        """No more pairs will come; `ids` are those of all that came, in prompt order."""
        assert sorted(ids) == sorted(pair.id for pair in self._pairs), "the round's pairs are not those offered"
        self._ids = tuple(ids)

    def arrived(self, *, start: int) -> tuple[PreferencePair, ...] | None:
        """See `PairSource`; None while there is nothing to answer."""
        pairs = tuple(self._pairs[start:])
        return pairs if pairs or self._ids is not None else None

    def judge(self, verdicts: Sequence[str | None], *, start: int) -> None:
        """The first verdict on a pair stands: a restarted rank 0 judges the same pairs again."""
        assert start <= self._num_judged, (start, self._num_judged)
        new = verdicts[self._num_judged - start :]
        for pair, reason in zip(self._pairs[self._num_judged :], new, strict=False):
            if reason is None:
                self._usable.append(pair)
            else:
                self._dropped[reason] += 1
        self._num_judged += len(new)

    def usable(self, *, start: int) -> UsableSoFar:
        is_over = self._ids is not None and self._num_judged == len(self._pairs)
        end = StreamEnd(ids=self._ids or (), dropped=dict(self._dropped)) if is_over else None
        return UsableSoFar(pairs=tuple(self._usable[start:]), end=end)
