"""`csr-ray pairs`: a run's pairs as a data set."""

from __future__ import annotations

import argparse
import sys

from csr_ray.cli.arguments import Commands, lasting, path_here, rounds
from csr_ray.errors import EXIT_DONE

_DESCRIPTION = """\
Write a run's preference pairs as a data set into a folder of its own: Parquet files that `datasets`, TRL's DPO of
vision-language models and the hub's viewer read, and a README.md that says what they are and how they were made. The
run may still be going on; pairs are there from the moment at which a round's rollouts are done.

Pictures are named by their paths, which lead somewhere on this machine only. With --embed-images their bytes stand in
the files, so that the folder needs nothing else; a row whose picture cannot be read is left out and counted.
"""
_EXAMPLES = """examples:
  csr-ray pairs runs/tiny-world --out data/pairs                          all rounds, pictures named
  csr-ray pairs runs/tiny-world --out data/pairs --embed-images           with the pictures in it
  csr-ray pairs s3://bucket/run --out data/first --rounds 1,2             two rounds of a run at a URL

then, in Python:
  datasets.load_dataset("data/pairs", split="train")

csr-ray push RUN_DIR REPO_ID --what pairs puts the same on the hub (docs/publish.md).
"""


def add_parser(commands: Commands) -> None:
    """Add the command to the parser."""
    pairs = commands.add_parser(
        "pairs",
        help="write the pairs of RUN_DIR as a data set of its own, with its pictures if asked to",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    pairs.add_argument("run_dir", metavar="RUN_DIR", help="folder or URL of a run, finished or not")
    pairs.add_argument("--out", required=True, type=path_here, metavar="DIR", help="a folder that is not there yet")
    pairs.add_argument(
        "--rounds", type=rounds, default=(), metavar="N,M", help="1 is the first (round_000); default all there are"
    )
    pairs.add_argument("--embed-images", action="store_true", help="put the pictures into the files")
    pairs.set_defaults(run=_pairs)


def _pairs(arguments: argparse.Namespace) -> int:
    from csr_ray.app.console import UnattendedConsole
    from csr_ray.app.pairs import export_pairs

    export_pairs(
        arguments.run_dir,
        output=lasting(arguments.out, flag="--out"),
        rounds=arguments.rounds,
        embeds=arguments.embed_images,
        console=UnattendedConsole(highlight=False, width=None if sys.stdout.isatty() else 140),
    )
    return EXIT_DONE
