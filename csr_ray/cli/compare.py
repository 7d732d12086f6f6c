"""`csr-ray compare`: two runs on the same questions."""

from __future__ import annotations

import argparse

from csr_ray.cli.arguments import Commands, lasting_file, path_here, versions
from csr_ray.errors import EXIT_DONE


def add_parser(commands: Commands) -> None:
    """Add the command to the parser."""
    compare = commands.add_parser(
        "compare",
        help="two runs, results or files of answers on the same questions: intervals and paired tests",
        description="What differs between two runs' last policies, and what of it is chance. Also two versions of "
        "one run (RUN RUN --version 0,3), two results of eval or score-answers, or two files of answers with "
        "--benchmark and --truth.",
    )
    compare.add_argument("a", metavar="A", help="run folder or URL, a result's JSON, or a file of answers")
    compare.add_argument("b", metavar="B", help="the same")
    compare.add_argument(
        "--version",
        type=versions,
        default=(None, None),
        metavar="N[,M]",
        help="policy version of both runs, or of A and of B; default the last",
    )
    compare.add_argument("--benchmark", default=None, metavar="NAME", help="of files of answers")
    compare.add_argument(
        "--truth",
        type=path_here,
        default=None,
        metavar="FILE",
        help="of files of answers, as for score-answers",
    )
    compare.add_argument("--shared", action="store_true", help="compare only the questions that both answered")
    compare.add_argument("--json", type=path_here, default=None, metavar="OUT", help="write what was found there")
    compare.set_defaults(run=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    from csr_ray.app.compare import compare, print_comparison
    from csr_ray.app.console import result_console
    from csr_ray.store.atomic import write_json

    output = None if arguments.json is None else lasting_file(arguments.json, flag="--json")
    found = compare(
        arguments.a,
        arguments.b,
        versions=arguments.version,
        benchmark=arguments.benchmark,
        truth=arguments.truth,
        only_shared=arguments.shared,
    )
    print_comparison(found, console=result_console())
    if output is not None:
        write_json(output, value=found.to_plain())
    return EXIT_DONE
