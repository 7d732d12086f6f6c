"""A hand-over whose layer proof could not look at everything says so, and the journal keeps the number."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from csr_ray.records import Cycle, PublishReceipt
from csr_ray.stages.publish import publish
from csr_ray.store.journal import Journal


class Told:
    """Remembers what a view is told; its stages show nothing."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def stage(self, *_: object, **__: object) -> Any:
        from contextlib import nullcontext

        return nullcontext(SimpleNamespace(advance=lambda: None))

    def say(self, line: str, *, is_warning: bool = False) -> None:
        assert is_warning
        self.lines.append(line)


@pytest.mark.parametrize("num_unseen", [0, 3])
def test_tensors_that_nobody_could_look_at_are_told(tmp_path: Path, num_unseen: int) -> None:
    receipt = PublishReceipt(
        version=1, num_bytes=1, seconds=1.0, num_generators=1, max_probe_gap=0.0, num_unseen=num_unseen
    )
    state: Any = SimpleNamespace(journal=Journal(tmp_path / "journal.jsonl"), config=None)
    generators: Any = SimpleNamespace(publish=lambda trained: receipt)
    trained: Any = SimpleNamespace(version=1)
    view: Any = Told()
    publish(state, Cycle(round_index=0, policy_version=0), trained, generators=generators, view=view)
    entry = state.journal.find("publish", version=1)
    assert entry is not None and entry["unseen"] == num_unseen
    said = "3 changed tensors of version 1 could not be looked at"
    assert [said in line for line in view.lines] == ([True] if num_unseen else [])
