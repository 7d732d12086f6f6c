"""The command line. Each command is a few lines: parse, call, print; heavy imports happen inside."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csr_ray import __version__
from csr_ray.errors import (
    EXIT_BAD_CONFIG,
    EXIT_DONE,
    EXIT_FAILED,
    ActorFailure,
    ConfigError,
    UserError,
    shows_tracebacks,
)

if TYPE_CHECKING:
    from csr_ray.app.judge import JudgeFlags

_EXAMPLES = """examples:
  csr-ray run configs/tiny-world.yaml                       see the method work, in minutes, on a laptop
  csr-ray run configs/tiny-world.yaml run.rounds=1 run.dir=runs/short
  csr-ray run configs/own-data.yaml --dry-run               what would run, on what, without starting anything
  csr-ray report runs/tiny-world                            the run as a page
  csr-ray config                                            every key, its default and what it means
"""


_PLAN_HELP = """\
What a run needs and costs: actors, memory, tokens, hours and dollars. Starts nothing, and needs neither the prompts
nor the model on this machine.

  time = start + evaluation + rounds x (rollout + train + publish + evaluation) + end

Each stage is so many prompts, pairs or answers at a rate. Where run.dir holds a run with a finished round of the same
policy, or --rates names one, the rates are that run's own; else they are assumed from what a GPU of the kind computes
and moves, and the plan says so line by line. docs/plan.md has the formula with every symbol.
"""
_PLAN_EXAMPLES = """examples:
  csr-ray plan configs/tiny-world.yaml                                      on this machine's CPUs
  csr-ray plan configs/llava15-7b.yaml --prompts 12856 --gpus 8 --gpu A100  the layouts of eight A100s, fastest first
  csr-ray plan configs/llava15-7b.yaml --prompts 12856 --gpus 8 --gpu H100 cluster.gpu_kinds.H100.usd_per_hour=2.2
"""
_ANNOTATE_HELP = """\
People judge two answers of a run at a time on a page of this machine: the picture, the question, one key a verdict.
Each has a name, goes on where they were, and can take back what they said. The run may still be going on.

Verdicts go to RUN_DIR/annotations/NAME.jsonl. At the end (Ctrl-C), or with --export, what a majority decided becomes
pairs in the layout of the run's own, and the terminal says who judged how much, how far people agree with each other,
and how often the run's reward makes their choice. docs/annotate.md has the file formats.
"""
_ANNOTATE_EXAMPLES = """examples:
  csr-ray annotate runs/tiny-world                          the pairs of the last round, all of them
  csr-ray annotate runs/tiny-world --round 1 --limit 100    a hundred pairs of the first round, drawn by --seed
  csr-ray annotate runs/tiny-world --from candidates        two answers drawn for each prompt, by no reward
  csr-ray annotate runs/illume --from answers               single answers, accepted or refused (illume.accepted)
  csr-ray annotate runs/tiny-world --no-scores              without colours, so that CLIP's opinion sways nobody
  csr-ray annotate runs/tiny-world --export people.parquet  no page; the pairs that people have decided by now

