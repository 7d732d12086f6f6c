"""`csr-ray doctor`: what this machine or cluster can run."""

from __future__ import annotations

import argparse
import sys

from csr_ray.cli.arguments import Commands
from csr_ray.errors import EXIT_BAD_CONFIG, EXIT_DONE, EXIT_FAILED


def add_parser(commands: Commands) -> None:
    """Add the command to the parser."""
    doctor = commands.add_parser(
        "doctor", help="what this machine or cluster can run, and what is missing; or whether a config fits it"
    )
    doctor.add_argument("--deep", action="store_true", help="also import the engine (15 s)")
    doctor.add_argument("--config", default=None, metavar="CONFIG", help="compare this config with the live cluster")
    doctor.add_argument("overrides", nargs="*", metavar="key.sub=value", help="override single keys of the config")
    doctor.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from csr_ray.app.doctor import diagnose, print_report

    if arguments.config is not None:
        from csr_ray.app.commands import doctor_config

        checks, can_run = doctor_config(arguments.config, overrides=arguments.overrides)
    elif arguments.overrides:
        print(f"csr-ray: {arguments.overrides[0]} without a config: name one with --config", file=sys.stderr)
        return EXIT_BAD_CONFIG
    else:
        checks, can_run = diagnose(deep=arguments.deep)
    print_report(checks)
    return EXIT_DONE if can_run else EXIT_FAILED
