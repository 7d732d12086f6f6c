"""`csr-ray edit-truths`: a judge writes POVID's rejected answers."""

from __future__ import annotations

import argparse

from csr_ray.cli.arguments import Commands, add_judge, at_least_one, judge_of, lasting_file, path_here
from csr_ray.errors import EXIT_DONE, ConfigError


def add_parser(commands: Commands) -> None:
    """Add the command to the parser."""
    edits = commands.add_parser(
        "edit-truths",
        help="a judge writes POVID's rejected answers: edits of the prompts' truths, with invented things",
        description="Let a judge rewrite the truth of every prompt with plausible hallucinations, into the file that "
        "povid.rejected names. Starting the same command again goes on where it was.",
    )
    edits.add_argument("prompts", metavar="PROMPTS", help="as data.prompts, see csr-ray config; with a column truth")
    edits.add_argument("--images", default=None, metavar="DIR", help="folder that relative image names start from")
    edits.add_argument("--limit", type=at_least_one, default=None, metavar="N", help="first N prompts only")
    edits.add_argument("--out", required=True, type=path_here, metavar="FILE", help="JSONL of id and rejected")
    add_judge(edits)
    edits.set_defaults(run=_edit_truths)


def _edit_truths(arguments: argparse.Namespace) -> int:
    from csr_ray.app.edits import write_edits
    from csr_ray.app.flags import named
    from csr_ray.app.judge import JUDGE_FLAGS, replies_file

    output = lasting_file(arguments.out, flag="--out")
    with named(JUDGE_FLAGS):
        session = judge_of(arguments).session(replies_file(output))
        if session is None:
            raise ConfigError("--judge-url: missing; name the endpoint that writes the edits, and --judge-model")
        counts = write_edits(
            arguments.prompts, output=output, session=session, images=arguments.images, limit=arguments.limit
        )
    num_edited = counts.pop("edited")
    print(f"{output}: {num_edited:,} edits")
    for reason, num in counts.most_common():
        print(f"  {num:,} without one: {reason}")
    return EXIT_DONE
