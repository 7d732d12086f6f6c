"""`csr-ray run`: the whole loop."""

from __future__ import annotations

import argparse

from csr_ray.cli.arguments import Commands


def add_parser(commands: Commands) -> None:
    """Add the command to the parser."""
    run = commands.add_parser(
        "run",
        help="the whole loop; a half-finished run folder goes on, a finished one prints its result",
        description="Run a config. Starting the same run again goes on where it was; nothing done is done twice. The "
        "words may stand in any order: the one without = is the config.",
        epilog="After 1 the same command goes on where the run was.",
    )
    run.add_argument("config", metavar="CONFIG", help="YAML file")
    run.add_argument("overrides", nargs="*", metavar="key.sub=value", help="override single keys of the config")
    run.add_argument("--fresh", action="store_true", help="move an existing run folder aside and start a new one")
    run.add_argument(
        "--redo", action="store_true", help="train again what a damaged adapter was made by, and all that came after"
    )
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="check paths, print the plan and the first questions as the policy will get them; start nothing",
    )
    run.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from csr_ray.app.run import run_config

    return run_config(
        arguments.config,
        overrides=arguments.overrides,
        fresh=arguments.fresh,
        dry_run=arguments.dry_run,
        redo=arguments.redo,
    )
