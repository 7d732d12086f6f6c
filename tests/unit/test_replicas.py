"""Where the log of an actor is, when it has died."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from actors.pool.replicas import Replicas


def test_a_log_that_its_node_kept_is_named_by_how_to_read_it(tmp_path: Path) -> None:
    actor = SimpleNamespace(_actor_id=bytes.fromhex("ab12"))
    replicas = Replicas(generators=[actor, actor], scorers=[], logs=tmp_path)
    replicas.log("generator", 0).write_text("loading\nout of memory\n")
    assert replicas.last_lines("generator", 0) == f"last lines of {tmp_path}/generator_0.log:\nloading\nout of memory"
    assert replicas.last_lines("generator", 1).endswith("ray logs actor --id ab12 --err")
