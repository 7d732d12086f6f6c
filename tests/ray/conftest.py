"""One private Ray and one tiny model for all tests that need them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import ray
from killed_run import killed_and_resumed
from tiny_models import build_tiny_llava
from training_process import start_training_process

from csr_ray.store.run_folder import RunFolder

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


@pytest.fixture(scope="session")
def finished(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run of three rounds on the tiny world, killed once on the way; it is only looked at."""
    return killed_and_resumed(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def training_process() -> Iterator[ProcessPoolExecutor]:
    """One process for all rounds of training: DeepSpeed leaves its mark on a process."""
    with start_training_process() as pool:
        yield pool
