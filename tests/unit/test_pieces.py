"""The journal as objects: which of them are read, and in which order."""

from __future__ import annotations

import io
from collections.abc import Sequence

import fsspec
import pytest

from csr_ray.store.objects import ObjectStore
from csr_ray.store.pieces import Piece, joined_chain, lines_of_segment, pieces_of, read_journal, segment


@pytest.fixture
def store(request: pytest.FixtureRequest) -> ObjectStore:
    url = f"memory://{request.node.name}"
    return ObjectStore(fsspec.filesystem("memory"), root=url.removeprefix("memory:/"), url=url)


def test_a_piece_is_known_by_its_name_and_nothing_else_is_one() -> None:
    pieces = [Piece(0), Piece(123, 456)]
    names = [piece.name for piece in pieces]
    assert names == ["journal/000000000.jsonl", "journal/000000123-000000456.jsonl"]
    others = [
        "journal.jsonl",
        "journal/x.jsonl",
        "journal/1.jsonl",
        "old/journal/000000000.jsonl",
        "run.lock/000000000",
    ]
    assert pieces_of([*names, *others]) == pieces


@pytest.mark.parametrize(
    ("pieces", "chain"),
    [
        ([], []),
        ([(0, 10), (10, 12)], [(0, 10), (10, 12)]),
        ([(10, 12), (0, 10)], [(0, 10), (10, 12)]),
        ([(0, 10), (11, 12)], [(0, 10)]),
        ([(5, 10)], []),
        ([(0, 3), (0, 10), (3, 5)], [(0, 10)]),
        ([(0, 0)], []),
        ([(0, 10), (10, None)], [(0, 10)]),
    ],
)
def test_joined_pieces_follow_each_other_from_the_first_line(
    pieces: Sequence[tuple[int, int | None]], chain: Sequence[tuple[int, int]]
) -> None:
    assert joined_chain([Piece(*piece) for piece in pieces]) == [Piece(*piece) for piece in chain]


def lines(first: int, end: int) -> bytes:
    return b"".join(b"line %d\n" % number for number in range(first, end))


def put(store: ObjectStore, first: int, end: int, *, joined: bool = False, driver: str = "one") -> None:
    data = lines(first, end)
    piece = Piece(first, end if joined else None)
    store.write(piece.name, data if joined else segment(data, first=first, driver=driver))


def read(store: ObjectStore) -> tuple[bytes, int, int]:
    file = io.BytesIO()
    stored = read_journal(store, names=store.list(), into=file)
    assert stored.num_bytes == len(file.getvalue())
    return file.getvalue(), stored.num_lines, stored.num_joined


def test_nothing_is_an_empty_journal(store: ObjectStore) -> None:
    assert read(store) == (b"", 0, 0)


def test_segments_of_one_or_more_lines_follow_the_joined_ones(store: ObjectStore) -> None:
    put(store, 0, 5, joined=True)
    put(store, 5, 6)
    put(store, 6, 9)
    assert read(store) == (lines(0, 9), 9, 5)


def test_what_stands_behind_a_gap_did_not_happen(store: ObjectStore) -> None:
    put(store, 0, 2)
    put(store, 3, 4)
    assert read(store) == (lines(0, 2), 2, 0)


def test_a_segment_whose_lines_are_joined_is_not_read_whoever_wrote_it(store: ObjectStore) -> None:
    put(store, 0, 5, joined=True)
    store.write(Piece(3).name, segment(b"by one that slept\n", first=3, driver="two"))
    put(store, 5, 7)
    assert read(store) == (lines(0, 7), 7, 5)


def test_a_whole_journal_that_was_copied_there_counts_only_without_pieces(store: ObjectStore) -> None:
    store.write("journal.jsonl", lines(0, 3))
    assert read(store) == (lines(0, 3), 3, 0)
    put(store, 0, 2)
    assert read(store) == (lines(0, 2), 2, 0)


def test_a_segment_says_who_wrote_it_so_that_equal_lines_of_two_drivers_differ() -> None:
    one, two = (segment(b"the same\n", first=7, driver=driver) for driver in ("one", "two"))
    assert one != two and lines_of_segment(one) == lines_of_segment(two) == b"the same\n"
