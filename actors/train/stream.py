"""A cycle's examples on their way from the loop to the train workers: names of files, as they are committed.

The mailbox actor holds an `OpenStream`; workers reach it as an `ExampleSource` and read the files themselves. Rank 0
judges the examples of each file, and all ranks follow its verdicts, so no two of them train on different steps and
none has to wait for another while it loads data. There is one way for both settings of `train.streaming`: without it
the first step waits until the stream has ended. Knows nothing of Ray, torch or trainers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

HELD_OUT: Final = "held out"
"""The verdict on an example that could be trained on, but is looked at only (`csr_ray.training.dose`)."""


@dataclass(frozen=True, kw_only=True)
class JudgedFile:
    """A file of examples, which of its rows are trained on, and which could be, but are held out."""

    path: str
    rows: tuple[int, ...]
    held_out: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class JudgedSoFar:
    """Judged files from some position on, in the order they came.

    Attributes:
        dropped: once no more files will come, how many examples cannot be trained on, by reason; until then None.
    """

    files: tuple[JudgedFile, ...]
    dropped: Mapping[str, int] | None


class ExampleSource(Protocol):
    """A stream as a train worker sees it."""

    @property
    def num_examples_at_most(self) -> int: ...

    @property
    def is_whole(self) -> bool:
        """Whether every example is to be there before the first step."""
        ...

    def arrived(self, *, start: int) -> tuple[str, ...]:
        """All files from position `start` on; waits for the first of them. Empty: there will be no more."""
        ...

    def judge(self, verdicts: Sequence[Sequence[str | None]], *, start: int) -> None:
        """Say of each example in the files from position `start` on why it is not trained on; None: it is.

        One that is held out is said to be `HELD_OUT`.
        """
        ...

    def judged(self, *, start: int, wait: bool) -> JudgedSoFar:
        """Judged files from position `start` on; with `wait`, at least one of them or the end."""
        ...


@dataclass
class OpenStream:
    """The files of one order as they came."""

    _paths: list[str] = field(default_factory=list)
    _judged: list[JudgedFile] = field(default_factory=list)
    _dropped: Counter[str] = field(default_factory=Counter)
    _has_ended: bool = False

    def offer(self, paths: Sequence[str]) -> None:
        assert not self._has_ended, "offered after the end"
        self._paths += paths

    def end(self) -> None:
        """No more files will come."""
        self._has_ended = True

    def arrived(self, *, start: int) -> tuple[str, ...] | None:
        """As of `ExampleSource`, but it does not wait: None while there is no file and no end."""
        paths = tuple(self._paths[start:])
        return paths if paths or self._has_ended else None

    def judge(self, verdicts: Sequence[Sequence[str | None]], *, start: int) -> None:
        """The first verdict on a file stands."""
        num_judged = len(self._judged)
        assert start <= num_judged, (start, num_judged)
        for path, reasons in zip(self._paths[num_judged:], verdicts[num_judged - start :], strict=False):
            rows, held_out = (
                tuple(row for row, reason in enumerate(reasons) if reason == wanted) for wanted in (None, HELD_OUT)
            )
            self._judged.append(JudgedFile(path=path, rows=rows, held_out=held_out))
            self._dropped.update(reason for reason in reasons if reason not in (None, HELD_OUT))

    def judged(self, *, start: int) -> JudgedSoFar:
        """See `ExampleSource`."""
        is_over = self._has_ended and len(self._judged) == len(self._paths)
        return JudgedSoFar(files=tuple(self._judged[start:]), dropped=dict(self._dropped) if is_over else None)
