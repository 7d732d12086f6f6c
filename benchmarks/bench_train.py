"""How much faster than TRL's own DPO trainer is the shared-prefix step, and how near is that to the arithmetic?

The same random LLaVA, the same pairs (576 image tokens, as LLaVA-1.5 has), the same cores, LoRA, float32. Theirs:
`trl.DPOTrainer` with its own collator and its own reference forward. Ours: one sequence a pair, with the engine's
log-probs as reference (`csr_ray` as it runs; both without DeepSpeed). Each phase is a process of its own, in turn A B
A B; figures are medians over all steps but each phase's first. Peak memory is the process's largest resident size
above that of the loaded model. `flop_ratio` counts the matrix products of one step of each, `token_ratio` is the
arithmetic of 4 rows' forwards and 2 rows' backwards against one sequence's
(`csr_ray.training.shared_prefix.flops_ratio`).

Then the start-up, through the train group of a run (Ray Train, DeepSpeed, one worker) on the same model and pairs:
seconds from the start of the driver's process until the first round's first step is done, and, in the second round,
from the order to train until its first step is done. Both contain that step.

With --address or --replicas it measures instead how training scales over the workers of a cluster, by the same train
group, as many pairs for each worker whatever their number; 1, N, 1, N, each time a group of its own, medians over the
steps but the first:

    pairs_per_s_<n>          of n workers
    pairs_per_s_per_gpu, pairs_per_s_per_node     of the most of them; without GPUs there is no row a GPU
    scaling_efficiency_<n>   the rate of n over n times that of one
    start_s_<n>              from the start of the group until all of its workers are ready
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from on_cluster import (
    Found,
    add_flags,
    carry,
    headline_of,
    in_turns,
    is_scaling,
    joined,
    print_rows,
    scaling_rows,
    spread,
)
from random_llava import Shape, as_examples, build, pairs_of, picture
from result_file import add_json_flag, told_in_a_line, versions_of, write_result
from train_sides import NUM_PROMPT_TOKENS, Side, lora_of, our_side, settings_of, trl_side

from csr_ray.config.schema import Config
from csr_ray.machine.placement import Demand, train_demand

VERSIONS = ("torch", "trl", "transformers", "deepspeed", "ray")
EXAMPLES = """
examples:
  python benchmarks/bench_train.py --json train.json
  python benchmarks/bench_train.py --pack-tokens 2048              pairs of unlike lengths in common rows
  python benchmarks/bench_train.py --address auto --json scaling.json     workers on the cluster, as many as fit
  python benchmarks/bench_train.py --hidden 128 --layers 2 --pairs 2 --steps 2 --phases 1    does it run at all
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=4, help="pairs a step")
    parser.add_argument("--steps", type=int, default=3, help="steps a phase; the first is not counted")
    parser.add_argument("--phases", type=int, default=2, help="phases of each kind")
    parser.add_argument("--answer-tokens", type=int, nargs=2, default=[80, 160], metavar=("MIN", "MAX"))
    parser.add_argument("--pack-tokens", type=int, default=None, help="ours: tokens a row; default: a row a pair")
    parser.add_argument("--hidden", type=int, default=768, help="width of the language model, a multiple of 64")
    parser.add_argument("--layers", type=int, default=12, help="of the language model")
    parser.add_argument("--rank", type=int, default=16, help="of the LoRA")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch, in every process")
    parser.add_argument("--no-start-up", action="store_true", help="leave out what goes through Ray Train")
    add_flags(parser, replicas="train workers")
    add_json_flag(parser)
    parser.add_argument("--phase", choices=("trl", "ours", "start_up"), help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--started-s", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.phase:
        run = start_up if arguments.phase == "start_up" else run_phase
        print(json.dumps(run(arguments)))
        return
    if is_scaling(arguments):
        return scaling(arguments)
    shape = _shape(arguments)
    with tempfile.TemporaryDirectory() as directory:
        model = build(Path(directory) / "model", shape=shape)
        phases: dict[str, list[dict[str, Any]]] = {"trl": [], "ours": []}
        for _ in range(arguments.phases):
            for kind in phases:
                phases[kind].append(_in_process(kind, model=model))
                print(f"{kind:<5} {json.dumps(phases[kind][-1]['step_s'])} s a step", flush=True)
        first_step_s = [] if arguments.no_start_up else _in_process("start_up", model=model)["first_step_s"]
    rows = rows_of(phases, num_pairs=arguments.pairs, first_step_s=first_step_s)
    print_rows(rows)
    write_result(
        arguments.json,
        name="train",
        versions=phases["ours"][0]["versions"],
        headline="vs_trl_pairs_per_s",
        rows=rows,
        settings=_settings_of(arguments),
    )


def _settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        key: value for key, value in vars(arguments).items() if key not in ("json", "model", "phase", "started_s")
    }


