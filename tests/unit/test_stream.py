"""A cycle's examples on their way into training: who sees which file when, and in which order it is trained."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fakes import preference_pair, single_answer

from actors.train.checkpoints import example_key
from actors.train.examples import TRAINED_BEFORE, ArrivalSampler, ExampleStream, Provenance
from actors.train.stream import HELD_OUT, JudgedFile, JudgedSoFar, OpenStream
from csr_ray.errors import StalePolicyError
from csr_ray.records import Example
from csr_ray.store.tables import (
    ExampleReader,
    Outcome,
    join_example_units,
    read_examples,
    read_outcome,
    write_example_unit,
)


def _judge(example: Example) -> str | None:
    return "too_long" if example.id.startswith("long") else None


def _write(path: Path, *ids: str) -> str:
    examples = [preference_pair(id=id, chosen_ids=(5, 2), rejected_ids=(6, 2)) for id in ids]
    write_example_unit(path, examples=examples, outcome=Outcome(made=len(ids)))
    return str(path)


@dataclass
class Source:
    """An `OpenStream` in this process, with a mailbox's waits."""

    folder: Path
    num_examples_at_most: int
    is_whole: bool = False
    stream: OpenStream = field(default_factory=OpenStream)
    changed: threading.Condition = field(default_factory=threading.Condition)
    num_files: int = 0

    def put(self, *ids: str) -> None:
        """Offer a file with these examples."""
        path = _write(self.folder / f"{self.num_files}.parquet", *ids)
        self.num_files += 1
        with self.changed:
            self.stream.offer([path])
            self.changed.notify_all()

    def end(self) -> None:
        with self.changed:
            self.stream.end()
            self.changed.notify_all()

    def arrived(self, *, start: int) -> tuple[str, ...]:
        with self.changed:
            assert self.changed.wait_for(lambda: self.stream.arrived(start=start) is not None, timeout=10)
            return self.stream.arrived(start=start) or ()

    def judge(self, verdicts: Sequence[Sequence[str | None]], *, start: int) -> None:
        with self.changed:
            self.stream.judge(verdicts, start=start)
            self.changed.notify_all()

    def judged(self, *, start: int, wait: bool) -> JudgedSoFar:
        def is_news() -> bool:
            found = self.stream.judged(start=start)
            return bool(found.files) or found.dropped is not None

        with self.changed:
            assert not wait or self.changed.wait_for(is_news, timeout=10)
            return self.stream.judged(start=start)


def _ids(stream: ExampleStream) -> list[str]:
    return [stream.example(index).id for index in range(stream.num_usable)]


def test_what_is_usable_follows_the_verdicts_and_ends_with_the_last_of_them() -> None:
    stream = OpenStream()
    assert stream.arrived(start=0) is None
    stream.offer(["one", "two"])
    stream.judge([[None, "too_long"]], start=0)
    stream.end()
    assert stream.judged(start=0) == JudgedSoFar(files=(JudgedFile(path="one", rows=(0,)),), dropped=None)
    stream.judge([["too_long", None, None]], start=1)
    assert stream.judged(start=1) == JudgedSoFar(
        files=(JudgedFile(path="two", rows=(1, 2)),), dropped={"too_long": 2}
    )
    assert stream.arrived(start=2) == ()


def test_a_restarted_judge_changes_no_verdict() -> None:
    stream = OpenStream()
    stream.offer(["one", "two"])
    stream.judge([[None]], start=0)
    stream.judge([["unreadable_image"], [None]], start=0)
    assert [file.rows for file in stream.judged(start=0).files] == [(0,), (0,)]


def test_nothing_is_offered_after_the_end() -> None:
    stream = OpenStream()
    stream.end()
    with pytest.raises(AssertionError, match="after the end"):
        stream.offer(["one"])


