"""Who is doing what while something starts, since when, and which part has taken the longest.

Told by threads of the driver; asked by whatever shows it. Knows nothing of actors: who does something has a name.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_MOST_LINES = 6


@dataclass(frozen=True)
class _Part:
    """What somebody does, and since when, by `time.monotonic`; `begun_s` is when they began to start at all."""

    what: str
    since_s: float
    begun_s: float


class Parts:
    """The parts of a start.

    Args:
        now_s: the time, in seconds.
    """

    def __init__(self, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._lock = threading.Lock()
        self._doing: dict[str, _Part] = {}  # by who
        self._up: dict[str, float] = {}  # who is up, and after how many seconds
        self._slowest: tuple[float, str, str] = (0.0, "", "")  # seconds, who, what; of the parts that are over

    def does(self, who: str, what: str) -> None:
        """From now on `who` does this; whoever was not known begins to start."""
        with self._lock:
            known = self._doing.get(who)
            if known is not None and known.what == what:
                return
            self._end_part(who)
            now_s = self._now_s()
            self._up.pop(who, None)
            self._doing[who] = _Part(what, now_s, now_s if known is None else known.begun_s)

    def is_up(self, who: str) -> None:
        """`who` has started."""
        with self._lock:
            if (known := self._doing.get(who)) is not None:
                self._end_part(who)
                self._up[who] = self._now_s() - known.begun_s

    def is_gone(self, who: str) -> None:
        """`who` does nothing any more, and is missed by nobody."""
        with self._lock:
            self._end_part(who)
            self._up.pop(who, None)

    def what(self, who: str) -> str:
        """What `who` does now; empty where that is not known."""
        with self._lock:
            known = self._doing.get(who)
            return "" if known is None else known.what

    def lines(self) -> list[str]:
        """Who is up, what each of the others does and for how long, and the slowest part: a line each.

        Those who do the same share a line; the one that has done it for the longest comes first.
        """
        with self._lock:
            now_s = self._now_s()
            by_what: dict[str, list[str]] = {}
            for who, part in sorted(self._doing.items(), key=lambda item: item[1].since_s):
                by_what.setdefault(part.what, []).append(who)
            since_s = {what: min(self._doing[who].since_s for who in names) for what, names in by_what.items()}
            lines = [f"up: {_named(list(self._up))}"] if self._up else []
            lines += [f"{_named(who)}: {what}, {now_s - since_s[what]:.0f} s" for what, who in by_what.items()]
            if len(lines) > _MOST_LINES:
                lines = [*lines[:_MOST_LINES], f"and {len(lines) - _MOST_LINES} more"]
            slowest = self._slowest_now(now_s)
        return [*lines, f"slowest so far: {slowest}"] if slowest else lines

    def slowest(self) -> str:
        """The part that has taken the longest, in words; empty where nothing has taken a second."""
        with self._lock:
            return self._slowest_now(self._now_s())

    def _slowest_now(self, now_s: float) -> str:
        under_way = [(now_s - part.since_s, who, part.what) for who, part in self._doing.items()]
        seconds, who, what = max([self._slowest, *under_way], key=lambda part: part[0])
        return f"{who}, {what}, {seconds:.0f} s" if seconds >= 1 else ""

    def _end_part(self, who: str) -> None:
        if (part := self._doing.pop(who, None)) is not None:
            self._slowest = max(self._slowest, (self._now_s() - part.since_s, who, part.what), key=lambda one: one[0])


def _named(who: Sequence[str]) -> str:
    """Names such as "generator 0", of which those of one kind share the word: "generators 0 to 3 and 7"."""
    kinds: dict[str, list[int]] = {}
    others = []
    for name in who:
        if (found := re.fullmatch(r"(.+) (\d+)", name)) is not None:
            kinds.setdefault(found[1], []).append(int(found[2]))
        else:
            others.append(name)
    words = [f"{kind} {nums[0]}" if len(nums) == 1 else f"{kind}s {_ranges(nums)}" for kind, nums in kinds.items()]
    return ", ".join([*others, *words])


def _ranges(numbers: Sequence[int]) -> str:
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][-1] == number - 1:
            ranges[-1] = [ranges[-1][0], number]
        else:
            ranges.append([number])
    said = [" to ".join(map(str, one)) if one[-1] - one[0] > 1 else " and ".join(map(str, one)) for one in ranges]
    return ", ".join(said)