def scaling(arguments: argparse.Namespace) -> None:
    """How training scales over the workers of a cluster."""

    def demands_of(num: int, gpus: float) -> list[Demand]:
        return [train_demand(_config(arguments, num_workers=num, gpus=gpus).train)]

    with joined(arguments, demands_of=demands_of) as found, tempfile.TemporaryDirectory() as directory:
        arguments.model = carry(build(Path(directory) / "model", shape=_shape(arguments)))
        pictures = Path(directory) / "pictures"
        pictures.mkdir()
        for index in range(arguments.pairs):
            picture(index, side_px=_shape(arguments).image_px).save(pictures / f"{index}.png")
        pictures = carry(pictures)
        images = [str(pictures / f"{index}.png") for index in range(arguments.pairs)]
        starts_s: dict[int, list[float]] = {}
        nodes: list[str] = []

        def rate_of(num: int) -> float:
            folder = Path(directory) / f"turn_{num}_{len(starts_s.get(num, ()))}"
            rate, start_s, own_nodes = _train(arguments, folder=folder, found=found, images=images, num_workers=num)
            starts_s.setdefault(num, []).append(start_s)
            if num == found.counts[-1]:
                nodes[:] = own_nodes
            return rate

        rates = in_turns(found.counts, repeats=arguments.phases, rate_of=rate_of, unit="pairs/s")
        machine = found.machine
    # Two workers are never on one GPU.
    num_gpus = found.counts[-1] * max(1, int(found.gpus)) if found.gpus else 0
    rows = scaling_rows(rates, what="pairs", unit="pairs/s", nodes=nodes, num_gpus=num_gpus)
    rows += [
        spread(f"start_s_{num}", values, unit="s until all workers are ready") for num, values in starts_s.items()
    ]
    print_rows(rows)
    write_result(
        arguments.json,
        name="train",
        versions=versions_of(*VERSIONS),
        headline=headline_of(rates, what="pairs"),
        rows=rows,
        machine=machine,
        settings=_settings_of(arguments),
    )


def _train(
    arguments: argparse.Namespace, *, folder: Path, found: Found, images: Sequence[str], num_workers: int
) -> tuple[float, float, list[str]]:
    """One order by a group of so many workers: pairs per second, the start in seconds, the node of each worker."""
    from transformers import AutoTokenizer

    from actors.train.group import TrainerGroup
    from csr_ray.records import Cycle, TrainOrder
    from csr_ray.store.tables import Outcome, write_example_unit

    config = _config(arguments, num_workers=num_workers, gpus=found.gpus)
    batch = config.train.batch_size
    num_pairs = batch * arguments.steps
    texts = _texts(arguments, num=num_pairs)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    pairs = as_examples(texts, images=[images[i % len(images)] for i in range(num_pairs)], tokenizer=tokenizer)
    write_example_unit(folder / "pairs.parquet", examples=pairs, outcome=Outcome())
    group = TrainerGroup(
        config.train, model=str(arguments.model), adapters=(), logs=folder / "logs", seed=config.run.seed
    )
    steps_s: list[float] = []
    started_s = time.perf_counter()
    try:
        group.start()
        group.wait_until_ready()
        start_s = time.perf_counter() - started_s
        order = TrainOrder(
            cycle=Cycle(round_index=0), output_dir=str(folder / "adapter"), num_examples_at_most=num_pairs
        )
        group.begin(order)
        group.offer([str(folder / "pairs.parquet")])
        group.finish(on_step=lambda *_: steps_s.append(time.perf_counter()))
        nodes = _nodes_of(group)
    finally:
        group.close()
    between = [later - earlier for earlier, later in itertools.pairwise(steps_s)]
    return batch / statistics.median(between), start_s, nodes


