"""`csr-ray check`: whether a run is what was written."""

from __future__ import annotations

import argparse

from csr_ray.cli.arguments import Commands, lasting_file, path_here


def add_parser(commands: Commands) -> None:
    """Add the command to the parser."""
    check = commands.add_parser(
        "check",
        help="whether everything in RUN_DIR is what was written, and what a resume would do",
        description="Prove from the files alone that no prompt is lost or doubled and no file damaged; reads only.",
    )
    check.add_argument("run_dir", metavar="RUN_DIR", help="folder or URL")
    check.add_argument("--json", type=path_here, default=None, metavar="OUT", help="write what was found there")
    check.set_defaults(run=_check)


def _check(arguments: argparse.Namespace) -> int:
    from csr_ray.app.place import check

    output = None if arguments.json is None else lasting_file(arguments.json, flag="--json")
    return check(arguments.run_dir, output=output)