def test_an_example_is_waited_for_and_every_rank_sees_the_same_ones(tmp_path: Path) -> None:
    source = Source(tmp_path, num_examples_at_most=4)
    ranks = [ExampleStream(source, judge=_judge), ExampleStream(source, judge=None)]
    orders: list[list[int]] = [[], []]

    def read(rank: int) -> None:
        for index in ArrivalSampler(ranks[rank], seed=0):
            assert ranks[rank][index]["index"] == index
            orders[rank].append(index)

    threads = [threading.Thread(target=read, args=(rank,), daemon=True) for rank in range(2)]
    for thread in threads:
        thread.start()
    source.put("c", "long")
    for _ in range(3000):  # so that a rank that never gets its example fails, and does not hang the suite
        if orders == [[0], [0]]:
            break
        time.sleep(0.01)
    assert orders == [[0], [0]], "both ranks have the example that is there, and wait for the next"
    source.put("a")
    source.end()
    for thread in threads:
        thread.join(timeout=10)
    assert orders == [[0, 1], [0, 1]]
    for stream in ranks:
        assert _ids(stream) == ["c", "a"]
        assert dict(stream.dropped) == {"too_long": 1}
        assert [example.id for example in stream.leading(8)] == ["c", "a"]
        assert stream.waited_s > 0
        assert stream.is_growing and len(stream) == 4, "steps were planned for what might have come"
        with pytest.raises(IndexError):
            stream[2]


def test_a_whole_cycle_is_a_stream_that_has_ended(tmp_path: Path) -> None:
    source = Source(tmp_path, num_examples_at_most=5, is_whole=True)
    made: list[ExampleStream] = []
    thread = threading.Thread(target=lambda: made.append(ExampleStream(source, judge=_judge)), daemon=True)
    thread.start()
    source.put("b", "long")
    thread.join(timeout=0.2)
    assert not made, "training does not begin before the last file"
    source.put("a", "c", "d")
    source.end()
    thread.join(timeout=10)
    (stream,) = made
    assert not stream.is_growing and len(stream) == 4
    assert _ids(stream) == ["b", "a", "c", "d"]


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize("ids", [(), ("long",)])
def test_a_stream_of_nothing_usable_has_no_first_example(
    tmp_path: Path, ids: tuple[str, ...], is_whole: bool
) -> None:
    source = Source(tmp_path, num_examples_at_most=2, is_whole=is_whole)
    source.put(*ids)
    source.end()
    assert not ExampleStream(source, judge=_judge).has(0)


def test_later_epochs_shuffle_what_came_alike_on_all_ranks(tmp_path: Path) -> None:
    source = Source(tmp_path, num_examples_at_most=30)
    source.put(*(f"{number:02d}" for number in range(20)))
    source.end()
    samplers = [ArrivalSampler(ExampleStream(source, judge=judge), seed=3) for judge in (_judge, None)]
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


def test_any_example_is_found_in_a_file_of_many_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csr_ray.store.tables._ROWS_A_GROUP", 5)
    monkeypatch.setattr("csr_ray.store.tables._GROUPS_KEPT", 2)
    units = [Path(_write(tmp_path / f"{at}.parquet", *(f"{at}{row}" for row in range(3)))) for at in range(4)]
    joined = tmp_path / "pairs.parquet"
    join_example_units(joined, units=units)
    reader = ExampleReader()
    assert reader.num_examples(str(joined)) == 12
    order = [11, 0, 5, 6, 0, 10, 3]
    assert [reader.example(str(joined), row=row).id for row in order] == ["32", "00", "12", "20", "00", "31", "10"]
    with pytest.raises(IndexError):
        reader.example(str(joined), row=12)


def test_single_answers_are_read_as_they_were_written(tmp_path: Path) -> None:
    said = single_answer(id="a", ids=(5, 2), text="A cat.", image="cat.png", prompt="What?", weight=0.25)
    judged = replace(said, targets=(replace(said.preferred, logp=-1.5, reward=3.0, nodes=(2,)),), seed=7)
    unit, joined = tmp_path / "unit.parquet", tmp_path / "examples.parquet"
    outcome = Outcome()
    for example in (said, judged):
        outcome.count(example)
    write_example_unit(unit, examples=[said, judged], outcome=outcome, candidates="c", num_answers=1)
    empty = tmp_path / "empty.parquet"
    write_example_unit(empty, examples=[], outcome=Outcome(dropped={"no": 1}), candidates="c", num_answers=1)
    assert read_outcome(unit, candidates="c") == outcome and outcome.mean("answer_reward") == 1.5
    total, _ = join_example_units(joined, units=[empty, unit], num_answers=1)
    assert (total.made, total.dropped) == (2, {"no": 1})
    assert read_examples(joined) == [said, judged]
    reader = ExampleReader()
    assert [reader.example(str(joined), row=row) for row in (1, 0)] == [judged, said]
    assert {"id", "image", "prompt", "answer", "weight", "reward", "logp", "policy_version", "method", "seed"} <= set(
        pq.read_schema(joined).names
    )


