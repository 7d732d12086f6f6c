"""What a sentence costs a CPU scorer with CLIP's own text tower, and what leaving out its padding saves.

Random weights, which cost what trained ones cost. Prints `text_s` (seconds a sentence), `text_padded_s` (open_clip's
`encode_text`, 77 positions) and `text_speedup`, the ratio of medians of alternating turns. `open_clip_s [batch N]` is
open_clip's own at other batches, without tokenizing. `scorer_s` is what the scorer takes for a sentence that it has
never seen, of a picture that it knows, all included, and `scorer_vs_best_batch` how many times as fast it is as
open_clip at the batch that suits it best. `scorer_bfloat16_s` is that of towers in bfloat16, and `bfloat16_error` the
most by which their scores are off, in points (of 100).

With --address or --replicas it measures instead how the scorers of a cluster scale, as a run has them, with trained
weights: `sentences_per_s_<n>` of n scorers, each with the same work whatever their number, `sentences_per_s_per_gpu`,
`sentences_per_s_per_node` and `scaling_efficiency_<n>`; 1, N, 1, N, medians. Every sentence is new, and about one of
a few pictures, whose embeddings the scorers keep.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])

from embedded_world import default_world
from on_cluster import (
    add_flags,
    carry,
    headline_of,
    in_turns,
    is_scaling,
    joined,
    node_of,
    print_rows,
    say,
    scaling_rows,
)
from random_llava import picture
from result_file import add_json_flag, told_in_a_line, versions_of, write_result

from csr_ray.config.load import parse_config
from csr_ray.config.schema import Config
from csr_ray.machine.placement import Demand, scorer_demand
from csr_ray.records import Picture

NUM_PICTURES = 8
AT_ONCE = 4
"""Calls that each scorer has, so that it is never without work."""

BASE = "The image features a large brown dog sitting on a wooden bench next to a small red ball."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-L-14-336-quickgelu", help="open_clip's name of an architecture")
    parser.add_argument("--batch", type=int, default=64, help="sentences that are embedded together")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    add_flags(parser, replicas="scorers")
    parser.add_argument(
        "--clip",
        default=None,
        help="of scaling: as `scorer.model`; default: the embedded world's, which is brought",
    )
    parser.add_argument("--world", type=Path, default=None, help="of scaling: folder of `csr-ray world build`")
    parser.add_argument("--batches", type=int, default=32, help="of scaling: a turn, for each scorer")
    add_json_flag(parser)
    arguments = parser.parse_args()
    if is_scaling(arguments):
        return scaling(arguments)

    import open_clip
    import torch

    from actors.score.clip import ClipModel
    from actors.score.text_tower import TextTower

    torch.set_num_threads(arguments.threads)
    config = open_clip.get_model_config(arguments.model)
    config["vision_cfg"]["layers"] = 1  # the image tower is not what is measured
    model = open_clip.CLIP(**config).eval().requires_grad_(False)
    words = BASE.split()
    texts = [" ".join(words[number % 5 :]) + f" {number} more." for number in range(arguments.batch)]
    tokens = open_clip.get_tokenizer(arguments.model)(texts)
    tower = TextTower(model)
    needed = tokens[:, : tower.num_needed(tokens)]

    numbers = itertools.count()
    seen = picture(0, side_px=336)

    def unseen() -> list[str]:
        return [f"{text} And {next(numbers)} others." for text in texts]

    with tempfile.TemporaryDirectory() as directory:
        seen.save(Path(directory) / "seen.png")
        asked = Picture(path=str(Path(directory) / "seen.png"))
        folder = _saved(model, config=config, directory=Path(directory) / "clip")
        scorers = {dtype: ClipModel(str(folder), dtype=dtype, device="cpu") for dtype in ("float32", "bfloat16")}
        plain, rounded = (scorer.scores([(asked, text) for text in texts])[0] for scorer in scorers.values())

        def score(dtype: str) -> Callable[[], object]:
            return lambda: scorers[dtype].scores([(asked, text) for text in unseen()])

        def in_batches_of(size: int) -> Callable[[], object]:
            return lambda: [model.encode_text(tokens[start : start + size]) for start in range(0, len(tokens), size)]

        sizes = [size for size in (1, 4, 16, 64, 256) if size < len(texts)]
        turns: dict[str, Callable[[], object]] = {
            "text_padded_s": lambda: model.encode_text(tokens),
            "text_s": lambda: tower.encode(needed),
            "scorer_s": score("float32"),
            "scorer_bfloat16_s": score("bfloat16"),
            **{f"open_clip_s [batch {size}]": in_batches_of(size) for size in sizes},
        }
        seconds: dict[str, list[float]] = {name: [] for name in turns}
        with torch.inference_mode():
            for _ in range(arguments.repeats):
                for name, turn in turns.items():
                    started_s = time.perf_counter()
                    turn()
                    seconds[name].append((time.perf_counter() - started_s) / len(texts))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    best_s = min(value for name, value in medians.items() if name.startswith(("open_clip_s", "text_padded_s")))
    rows = [
        {"name": "text_speedup", "value": medians["text_padded_s"] / medians["text_s"], "unit": "ratio"},
        {"name": "scorer_vs_best_batch", "value": best_s / medians["scorer_s"], "unit": "x open_clip's best batch"},
        *({"name": name, "value": value, "unit": "s a sentence"} for name, value in medians.items()),
        {
            "name": "bfloat16_error",
            "value": max(abs(one - other) for one, other in zip(plain, rounded, strict=True)),
            "unit": "points of 100, max",
        },
        {"name": "positions", "value": needed.shape[1], "unit": f"of {tokens.shape[1]}"},
    ]
    print_rows(rows)
    write_result(
        arguments.json,
        name="clip",
        versions=versions_of("torch", "open_clip_torch"),
        headline="text_speedup",
        rows=rows,
    )


def _saved(model: Any, *, config: dict[str, Any], directory: Path) -> Path:
    """The model as a folder that a scorer can load."""
    from safetensors.torch import save_file

    directory.mkdir()
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3}
    plain = {"model_cfg": config, "preprocess_cfg": preprocess}
    (directory / "open_clip_config.json").write_text(json.dumps(plain))
    save_file(model.state_dict(), directory / "open_clip_model.safetensors")
    return directory


def scaling(arguments: argparse.Namespace) -> None:
    """How the scorers of a cluster scale."""

    def demands_of(num: int, gpus: float) -> list[Demand]:
        return [scorer_demand(_config("-", gpus=gpus, num=num, batch=arguments.batch).scorers)]

    with joined(arguments, demands_of=demands_of) as found, tempfile.TemporaryDirectory() as directory:
        model = arguments.clip or str(carry((arguments.world or default_world()).absolute() / "clip"))
        images = Path(directory) / "pictures"
        images.mkdir()
        for index in range(NUM_PICTURES):
            picture(index, side_px=336).save(images / f"{index}.png")
        images = carry(images)
        pictures = [Picture(path=str(images / f"{index}.png")) for index in range(NUM_PICTURES)]
        config = _config(model, gpus=found.gpus, num=found.counts[-1], batch=arguments.batch)
        rates, nodes = _measure(config, pictures, counts=found.counts, arguments=arguments)
        machine = found.machine
    num_gpus = math.ceil(found.gpus * found.counts[-1])
    rows = scaling_rows(rates, what="sentences", unit="sentences/s", nodes=nodes, num_gpus=num_gpus)
    print_rows(rows)
    write_result(
        arguments.json,
        name="clip",
        versions=versions_of("torch", "open_clip_torch", "ray"),
        headline=headline_of(rates, what="sentences"),
        rows=rows,
        machine=machine,
        model=arguments.clip or "embedded world",
    )


def _measure(
    config: Config, pictures: list[Picture], *, counts: tuple[int, ...], arguments: argparse.Namespace
) -> tuple[dict[int, list[float]], list[str]]:
    """Sentences per second by number of scorers, and the node of each."""
    import ray

    from actors.cluster.nodes import check_nodes
    from actors.runtime import _ScorerStarter, _wanted

    assert config.scorer is not None
    wanted = _wanted("", scorer=config.scorer.model, picture=pictures[0].path)
    if wanted is not None:
        check_nodes(wanted, demands=[scorer_demand(config.scorers)], say=say)
    starter = _ScorerStarter(config, logs=Path("unused"), wanted=wanted)
    scorers = [starter.start(slot) for slot in range(counts[-1])]
    try:
        ray.get([scorer.ready.remote() for scorer in scorers])
        numbers = itertools.count()

        def batch() -> list[tuple[Picture, list[str]]]:
            size = max(1, arguments.batch // NUM_PICTURES)
            return [(one, [f"{BASE} Number {next(numbers)}." for _ in range(size)]) for one in pictures]

        def rate_of(num: int) -> float:
            work = {index: [batch() for _ in range(arguments.batches)] for index in range(num)}
            num_sentences = sum(len(texts) for own in work.values() for asked in own for _, texts in asked)
            began_s = time.perf_counter()
            running: dict[Any, int] = {}
            for index in itertools.chain.from_iterable(itertools.repeat(range(num), AT_ONCE)):
                if work[index]:
                    running[scorers[index].score.remote(work[index].pop())] = index
            while running:
                (done,), _ = ray.wait(list(running))
                index = running.pop(done)
                for answer in ray.get(done):
                    if isinstance(answer, Exception):
                        raise answer
                if work[index]:
                    running[scorers[index].score.remote(work[index].pop())] = index
            return num_sentences / (time.perf_counter() - began_s)

        rate_of(counts[-1])  # each scorer embeds the pictures once
        rates = in_turns(counts, repeats=arguments.repeats, rate_of=rate_of, unit="sentences/s")
        return rates, [node_of(scorer) for scorer in scorers]
    finally:
        for scorer in scorers:
            ray.kill(scorer)


def _config(model: str, *, gpus: float, num: int, batch: int) -> Config:
    return parse_config(
        {
            "data": {"prompts": "-"},
            "policy": {"model": "-"},
            "scorer": {"model": model, "max_batch": batch},
            "scorers": {"min": num, "max": num, "gpus": gpus},
        }
    )


if __name__ == "__main__":
    told_in_a_line(main)
