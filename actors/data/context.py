"""How Ray Data is told to work beside our actors: without CPUs of its own, in order, in small blocks, and quietly."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from csr_ray.machine.cores import whole_cores


@contextmanager
def data_context(*, block_bytes: int | None = None, is_in_order: bool = True) -> Iterator[None]:
    """Data sets that are made inside are carried out so.

    Args:
        block_bytes: about how much of what a task has made is handed on at once; None: Ray Data's 128 MiB.
        is_in_order: whether blocks come in the order of what they were made of, or as they are done.
    """
    from ray.data import DataContext

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = is_in_order
    if block_bytes is not None:
        context.target_max_block_size = block_bytes
        context.target_min_block_size = 1
    _quiet()
    with DataContext.current(context):
        yield


def tasks(at_once: int) -> dict[str, Any]:
    """Options of tasks that go on wherever they are.

    Of Ray's CPUs a run's actors may hold all, and whoever asks for one then waits for ever. So tasks ask for none,
    and how many there are at once is stated.
    """
    from ray.data import TaskPoolStrategy

    return {"compute": TaskPoolStrategy(size=at_once), "num_cpus": 0}


def num_cpus_of_cluster() -> int:
    """The CPUs that Ray knows of, taken or not; no fewer than this process may use.

    A head is often told to have none, so that no actor comes to it. Until an autoscaler has added nodes there is
    nothing else to read on, and reading on it does no harm.
    """
    return max(whole_cores(), int(ray.cluster_resources().get("CPU", 0)))


def _quiet() -> None:
    """Ray Data writes to the screen by a handler of its own, and warns of what is as we want it; see its log file."""
    warnings.filterwarnings("ignore", category=UserWarning, module=r"ray\.data\.")
    log = logging.getLogger("ray.data")
    for handler in list(log.handlers):
        if type(handler).__name__ == "PlainRayHandler":
            log.removeHandler(handler)
