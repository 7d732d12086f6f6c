"""`csr-ray completion`: what a shell has to know so that TAB completes commands, flags, files and config keys."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from types import UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin

from csr_ray.cli.arguments import Commands
from csr_ray.errors import EXIT_DONE

_SHELLS: Final = ("bash", "zsh", "fish")
_DESCRIPTION: Final = """\
Print a script by which the TAB key completes commands, flags, files, config keys (run.rounds=) and the values of
those keys that have a few. It knows the commands and keys of this version; print it again after an update.
"""
_EXAMPLES: Final = """examples:
  source <(csr-ray completion bash)           in this shell, to try it (bash and zsh)
  csr-ray completion bash > ~/.local/share/bash-completion/completions/csr-ray
  csr-ray completion zsh > "${fpath[1]}/_csr-ray"       a folder of fpath that you may write, then a new shell
  csr-ray completion fish > ~/.config/fish/completions/csr-ray.fish
"""
# By what --help calls an argument.
_FILES: Final = ("A", "B", "CAPTIONS", "CONFIG", "FILE", "IMAGE", "IMAGES", "OUT", "PNG", "PROMPTS", "PYTHON", "HTML")
_FOLDERS: Final = ("DIR", "RUN_DIR")
_KEYS: Final = "key.sub=value"
_KEYS_FUNCTION: Final = "_csr_ray_keys"

# In bash `=` ends a word, so a key and its value are words of their own, and no blank is to follow a key.
_BASH: Final = """
%(function)s() {
  local IFS=$'\\n'
  compgen -W '%(keys)s' -S = -- "$1"
}
"""
_BASH_END: Final = """
_csr_ray_with_values() {
  local current="${COMP_WORDS[COMP_CWORD]}" key="${COMP_WORDS[COMP_CWORD-1]}" values=""
  if [[ $current == "=" ]]; then
    current=""
  elif [[ $key == "=" ]]; then
    key="${COMP_WORDS[COMP_CWORD-2]}"
  else
    _shtab_csr_ray
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2>/dev/null
    return 0
  fi
  case "$key" in
%(cases)s
  esac
  if [[ -n $values ]]; then
    COMPREPLY=($(compgen -W "$values" -- "$current"))
  else
    compopt -o filenames 2>/dev/null
    COMPREPLY=()
    while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen -f -- "$current")
  fi
}
complete -o bashdefault -F _csr_ray_with_values csr-ray
"""
_ZSH: Final = """
%(function)s() {
  local -a keys values
  keys=(%(keys)s)
  if compset -P '*='; then
    case "${IPREFIX%%=}" in
%(cases)s
    esac
    if (( $#values )); then compadd -a values; else _files; fi
  else
    compadd -S '=' -q -a keys
  fi
}
"""
_FISH: Final = """
function %(function)s
  printf '%%s\\n' %(words)s
end
"""


def add_parser(commands: Commands) -> None:
    """Add the command to the parser."""
    completion = commands.add_parser(
        "completion",
        help="a script for bash, zsh or fish, by which TAB completes commands, flags and config keys",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    completion.add_argument("shell", choices=_SHELLS, metavar="SHELL", help="bash, zsh or fish")
    completion.set_defaults(run=_completion)


def _completion(arguments: argparse.Namespace) -> int:
    print(script_of(arguments.parser, shell=arguments.shell))
    return EXIT_DONE


def script_of(parser: argparse.ArgumentParser, *, shell: str) -> str:
    """The completion script of a parser, whose actions are marked for it.

    Args:
        shell: bash, zsh or fish.
    """
    import shtab

    from csr_ray.config.load import keys_with_types

    names = _names_of()
    values = {key: _values(kind) for key, kind in keys_with_types()} | {"method": tuple(names["name"])}
    for command in _parsers(parser):
        for action in command._actions:
            if (completer := _completer(action, names=names)) is not None:
                action.complete = completer  # type: ignore[attr-defined]
    cases = {key: some for key, some in values.items() if some}
    if shell == "bash":
        before = _BASH % {"function": _KEYS_FUNCTION, "keys": "\n".join(values)}
        lines = (f"    {key}) values='{' '.join(some)}' ;;" for key, some in cases.items())
        return shtab.complete(parser, shell, preamble=before) + _BASH_END % {"cases": "\n".join(lines)}
    if shell == "zsh":
        lines = (f"      {key}) values=({' '.join(some)}) ;;" for key, some in cases.items())
        before = _ZSH % {"function": _KEYS_FUNCTION, "keys": " ".join(values), "cases": "\n".join(lines)}
        # shtab completes the first of several arguments only, where it is one of as many as there may be.
        return shtab.complete(parser, shell, preamble=before).replace('"(*)::', '"*:')
    words = [f"{key}={value}" for key, some in values.items() for value in some or ("",)]
    return shtab.complete(parser, shell, preamble=_FISH % {"function": _KEYS_FUNCTION, "words": " ".join(words)})


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parser and all below it, each of which says of itself what the list of commands says."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {one.dest: one.help for one in action._choices_actions}
            for name, command in action.choices.items():
                command.description = helps.get(name) or command.description
                yield from _parsers(command)


def _completer(action: argparse.Action, *, names: dict[str, list[str]]) -> Any:
    """What shtab is to complete the action by; None: nothing, or what the action says itself."""
    import shtab

    shown = action.metavar if isinstance(action.metavar, str) else ""
    if shown == _KEYS:
        return {"bash": _KEYS_FUNCTION, "zsh": _KEYS_FUNCTION, "fish": f"({_KEYS_FUNCTION})"}
    if shown in _FILES:
        return shtab.FILE
    if shown in _FOLDERS:
        return shtab.DIRECTORY
    if action.dest in names and action.choices is None:
        action.choices = names[action.dest]
    return None


def _names_of() -> dict[str, list[str]]:
    """Names that an argument may be, by what its value is called; the commands themselves say what else is wrong."""
    from csr_ray.config.load import method_names
    from csr_ray.evaluation.benchmarks.marking import ALL_NAMES

    return {"benchmark": list(ALL_NAMES), "name": method_names()}


def _values(kind: Any) -> tuple[str, ...]:
    """The values of a key that has a few; empty where it has many, and where it is a list of them."""
    if kind is bool:
        return ("true", "false")
    if get_origin(kind) is Literal:
        return tuple(map(str, get_args(kind)))
    if get_origin(kind) in (Union, UnionType):
        return tuple(value for one in get_args(kind) for value in _values(one))
    return ()
