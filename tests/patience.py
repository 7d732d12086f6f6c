"""For tests of what must not wait: a call that is still waiting after a while fails instead of hanging the tests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def within(call: Callable[[], T], *, seconds: float = 20.0) -> T:
    """What the call returns or raises. It runs in a thread, which is left behind if it does not come back."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), f"it still waits after {seconds:g} s"
    if errors:
        raise errors[0]
    return results[0]
