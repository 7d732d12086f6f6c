"""A round's pairs on their way into training: who sees which pair when, and in which order it is trained."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import pytest
from fakes import preference_pair

from actors.train.round_pairs import ArrivalSampler, StreamedPairs
from actors.train.stream import OpenStream, StreamEnd, UsableSoFar
from csr_ray.records import PreferencePair


def _pair(id: str) -> PreferencePair:
    return preference_pair(
        id=id,
        image="-",
        prompt="Describe.",
        chosen_ids=(5, 2),
        rejected_ids=(6, 2),
        chosen_logp=-1.0,
        rejected_logp=-2.0,
    )


def _judge(pair: PreferencePair) -> str | None:
    return "too_long" if pair.id.startswith("long") else None


def _ids(pairs) -> list[str]:
    return [pair.id for pair in pairs]


@dataclass
class Source:
    """An `OpenStream` in this process, with a mailbox's waits."""

    num_pairs_at_most: int
    stream: OpenStream = field(default_factory=OpenStream)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def put(self, *ids: str) -> None:
        with self.changed:
            self.stream.offer([_pair(id) for id in ids])
            self.changed.notify_all()

    def end(self, *ids: str) -> None:
        with self.changed:
            self.stream.end(ids)
            self.changed.notify_all()

    def arrived(self, *, start: int) -> tuple[PreferencePair, ...]:
        with self.changed:
            assert self.changed.wait_for(lambda: self.stream.arrived(start=start) is not None, timeout=10)
            return self.stream.arrived(start=start) or ()

    def judge(self, verdicts, *, start: int) -> None:
        with self.changed:
            self.stream.judge(verdicts, start=start)
            self.changed.notify_all()

    def usable(self, *, start: int, wait: bool) -> UsableSoFar:
        def is_news() -> bool:
            found = self.stream.usable(start=start)
            return bool(found.pairs) or found.end is not None

        with self.changed:
            assert not wait or self.changed.wait_for(is_news, timeout=10)
            return self.stream.usable(start=start)


def test_what_is_usable_follows_the_verdicts_and_ends_with_the_last_of_them() -> None:
    stream = OpenStream()
    assert stream.arrived(start=0) is None
    stream.offer([_pair("b"), _pair("long")])
    stream.judge([None, "too_long"], start=0)
    stream.offer([_pair("a")])
    stream.end(["a", "b", "long"])
    assert _ids(stream.usable(start=0).pairs) == ["b"]
    assert stream.usable(start=0).end is None, "a pair is not judged yet"
    stream.judge([None], start=2)
    assert _ids(stream.usable(start=1).pairs) == ["a"]
    assert stream.usable(start=2).end == StreamEnd(ids=("a", "b", "long"), dropped={"too_long": 1})
    assert stream.arrived(start=3) == ()


def test_a_restarted_judge_changes_no_verdict() -> None:
    stream = OpenStream()
    stream.offer([_pair("a"), _pair("b")])
    stream.judge([None], start=0)
    stream.judge(["unreadable_image", None], start=0)
    assert _ids(stream.usable(start=0).pairs) == ["a", "b"]


def test_a_stream_ends_with_the_pairs_that_were_offered() -> None:
    stream = OpenStream()
    stream.offer([_pair("a")])
    with pytest.raises(AssertionError, match="not those offered"):
        stream.end(["a", "b"])


def test_a_pair_is_waited_for_and_every_rank_sees_the_same_ones() -> None:
    source = Source(num_pairs_at_most=4)
    ranks = [StreamedPairs(source, judge=_judge), StreamedPairs(source, judge=None)]
    orders: list[list[int]] = [[], []]

    def read(rank: int) -> None:
        for index in ArrivalSampler(ranks[rank], seed=0):
            assert ranks[rank][index]["index"] == index
            orders[rank].append(index)

    threads = [threading.Thread(target=read, args=(rank,), daemon=True) for rank in range(2)]
    for thread in threads:
        thread.start()
    source.put("c", "long")
    for _ in range(3000):  # so that a rank that never gets its pair fails, and does not hang the suite
        if orders == [[0], [0]]:
            break
        time.sleep(0.01)
    assert orders == [[0], [0]], "both ranks have the pair that is there, and wait for the next"
    source.put("a")
    source.end("a", "c", "long")
    for thread in threads:
        thread.join(timeout=10)
    assert orders == [[0, 1], [0, 1]]
    for pairs in ranks:
        assert _ids(pairs.usable) == ["c", "a"]
        assert dict(pairs.dropped) == {"too_long": 1}
        assert _ids(pairs.leading(8)) == ["a", "c"], "prompt order, up to the first that was dropped"
        assert pairs.waited_s > 0
        assert len(pairs) == 4
        with pytest.raises(IndexError):
            pairs[2]


def test_leading_pairs_end_before_the_first_that_was_dropped() -> None:
    source = Source(num_pairs_at_most=3)
    source.put("b", "long", "a")
    source.end("a", "long", "b")
    pairs = StreamedPairs(source, judge=_judge)
    assert _ids(pairs.leading(8)) == ["a"]
    assert _ids(pairs.usable) == ["b", "a"]


def test_a_stream_of_nothing_usable_has_no_first_pair() -> None:
    for ids in ((), ("long",)):
        source = Source(num_pairs_at_most=2)
        source.put(*ids)
        source.end(*ids)
        assert not StreamedPairs(source, judge=_judge).has(0)


def test_later_epochs_shuffle_what_came_alike_on_all_ranks() -> None:
    source = Source(num_pairs_at_most=30)
    ids = [f"{number:02d}" for number in range(20)]
    source.put(*ids)
    source.end(*ids)
    samplers = [ArrivalSampler(StreamedPairs(source, judge=judge), seed=3) for judge in (_judge, None)]
    epochs = []
    for epoch in range(3):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        orders = [list(sampler) for sampler in samplers]
        assert orders[0] == orders[1]
        assert sorted(orders[0]) == list(range(20))
        epochs.append(orders[0])
    assert epochs[0] == list(range(20))
    assert epochs[0] != epochs[1] != epochs[2]
    assert len(samplers[0]) == 30
