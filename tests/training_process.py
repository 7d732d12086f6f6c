"""A process that can train: DeepSpeed leaves its mark on a process, so tests keep it out of their own."""

from __future__ import annotations

import multiprocessing
import os
import socket
from concurrent.futures import ProcessPoolExecutor


def start_training_process() -> ProcessPoolExecutor:
    """One process that is a training group of one; it starts importing at once."""
    pool = ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn"))
    pool.submit(_join_training_group)  # its imports take as long as an engine's
    return pool


def _join_training_group() -> None:
    from actors.train.worker import prepare_process
    from csr_ray.config.schema import Train

    prepare_process(Train(threads=1))
    from actors.train.cycle import join_group

    # The port is taken at once: one that only was free minutes ago may be another connection's by now.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    join_group(use_gpu=False)
