"""`csr-ray config`: every key."""

from __future__ import annotations

import argparse

from csr_ray.cli.arguments import Commands
from csr_ray.errors import EXIT_DONE


def add_parser(commands: Commands) -> None:
    """Add the command to the parser."""
    config = commands.add_parser("config", help="every config key, its default and what it means")
    config.set_defaults(run=_config)


def _config(_: argparse.Namespace) -> int:
    from csr_ray.app.console import result_console
    from csr_ray.config.load import print_keys

    print_keys(console=result_console())
    return EXIT_DONE
