"""What one process of the group trains on in a cycle: a data set whose examples are read from files as they come.

Knows files of examples and the order in which they are trained; knows nothing of Ray or models.
"""

from __future__ import annotations

import itertools
import threading
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch.utils.data import Dataset, Sampler

from actors.train.checkpoints import KEY_BYTES, example_key
from actors.train.stream import ExampleSource
from csr_ray.errors import StalePolicyError
from csr_ray.records import Example
from csr_ray.store.digests import short_hash
from csr_ray.store.tables import ExampleReader
from csr_ray.training.collate import pair_row

Verdict = Callable[[Example], str | None]
"""Says of an example why it cannot be trained on; None if it can."""


TRAINED_BEFORE: Final = "same_as_of_an_earlier_round"
"""Why an example of a phase that accumulates is not trained on twice."""


class Provenance:
    """Says of an example, by the policy version that it is of, whether a cycle may train on it.

    A phase that accumulates takes those of earlier versions, too, and each answer to a question once. They have to be
    shown in the order of their files.

    Raises:
        StalePolicyError: by calls, when it is of a version that the cycle has no business with.
    """

    def __init__(self, *, version: int, accumulates: bool) -> None:
        self._version = version
        self._accumulates = accumulates
        self._known: set[int] = set()

    def __call__(self, example: Example) -> str | None:
        if not self._accumulates:
            if example.policy_version != self._version:
                raise StalePolicyError(
                    f"example {example.id} is of policy version {example.policy_version}; the version in training, "
                    f"{self._version}, learns from its own rollouts only"
                )
            return None
        if example.policy_version > self._version:
            raise StalePolicyError(
                f"example {example.id} is of policy version {example.policy_version}, which is later than the "
                f"version in training, {self._version}"
            )
        key = short_hash(repr((example.id, example.ask.text, example.preferred.token_ids)))
        if key in self._known:
            return TRAINED_BEFORE
        self._known.add(key)
        return None


class HeldExamples(Dataset[dict[str, Any]]):
    """Examples that are all in memory, as the same kind of data set as `ExampleStream`."""

    is_growing = False

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = list(examples)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return pair_row(self._examples[index], index=index)

    def example(self, index: int) -> Example:
        return self._examples[index]


