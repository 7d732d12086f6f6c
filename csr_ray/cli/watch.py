"""`csr-ray watch`: the page of a run while it goes on."""

from __future__ import annotations

import argparse
import sys

from csr_ray.cli.arguments import Commands, add_page
from csr_ray.errors import EXIT_DONE

_DESCRIPTION = """\
Serves the page of a run on this machine while the run goes on: what it is doing with rates and time left, the figures
by round, the newest trees, all pairs a screenful at a time, what was set aside, and which actors died and were
replaced. The page refreshes itself. The run is only read: it need not have begun, and it may end meanwhile. After it,
csr-ray report writes the same page as one file. docs/watch.md says what is on it.
"""
_EXAMPLES = """examples:
  csr-ray watch runs/tiny-world                             prints a URL; whoever has it can look
  csr-ray watch runs/tiny-world --open                      and shows it in this machine's browser
  csr-ray watch runs/tiny-world --port 8800                 the same port each time, for a tunnel (ssh -L 8800:...)
  csr-ray watch s3://bucket/run                             a run whose run.dir is at a URL, on whatever machine
"""


def add_parser(commands: Commands) -> None:
    """Add the command to the parser."""
    watch = commands.add_parser(
        "watch",
        help="the page of RUN_DIR in a browser, while the run goes on",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    watch.add_argument("run_dir", metavar="RUN_DIR", help="folder or URL of a run; it need not be there yet")
    add_page(watch)
    watch.set_defaults(run=_watch)


def _watch(arguments: argparse.Namespace) -> int:
    from csr_ray.app.console import UnattendedConsole
    from csr_ray.app.watch import watch

    console = UnattendedConsole(highlight=False, width=None if sys.stdout.isatty() else 140)
    watch(arguments.run_dir, port=arguments.port, opens=arguments.open, console=console)
    return EXIT_DONE
