"""Results are fetched while the driver works on earlier ones: nobody who could work waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from actors.pool import ahead
from actors.pool.ahead import Ahead


def wait_until(is_so: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 10.0
    while not is_so():
        assert time.monotonic() < until_s
        time.sleep(0.005)


def test_whoever_makes_results_goes_on_while_the_driver_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_MOST_WAITING", 3)
    made: list[int] = []

    def numbers(stopped: Callable[[], bool]) -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    results = iter(Ahead(numbers))
    assert next(results) == 0
    wait_until(lambda: len(made) == 5)  # one is with the driver, three wait, one does not fit
    time.sleep(0.05)
    assert len(made) == 5, "no further ahead than what may wait"
    assert list(results) == list(range(1, 100))


def test_an_error_reaches_whoever_waits_behind_what_came_before_it() -> None:
    def broken(stopped: Callable[[], bool]) -> Iterator[int]:
        yield 1
        raise LookupError("the engine is gone")

    got: list[int] = []
    with pytest.raises(LookupError, match="engine is gone"):
        for number in Ahead(broken):
            got.append(number)
    assert got == [1]


def test_who_stops_early_stops_the_maker_and_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_MOST_WAITING", 1)
    ended = threading.Event()

    def endless(stopped: Callable[[], bool]) -> Iterator[int]:
        try:
            while not stopped():
                yield 1
        finally:
            ended.set()

    results = iter(Ahead(endless))
    next(results)
    results.close()
    assert ended.wait(timeout=10)
    assert not [thread for thread in threading.enumerate() if thread.name == "results-ahead"]
