"""A data loader that makes the next batches while one is trained.

torch's own loader workers are processes. Those would have to reach the group's mailbox and the loop's files by
themselves, each with its own copy of the stream (`actors.train.examples.ExampleStream`). Reading, decoding and
resizing images release Python's lock, so a thread does. Knows torch's data loader; knows nothing of examples.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

_AHEAD = 4  # batches; each holds its pictures as pixels
_POLL_S = 0.5
_END = object()


class AheadLoader(DataLoader[Any]):
    """Gives the batches of `loader`, in its order; one thread makes up to `_AHEAD` of them before they are asked for.

    An error in the thread is raised where the batch is asked for. Leaving the loop early ends the thread after the
    batch that it is at.

    Attributes:
        waited_s: seconds that the caller waited for batches.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        super().__init__(
            loader.dataset,
            batch_sampler=loader.batch_sampler,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            generator=loader.generator,
        )
        self.waited_s = 0.0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override] # torch gives its own iterator
        started = time.monotonic()
        batches = super().__iter__()
        made: queue.Queue[Any] = queue.Queue(maxsize=_AHEAD)
        is_left = threading.Event()
        # The first batch is made here, so that a sampler draws its seed at the same point of the random numbers as
        # without the thread.
        first = next(batches, _END)
        if first is _END:
            return
        maker = threading.Thread(target=_make, args=(batches, made, is_left), name="loader", daemon=True)
        maker.start()
        self.waited_s += time.monotonic() - started
        try:
            yield first
            while True:
                started = time.monotonic()
                batch, error = made.get()
                self.waited_s += time.monotonic() - started
                if error is not None:
                    raise error
                if batch is _END:
                    return
                yield batch
        finally:
            is_left.set()


def _make(batches: Iterator[Any], made: queue.Queue[Any], is_left: threading.Event) -> None:
    """Put (batch, None) of each batch, then (`_END`, None) or (None, the error)."""
    is_over = False
    while not is_over and not is_left.is_set():
        try:
            item: tuple[Any, BaseException | None] = (next(batches, _END), None)
        except BaseException as error:  # whatever it is has to reach the one that trains
            item = (None, error)
        is_over = item[0] is _END or item[1] is not None
        while not is_left.is_set():
            try:
                made.put(item, timeout=_POLL_S)
                break
            except queue.Full:
                continue
