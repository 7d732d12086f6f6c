"""`csr-ray plan`: what a run needs and costs."""

from __future__ import annotations

import argparse

from csr_ray.cli.arguments import Commands, at_least_one, lasting_file, path_here
from csr_ray.errors import EXIT_DONE

_DESCRIPTION = """\
What a run needs and costs: actors, memory, tokens, hours and dollars. Starts nothing, and needs neither the prompts
nor the model on this machine.

  time = start + evaluation + rounds x (rollout + train + publish + evaluation) + end

Each stage is so many prompts, pairs or answers at a rate. Where run.dir holds a run with a finished round of the same
policy, or --rates names one, the rates are that run's own; else they are assumed from what a GPU of the kind computes
and moves, and the plan says so line by line. docs/plan.md has the formula with every symbol.
"""
_EXAMPLES = """examples:
  csr-ray plan configs/tiny-world.yaml                                      on this machine's CPUs
  csr-ray plan configs/llava15-7b.yaml --prompts 12856 --gpus 8 --gpu A100  the layouts of eight A100s, fastest first
  csr-ray plan configs/llava15-7b.yaml --prompts 12856 --gpus 8 --gpu H100 cluster.gpu_kinds.H100.usd_per_hour=2.2
"""


def add_parser(commands: Commands) -> None:
    """Add the command to the parser."""
    plan = commands.add_parser(
        "plan",
        help="nodes, actors, hours, tokens and cost of a run, and its fastest layout; starts nothing",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    plan.add_argument("config", metavar="CONFIG", help="YAML file")
    plan.add_argument("overrides", nargs="*", metavar="key.sub=value", help="override single keys of the config")
    plan.add_argument(
        "--gpus", type=at_least_one, default=None, metavar="N", help="GPUs to plan for; default those of the config"
    )
    plan.add_argument("--gpu", default=None, metavar="NAME", help="their kind, by Ray's name for it (H100, A100, L4)")
    plan.add_argument("--gpus-per-node", type=at_least_one, default=8, metavar="N", help="default 8")
    plan.add_argument(
        "--prompts", type=at_least_one, default=None, metavar="N", help="usable prompts; default those of the file"
    )
    plan.add_argument(
        "--rates", default=None, metavar="RUN_DIR", help="take the rates that this run measured; default run.dir's"
    )
    plan.add_argument("--json", type=path_here, default=None, metavar="OUT", help="write the plan there")
    plan.set_defaults(run=_plan)


def _plan(arguments: argparse.Namespace) -> int:
    from csr_ray.app.console import result_console
    from csr_ray.app.forecast import Asked, make_forecast
    from csr_ray.app.forecast_page import print_forecast
    from csr_ray.store.atomic import write_json

    output = None if arguments.json is None else lasting_file(arguments.json, flag="--json")
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
    print_forecast(planned, console=result_console())
    if output is not None:
        write_json(output, value=planned.to_plain())
    return EXIT_DONE
