"""How many threads a train worker uses, from the config and the machine. Imports no torch.

Ray sets OMP_NUM_THREADS of a worker to its CPU share, at least 1, and torch takes its number of threads from there; a
share of 1 is usual beside a GPU, and image processors would then run on one core of many.
"""

from __future__ import annotations

import os

from csr_ray.config.schema import Train

# Beside a GPU the CPU decodes and resizes images. More threads than this were never the limit there.
_MAX_BESIDE_GPU = 8
_MAX_LOADING = 4


def torch_threads(train: Train, *, num_cores: int, num_local_workers: int) -> int:
    """Threads of torch's own operations in one worker.

    On a CPU every worker takes all cores: whatever else runs there waits meanwhile. On a GPU the workers of a machine
    share its cores.

    Args:
        num_cores: of the machine.
        num_local_workers: train workers on this machine.
    """
    if train.threads is not None:
        return train.threads
    if train.gpus_per_worker == 0:
        return num_cores
    return max(1, min(_MAX_BESIDE_GPU, num_cores // num_local_workers))


def loader_threads(train: Train, *, num_cores: int, num_local_workers: int) -> int:
    """Threads of one worker that make batches ahead; 0: each batch is made when it is asked for.

    Args:
        num_cores: of the machine.
        num_local_workers: train workers on this machine.
    """
    if train.loader_threads is not None:
        return train.loader_threads
    if train.gpus_per_worker == 0:
        return 0  # training takes all cores already
    return max(1, min(_MAX_LOADING, num_cores // num_local_workers))


def num_local_workers() -> int:
    """Train workers on this machine, as Ray Train tells torch's process groups."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
