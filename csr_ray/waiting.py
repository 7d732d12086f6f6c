"""Says what is waited for, where somebody else's code waits without a word."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

SAY_EVERY_S = 30.0


@contextlib.contextmanager
def said_if_slow(what: str, *, question: str) -> Iterator[None]:
    """If the block takes long, print a line every 30 seconds.

    Args:
        what: what is waited for, as in "still waiting for ..."
        question: what may be the reason.
    """
    started_s = time.monotonic()
    is_done = threading.Event()

    def say() -> None:
        while not is_done.wait(SAY_EVERY_S):
            seconds = time.monotonic() - started_s
            with contextlib.suppress(OSError):  # nobody reads it any more
                print(f"csr-ray: still waiting for {what}, since {seconds:.0f} s; {question}", file=sys.stderr)

    threading.Thread(target=say, name="slow", daemon=True).start()
    try:
        yield
    finally:
        is_done.set()
