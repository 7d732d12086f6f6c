"""`csr-ray annotate`: people judge the answers of a run."""

from __future__ import annotations

import argparse

from csr_ray.cli.arguments import Commands, add_page, at_least_one, lasting, natural, path_here
from csr_ray.errors import EXIT_DONE

_DESCRIPTION = """\
People judge two answers of a run at a time on a page of this machine: the picture, the question, one key a verdict.
Each has a name, goes on where they were, and can take back what they said. The run may still be going on.

Verdicts go to RUN_DIR/annotations/NAME.jsonl. At the end (Ctrl-C), or with --export, what a majority decided becomes
pairs in the layout of the run's own, and the terminal says who judged how much, how far people agree with each other,
and how often the run's reward makes their choice. docs/annotate.md has the file formats.
"""
_EXAMPLES = """examples:
  csr-ray annotate runs/tiny-world                          the pairs of the last round, all of them
  csr-ray annotate runs/tiny-world --round 1 --limit 100    a hundred pairs of the first round, drawn by --seed
  csr-ray annotate runs/tiny-world --from candidates        two answers drawn for each prompt, by no reward
  csr-ray annotate runs/illume --from answers               single answers, accepted or refused (illume.accepted)
  csr-ray annotate runs/tiny-world --no-scores              without colours, so that CLIP's opinion sways nobody
  csr-ray annotate runs/tiny-world --export people.parquet  no page; the pairs that people have decided by now

keys on the page: 1 or left arrow: left is better, 2 or right arrow: right is better, 3 or t: tie, s: skip, u: undo
"""


def add_parser(commands: Commands) -> None:
    """Add the command to the parser."""
    annotate = commands.add_parser(
        "annotate",
        help="people judge answers of RUN_DIR on a local page, and decide pairs",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    annotate.add_argument("run_dir", metavar="RUN_DIR", help="folder of a run, finished or not; no URL")
    annotate.add_argument(
        "--round",
        type=at_least_one,
        default=None,
        metavar="N",
        help="1 is the first (round_000); default the last one whose pairs are decided, of answers the last there is",
    )
    annotate.add_argument(
        "--from",
        dest="source",
        choices=("pairs", "candidates", "answers"),
        default="pairs",
        help="pairs (default): the chosen and the rejected answer; candidates: two answers drawn for each prompt; "
        "answers: every answer by itself, to be accepted or refused (illume.accepted)",
    )
    annotate.add_argument("--limit", type=at_least_one, default=None, metavar="N", help="N items, drawn by --seed")
    annotate.add_argument("--seed", type=natural, default=0, metavar="N", help="of order, sides and draws; default 0")
    annotate.add_argument("--no-scores", action="store_true", help="do not colour sentences by their CLIP scores")
    add_page(annotate)
    annotate.add_argument(
        "--export",
        type=path_here,
        default=None,
        metavar="OUT",
        help="write there what people have decided so far (Parquet; --from answers: JSON lines), and serve no page",
    )
    annotate.set_defaults(run=_annotate)


def _annotate(arguments: argparse.Namespace) -> int:
    from csr_ray.app.annotate import Asked, annotate, export
    from csr_ray.app.console import result_console

    console = result_console()
    if arguments.export is not None:
        output = lasting(arguments.export, flag="--export")
        export(arguments.run_dir, output=output, of_answers=arguments.source == "answers", console=console)
        return EXIT_DONE
    asked = Asked(
        round_number=arguments.round,
        from_candidates=arguments.source == "candidates",
        from_answers=arguments.source == "answers",
        limit=arguments.limit,
        seed=arguments.seed,
        shows_scores=not arguments.no_scores,
        port=arguments.port,
        opens=arguments.open,
    )
    annotate(arguments.run_dir, asked=asked, console=console)
    return EXIT_DONE
