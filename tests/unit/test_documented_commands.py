"""What the documents tell people to type can be typed: flags, config keys, make targets and scripts all exist."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest
from documented_commands import DOCUMENTS, ROOT, SHELLS, Command, blocks, commands, name_of, split

from csr_ray.__main__ import _parser
from csr_ray.cli.order import parse
from csr_ray.config.load import load_config, parse_settings
from csr_ray.evaluation.benchmarks.marking import ALL_NAMES

COMMANDS = list(dict.fromkeys(command for path in DOCUMENTS for command in commands(path)))
OURS = [command for command in COMMANDS if command.program == "csr-ray"]
MAKE = [command for command in COMMANDS if command.program == "make"]
SCRIPTS = [command for command in COMMANDS if command.program in ("python", "python3") and len(command.words) > 1]
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
# What stands for the reader's own config, so that keys can be held to the schema.
OWN_CONFIG = ROOT / "configs" / "own-data.yaml"
_TYPED = re.compile(r"^(?: {4})?(?:\$ )?(csr-ray|make|python benchmarks/\S+) .*", re.MULTILINE)
_INLINE = re.compile(r"`(csr-ray [^`]+)`")


def choices_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    inner = (action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(next(inner, {}))


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


def config_named(name: str) -> Path:
    """The file itself, or what stands for a file that the reader writes."""
    if name.startswith("configs/"):
        assert (ROOT / name).is_file(), f"{name}: no such config"
        return ROOT / name
    return OWN_CONFIG


def test_commands_are_found() -> None:
    assert len(OURS) > 60 and len(MAKE) > 5 and len(SCRIPTS) > 20
    assert {command.document for command in OURS} >= {"cluster/README.md", "docs/tutorial/demo.md"}
    assert "README.md" in {command.document for command in MAKE}


@pytest.mark.parametrize("command", OURS, ids=str)
def test_a_command_is_one_that_our_parser_and_schema_take(command: Command) -> None:
    try:
        arguments = parse(_parser(), list(command.words[1:]))
    except SystemExit:
        pytest.fail(f"the parser refuses {command}")
    config = getattr(arguments, "config", None)
    if config is not None:
        load_config(config_named(config), overrides=arguments.overrides)
    if getattr(arguments, "decoding", None):
        parse_settings("decoding", settings=arguments.decoding[1:])
    if getattr(arguments, "judge", None):
        parse_settings("judge", settings=arguments.judge)
    if getattr(arguments, "benchmark", None):
        assert arguments.benchmark in (*ALL_NAMES, "NAME")


@pytest.mark.parametrize("command", MAKE, ids=str)
def test_a_target_of_make_exists(command: Command) -> None:
    assert {word for word in command.words[1:] if "=" not in word} <= TARGETS


@pytest.mark.parametrize("command", SCRIPTS, ids=str)
def test_a_script_exists_and_has_its_flags(command: Command) -> None:
    script = ROOT / command.words[1]
    if command.words[1].startswith("-") or not command.words[1].startswith(("benchmarks/", "tests/")):
        return  # python -c, python -m, and a script that the reader has just written
    assert script.is_file(), command
    source = script.read_text(encoding="utf-8")
    beside = [script.parent / f"{name}.py" for name in re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE)]
    known = source + "".join(path.read_text(encoding="utf-8") for path in beside if path.is_file())
    flags = [word.partition("=")[0] for word in command.words[2:] if word.startswith("--")]
    assert [flag for flag in flags if f'"{flag}"' not in known] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_what_is_to_be_typed_stands_in_a_block_that_is_looked_at(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for language, block in blocks(path):
        if language in SHELLS:
            text = text.replace(block, "")
    lines = [found[0].strip() for found in _TYPED.finditer(text)]
    # What shows the form of a command, with brackets around what may be left out, is for nobody to type.
    assert [line for line in lines if " [" not in line] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_a_command_within_a_sentence_has_flags_that_exist(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for said in _INLINE.findall(text):
        words = shlex.split(re.sub(r"[\[\]]", "", said))
        if not words[1][0].isalpha() or words[1].isupper():
            continue  # csr-ray --version, csr-ray COMMAND
        parser = choices_of(_parser()).get(words[1])
        assert parser is not None, said
        parser = choices_of(parser).get(words[2], parser) if len(words) > 2 else parser
        flags = {word.partition("=")[0] for word in words[2:] if word.startswith("--")}
        assert flags <= flags_of(parser), said


def test_a_wrong_command_is_found() -> None:
    for script in (
        "csr-ray rum configs/tiny-world.yaml",
        "csr-ray run configs/tiny-world.yaml --dryrun",
        "csr-ray eval --model M --benchmark pope",
    ):
        (words,) = split(script)
        with pytest.raises(pytest.fail.Exception, match="the parser refuses"):
            test_a_command_is_one_that_our_parser_and_schema_take(Command(document="x", words=tuple(words)))
    for script, why in (
        ("csr-ray run configs/tiny-world.yaml search.widht=3", "unknown key"),
        ("csr-ray run my.yaml reward.weight=2", "less than or equal to 1"),
        ("csr-ray run configs/none.yaml", "no such config"),
        ("csr-ray eval --model M --benchmark pop --json x", "pop"),
    ):
        (words,) = split(script)
        with pytest.raises((ValueError, AssertionError), match=why):
            test_a_command_is_one_that_our_parser_and_schema_take(Command(document="x", words=tuple(words)))
    with pytest.raises(AssertionError):
        test_a_target_of_make_exists(Command(document="x", words=("make", "demos")))
    with pytest.raises(AssertionError):
        test_a_script_exists_and_has_its_flags(Command(document="x", words=("python", "benchmarks/bench_x.py")))
    with pytest.raises(AssertionError):
        words = ("python", "benchmarks/bench_world.py", "--jason", "x")
        test_a_script_exists_and_has_its_flags(Command(document="x", words=words))


def test_a_script_is_split_as_a_shell_does_it() -> None:
    script = """
export A=1 && env B=2 csr-ray run \\
  my.yaml 'eval.benchmarks=[]'   # a comment; and more
ray job submit --no-wait -- python -m csr_ray run /opt/csr_ray/configs/tiny-world.yaml > log
(umask 077; cat > file)
"""
    assert list(split(script)) == [
        ["export", "A=1"],
        ["csr-ray", "run", "my.yaml", "eval.benchmarks=[]"],
        ["csr-ray", "run", "configs/tiny-world.yaml"],
        ["umask", "077"],
        ["cat"],
    ]
