"""Batches made ahead are the plain loader's, in its order; errors come through, and leaving ends the thread."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from actors.train.loader import AheadLoader
from actors.train.threads import loader_threads, torch_threads
from csr_ray.config.schema import Train


class Rows(Dataset[int]):
    """Row i is i; reading takes a random while, and fails at one row if that is asked for."""

    def __init__(self, num: int, *, fails_at: int | None = None) -> None:
        self._num = num
        self._fails_at = fails_at
        self.num_read = 0

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, index: int) -> int:
        time.sleep(random.random() / 1000)
        if index == self._fails_at:
            raise ValueError(f"image {index}: cannot be decoded")
        self.num_read += 1
        return index


def _collate(rows: Sequence[int]) -> dict[str, object]:
    return {"input_ids": torch.tensor(list(rows)), "pair_index": list(rows)}


def _loader(rows: Rows) -> DataLoader[int]:
    return DataLoader(rows, batch_size=3, shuffle=True, collate_fn=_collate)


@pytest.mark.parametrize("num", [0, 1, 3, 50])
def test_batches_and_random_numbers_are_those_of_the_plain_loader(num: int) -> None:
    if num == 0:  # torch refuses to shuffle nothing
        plain = DataLoader(Rows(num), batch_size=3, collate_fn=_collate)
        assert list(AheadLoader(plain)) == []
        return
    seen = []
    for wrap in (lambda loader: loader, AheadLoader):
        torch.manual_seed(7)
        loader = wrap(_loader(Rows(num)))
        epochs = [[batch["pair_index"] for batch in loader] for _ in range(2)]
        seen.append((len(loader), epochs, torch.rand(1).item()))
    assert seen[0] == seen[1]
    assert num < 50 or seen[0][1][0] != seen[0][1][1], "each epoch is shuffled anew"


def test_batches_are_made_while_one_is_trained_but_not_all() -> None:
    rows = Rows(300)
    batches = iter(AheadLoader(DataLoader(rows, batch_size=3, collate_fn=_collate)))
    next(batches)
    deadline_s = time.monotonic() + 10
    while rows.num_read < 15:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    time.sleep(0.1)
    assert rows.num_read <= 3 * 6, "the one that was taken, four in the queue and one in the maker's hands"


def test_an_error_comes_where_its_batch_would() -> None:
    loader = AheadLoader(DataLoader(Rows(12, fails_at=7), batch_size=3, collate_fn=_collate))
    batches = iter(loader)
    assert [next(batches)["pair_index"] for _ in range(2)] == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ValueError, match="image 7: cannot be decoded"):
        next(batches)


def test_leaving_early_ends_the_thread() -> None:
    batches = iter(AheadLoader(DataLoader(Rows(300), batch_size=3, collate_fn=_collate)))
    next(batches)
    batches.close()  # type: ignore[attr-defined] # what Python does with a loop that is left
    deadline_s = time.monotonic() + 10
    while any(thread.name == "loader" for thread in threading.enumerate()):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("settings", "num_cores", "num_local_workers", "expected"),
    [
        ({}, 2, 1, (2, 0)),
        ({}, 64, 2, (64, 0)),
        ({"threads": 1}, 64, 1, (1, 0)),
        ({"loader_threads": 2}, 64, 1, (64, 2)),
        ({"gpus_per_worker": 1}, 16, 1, (8, 4)),
        ({"gpus_per_worker": 1}, 96, 8, (8, 4)),
        ({"gpus_per_worker": 0.5}, 8, 4, (2, 2)),
        ({"gpus_per_worker": 1}, 4, 8, (1, 1)),
        ({"gpus_per_worker": 1, "threads": 3, "loader_threads": 0}, 96, 1, (3, 0)),
    ],
)
def test_threads_of_a_worker(
    settings: dict[str, float], num_cores: int, num_local_workers: int, expected: tuple[int, int]
) -> None:
    train = Train(**settings)  # type: ignore[arg-type]
    machine = {"num_cores": num_cores, "num_local_workers": num_local_workers}
    assert (torch_threads(train, **machine), loader_threads(train, **machine)) == expected
