"""Which generator gets which item."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from actors.pool.waiting import Waiting


def waiting(*items: str) -> Waiting[str]:
    return Waiting(items, image_of=lambda item: item[0])


def test_whoever_is_free_takes_the_next() -> None:
    items = waiting("a", "b", "c")
    assert [items.next_for(index) for index in (1, 0, 1, 0)] == ["a", "b", "c", None]


def test_an_image_stays_with_the_generator_that_took_its_first_item() -> None:
    items = waiting("a1", "a2", "b1", "a3")
    assert items.next_for(0) == "a1"
    assert items.next_for(1) == "b1"  # a2 is kept for generator 0
    assert items.next_for(1) is None  # so is a3
    assert [items.next_for(0) for _ in range(3)] == ["a2", "a3", None]


@given(st.lists(st.text(st.sampled_from("abcde"), min_size=1, max_size=3)), st.lists(st.integers(0, 3), max_size=200))
def test_every_item_is_taken_once_and_no_image_is_shared(items: list[str], asks: list[int]) -> None:
    queue = waiting(*items)
    takers: dict[str, set[int]] = defaultdict(set)
    taken = []
    for index in [*asks, *range(4), *[index for index in range(4) for _ in items]]:
        item = queue.next_for(index)
        if item is not None:
            taken.append(item)
            takers[item[0]].add(index)
    assert sorted(taken) == sorted(items)
    assert all(len(indices) == 1 for indices in takers.values())
