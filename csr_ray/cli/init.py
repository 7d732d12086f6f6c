"""`csr-ray init`: what it takes from the command line."""

from __future__ import annotations

import argparse

from csr_ray.cli.arguments import Commands, at_least_one, path_here
from csr_ray.errors import EXIT_DONE

_HELP = """\
From a folder of photos to a run: look at every picture and at the machine, choose a model that fits, and write
DIR/config.yaml, commented, with every choice and its reason, and DIR/prompts.jsonl, a question for every picture.

Folders are searched with all that is below them. A picture that cannot be read, or that is there twice, is set aside
with its reason, in DIR/set_aside.jsonl. Nothing is fetched or started, and nothing is written over without --force.
docs/own_photos.md tells the rest of the way.
"""
_EXAMPLES = """\
examples:
  csr-ray init photos-run ~/Pictures/2024
  csr-ray init photos-run a.jpg b.jpg more/ --prompt "What is in this picture?"
  csr-ray init photos-run photos/ --each 3                      three questions a picture, where there are few
  csr-ray init photos-run photos/ --model qwen25-vl-7b          another model than the one that is chosen
  csr-ray init photos-run photos/ --model tiny-world            a rehearsal of all steps, in minutes
then:
  csr-ray run photos-run/config.yaml --dry-run
  csr-ray run photos-run/config.yaml
"""


def add_parser(commands: Commands) -> None:
    """Add the command to the parser."""
    init = commands.add_parser(
        "init",
        help="a commented config and a prompt file from a folder of your photos, with a model that fits this machine",
        description=_HELP,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    init.add_argument("dir", metavar="DIR", type=path_here, help="folder that the two files are written into")
    init.add_argument("images", nargs="+", metavar="IMAGES", help="pictures, or folders of them")
    init.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="a question about the pictures; several are taken in turn. Default six that ask for a description",
    )
    init.add_argument(
        "--each", type=at_least_one, default=1, metavar="N", help="questions asked about each picture; default 1"
    )
    init.add_argument(
        "--model",
        default=None,
        metavar="MODEL",
        help="llava15-7b, llava15-13b, qwen25-vl-7b, tiny-world, or any Hugging Face folder or hub id; default the "
        "largest LLaVA-1.5 that fits",
    )
    init.add_argument("--force", action="store_true", help="write over the files of an earlier init")
    init.set_defaults(run=_init)


def _init(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from csr_ray.app.commands import where_to_run
    from csr_ray.app.console import ConsoleView, UnattendedConsole
    from csr_ray.app.init import Asked, init, print_written, reckon_on_cpu

    told = Console(stderr=True, highlight=False)
    view = ConsoleView(num_rounds=0, console=told)
    asked = Asked(
        folder=arguments.dir,
        images=tuple(arguments.images),
        questions=tuple(arguments.prompt),
        each=arguments.each,
        model=arguments.model,
        overwrites=arguments.force,
    )
    place = where_to_run(view=view)
    with view.stage("look at the pictures", total=None, unit="files", round_index=None) as stage:
        written = init(
            asked,
            place=place,
            on_looked=lambda done, total: stage.set(done=done, total=total),
            reckon_on_cpu=reckon_on_cpu,
        )
    print_written(written, console=UnattendedConsole(highlight=False))
    return EXIT_DONE