keys on the page: 1 or left arrow: left is better, 2 or right arrow: right is better, 3 or t: tie, s: skip, u: undo
"""
_BENCHMARK_HELP = "pope, chair, world, or another one that csr-ray benchmarks lists"
_FLAGS_WITH_A_VALUE = ("--gpus", "--gpu", "--gpus-per-node", "--prompts", "--rates", "--json", "--config")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run one command; returns the exit code (0 done, 1 failed, 2 bad usage or config, 3 no data)."""
    _show_what_can_be_shown()
    arguments = _parser().parse_args(_flags_first(sys.argv[1:] if argv is None else argv))
    try:
        return int(arguments.run(arguments))
    except UserError as error:
        print(f"csr-ray: {error}", file=sys.stderr)
        return error.exit_code
    except ActorFailure as error:
        if shows_tracebacks():
            raise
        print(f"csr-ray: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt as error:
        print(f"csr-ray: {str(error) or 'stopped; the same command goes on where it was'}", file=sys.stderr)
        # Where the signal came in code that a library ran by `exec`, as dataclasses do while they are imported,
        # CPython remembers an unhandled KeyboardInterrupt, and `python -m csr_ray` would end by SIGINT in spite of
        # this exit code. It forgets that when it runs other code so.
        exec("")
        return EXIT_FAILED


def _show_what_can_be_shown() -> None:
    """Let stdout write a question mark for what its encoding cannot write, instead of ending the program."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")


def _flags_first(argv: Sequence[str]) -> list[str]:
    """Let flags stand anywhere between overrides, which argparse does not."""
    if argv[:1] == ["run"]:
        return ["run", *sorted(argv[1:], key=lambda word: not word.startswith("-"))]
    if argv[:1] not in (["plan"], ["doctor"]):
        return list(argv)
    flags, others, words = [], [], iter(argv[1:])
    for word in words:
        if not word.startswith("-"):
            others.append(word)
            continue
        flags.append(word)
        if word in _FLAGS_WITH_A_VALUE:
            flags += [value] if (value := next(words, None)) is not None else []
    return [argv[0], *flags, *others]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="csr-ray",
        description="Let a vision-language model improve itself, without labels: CSR on Ray.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"csr_ray {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="the whole loop; a half-finished run folder goes on, a finished one prints its result",
        description="Run a config. Starting the same run again goes on where it was; nothing done is done twice.",
    )
    run.add_argument("config", metavar="CONFIG", help="YAML file")
    run.add_argument("overrides", nargs="*", metavar="key.sub=value", help="override single keys of the config")
    run.add_argument("--fresh", action="store_true", help="move an existing run folder aside and start a new one")
    run.add_argument(
        "--redo", action="store_true", help="train again what a damaged adapter was made by, and all that came after"
    )
    run.add_argument("--dry-run", action="store_true", help="check paths and print the plan; start nothing")
    run.set_defaults(run=_run)

    plan = commands.add_parser(
        "plan",
        help="nodes, actors, hours, tokens and cost of a run, and its fastest layout; starts nothing",
        description=_PLAN_HELP,
        epilog=_PLAN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    plan.add_argument("config", metavar="CONFIG", help="YAML file")
    plan.add_argument("overrides", nargs="*", metavar="key.sub=value", help="override single keys of the config")
    plan.add_argument(
        "--gpus", type=_at_least_one, default=None, metavar="N", help="GPUs to plan for; default those of the config"
    )
    plan.add_argument("--gpu", default=None, metavar="NAME", help="their kind, by Ray's name for it (H100, A100, L4)")
    plan.add_argument("--gpus-per-node", type=_at_least_one, default=8, metavar="N", help="default 8")
    plan.add_argument(
        "--prompts", type=_at_least_one, default=None, metavar="N", help="usable prompts; default those of the file"
    )
    plan.add_argument(
        "--rates", default=None, metavar="RUN_DIR", help="take the rates that this run measured; default run.dir's"
    )
    plan.add_argument("--json", type=_path_here, default=None, metavar="OUT", help="write the plan there")
    plan.set_defaults(run=_plan)

    config = commands.add_parser("config", help="every config key, its default and what it means")
    config.set_defaults(run=_config)

    world = commands.add_parser("world", help="the embedded tiny world").add_subparsers(
        required=True, metavar="ACTION"
    )
    build = world.add_parser("build", help="build its images, texts and tiny models into a folder")
    build.add_argument("dir", metavar="DIR", type=_path_here)
    build.add_argument("--images", type=int, default=None, metavar="N", help="training scenes (default 600)")
    build.add_argument("--seed", type=int, default=0)
    build.add_argument(
        "--variant", type=_natural, default=0, metavar="N", help="which world; 0 (default): the demo's"
    )
    build.add_argument(
        "--clip-steps",
        type=_at_least_one,
        default=None,
        metavar="N",
        help="optimizer steps of the scorer; fewer make a weaker judge",
    )
    build.add_argument("--quick", action="store_true", help="train the tiny models for seconds only (poor quality)")
    build.set_defaults(run=_world_build)
    variants = world.add_parser("variants", help="in what the worlds of some numbers differ")
    variants.add_argument(
        "numbers",
        nargs="*",
        type=_natural,
        metavar="N",
        help="by default the demo's, six for choosing, six untouched",
    )
    variants.add_argument(
        "--sheet", type=_path_here, default=None, metavar="PNG", help="draw scenes of each into this file"
    )
    variants.set_defaults(run=_world_variants)

    evaluate = commands.add_parser(
        "eval",
        help="score a model on a benchmark",
        description="Ask a model the questions of a benchmark and mark its answers; or let lmms-eval measure it by "
        "official suites: csr-ray eval --model MODEL --suite lmms-eval --tasks pope,mme --lmms-install --json OUT",
    )
    evaluate.add_argument("--model", required=True, help="Hugging Face folder, or its URL (s3://...)")
    asked = evaluate.add_mutually_exclusive_group(required=True)
    asked.add_argument("--benchmark", metavar="NAME", help=_BENCHMARK_HELP)
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
    evaluate.add_argument("--limit", type=_at_least_one, default=None, metavar="N", help="first N images only")
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
    evaluate.add_argument("--actors", type=_at_least_one, default=1, metavar="N", help="engines; default 1")
    evaluate.add_argument(
        "--gpus", type=_whole, default=None, metavar="G", help="whole GPUs of each engine; default 1, or 0 on the CPU"
    )
    evaluate.add_argument(
        "--out",
        type=_path_here,
        default=None,
        metavar="DIR",
        help="keep the answers there as they come; starting the same command again goes on where it was",
    )
    _add_chair_files(evaluate)
    suite = evaluate.add_argument_group(
        "a suite, on this machine (docs/evaluation.md)",
        "With --model, --limit (questions of each task), --dtype, --gpus, --out (the suite's own files) and --json.",
    )
    suite.add_argument("--tasks", type=_names, default=(), metavar="A,B", help="by the suite's own names: pope,mme")
    suite.add_argument(
        "--lmms-python",
        type=_path_here,
        default=None,
        metavar="PYTHON",
        help="Python of an environment that has lmms-eval; default this one, or else what --lmms-install has made",
    )
    suite.add_argument(
        "--lmms-install",
        action="store_true",
        help="install lmms-eval, once, into an environment of its own in the cache, if it is nowhere yet",
    )
    suite.add_argument("--tasks-dir", type=_path_here, default=None, metavar="DIR", help="folder of further tasks")
    _add_judge(evaluate)
    _add_cluster(evaluate)
    evaluate.add_argument("--json", required=True, type=_path_here, metavar="OUT")
    evaluate.set_defaults(run=_eval)

    captions = commands.add_parser(
        "score",
        help="CLIP's scores of captions that exist",
        description="Score captions that exist with CLIP, on as many actors as asked for. Starting the same command "
        "again goes on where it was.",
    )
    captions.add_argument(
        "captions",
        metavar="CAPTIONS",
        help="Parquet, JSONL, CSV, a JSON list (id, image, caption), a WebDataset tar, or a folder of such files",
    )
    captions.add_argument("--scorer", required=True, metavar="MODEL", help="as scorer.model, see csr-ray config")
    captions.add_argument("--out", required=True, type=_path_here, metavar="DIR", help="folder of the scores")
    captions.add_argument("--images", default=None, metavar="DIR", help="folder that relative image names start from")
    captions.add_argument("--urls", action="store_true", help="images may be web pages")
    captions.add_argument("--limit", type=_at_least_one, default=None, metavar="N", help="first N captions only")
    captions.add_argument("--dtype", default="float32", choices=("float32", "tf32", "bfloat16"))
    captions.add_argument("--actors", type=_at_least_one, default=1, metavar="N", help="how many score; default 1")
    captions.add_argument(
        "--gpus", type=_share, default=0.0, metavar="G", help="of each actor, from 0 (the CPU) to 1; default 0"
    )
    _add_cluster(captions)
    captions.add_argument("--json", type=_path_here, default=None, metavar="OUT", help="write the figures there")
    captions.set_defaults(run=_score)

    score = commands.add_parser("score-answers", help="a benchmark's metric on answers that exist; no model")
    score.add_argument("--benchmark", required=True, metavar="NAME", help=_BENCHMARK_HELP)
    score.add_argument("--answers", required=True, type=_path_here, metavar="FILE")
    score.add_argument(
        "--truth",
        type=_path_here,
        default=None,
        metavar="FILE",
        help="or the folder of the benchmark's release, or of POPE's splits; not with --synonyms",
    )
    _add_chair_files(score)
    _add_judge(score)
    score.add_argument("--json", required=True, type=_path_here, metavar="OUT")
    score.set_defaults(run=_score_answers)

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
        type=_versions,
        default=(None, None),
        metavar="N[,M]",
        help="policy version of both runs, or of A and of B; default the last",
    )
    compare.add_argument("--benchmark", default=None, metavar="NAME", help="of files of answers")
    compare.add_argument(
        "--truth",
        type=_path_here,
        default=None,
        metavar="FILE",
        help="of files of answers, as for score-answers",
    )
    compare.add_argument("--shared", action="store_true", help="compare only the questions that both answered")
    compare.add_argument("--json", type=_path_here, default=None, metavar="OUT", help="write what was found there")
    compare.set_defaults(run=_compare)

    benchmarks = commands.add_parser("benchmarks", help="every benchmark, the files it reads and what it measures")
    benchmarks.set_defaults(run=_benchmarks)

    edits = commands.add_parser(
        "edit-truths",
        help="a judge writes POVID's rejected answers: edits of the prompts' truths, with invented things",
        description="Let a judge rewrite the truth of every prompt with plausible hallucinations, into the file that "
        "povid.rejected names. Starting the same command again goes on where it was.",
    )
    edits.add_argument("prompts", metavar="PROMPTS", help="as data.prompts, see csr-ray config; with a column truth")
    edits.add_argument("--images", default=None, metavar="DIR", help="folder that relative image names start from")
    edits.add_argument("--limit", type=_at_least_one, default=None, metavar="N", help="first N prompts only")
    edits.add_argument("--out", required=True, type=_path_here, metavar="FILE", help="JSONL of id and rejected")
    _add_judge(edits)
    edits.set_defaults(run=_edit_truths)

    methods = commands.add_parser("methods", help="every method: its source, what it needs, and its configs")
    methods.add_argument("name", nargs="?", default=None, metavar="NAME", help="say more of this one, with its keys")
    methods.add_argument("--json", type=_path_here, default=None, metavar="OUT", help="write the same there")
    methods.set_defaults(run=_methods)

    check = commands.add_parser(
        "check",
        help="whether everything in RUN_DIR is what was written, and what a resume would do",
        description="Prove from the files alone that no prompt is lost or doubled and no file damaged; reads only.",
    )
    check.add_argument("run_dir", metavar="RUN_DIR", help="folder or URL")
    check.add_argument("--json", type=_path_here, default=None, metavar="OUT", help="write what was found there")
    check.set_defaults(run=_check)

    report = commands.add_parser("report", help="write RUN_DIR/report.html")
    report.add_argument("run_dir", metavar="RUN_DIR", help="folder or URL")
    report.set_defaults(run=_report)

    annotate = commands.add_parser(
        "annotate",
        help="people judge answers of RUN_DIR on a local page, and decide pairs",
        description=_ANNOTATE_HELP,
        epilog=_ANNOTATE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    annotate.add_argument("run_dir", metavar="RUN_DIR", help="folder of a run, finished or not; no URL")
    annotate.add_argument(
        "--round",
        type=_at_least_one,
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
    annotate.add_argument("--limit", type=_at_least_one, default=None, metavar="N", help="N items, drawn by --seed")
    annotate.add_argument(
        "--seed", type=_natural, default=0, metavar="N", help="of order, sides and draws; default 0"
    )
    annotate.add_argument("--no-scores", action="store_true", help="do not colour sentences by their CLIP scores")
    annotate.add_argument("--port", type=_port, default=0, metavar="N", help="of the page; default any free one")
    annotate.add_argument(
        "--export",
        type=_path_here,
        default=None,
        metavar="OUT",
        help="write there what people have decided so far (Parquet; --from answers: JSON lines), and serve no page",
    )
    annotate.set_defaults(run=_annotate)

    doctor = commands.add_parser(
        "doctor", help="what this machine or cluster can run, and what is missing; or whether a config fits it"
    )
    doctor.add_argument("--deep", action="store_true", help="also import the engine (15 s)")
    doctor.add_argument("--config", default=None, metavar="CONFIG", help="compare this config with the live cluster")
    doctor.add_argument("overrides", nargs="*", metavar="key.sub=value", help="override single keys of the config")
    doctor.set_defaults(run=_doctor)
    return parser


def _add_cluster(command: argparse.ArgumentParser) -> None:
    """The flags of a command that asks a cluster for its actors by itself, without a config."""
    command.add_argument(
        "--autoscales", action="store_true", help="an autoscaler adds nodes, so wait for what has no place yet"
    )
    command.add_argument(
        "--wait",
        type=_seconds,
        default=1800.0,
        metavar="SECONDS",
        help="how long to wait for a place in the cluster; default 1800",
    )


def _add_chair_files(command: argparse.ArgumentParser) -> None:
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


def _chair_files(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in ("synonyms", "instances", "captions", "form")}


def _add_judge(command: argparse.ArgumentParser) -> None:
    """The flags of a command that may let a judge mark answers."""
    judge = command.add_argument_group("a judge, for the benchmarks that need one")
    judge.add_argument("--judge-url", default=None, metavar="URL", help="its endpoint, up to the version (.../v1)")
    judge.add_argument("--judge-model", default=None, metavar="NAME", help="its model; goes into the result")
    judge.add_argument(
        "--judge-key-env", default=None, metavar="VARIABLE", help="environment variable of its key; default none"
    )
    judge.add_argument(
        "--judge-prompt", type=_path_here, default=None, metavar="FILE", help="what it is told; default our own words"
    )
    judge.add_argument(
        "--judge",
        action="append",
        default=[],
        metavar="key=value",
        help="a further key (docs/judges.md): max_cost_usd, concurrency, requests_per_minute, timeout_s, ...",
    )


def _judge_of(arguments: argparse.Namespace) -> JudgeFlags:
    from csr_ray.app.judge import JudgeFlags

    return JudgeFlags(
        url=arguments.judge_url,
        model=arguments.judge_model,
        key_env=arguments.judge_key_env,
        prompt=arguments.judge_prompt,
        settings=tuple(arguments.judge),
    )


def _path_here(name: str) -> Path:
    """An argument that has to be a path of this machine; a URL would become a folder named `s3:`."""
    if "://" in name:
        raise argparse.ArgumentTypeError(f"{name!r} is a URL; name a path of this machine")
    return Path(name)


def _lasting(path: Path, *, flag: str) -> Path:
    """Where a command writes what it was told by this flag; in a job that may be another place, and is said."""
    from csr_ray.app.job import placed_for_a_job

    placed, line = placed_for_a_job({flag: path})
    if line:
        print(line)
    return placed[flag] or path


def _run(arguments: argparse.Namespace) -> int:
    from csr_ray.app.run import run_config

    return run_config(
        arguments.config,
        overrides=arguments.overrides,
        fresh=arguments.fresh,
        dry_run=arguments.dry_run,
        redo=arguments.redo,
    )


def _plan(arguments: argparse.Namespace) -> int:
    from csr_ray.app.console import UnattendedConsole
    from csr_ray.app.forecast import Asked, make_forecast
    from csr_ray.app.forecast_page import print_forecast
    from csr_ray.store.atomic import write_json

    planned = make_forecast(
        arguments.config,
        overrides=arguments.overrides,
        asked=Asked(
            num_gpus=arguments.gpus,
            kind=arguments.gpu,
            gpus_a_node=arguments.gpus_per_node,
            num_prompts=arguments.prompts,
            rates_of=arguments.rates,
        ),
    )
    # Where nobody looks at a terminal, lines are as wide as the tables are.
    print_forecast(planned, console=UnattendedConsole(highlight=False, width=None if sys.stdout.isatty() else 140))
    if arguments.json is not None:
        write_json(_lasting(arguments.json, flag="--json"), value=planned.to_plain())
    return EXIT_DONE


def _config(_: argparse.Namespace) -> int:
    from csr_ray.config.load import print_keys

    print_keys()
    return EXIT_DONE


def _world_build(arguments: argparse.Namespace) -> int:
    from csr_ray.app.run import world_spec
    from csr_ray.config.schema import World
    from csr_ray.world.build import build_world

    if arguments.images is not None and arguments.images < 8:
        print(f"csr-ray: --images = {arguments.images}: at least 8", file=sys.stderr)
        return EXIT_BAD_CONFIG
    world = World(
        seed=arguments.seed,
        variant=arguments.variant,
        quick=arguments.quick,
        clip_steps=arguments.clip_steps,
        num_train_images=arguments.images or 600,
    )
    folder = _lasting(arguments.dir, flag="DIR")
    build_world(folder, spec=world_spec(world))
    print(f"world: {folder}")
    return EXIT_DONE


def _world_variants(arguments: argparse.Namespace) -> int:
    from csr_ray.world.table import draw_sheet, print_variants
    from csr_ray.world.variant import DEVELOPMENT_VARIANTS, UNTOUCHED_VARIANTS

    numbers = arguments.numbers or [0, *DEVELOPMENT_VARIANTS, *UNTOUCHED_VARIANTS]
    print_variants(numbers)
    if arguments.sheet is not None:
        try:
            draw_sheet(numbers, path=arguments.sheet)
        except (OSError, ValueError) as error:  # no such folder, no picture's ending
            print(f"csr-ray: --sheet = {arguments.sheet}: {error}", file=sys.stderr)
            return EXIT_BAD_CONFIG
        print(f"sheet: {arguments.sheet}")
    return EXIT_DONE


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
        judged_by=_judge_of(arguments),
        output=arguments.json,
        ask=arguments.ask,
        decoding=arguments.decoding,
        chair={f"chair_{name}": value for name, value in _chair_files(arguments).items() if value},
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
        output=_lasting(arguments.json, flag="--json"),
    )
    print_results(found)
    return EXIT_DONE


def _score(arguments: argparse.Namespace) -> int:
    from csr_ray.app.commands import score_captions
    from csr_ray.config.schema import Cluster, Data, Scorer, Scorers

    score_captions(
        arguments.captions,
        scorer=Scorer(model=arguments.scorer, dtype=arguments.dtype),
        scorers=Scorers(min=arguments.actors, max=arguments.actors, gpus=arguments.gpus),
        data=Data(prompts=arguments.captions, images=arguments.images, urls=arguments.urls, limit=arguments.limit),
        cluster=Cluster(autoscales=arguments.autoscales, wait_s=arguments.wait),
        output=arguments.out,
        json_output=arguments.json,
    )
    return EXIT_DONE


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1")
    return number


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text}: a whole number, at least 0")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text}: a port, 1 to 65535, or 0 for any free one")
    return int(text)


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text}: a whole number, or 0 for the CPU")
    return int(text)


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: more than 0")
    return number


def _share(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text}: from 0 to 1")
    return number


def _score_answers(arguments: argparse.Namespace) -> int:
    from csr_ray.app.console import UnattendedConsole
    from csr_ray.app.figures_table import print_figures
    from csr_ray.app.flags import named
    from csr_ray.app.judge import JUDGE_FLAGS, replies_file
    from csr_ray.evaluation.benchmarks.marking import mark_file
    from csr_ray.evaluation.chair_truth import official_files
    from csr_ray.store.results import write_result

    output = _lasting(arguments.json, flag="--json")
    given = _chair_files(arguments)
    chair_files = official_files(
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
            judge=_judge_of(arguments).session(replies_file(output)),
            chair_files=chair_files,
        )
    write_result(output, value=result)
    print_figures(result, console=UnattendedConsole(highlight=False, width=None if sys.stdout.isatty() else 140))
    return EXIT_DONE


def _edit_truths(arguments: argparse.Namespace) -> int:
    from csr_ray.app.edits import write_edits
    from csr_ray.app.flags import named
    from csr_ray.app.judge import JUDGE_FLAGS, replies_file

    output = _lasting(arguments.out, flag="--out")
    with named(JUDGE_FLAGS):
        session = _judge_of(arguments).session(replies_file(output))
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


def _versions(text: str) -> tuple[int, int]:
    """One policy version for both sides, or one for each."""
    parts = text.split(",")
    if not 1 <= len(parts) <= 2 or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text}: a version such as 3, or two such as 0,3")
    return int(parts[0]), int(parts[-1])


def _compare(arguments: argparse.Namespace) -> int:
    from csr_ray.app.compare import compare, print_comparison
    from csr_ray.app.console import UnattendedConsole
    from csr_ray.store.atomic import write_json

    output = None if arguments.json is None else _lasting(arguments.json, flag="--json")
    found = compare(
        arguments.a,
        arguments.b,
        versions=arguments.version,
        benchmark=arguments.benchmark,
        truth=arguments.truth,
        only_shared=arguments.shared,
    )
    # Where nobody looks at a terminal, lines are as wide as the table is.
    print_comparison(found, console=UnattendedConsole(highlight=False, width=None if sys.stdout.isatty() else 140))
    if output is not None:
        write_json(output, value=found.to_plain())
    return EXIT_DONE


def _benchmarks(_: argparse.Namespace) -> int:
    from csr_ray.app.benchmarks import print_benchmarks
    from csr_ray.app.console import UnattendedConsole

    print_benchmarks(console=UnattendedConsole(highlight=False, width=None if sys.stdout.isatty() else 140))
    return EXIT_DONE


def _methods(arguments: argparse.Namespace) -> int:
    from csr_ray.app.console import UnattendedConsole
    from csr_ray.app.methods import methods_as_plain, print_method, print_methods
    from csr_ray.store.atomic import write_json

    output = None if arguments.json is None else _lasting(arguments.json, flag="--json")
    console = UnattendedConsole(highlight=False, width=None if sys.stdout.isatty() else 140)
    if arguments.name is None:
        print_methods(console=console)
    else:
        print_method(arguments.name, console=console)
    if output is not None:
        write_json(output, value={"methods": methods_as_plain(arguments.name)})
    return EXIT_DONE


def _check(arguments: argparse.Namespace) -> int:
    from csr_ray.app.place import check

    output = None if arguments.json is None else _lasting(arguments.json, flag="--json")
    return check(arguments.run_dir, output=output)


def _report(arguments: argparse.Namespace) -> int:
    from csr_ray.app.place import report

    print(report(arguments.run_dir))
    return EXIT_DONE


def _annotate(arguments: argparse.Namespace) -> int:
    from csr_ray.app.annotate import Asked, annotate, export
    from csr_ray.app.console import UnattendedConsole

    console = UnattendedConsole(highlight=False, width=None if sys.stdout.isatty() else 140)
    if arguments.export is not None:
        output = _lasting(arguments.export, flag="--export")
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
    )
    annotate(arguments.run_dir, asked=asked, console=console)
    return EXIT_DONE


def _doctor(arguments: argparse.Namespace) -> int:
    from csr_ray.app.doctor import diagnose, print_report

    if arguments.config is not None:
        from csr_ray.app.commands import doctor_config

        checks, can_run = doctor_config(arguments.config, overrides=arguments.overrides)
    elif arguments.overrides:
        print(f"csr-ray: {arguments.overrides[0]} without a config: name one with --config", file=sys.stderr)
        return EXIT_BAD_CONFIG
    else:
        checks, can_run = diagnose(deep=arguments.deep)
    print_report(checks)
    return EXIT_DONE if can_run else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
