"""The command line: its list of commands, and what becomes of their errors. Each command is a file of csr_ray/cli."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence

from csr_ray import __version__
from csr_ray.cli import (
    annotate,
    ask,
    benchmarks,
    check,
    compare,
    completion,
    config,
    doctor,
    edit_truths,
    evaluate,
    init,
    methods,
    pairs,
    plan,
    push,
    report,
    run,
    score,
    score_answers,
    watch,
    world,
)
from csr_ray.cli.arguments import EXIT_CODES, Folding
from csr_ray.cli.order import parse
from csr_ray.errors import EXIT_FAILED, ActorFailure, UserError, shows_tracebacks

_EXAMPLES = """examples:
  csr-ray run configs/tiny-world.yaml                       see the method work, in minutes, on a laptop
  csr-ray run configs/tiny-world.yaml run.rounds=1 run.dir=runs/short
  csr-ray init photos-run ~/Pictures                        begin with your own photos: a config and a prompt file
  csr-ray run photos-run/config.yaml --dry-run              what would run, on what, without starting anything
  csr-ray watch runs/tiny-world                             the run as a page, while it goes on
  csr-ray report runs/tiny-world                            the same page as one file
  csr-ray ask runs/mine photo.jpg "What is there?"          the base and every round's policy, side by side
  csr-ray config                                            every key, its default and what it means

exit codes: 0 done; 1 failed or stopped, and the same command goes on where it was; 2 wrong usage or config, said in
one line; 3 no usable data
"""


# In the order of --help. A command is a module of csr_ray/cli; to add one, name it here.
_COMMANDS = (
    init,
    run,
    plan,
    config,
    world,
    evaluate,
    score,
    score_answers,
    compare,
    benchmarks,
    edit_truths,
    methods,
    check,
    report,
    ask,
    watch,
    annotate,
    pairs,
    push,
    doctor,
    completion,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run one command; returns the exit code (0 done, 1 failed, 2 bad usage or config, 3 no data)."""
    _show_what_can_be_shown()
    arguments = parse(_parser(), sys.argv[1:] if argv is None else argv)
    try:
        return int(arguments.run(arguments))
    except UserError as error:
        print(f"csr-ray: {error}", file=sys.stderr)
        return error.exit_code
    except ActorFailure as error:
        if shows_tracebacks():
            raise
        print(f"csr-ray: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt as error:
        print(f"csr-ray: {str(error) or 'stopped; the same command goes on where it was'}", file=sys.stderr)
        # Where the signal came in code that a library ran by `exec`, as dataclasses do while they are imported,
        # CPython remembers an unhandled KeyboardInterrupt, and `python -m csr_ray` would end by SIGINT in spite of
        # this exit code. It forgets that when it runs other code so.
        exec("")
        return EXIT_FAILED


def _show_what_can_be_shown() -> None:
    """Let stdout write a question mark for what its encoding cannot write, instead of ending the program."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="csr-ray",
        description="Let a vision-language model improve itself, without labels: CSR on Ray.",
        epilog=_EXAMPLES,
        formatter_class=Folding,
    )
    parser.add_argument("--version", action="version", version=f"csr_ray {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(commands)
    for one in commands.choices.values():
        one.formatter_class = Folding
        one.epilog = "\n\n".join(text.strip() for text in (one.epilog, EXIT_CODES) if text)
    parser.set_defaults(parser=parser)  # a command may have to know of the others
    return parser


if __name__ == "__main__":
    sys.exit(main())
