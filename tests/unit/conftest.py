"""What several of the unit tests share: a judge's endpoint, one process for all of a worker's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from judge_server import JudgeServer, judge_server


@pytest.fixture(scope="session")
def judge_process() -> Iterator[JudgeServer]:
    with judge_server() as server:
        yield server


@pytest.fixture
def server(judge_process: JudgeServer) -> JudgeServer:
    """The endpoint, as if it had just been started."""
    judge_process.plan()
    return judge_process