def _keys(*ids: str, folder: Path) -> list[bytes]:
    """The keys of examples as a checkpoint has them, which read the same examples from other files."""
    reader, path = ExampleReader(), _write(folder / "elsewhere.parquet", *ids)
    return [example_key(reader.example(path, row=row)) for row in range(len(ids))]


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize("judge", [_judge, None], ids=["rank 0", "another rank"])
def test_a_checkpoints_examples_are_trained_first_in_its_order(
    tmp_path: Path, is_whole: bool, judge: Callable[[Example], str | None] | None
) -> None:
    source = Source(tmp_path, num_examples_at_most=6, is_whole=is_whole)
    source.put("a", "long", "b")
    source.put("c", "d")
    if is_whole:
        source.end()
    if judge is None:
        ExampleStream(source, judge=_judge).has(3)  # somebody has to judge
    stream = ExampleStream(source, judge=judge)
    keys = _keys("d", "a", "c", folder=tmp_path)
    assert stream.take_up(keys, num_planned=6, is_growing=True)
    if not is_whole:
        source.put("e")
        source.end()
        if judge is None:
            ExampleStream(source, judge=_judge).has(5)
    assert stream.is_growing and len(stream) == 6, "steps stay planned as they were"
    assert list(ArrivalSampler(stream, seed=0)) == list(range(stream.num_usable))
    assert _ids(stream) == ["d", "a", "c", "b", *([] if is_whole else ["e"])]
    assert [example.id for example in stream.leading(2)] == ["d", "a"]
    assert stream.keys()[:3] == keys, "the next checkpoint says the same"


@pytest.mark.parametrize(
    ("ids", "is_growing", "num_planned"),
    [
        (("a", "gone"), True, 6),
        (("a", "a"), True, 6),
        (("a", "b"), True, 5),
        (("a", "b"), False, 6),
    ],
    ids=["an example is not there", "an example is there once", "more are planned", "some were not there"],
)
def test_a_checkpoint_that_does_not_fit_changes_nothing(
    tmp_path: Path, ids: tuple[str, ...], is_growing: bool, num_planned: int
) -> None:
    source = Source(tmp_path, num_examples_at_most=6, is_whole=True)
    source.put("b", "a", "c")
    source.end()
    stream = ExampleStream(source, judge=_judge)
    assert not stream.take_up(_keys(*ids, folder=tmp_path), num_planned=num_planned, is_growing=is_growing)
    assert _ids(stream) == ["b", "a", "c"]
    assert not stream.is_growing
    assert stream.take_up(_keys("a", "c", "b", folder=tmp_path), num_planned=6, is_growing=False)
    assert _ids(stream) == ["a", "c", "b"]


def test_a_whole_order_goes_on_though_some_of_its_examples_are_not_trained_on(tmp_path: Path) -> None:
    """A checkpoint of it was planned for those that are: one was dropped here, and one held out."""
    source = Source(folder=tmp_path, num_examples_at_most=5, is_whole=True)
    source.put("a", "long", "b", "held", "c")
    source.end()
    stream = ExampleStream(source, judge=lambda example: HELD_OUT if example.id == "held" else _judge(example))
    assert len(stream) == 3
    assert stream.take_up(_keys("c", "a", "b", folder=tmp_path), num_planned=3, is_growing=False)
    assert _ids(stream) == ["c", "a", "b"]
    assert [example.id for example in stream.held_out(stream.num_held_out)] == ["held"]
    assert stream.dropped == {"too_long": 1}


def test_a_cycle_trains_on_its_own_version_only_or_on_earlier_ones_and_each_answer_once() -> None:
    def answer(id: str, *ids: int, version: int) -> Example:
        return single_answer(id=id, ids=ids, policy_version=version)

    own = Provenance(version=1, accumulates=False)
    assert own(answer("a", 5, 2, version=1)) is None
    with pytest.raises(StalePolicyError, match="example a is of policy version 0; the version in training, 1"):
        own(answer("a", 5, 2, version=0))
    all_so_far = Provenance(version=1, accumulates=True)
    verdicts = [
        all_so_far(example)
        for example in (
            answer("a", 5, 2, version=0),
            answer("a", 6, 2, version=0),
            answer("a", 5, 2, version=1),
            answer("b", 5, 2, version=1),
        )
    ]
    assert verdicts == [None, None, TRAINED_BEFORE, None]
    with pytest.raises(StalePolicyError, match="example c is of policy version 2, which is later"):
        all_so_far(answer("c", 5, 2, version=2))