def _nodes_of(group: Any) -> list[str]:
    """The node of each worker of a group that serves."""
    from ray.util import placement_group_table

    return list(placement_group_table(group._attempt._place)["bundles_to_node_id"].values())


def rows_of(
    phases: dict[str, list[dict[str, Any]]], *, num_pairs: int, first_step_s: Sequence[float]
) -> list[dict[str, Any]]:
    step_s = {kind: statistics.median(s for phase in runs for s in phase["step_s"]) for kind, runs in phases.items()}
    peak = {kind: statistics.median(phase["peak_bytes"] for phase in runs) for kind, runs in phases.items()}
    flops = {kind: runs[0]["flops"] for kind, runs in phases.items()}
    rate = step_s["trl"] / step_s["ours"]
    flop_ratio = flops["trl"] / flops["ours"]
    logp_gap = abs(phases["trl"][0]["chosen_logp"] / phases["ours"][0]["chosen_logp"] - 1)

    def row(name: str, value: float, unit: str) -> dict[str, Any]:
        return {"name": name, "value": value, "unit": unit}

    return [
        row("vs_trl_pairs_per_s", rate, "x"),
        row("vs_trl_peak_memory", peak["ours"] / peak["trl"], "of TRL's"),
        row("flop_ratio", flop_ratio, "x fewer"),
        row("token_ratio", phases["ours"][0]["token_ratio"], "x fewer token-forwards"),
        row("share_of_flop_ratio", rate / flop_ratio, "share"),
        row("trl_pairs_per_s", num_pairs / step_s["trl"], "pairs/s"),
        row("ours_pairs_per_s", num_pairs / step_s["ours"], "pairs/s"),
        row("trl_peak", peak["trl"] / 2**20, "MiB"),
        row("ours_peak", peak["ours"] / 2**20, "MiB"),
        row("ours_gflops_per_s", flops["ours"] / step_s["ours"] / 1e9, "GFLOP/s"),
        row("trl_gflops_per_s", flops["trl"] / step_s["trl"] / 1e9, "GFLOP/s"),
        row("chosen_logp_gap", logp_gap, "relative, first step"),
        *(
            row(f"start_to_first_step_s [round {index}]", seconds, "s, the step included")
            for index, seconds in enumerate(first_step_s, start=1)
        ),
    ]


def start_up(arguments: argparse.Namespace) -> dict[str, Any]:
    """Two rounds of one step each by a run's train group, from this process's start."""
    import ray

    from actors.cluster.connect import connect
    from actors.train.group import TrainerGroup
    from csr_ray.records import Cycle, TrainOrder
    from csr_ray.store.tables import Outcome, write_example_unit

    config = _config(arguments, num_workers=1, gpus=0.0)
    folder = arguments.model.parent
    images = []
    for index in range(arguments.pairs):
        images.append(str(folder / f"{index}.png"))
        picture(index, side_px=_shape(arguments).image_px).save(images[-1])
    connect(num_cpus_needed=3)
    model = str(arguments.model.absolute())
    group = TrainerGroup(config.train, model=model, adapters=(), logs=folder / "logs", seed=config.run.seed)
    group.start()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    texts = _texts(arguments)
    first_step_s: list[float] = []
    started_s = arguments.started_s
    try:
        for index in range(2):
            round_folder = folder / f"round_{index}"
            pairs = as_examples(texts, images=images, tokenizer=tokenizer, policy_version=index)
            write_example_unit(round_folder / "pairs.parquet", examples=pairs, outcome=Outcome())
            order = TrainOrder(
                cycle=Cycle(round_index=index, policy_version=index),
                output_dir=str(round_folder / "adapter"),
                num_examples_at_most=len(pairs),
            )
            if index:
                started_s = time.time()
            steps: list[float] = []
            group.begin(order)
            group.offer([str(round_folder / "pairs.parquet")])
            group.finish(on_step=lambda *_, done=steps: done.append(time.time()))
            first_step_s.append(steps[0] - started_s)
    finally:
        group.close()
        ray.shutdown()
    return {"first_step_s": first_step_s}


