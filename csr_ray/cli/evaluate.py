"""`csr-ray eval`: a model on a benchmark or a suite."""

from __future__ import annotations

import argparse

from csr_ray.cli.arguments import (
    BENCHMARK_HELP,
    Commands,
    add_chair_files,
    add_cluster,
    add_judge,
    at_least_one,
    chair_files,
    judge_of,
    lasting_file,
    names,
    path_here,
    whole,
)
from csr_ray.errors import EXIT_DONE, ConfigError


def add_parser(commands: Commands) -> None:
    """Add the command to the parser."""
    evaluate = commands.add_parser(
        "eval",
        help="score a model on a benchmark",
        description="Ask a model the questions of a benchmark and mark its answers; or let lmms-eval measure it by "
        "official suites: csr-ray eval --model MODEL --suite lmms-eval --tasks pope,mme --lmms-install --json OUT",
    )
    evaluate.add_argument("--model", required=True, help="Hugging Face folder, or its URL (s3://...)")
    asked = evaluate.add_mutually_exclusive_group(required=True)
    asked.add_argument("--benchmark", metavar="NAME", help=BENCHMARK_HELP)
    asked.add_argument(
        "--suite",
        choices=("lmms-eval",),
        help="hand over to this package, which has the full official suites (its flags are below)",
    )
    evaluate.add_argument(
        "--data",
        default=None,
        metavar="DIR",
        help="prompts.jsonl and truth.jsonl (chair), questions.jsonl or the splits' own files (pope), or "
        "all three (world; by default the embedded world's); of another benchmark its release",
    )
    evaluate.add_argument("--limit", type=at_least_one, default=None, metavar="N", help="first N images only")
    evaluate.add_argument(
        "--ask",
        default="plain",
        choices=("plain", "describe_first"),
        help="describe_first: the model describes the image first, and reads its description with the question",
    )
    evaluate.add_argument(
        "--decoding",
        nargs="+",
        default=("plain",),
        metavar=("KIND", "key=value"),
        help="plain (default), vdd, rescore or post_hoc, and keys of the section decoding (csr-ray config), as in "
        "--decoding vdd alpha=0.5 without=unk; docs/vdd.md",
    )
    evaluate.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="default float32")
    evaluate.add_argument("--actors", type=at_least_one, default=1, metavar="N", help="engines; default 1")
    evaluate.add_argument(
        "--gpus", type=whole, default=None, metavar="G", help="whole GPUs of each engine; default 1, or 0 on the CPU"
    )
    evaluate.add_argument(
        "--out",
        type=path_here,
        default=None,
        metavar="DIR",
        help="keep the answers there as they come; starting the same command again goes on where it was",
    )
    add_chair_files(evaluate)
    suite = evaluate.add_argument_group(
        "a suite, on this machine (docs/evaluation.md)",
        "With --model, --limit (questions of each task), --dtype, --gpus, --out (the suite's own files) and --json.",
    )
    suite.add_argument("--tasks", type=names, default=(), metavar="A,B", help="by the suite's own names: pope,mme")
    suite.add_argument(
        "--lmms-python",
        type=path_here,
        default=None,
        metavar="PYTHON",
        help="Python of an environment that has lmms-eval; default this one, or else what --lmms-install has made",
    )
    suite.add_argument(
        "--lmms-install",
        action="store_true",
        help="install lmms-eval, once, into an environment of its own in the cache, if it is nowhere yet",
    )
    suite.add_argument("--tasks-dir", type=path_here, default=None, metavar="DIR", help="folder of further tasks")
    add_judge(evaluate)
    add_cluster(evaluate)
    evaluate.add_argument("--json", required=True, type=path_here, metavar="OUT", help="write the result there")
    evaluate.set_defaults(run=_eval)


def _eval(arguments: argparse.Namespace) -> int:
    if arguments.suite is not None:
        return _eval_suite(arguments)
    for flag in ("tasks", "lmms_python", "lmms_install", "tasks_dir"):
        if getattr(arguments, flag):
            raise ConfigError(f"--{flag.replace('_', '-')}: is for --suite lmms-eval; leave it out")
    from csr_ray.app.commands import evaluate_model
    from csr_ray.config.schema import Cluster

    evaluate_model(
        arguments.model,
        benchmark=arguments.benchmark,
        data=arguments.data,
        limit=arguments.limit,
        dtype=arguments.dtype,
        actors=arguments.actors,
        gpus=arguments.gpus,
        cluster=Cluster(autoscales=arguments.autoscales, wait_s=arguments.wait),
        kept=arguments.out,
        judged_by=judge_of(arguments),
        output=arguments.json,
        ask=arguments.ask,
        decoding=arguments.decoding,
        chair={f"chair_{name}": value for name, value in chair_files(arguments).items() if value},
    )
    return EXIT_DONE


def _eval_suite(arguments: argparse.Namespace) -> int:
    from csr_ray.app.lmms_eval import SuiteFlags, evaluate_by_lmms_eval, print_results

    for flag in ("data", "judge_url", "judge_model", "judge_key_env", "judge_prompt", "judge"):
        if getattr(arguments, flag):
            raise ConfigError(f"--{flag.replace('_', '-')}: lmms-eval has data and judges of its own; leave it out")
    if arguments.ask != "plain" or tuple(arguments.decoding) != ("plain",):
        raise ConfigError("--ask, --decoding: lmms-eval asks in its own way; leave them out")
    if arguments.actors != 1 or arguments.autoscales:
        raise ConfigError("--actors, --autoscales: a suite is asked of one server on this machine; leave them out")
    found = evaluate_by_lmms_eval(
        arguments.model,
        flags=SuiteFlags(
            tasks=arguments.tasks,
            python=arguments.lmms_python,
            is_to_install=arguments.lmms_install,
            tasks_dir=arguments.tasks_dir,
            limit=arguments.limit,
        ),
        dtype=arguments.dtype,
        gpus=arguments.gpus,
        kept=arguments.out,
        output=lasting_file(arguments.json, flag="--json"),
    )
    print_results(found)
    return EXIT_DONE
