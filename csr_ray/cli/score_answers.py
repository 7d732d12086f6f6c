"""`csr-ray score-answers`: a benchmark's metric on answers that exist."""

from __future__ import annotations

import argparse

from csr_ray.cli.arguments import (
    BENCHMARK_HELP,
    Commands,
    add_chair_files,
    add_judge,
    chair_files,
    judge_of,
    lasting_file,
    path_here,
)
from csr_ray.errors import EXIT_DONE


def add_parser(commands: Commands) -> None:
    """Add the command to the parser."""
    score = commands.add_parser("score-answers", help="a benchmark's metric on answers that exist; no model")
    score.add_argument("--benchmark", required=True, metavar="NAME", help=BENCHMARK_HELP)
    score.add_argument(
        "--answers",
        required=True,
        type=path_here,
        metavar="FILE",
        help="JSONL of question_id and text, or as the benchmark has them",
    )
    score.add_argument(
        "--truth",
        type=path_here,
        default=None,
        metavar="FILE",
        help="or the folder of the benchmark's release, or of POPE's splits; not with --synonyms",
    )
    add_chair_files(score)
    add_judge(score)
    score.add_argument("--json", required=True, type=path_here, metavar="OUT", help="write the result there")
    score.set_defaults(run=_score_answers)


def _score_answers(arguments: argparse.Namespace) -> int:
    from csr_ray.app.console import result_console
    from csr_ray.app.figures_table import print_figures
    from csr_ray.app.flags import named
    from csr_ray.app.judge import JUDGE_FLAGS, replies_file
    from csr_ray.evaluation.benchmarks.marking import mark_file
    from csr_ray.evaluation.chair_truth import official_files
    from csr_ray.store.results import write_result

    output = lasting_file(arguments.json, flag="--json")
    given = chair_files(arguments)
    official = official_files(
        synonyms=given["synonyms"],
        instances=given["instances"],
        captions=given["captions"],
        form=given["form"] or "original",
        keys=("--synonyms", "--instances", "--captions", "--form"),
    )
    with named(JUDGE_FLAGS):
        result = mark_file(
            arguments.benchmark,
            answers=arguments.answers,
            truth=arguments.truth,
            judge=judge_of(arguments).session(replies_file(output)),
            chair_files=official,
        )
    write_result(output, value=result)
    print_figures(result, console=result_console())
    return EXIT_DONE