def _config(arguments: argparse.Namespace, *, num_workers: int, gpus: float) -> Config:
    """A run's, for so many train workers with so many GPUs each, and as many pairs a step for each of them."""
    from csr_ray.config.load import parse_config

    train = {
        "batch_size": arguments.pairs * num_workers,
        "dtype": "bfloat16" if gpus else "float32",
        "lora_rank": arguments.rank,
        "lora_alpha": 2 * arguments.rank,
        "pack_tokens": arguments.pack_tokens,
        "threads": arguments.threads,
        "workers": num_workers,
        "gpus_per_worker": gpus,
    }
    return parse_config(
        {
            "data": {"prompts": "-"},
            "policy": {"model": str(arguments.model)},
            "scorer": {"model": "-"},
            "train": train,
        }
    )


def run_phase(arguments: argparse.Namespace) -> dict[str, Any]:
    """One phase in this process: a warm trainer, then timed steps."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    torch.set_num_threads(arguments.threads)
    side = _side(arguments)
    trainer = side.trainer
    optimizer = torch.optim.AdamW([p for p in trainer.model.parameters() if p.requires_grad], lr=1e-5)
    trainer.model.train()
    baseline = _rss_bytes()
    step_s, flops = [], 0
    for step in range(arguments.steps):
        # The whole of a step: collating (processor included), forward, backward, update.
        counter = FlopCounterMode(display=False) if step == 0 else None
        started_s = time.perf_counter()
        if counter:
            with counter:
                _step(side, num_pairs=arguments.pairs, optimizer=optimizer)
            flops = counter.get_total_flops()
        else:
            _step(side, num_pairs=arguments.pairs, optimizer=optimizer)
            step_s.append(time.perf_counter() - started_s)
    return {
        "step_s": step_s,
        "chosen_logp": trainer._metrics["train"]["logps/chosen"][0],
        "flops": flops,
        "peak_bytes": _peak_bytes() - baseline,
        "token_ratio": _token_ratio(side, shape=_shape(arguments)),
        "versions": versions_of("torch", "transformers", "trl", "peft"),
    }


def _step(side: Side, *, num_pairs: int, optimizer: Any) -> None:
    trainer = side.trainer
    loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(side.batch(num_pairs)))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def _side(arguments: argparse.Namespace) -> Side:
    processor, policy = _load(arguments.model)
    common = {
        "processor": processor,
        "texts": _texts(arguments),
        "side_px": _shape(arguments).image_px,
        "settings": settings_of(arguments.pairs),
        "lora": lora_of(arguments.rank),
    }
    if arguments.phase == "trl":
        return trl_side(policy, **common)
    return our_side(policy, **common, pack_tokens=arguments.pack_tokens)


def _token_ratio(side: Side, *, shape: Shape) -> float:
    from csr_ray.training.shared_prefix import flops_ratio

    return flops_ratio(
        num_prefix=shape.num_image_tokens + NUM_PROMPT_TOKENS,
        num_chosen=round(statistics.mean(chosen for chosen, _ in side.answer_tokens)),
        num_rejected=round(statistics.mean(rejected for _, rejected in side.answer_tokens)),
        reference_forward=True,
    )


def _load(model: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForImageTextToText

    policy = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    from csr_ray.policy.processor import load_processor

    return load_processor(model), policy


def _texts(arguments: argparse.Namespace, *, num: int | None = None) -> Any:
    return pairs_of(
        num or arguments.pairs,
        vocab=_shape(arguments).vocab,
        num_prompt_tokens=NUM_PROMPT_TOKENS,
        answer_tokens=tuple(arguments.answer_tokens),
    )


def _shape(arguments: argparse.Namespace) -> Shape:
    return Shape(
        hidden=arguments.hidden,
        layers=arguments.layers,
        heads=arguments.hidden // 64,
        intermediate=arguments.hidden * 8 // 3 // 64 * 64,
    )


def _in_process(kind: str, *, model: Path) -> dict[str, Any]:
    hidden = ["--phase", kind, "--model", str(model), "--started-s", str(time.time())]
    command = [sys.executable, __file__, *sys.argv[1:], *hidden]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"phase {kind} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _peak_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    told_in_a_line(main)
