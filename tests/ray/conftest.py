"""One private Ray and one tiny model for all tests that need them."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import ray
from tiny_models import build_tiny_llava

_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A Ray of this session's own; never somebody else's cluster."""
    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        runtime_env={"env_vars": {"PYTHONPATH": f"{_ROOT}:{_ROOT / 'tests'}"}},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random two-layer LLaVA that transformers and vLLM load."""
    return build_tiny_llava(tmp_path_factory.mktemp("tiny_llava"), seed=0)


@pytest.fixture(scope="module")
def training_process() -> Iterator[ProcessPoolExecutor]:
    """One process for all rounds of training: DeepSpeed leaves its mark on a process."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(_join_training_group)  # its imports take as long as the engine's
        yield pool


def _join_training_group() -> None:
    from actors.train_worker import prepare_process
    from csr_ray.config import Train

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    prepare_process(Train(threads=1))
    import actors.dpo  # noqa: F401 - for its imports
