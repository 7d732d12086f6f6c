"""`csr-ray score`: CLIP's scores of captions that exist."""

from __future__ import annotations

import argparse

from csr_ray.cli.arguments import Commands, add_cluster, at_least_one, path_here, share
from csr_ray.errors import EXIT_DONE


def add_parser(commands: Commands) -> None:
    """Add the command to the parser."""
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
    captions.add_argument("--out", required=True, type=path_here, metavar="DIR", help="folder of the scores")
    captions.add_argument("--images", default=None, metavar="DIR", help="folder that relative image names start from")
    captions.add_argument("--urls", action="store_true", help="images may be web pages")
    captions.add_argument("--limit", type=at_least_one, default=None, metavar="N", help="first N captions only")
    captions.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "tf32", "bfloat16"),
        help="numbers in which the scorer computes, as scorer.dtype; default float32",
    )
    captions.add_argument("--actors", type=at_least_one, default=1, metavar="N", help="how many score; default 1")
    captions.add_argument(
        "--gpus", type=share, default=0.0, metavar="G", help="of each actor, from 0 (the CPU) to 1; default 0"
    )
    add_cluster(captions)
    captions.add_argument("--json", type=path_here, default=None, metavar="OUT", help="write the figures there")
    captions.set_defaults(run=_score)


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
