"""What several commands take from the command line: types of arguments, and groups of flags."""

from __future__ import annotations

import argparse
import os
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from csr_ray.errors import ConfigError

if TYPE_CHECKING:
    from csr_ray.app.judge import JudgeFlags

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
EXIT_CODES = """\
exit codes: 0 done; 1 failed or stopped; 2 wrong usage or config, said in one line; 3 no usable data
"""
BENCHMARK_HELP = "pope, chair, world, or another one that csr-ray benchmarks lists"


COMMANDS = ("csr-ray ", "datasets.")
"""How lines of help begin that are to be copied."""


class Folding(argparse.RawDescriptionHelpFormatter):
    """Help as it was written, where the terminal is wide enough; else paragraphs are folded.

    A line that is indented, or ends in a colon, stays one of its own; an indented command is not folded, because a
    terminal wraps it so that it can be copied, which it could not be with a line's end within quotes.
    """

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = text.splitlines()
        if max(map(len, lines), default=0) <= width:
            return super()._fill_text(text, width, indent)
        folded: list[str] = []
        paragraph: list[str] = []
        for line in [*lines, ""]:
            if line and not line.startswith(" "):
                paragraph.append(line)
            if paragraph and (not line or line.startswith(" ") or line.endswith(":")):
                folded += textwrap.wrap(" ".join(paragraph), width)
                paragraph = []
            if not line:
                folded.append("")
            elif line.startswith(" ") and line.lstrip().startswith(COMMANDS):
                folded.append(line)
            elif line.startswith(" "):
                start = line[: len(line) - len(line.lstrip())]
                inside = f"{start}    "
                folded += textwrap.wrap(
                    line.strip(), width, initial_indent=start, subsequent_indent=inside, break_on_hyphens=False
                )
        return "".join(f"{indent}{line}\n" for line in folded[:-1])


def number(text: str) -> float | None:
    """A number; None: it is none."""
    try:
        return float(text)
    except ValueError:
        return None


def names(text: str) -> tuple[str, ...]:
    """Names between commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def at_least_one(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: a whole number, at least 1")
    return int(text)


def natural(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text}: a whole number, at least 0")
    return int(text)


def port(text: str) -> int:
    """A port of this machine; 0 stands for any free one."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text}: a port, 1 to 65535, or 0 for any free one")
    return int(text)


def whole(text: str) -> int:
    """A number of whole GPUs; 0 stands for the CPU."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text}: a whole number, or 0 for the CPU")
    return int(text)


def seconds(text: str) -> float:
    """A duration above 0."""
    if (found := number(text)) is None or not 0 < found < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: a number of seconds, more than 0")
    return found


def share(text: str) -> float:
    """A share of a GPU, from 0 to 1."""
    if (found := number(text)) is None or not 0 <= found <= 1:
        raise argparse.ArgumentTypeError(f"{text}: a number from 0 to 1")
    return found


def versions(text: str) -> tuple[int, int]:
    """One policy version for both sides, or one for each."""
    parts = text.split(",")
    if not 1 <= len(parts) <= 2 or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text}: a version such as 3, or two such as 0,3")
    return int(parts[0]), int(parts[-1])


def rounds(text: str) -> tuple[int, ...]:
    """Numbers of rounds between commas, as 1,3; 1 is the first."""
    numbers = names(text)
    if not numbers or not all(number.isdecimal() and int(number) > 0 for number in numbers):
        raise argparse.ArgumentTypeError(f"{text}: numbers of rounds from 1, such as 1,3")
    return tuple(map(int, numbers))


def path_here(name: str) -> Path:
    """An argument that has to be a path of this machine; a URL would become a folder named `s3:`."""
    if "://" in name:
        raise argparse.ArgumentTypeError(f"{name!r} is a URL; name a path of this machine")
    return Path(name)


def add_page(command: argparse.ArgumentParser) -> None:
    """The flags of a command that serves a page to this machine."""
    command.add_argument("--port", type=port, default=0, metavar="N", help="of the page; default any free one")
    command.add_argument(
        "--open",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="show the page in this machine's browser; by default its URL is only printed",
    )


def lasting(path: Path, *, flag: str) -> Path:
    """Where a command writes what it was told by this flag; in a job that may be another place, and is said."""
    from csr_ray.app.job import placed_for_a_job

    placed, line = placed_for_a_job({flag: path})
    if line:
        print(line)
    return placed[flag] or path


def lasting_file(path: Path, *, flag: str) -> Path:
    """As `lasting`, of a file, which is looked at now: else the work would be done before it turned out to be lost.

    Raises:
        ConfigError: it is a folder, or a file cannot be written there.
    """
    placed = lasting(path, flag=flag).expanduser()
    if placed.is_dir():
        raise ConfigError(f"{flag} = {str(path)!r}: is a folder; name a file")
    folder = next(one for one in placed.absolute().parents if one.exists())  # those below it are made
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        why = "cannot be written to" if folder.is_dir() else "is a file"
        raise ConfigError(f"{flag} = {str(path)!r}: {folder} {why}; name another place")
    return placed


def add_cluster(command: argparse.ArgumentParser) -> None:
    """The flags of a command that asks a cluster for its actors by itself, without a config."""
    command.add_argument(
        "--autoscales", action="store_true", help="an autoscaler adds nodes, so wait for what has no place yet"
    )
    command.add_argument(
        "--wait",
        type=seconds,
        default=1800.0,
        metavar="SECONDS",
        help="how long to wait for a place in the cluster; default 1800",
    )


def add_chair_files(command: argparse.ArgumentParser) -> None:
    """The files with which chair counts as the published scripts do; all of them, or none for the own table."""
    command.add_argument(
        "--synonyms",
        default=None,
        metavar="FILE",
        help="of chair: the published synonym file; without it the package's own table, whose figures stand beside "
        "no published one",
    )
    for name in ("instances", "captions"):
        command.add_argument(
            f"--{name}",
            nargs="+",
            default=[],
            metavar="FILE",
            help=f"with --synonyms: COCO's {name}_val2014.json, and of train where its images are asked",
        )
    command.add_argument(
        "--form", default=None, metavar="NAME", help="with --synonyms: original (default), or lure (LURE, SIMA)"
    )


def chair_files(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was given by the flags of `add_chair_files`."""
    return {name: getattr(arguments, name) for name in ("synonyms", "instances", "captions", "form")}


def add_judge(command: argparse.ArgumentParser) -> None:
    """The flags of a command that may let a judge mark answers."""
    judge = command.add_argument_group("a judge, for the benchmarks that need one")
    judge.add_argument("--judge-url", default=None, metavar="URL", help="its endpoint, up to the version (.../v1)")
    judge.add_argument("--judge-model", default=None, metavar="NAME", help="its model; goes into the result")
    judge.add_argument(
        "--judge-key-env", default=None, metavar="VARIABLE", help="environment variable of its key; default none"
    )
    judge.add_argument(
        "--judge-prompt", type=path_here, default=None, metavar="FILE", help="what it is told; default our own words"
    )
    judge.add_argument(
        "--judge",
        action="append",
        default=[],
        metavar="key=value",
        help="a further key (docs/judges.md): max_cost_usd, concurrency, requests_per_minute, timeout_s, ...",
    )


def judge_of(arguments: argparse.Namespace) -> JudgeFlags:
    """What was given by the flags of `add_judge`."""

    from csr_ray.app.judge import JudgeFlags

    return JudgeFlags(
        url=arguments.judge_url,
        model=arguments.judge_model,
        key_env=arguments.judge_key_env,
        prompt=arguments.judge_prompt,
        settings=tuple(arguments.judge),
    )
