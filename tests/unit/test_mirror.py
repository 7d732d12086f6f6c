"""A run at a URL: the store has what a local folder would have, in its order, whatever dies or fails on the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import Door, s3_door
from url_runs import UrlDriver, fake_model, on_machine  # noqa: F401 - a fixture


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    with s3_door() as one:
        yield one


def test_a_run_at_a_url_leaves_there_what_a_local_one_leaves(door: Door, tmp_path: Path, fake_model: None) -> None:
    run = UrlDriver("s3://bucket/whole/run", place=tmp_path)
    with on_machine(tmp_path / "a"):
        summary = run.run_here()
    names = set(door.store("whole/run").list())
    print(sorted(names), run.said_lines)
    report = run.check()
    assert (report.damage, report.next) == ([], "nothing: the run is finished")
