"""When a question may be sent: so many a minute, and after a failure each time later."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

_LONGEST_WAIT_S = 60.0
_LONGEST_ASKED_WAIT_S = 600.0


def back_off_s(attempt: int, *, first_s: float, seed: str) -> float:
    """Seconds to wait after failure number `attempt`, from 0: twice as long each time, at most a minute.

    Each question has a share of its own, from half of it to the whole, so that those that failed together do not come
    back together.
    """
    longest_s = min(_LONGEST_WAIT_S, first_s * 2.0 ** min(attempt, 30))
    return longest_s * random.Random(f"{seed}/{attempt}").uniform(0.5, 1.0)


def asked_wait_s(headers: Mapping[str, str], *, now_s: float | None = None) -> float | None:
    """Seconds that an endpoint asks to wait by `Retry-After` (seconds, or a date), at most ten minutes; else None.

    Args:
        now_s: seconds since the epoch; None: by the clock.
    """
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        wait_s = float(value)
    except ValueError:
        try:
            wait_s = parsedate_to_datetime(value).timestamp() - (time.time() if now_s is None else now_s)
        except ValueError:
            return None
    return min(_LONGEST_ASKED_WAIT_S, wait_s) if wait_s >= 0 else None


class Pace:
    """Gives each question the time when it may be sent.

    Args:
        requests_per_minute: None: as many as there are.
    """

    def __init__(self, requests_per_minute: float | None) -> None:
        self._step_s = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._next_s = 0.0

    def wait_s(self, now_s: float) -> float:
        """Takes the next place; returns the seconds until it, by the clock that `now_s` is of."""
        at_s = max(now_s, self._next_s)
        self._next_s = at_s + self._step_s
        return at_s - now_s

    def pause(self, until_s: float) -> None:
        """Nobody is sent before this time."""
        self._next_s = max(self._next_s, until_s)
