"""`csr-ray report`: a run as a page."""

from __future__ import annotations

import argparse

from csr_ray.cli.arguments import Commands
from csr_ray.errors import EXIT_DONE


def add_parser(commands: Commands) -> None:
    """Add the command to the parser."""
    report = commands.add_parser("report", help="write RUN_DIR/report.html")
    report.add_argument("run_dir", metavar="RUN_DIR", help="folder or URL")
    report.set_defaults(run=_report)


def _report(arguments: argparse.Namespace) -> int:
    from csr_ray.app.place import report

    print(report(arguments.run_dir))
    return EXIT_DONE
