"""What every benchmark ends with: a table of its rows and, with `--json`, one object with machine and versions."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from csr_ray.app.job import placed_for_a_job
from csr_ray.errors import UserError
from csr_ray.machine.placement import installed_version

Row = dict[str, Any]
"""`name`, `value` and `unit`, and what else is known of it."""


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        type=Path,
        default=None,
        help="also write everything to this file; a relative one of a job of Ray's is placed below CSR_RAY_RUNS",
    )


def this_machine() -> dict[str, Any]:
    """The `machine` of a benchmark that runs on the machine that it is started on."""
    return {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}


def versions_of(*names: str) -> dict[str, str | None]:
    """Versions of installed distributions; None: not installed."""
    return {name: installed_version(name) for name in names}


def write_result(
    path: Path | None,
    *,
    name: str,
    versions: Mapping[str, str | None],
    headline: str,
    rows: Sequence[Row],
    machine: Mapping[str, Any] | None = None,
    **more: Any,
) -> None:
    """Write the object that `--json` asks for.

    Args:
        path: as given; None: nothing is written. A relative one of a job is placed where it lasts, which is said.
        headline: name of the row that answers the benchmark's question.
        machine: None: this one.

    Raises:
        ConfigError: a job's relative path leads out of the folder where it would be placed.
    """
    if path is None:
        return
    placed, said = placed_for_a_job({"--json": path})
    if said:
        print(said, flush=True)
    target = placed["--json"]
    assert target is not None
    target.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "name": name,
        "machine": dict(machine or this_machine()),
        "versions": dict(versions),
        "headline": headline,
        **more,
        "rows": list(rows),
    }
    target.write_text(json.dumps(record, indent=2) + "\n")


def told_in_a_line(main: Callable[[], None]) -> None:
    """Run a benchmark; what only its user can mend is told in one line, with the exit code of `csr-ray`."""
    try:
        main()
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
