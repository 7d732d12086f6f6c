"""Reads a command line whose words may stand in any order that has one meaning.

Flags may stand before, between and behind the other words, and where a command takes a config and overrides, the
word without `=` is the config: `csr-ray run --dry-run run.rounds=2 my.yaml` is `csr-ray run my.yaml run.rounds=2
--dry-run`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

_TAKE_A_CONFIG = ("run", "plan")


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line by the sub-parser of its command.

    Args:
        parser: whose sub-parsers are the commands.
    """
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    command = commands.choices.get(argv[0]) if argv else None
    if command is None or _has_actions(command):  # help, the version, a wrong name, or `csr-ray world build`
        return parser.parse_args(argv)
    arguments = command.parse_intermixed_args(argv[1:])
    for name, value in parser._defaults.items():  # which the sub-parser does not know
        if not hasattr(arguments, name):
            setattr(arguments, name, value)
    if argv[0] in _TAKE_A_CONFIG:
        arguments.config, *arguments.overrides = config_first([arguments.config, *arguments.overrides])
    return arguments


def config_first(words: Sequence[str]) -> list[str]:
    """The words with the config in front: the first that is no `key.sub=value`, or that is a file in spite of a `=`.

    Where every word is an override they stay as they are, and the first one is looked for as a file, in vain.
    """
    place = next(
        (at for at, word in enumerate(words) if "=" not in word or os.path.isfile(os.path.expanduser(word))), 0
    )
    return [words[place], *words[:place], *words[place + 1 :]]


def _has_actions(command: argparse.ArgumentParser) -> bool:
    return any(isinstance(action, argparse._SubParsersAction) for action in command._actions)