class ExampleStream(Dataset[dict[str, Any]]):
    """A map-style data set whose items are there once their files have been offered.

    Of each example only its place in the files stays in memory; the example itself is read when it is needed. They
    are trained in the order in which they came, or in that of a checkpoint that training goes on from (`take_up`).

    Args:
        judge: decides which examples can be trained on. Only rank 0 has one; the other ranks have None and follow its
            verdicts, because two processes that disagreed on one flaky image would train on different steps.
        here: gives the path at which this process can read a file of the source (`actors.train.reach`).

    Attributes:
        is_growing: training began before the last file was there, so nobody knows the length yet.
        waited_s: seconds spent waiting for files.
    """

    def __init__(
        self, source: ExampleSource, *, judge: Verdict | None, here: Callable[[str], str] = lambda path: path
    ) -> None:
        self._source = source
        self._judge = judge
        self._here = here
        self._reader = ExampleReader()
        self._held_reader = ExampleReader()  # its own, or each look would drive the others' files out of memory
        self._reading = threading.Lock()  # a loader's thread reads ahead of the one that names an example
        self._arriving = threading.Lock()  # or looks at those that are held out
        self._paths: list[str] = []
        self._file_of = array("L")
        self._row_of = array("L")
        self._held_out: list[tuple[str, int]] = []  # path and row
        self._order = array("L")  # of training: numbers of examples as they came
        self._keys = (
            bytearray()
        )  # of examples as they came; rank 0 alone has them, who reads each of them once anyway
        self._num_files_seen = 0
        self._num_planned = source.num_examples_at_most
        self._dropped: Mapping[str, int] | None = None
        self.waited_s = 0.0
        if source.is_whole:
            self.wait_for_end()
        self.is_growing = self._dropped is None

    def __len__(self) -> int:
        """The number of usable examples; of a growing stream, the most there may be, by which steps are planned."""
        return self._num_planned if self.is_growing else self.num_usable

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The row (`pair_row`) of usable example `index`, counted in the order of training; waits for it."""
        return pair_row(self.example(index), index=index)

    @property
    def num_usable(self) -> int:
        return len(self._order)

    @property
    def dropped(self) -> Mapping[str, int]:
        return self._dropped or {}

    def example(self, index: int) -> Example:
        """Usable example `index`; waits for it."""
        if not self.has(index):
            raise IndexError(index)
        return self._arrived_example(self._order[index])

    def _arrived_example(self, number: int) -> Example:
        with self._reading:
            path = self._here(self._paths[self._file_of[number]])
            return self._reader.example(path, row=self._row_of[number])

    def wait_for_end(self) -> None:
        """Wait until every file has been offered and judged."""
        self.has(self._source.num_examples_at_most)  # there is none of this number

    def take_up(self, keys: Sequence[bytes], *, num_planned: int, is_growing: bool) -> bool:
        """Go on from a checkpoint: train its examples first, in its order, then the others as they come.

        Waits until all of them have come. All processes of the group come to the same answer.

        Args:
            keys: `example_key` of each example of the checkpoint.
            num_planned, is_growing: of the training that wrote the checkpoint; its steps were planned by them.

        Returns:
            Whether that is possible. If not, nothing has changed.
        """
        # Only what is the same in every process decides: how much has come by now is not.
        if not is_growing and self.is_growing:
            return False
        # Of a whole order it is known how many can be trained on, which dropped ones and held out ones are not.
        if is_growing and self._source.num_examples_at_most > num_planned:
            return False
        wanted = Counter(keys)
        num_wanted, num_looked_at = len(keys), 0
        places: dict[bytes, list[int]] = defaultdict(list)
        while num_wanted:
            if not self.has(num_looked_at):
                return False
            key = self._key(num_looked_at)
            if wanted[key]:
                wanted[key] -= 1
                num_wanted -= 1
                places[key].append(num_looked_at)
            num_looked_at += 1
        if not is_growing and self.num_usable != len(keys):
            return False
        first = [places[key].pop(0) for key in keys]
        taken = set(first)
        self._order = array("L", [*first, *(number for number in self._order if number not in taken)])
        self.is_growing, self._num_planned = is_growing, num_planned
        return True

    def keys(self) -> list[bytes]:
        """`example_key` of each usable example so far, in the order of training."""
        return [self._key(number) for number in tuple(self._order)]

    def _key(self, number: int) -> bytes:
        if self._judge is None:
            return example_key(self._arrived_example(number))
        return bytes(self._keys[number * KEY_BYTES : (number + 1) * KEY_BYTES])

    def has(self, index: int) -> bool:
        """Wait until there is a usable example `index`, or it is certain that there will be none."""
        with self._arriving:
            while index >= self.num_usable and self._dropped is None:
                self._take_news()
            return index < self.num_usable

    def _take_news(self) -> None:
        """Wait for the next files, or the end, and take in what rank 0 says of them."""
        started = time.monotonic()
        if self._judge is not None:
            paths = self._source.arrived(start=self._num_files_seen)
            self.waited_s += time.monotonic() - started
            verdicts = [self._verdicts(path, judge=self._judge) for path in paths]
            self._source.judge(verdicts, start=self._num_files_seen)
            self._num_files_seen += len(paths)
            news = self._source.judged(start=len(self._paths), wait=False)
        else:
            news = self._source.judged(start=len(self._paths), wait=True)
            self.waited_s += time.monotonic() - started
        for file in news.files:
            num_before = len(self._row_of)
            self._file_of.extend([len(self._paths)] * len(file.rows))
            self._row_of.extend(file.rows)
            self._paths.append(file.path)
            self._held_out.extend((file.path, row) for row in file.held_out)
            self._order.extend(range(num_before, len(self._row_of)))
        self._dropped = news.dropped
        assert self.num_usable <= self._source.num_examples_at_most, "steps were planned for fewer examples"

    @property
    def num_held_out(self) -> int:
        """Of the files that have come so far; it may differ from process to process while the stream grows."""
        return len(self._held_out)

    def held_out(self, num: int) -> list[Example]:
        """The first `num` examples that are held out; waits until there are so many."""
        num_known = self.num_usable
        while self.num_held_out < num:
            if not self.has(num_known):
                break
            num_known = self.num_usable
        with self._reading:
            return [self._held_reader.example(self._here(path), row=row) for path, row in self._held_out[:num]]

    def train_on_held_out(self) -> None:
        """Put those that are held out behind the usable ones; after the end of the stream, and in all processes."""
        assert self._dropped is not None, "more of them may come"
        with self._arriving:
            numbers = {path: number for number, path in enumerate(self._paths)}
            for path, row in self._held_out:
                if self._judge is not None:
                    with self._reading:
                        self._keys += example_key(self._held_reader.example(self._here(path), row=row))
                self._order.append(len(self._row_of))
                self._file_of.append(numbers[path])
                self._row_of.append(row)
            self._held_out.clear()

    def leading(self, num: int) -> list[Example]:
        """The first `num` usable examples in the order of training."""
        return [self.example(index) for index in range(min(num, self.num_usable))]

    def _verdicts(self, path: str, *, judge: Verdict) -> list[str | None]:
        verdicts = []
        with self._reading:
            num_examples = self._reader.num_examples(self._here(path))
        for row in range(num_examples):
            with self._reading:
                example = self._reader.example(self._here(path), row=row)
            verdicts.append(judge(example))
            if verdicts[-1] is None:
                self._keys += example_key(example)
        return verdicts


class ArrivalSampler(Sampler[int]):
    """Samples the first epoch in the order of arrival, and shuffles later ones in the same way on all ranks."""

    def __init__(self, examples: ExampleStream, *, seed: int) -> None:
        self._examples = examples
        self._seed = seed
        self._epoch = 0

    def __iter__(self) -> Iterator[int]:
        if self._epoch == 0:
            yield from itertools.takewhile(self._examples.has, itertools.count())
            return
        self._examples.wait_for_end()  # they are there, unless training goes on in this epoch
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        yield from torch.randperm(self._examples.num_usable, generator=generator).tolist()

    def __len__(self) -> int:
        return len(self._examples)

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch
