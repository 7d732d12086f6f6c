"""`csr-ray benchmarks`: every benchmark."""

from __future__ import annotations

import argparse

from csr_ray.cli.arguments import Commands
from csr_ray.errors import EXIT_DONE


def add_parser(commands: Commands) -> None:
    """Add the command to the parser."""
    benchmarks = commands.add_parser("benchmarks", help="every benchmark, the files it reads and what it measures")
    benchmarks.set_defaults(run=_benchmarks)


def _benchmarks(_: argparse.Namespace) -> int:
    from csr_ray.app.benchmarks import print_benchmarks
    from csr_ray.app.console import result_console

    print_benchmarks(console=result_console())
    return EXIT_DONE
