"""`csr-ray methods`: every method."""

from __future__ import annotations

import argparse

from csr_ray.cli.arguments import Commands, lasting_file, path_here
from csr_ray.errors import EXIT_DONE


def add_parser(commands: Commands) -> None:
    """Add the command to the parser."""
    methods = commands.add_parser("methods", help="every method: its source, what it needs, and its configs")
    methods.add_argument("name", nargs="?", default=None, metavar="NAME", help="say more of this one, with its keys")
    methods.add_argument("--json", type=path_here, default=None, metavar="OUT", help="write the same there")
    methods.set_defaults(run=_methods)


def _methods(arguments: argparse.Namespace) -> int:
    from csr_ray.app.console import result_console
    from csr_ray.app.methods import methods_as_plain, print_method, print_methods
    from csr_ray.store.atomic import write_json

    output = None if arguments.json is None else lasting_file(arguments.json, flag="--json")
    console = result_console()
    if arguments.name is None:
        print_methods(console=console)
    else:
        print_method(arguments.name, console=console)
    if output is not None:
        write_json(output, value={"methods": methods_as_plain(arguments.name)})
    return EXIT_DONE
