"""Examples for tests that train: altered ones, files of them, and a stream of such files in the same process."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.train.stream import JudgedSoFar, OpenStream
from csr_ray.records import Example
from csr_ray.store.tables import Outcome, write_example_unit


def altered(
    pair: Example,
    *,
    chosen: Mapping[str, Any] | None = None,
    rejected: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Example:
    """The pair with other fields, and with other fields of its answers."""
    answers = (
        dataclasses.replace(pair.chosen, **(chosen or {})),
        dataclasses.replace(pair.rejected, **(rejected or {})),
    )
    return dataclasses.replace(pair, targets=answers, **fields)


def write_examples(path: Path, examples: Sequence[Example]) -> str:
    """A file of examples as the loop writes it; returns its name."""
    num_answers = examples[0].num_answers if examples else 2
    write_example_unit(path, examples=examples, outcome=Outcome(made=len(examples)), num_answers=num_answers)
    return str(path)


@dataclass
class EndedStream:
    """`actors.train.stream.ExampleSource` of files that have all been offered."""

    files: Sequence[str]
    num_examples_at_most: int
    is_whole: bool

    def __post_init__(self) -> None:
        self._stream = OpenStream()
        self._stream.offer(self.files)
        self._stream.end()

    def arrived(self, *, start: int) -> tuple[str, ...]:
        return self._stream.arrived(start=start) or ()

    def judge(self, verdicts: Sequence[Sequence[str | None]], *, start: int) -> None:
        self._stream.judge(verdicts, start=start)

    def judged(self, *, start: int, wait: bool) -> JudgedSoFar:
        return self._stream.judged(start=start)
