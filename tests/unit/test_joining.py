"""What is said where Ray cannot join the cluster that it has found by itself (RAY_ADDRESS=auto)."""

from __future__ import annotations

import pytest
import ray

from actors.cluster.connect import connect
from csr_ray.errors import ConfigError


def test_a_cluster_that_cannot_be_joined_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nPlease specify the one to connect to.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # whatever the tests before this one have started
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(ConfigError) as error:
        connect(num_cpus_needed=1)
    said = str(error.value)
    assert said.startswith("RAY_ADDRESS = 'auto': the cluster cannot be joined (Could not find any running Ray")
    assert "\n" not in said and "RAY_AUTH_MODE" in said
