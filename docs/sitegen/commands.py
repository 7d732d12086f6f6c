"""The pages of the commands, from the parser that reads the command line: what it takes, and how it ends."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from csr_ray import errors
from csr_ray.__main__ import _parser
from csr_ray.evaluation.benchmarks.marking import ALL_NAMES
from sitegen.markdown_text import block, code, paragraphs, plain, prose, sentence, table, with_values_as_code

FOLDER = "reference/commands"
_WIDTH = 76  # characters of a line that no window has to scroll for
_EXIT_CODES = (
    (errors.EXIT_DONE, "Done."),
    (
        errors.EXIT_FAILED,
        "Anything that is not one of the other three: a run that an actor or the machine ended, a damaged file, "
        "something missing that `csr-ray doctor` looked for, a stop by Ctrl-C or SIGTERM. The last lines say what is "
        "kept and how to go on.",
    ),
    (
        errors.EXIT_BAD_CONFIG,
        "The command line or the config cannot be used. One line names the key or flag, the value, and what is "
        "allowed.",
    ),
    (
        errors.EXIT_NO_DATA,
        "The data has nothing usable. The message says where the quarantine is, in which every row that was left out "
        "stands with its reason.",
    ),
)
_INTRO = """\
# Commands

`csr-ray COMMAND` is the same as `python -m csr_ray COMMAND`, and `csr-ray COMMAND --help` prints what the pages of
this section say.
"""


def pages() -> dict[str, str]:
    """Every page by its place on the site: the overview and one for each command."""
    found = {f"{FOLDER}/index.md": _overview()}
    for name, summary, parser in commands():
        found[f"{FOLDER}/{name}.md"] = _page(parser, summary=summary)
    return found


def nav() -> list[Any]:
    """The entries of the navigation, in the order of --help."""
    return [f"{FOLDER}/index.md", *({name: f"{FOLDER}/{name}.md"} for name, _, _ in commands())]


def commands() -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """Name, help in a line, and parser of every command."""
    yield from _inner(_parser())


def sources() -> dict[str, str]:
    """By the path of the file that has a command, its page; and those that have all commands and their exit codes."""
    found = {"csr_ray/__main__.py": f"{FOLDER}/index.md", "csr_ray/errors.py": f"{FOLDER}/index.md#exit-codes"}
    for name, _, parser in commands():
        called = next((inner.get_default("run") for _, _, inner in _inner(parser)), parser.get_default("run"))
        found[f"{called.__module__.replace('.', '/')}.py"] = f"{FOLDER}/{name}.md"
    return found


def _inner(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, inner in action.choices.items():
                yield name, summaries.get(name, ""), inner


def _overview() -> str:
    rows = [(f"[`csr-ray {name}`]({name}.md)", prose(sentence(summary))) for name, summary, _ in commands()]
    codes = [(code(str(number)), prose(meaning)) for number, meaning in _EXIT_CODES]
    return "\n\n".join(
        [
            _INTRO,
            table(("command", "does"), rows),
            "## Exit codes",
            "All commands end with one of these, in a terminal, in a job of Ray's and in a container alike.",
            table(("code", "means"), codes),
            "With `CSR_RAY_DEBUG=1` an error of an actor is shown with its traceback "
            "([environment variables](../environment.md)).",
        ]
    )


def _page(parser: argparse.ArgumentParser, *, summary: str) -> str:
    parts = [f"# {parser.prog}", prose(sentence(summary)), *_body(parser, level=2)]
    for _, help_line, inner in _inner(parser):
        parts += [f"## {inner.prog}", prose(sentence(help_line)), *_body(inner, level=3)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _body(parser: argparse.ArgumentParser, *, level: int) -> list[str]:
    parts = [block(_usage(parser), language="text")]
    if parser.description:
        parts.append(paragraphs(parser.description))
    for group in parser._action_groups:
        actions = [
            action
            for action in group._group_actions
            if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
        ]
        if not actions:
            continue
        title = {"positional arguments": "Arguments", "options": "Flags"}.get(group.title or "", group.title or "")
        parts.append("#" * level + " " + plain(title[:1].upper() + title[1:]))
        if group.description:
            parts.append(paragraphs(group.description))
        parts.append(table(("name", "meaning"), [(_name(action), _meaning(action)) for action in actions]))
    if parser.epilog:
        parts += list(_epilog(parser.epilog, level=level))
    return parts


def _usage(parser: argparse.ArgumentParser) -> str:
    formatter = argparse.HelpFormatter(prog=parser.prog, width=_WIDTH)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups)
    return formatter.format_help().strip()


def _name(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else _metavar(action)
    if not action.option_strings:
        return code(value)
    return ", ".join(code(f"{option} {value}".strip()) for option in action.option_strings)


def _metavar(action: argparse.Action) -> str:
    if isinstance(action.metavar, tuple):
        first, *rest = action.metavar
        return " ".join([first, *(f"[{one} ...]" for one in rest)])
    name = action.metavar or ("CHOICE" if action.choices is not None else action.dest.upper())
    return {"*": f"[{name} ...]", "+": f"{name} ...", "?": f"[{name}]"}.get(str(action.nargs), name)


def _meaning(action: argparse.Action) -> str:
    values = [*(action.choices or ()), *(ALL_NAMES if action.dest == "benchmark" else ())]
    text = with_values_as_code((action.help or "") % {"default": action.default}, values=map(str, values))
    said = [prose(sentence(text))] if text else []
    if action.required and action.option_strings:
        said.append("Required.")
    if action.choices is not None:
        said.append("CHOICE is one of " + ", ".join(code(str(choice)) for choice in action.choices) + ".")
    return " ".join(said)


def _epilog(text: str, *, level: int) -> Iterator[str]:
    """Examples as commands with what they do behind them as comments; the rest as it is."""
    for part in textwrap.dedent(text).strip("\n").split("\n\n"):
        title, _, rest = part.partition("\n")
        if rest and title.rstrip().endswith(":"):
            yield "#" * level + " " + plain(title.strip().rstrip(":").capitalize())
            yield block("\n".join(_example(line) for line in rest.splitlines()), language="bash")
        else:
            yield paragraphs(part)


def _example(line: str) -> str:
    return re.sub(r"(\S) {2,}(?=\S)(?!#)", r"\1  # ", line.strip(), count=1)
