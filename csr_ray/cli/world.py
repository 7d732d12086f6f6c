"""`csr-ray world`: the embedded tiny world."""

from __future__ import annotations

import argparse
import sys

from csr_ray.cli.arguments import Commands, at_least_one, lasting, natural, path_here
from csr_ray.errors import EXIT_BAD_CONFIG, EXIT_DONE


def add_parser(commands: Commands) -> None:
    """Add the command to the parser."""
    world = commands.add_parser("world", help="the embedded tiny world").add_subparsers(
        required=True, metavar="ACTION"
    )
    build = world.add_parser("build", help="build its images, texts and tiny models into a folder")
    build.add_argument("dir", metavar="DIR", type=path_here, help="folder of the world; made if it is not there")
    build.add_argument("--images", type=int, default=None, metavar="N", help="training scenes (default 600)")
    build.add_argument("--seed", type=int, default=0, help="of its scenes, splits and models; default 0")
    build.add_argument("--variant", type=natural, default=0, metavar="N", help="which world; 0 (default): the demo's")
    build.add_argument(
        "--clip-steps",
        type=at_least_one,
        default=None,
        metavar="N",
        help="optimizer steps of the scorer; fewer make a weaker judge",
    )
    build.add_argument("--quick", action="store_true", help="train the tiny models for seconds only (poor quality)")
    build.set_defaults(run=_build)
    variants = world.add_parser("variants", help="in what the worlds of some numbers differ")
    variants.add_argument(
        "numbers",
        nargs="*",
        type=natural,
        metavar="N",
        help="by default the demo's, six for choosing, six untouched",
    )
    variants.add_argument(
        "--sheet", type=path_here, default=None, metavar="PNG", help="draw scenes of each into this file"
    )
    variants.set_defaults(run=_variants)


def _build(arguments: argparse.Namespace) -> int:
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
    folder = lasting(arguments.dir, flag="DIR")
    build_world(folder, spec=world_spec(world))
    print(f"world: {folder}")
    return EXIT_DONE


def _variants(arguments: argparse.Namespace) -> int:
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
