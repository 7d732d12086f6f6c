"""Tensors are formed while the loader is at work, and never more than so many bytes ahead of it."""

from __future__ import annotations

import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from actors.handover.loader import formed_ahead


class _Tensor:
    def __init__(self, number: int, num_bytes: int) -> None:
        self.number, self.num_bytes = number, num_bytes


def most_waiting_bytes(sizes: list[int], *, ahead_bytes: int, num_threads: int = 1) -> int:
    """The most bytes that were there at once, beside what the loader held, when the other thread had all the time."""
    alive: weakref.WeakSet[_Tensor] = weakref.WeakSet()
    most, order = 0, []

    def form(item: tuple[int, int]) -> _Tensor:
        tensor = _Tensor(*item)
        alive.add(tensor)
        return tensor

    items = list(enumerate(sizes))
    with ThreadPoolExecutor(num_threads) as beside:
        for item, future in formed_ahead(
            items, form=form, num_bytes=lambda item: item[1], beside=beside, ahead_bytes=ahead_bytes
        ):
            tensor = future.result()
            del future
            # All that was asked for so far is formed when every thread has come to this.
            together = threading.Barrier(num_threads)
            for one in [beside.submit(together.wait, 30) for _ in range(num_threads)]:
                one.result()
            most = max(most, sum(other.num_bytes for other in alive) - tensor.num_bytes)
            assert tensor.number == item[0]
            order.append(tensor.number)
            del tensor
    assert order == list(range(len(sizes)))
    return most


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("sizes", [[10] * 50, [7, 30, 1, 1, 29, 5, 30], [1] * 200])
def test_no_more_is_ahead_than_was_allowed(sizes: list[int], num_threads: int) -> None:
    assert max(sizes) <= most_waiting_bytes(sizes, ahead_bytes=35, num_threads=num_threads) <= 35


def test_what_could_not_be_formed_is_told_when_its_turn_comes() -> None:
    def form(item: int) -> int:
        if item == 2:
            raise ValueError("of another shape")
        return item

    with ThreadPoolExecutor(2) as beside:
        coming = formed_ahead(range(4), form=form, num_bytes=lambda _: 1, beside=beside)
        assert [future.result() for _, future in (next(coming), next(coming))] == [0, 1]
        with pytest.raises(ValueError, match="another shape"):
            next(coming)[1].result()


def test_one_that_is_larger_waits_alone() -> None:
    assert most_waiting_bytes([10, 100, 10, 10], ahead_bytes=35) == 100


@pytest.mark.parametrize("num_bytes", [1, 20], ids=["small", "more than half of what may wait"])
def test_the_next_is_formed_while_the_loader_has_the_one_before(num_bytes: int) -> None:
    begun = threading.Event()

    def form(item: int) -> int:
        if item == 1:
            begun.set()
        return item

    with ThreadPoolExecutor(1) as beside:
        coming = formed_ahead([0, 1, 2], form=form, num_bytes=lambda _: num_bytes, beside=beside, ahead_bytes=35)
        first, _ = next(coming)
        assert first == 0 and begun.wait(5)
