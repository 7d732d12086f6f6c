"""`csr-ray ask`: what it takes from the command line, and where its result goes."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from csr_ray.cli.arguments import Commands, at_least_one, lasting_file, natural, number, path_here, whole
from csr_ray.errors import EXIT_DONE

_HELP = """\
Put one question about pictures to the base model of a run and to the policy after every round, and show the answers
side by side: each sentence with its CLIP score by the run's own scorer, coloured from orange (low) to blue (high).

The run may be finished or still going on; it is only read. One engine answers for all of them: the adapters are
handed to it one after the other. A folder of pictures, or several of them, gives a page (one HTML file) beside the
summary on the terminal. Progress goes to stderr, so that answers can be piped. docs/ask.md has the keys of the JSON.
"""
_EXAMPLES = """\
examples:
  csr-ray ask runs/tiny-world picture.png "Describe the image."
  csr-ray ask runs/mine photo.jpg "What is on the table?" --rounds 0,3          the base and round 3 alone
  csr-ray ask runs/mine photos/ "What is in this picture?" --out answers.html   a folder, as a page
  csr-ray ask runs/mine *.jpg "What is in this picture?" --json - | jq .figures
  csr-ray ask runs/mine photo.jpg "What is in this picture?" --temperature 1 --seed 7
"""
PAGE = Path("ask.html")


def add_parser(commands: Commands) -> None:
    """Add the command to the parser."""
    ask = commands.add_parser(
        "ask",
        help="put a question about pictures to a run's base and to every round, side by side",
        description=_HELP,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    ask.add_argument("run_dir", metavar="RUN_DIR", help="folder or URL of a run, finished or not")
    ask.add_argument("images", nargs="+", metavar="IMAGE", help="a picture, or a folder of pictures")
    ask.add_argument("question", metavar="QUESTION", help="in quotes")
    ask.add_argument(
        "--rounds",
        type=_rounds,
        default=(),
        metavar="N,M",
        help="ask only the policies after these rounds, 0 being the base; default the base and every round there is",
    )
    ask.add_argument(
        "--temperature",
        type=_temperature,
        default=0.0,
        metavar="T",
        help="draw the answers at this temperature; default 0, the most likely answer",
    )
    ask.add_argument("--seed", type=natural, default=0, metavar="N", help="of what is drawn; default 0")
    ask.add_argument(
        "--max-tokens", type=at_least_one, default=None, metavar="N", help="of an answer; default eval.max_tokens"
    )
    ask.add_argument(
        "--limit", type=at_least_one, default=None, metavar="N", help="the first N readable pictures; default all"
    )
    ask.add_argument(
        "--gpus",
        type=whole,
        default=None,
        metavar="G",
        help="whole GPUs of the engine; default those of the run's engines, or 0 where the installed engine is one "
        "for CPUs",
    )
    ask.add_argument(
        "--out",
        type=path_here,
        default=None,
        metavar="HTML",
        help=f"write the page there; default {PAGE} where there are several pictures, and none for one",
    )
    ask.add_argument(
        "--json", default=None, metavar="OUT", help="write everything there as JSON; - for stdout, and nothing else"
    )
    ask.set_defaults(run=_ask)


def _rounds(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text}: rounds such as 0,2; 0 is the base")
    return tuple(int(part) for part in parts)


def _temperature(text: str) -> float:
    if (found := number(text)) is None or not 0 <= found <= 5:
        raise argparse.ArgumentTypeError(f"{text}: a number from 0 to 5")
    return found


def _ask(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from csr_ray.app.ask import Asked
    from csr_ray.app.commands import ask_run
    from csr_ray.app.console import ConsoleView, UnattendedConsole
    from csr_ray.report.asked_page import write_page
    from csr_ray.report.asked_terminal import print_side_by_side
    from csr_ray.store.atomic import write_json

    is_on_stdout = arguments.json == "-"
    output = (
        None if arguments.json is None or is_on_stdout else lasting_file(path_here(arguments.json), flag="--json")
    )
    asked_page = None if arguments.out is None else lasting_file(arguments.out, flag="--out")
    told = Console(stderr=True, highlight=False)
    found = ask_run(
        arguments.run_dir,
        asked=Asked(
            images=tuple(arguments.images),
            question=arguments.question,
            rounds=arguments.rounds,
            temperature=arguments.temperature,
            seed=arguments.seed,
            max_tokens=arguments.max_tokens,
            limit=arguments.limit,
            gpus=arguments.gpus,
        ),
        view=ConsoleView(num_rounds=0, console=told),
    )
    if output is not None:
        write_json(output, value=found.to_plain())
    if is_on_stdout:
        json.dump(found.to_plain(), sys.stdout, ensure_ascii=False, indent=1)
        print()
    else:
        print_side_by_side(found, console=UnattendedConsole(highlight=False))
    if asked_page is not None or len(found.pictures) > 1:
        page = asked_page or lasting_file(PAGE, flag="--out")
        write_page(page, found=found)
        told.print(f"page: {page}", markup=False, soft_wrap=True)
    return EXIT_DONE
