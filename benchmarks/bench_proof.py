"""How often would the proof of a hand-over find fault with a generator that is right? In bfloat16, on the CPU.

A random LLaVA whose logits are as wide as a language model's answers questions, and each answer is a probe: its
log-prob by the engine with nothing cached, by the engine with cached prefixes, and by transformers as the trainer
computes it, all three in bfloat16 and under the same weights. So every difference is rounding, and every fault that
`actors.handover.proofs` finds is a false alarm. This is done with logits in bfloat16, which is both libraries'
default, and in float32, which is what the project asks both for.

On a CPU an engine's row has the same bits whatever else is computed with it, so cached and fresh log-probs are equal
there. On a GPU other batches mean other kernels. The rules for the cache are therefore tried on the differences
between engine and trainer, two libraries with kernels of their own, which are no smaller.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from random_llava import Shape, build, picture
from result_file import add_json_flag, told_in_a_line, versions_of, write_result

from actors.generate.arguments import engine_arguments
from actors.generate.engine import EngineSettings, VllmEngine
from actors.handover.proofs import noise_of
from actors.process.counters import Counting
from csr_ray.config.load import parse_config
from csr_ray.records import Ask, Picture

EXAMPLES = """
examples:
  python benchmarks/bench_proof.py --json proof.json
  python benchmarks/bench_proof.py --probes 100 --layers 4      a quick look
"""
_OLD_TOLERANCE = 0.05  # nats, on one token and for each token of an answer: what the rule was before it was measured
_NUM_IMAGES = 20


@dataclass(frozen=True, kw_only=True)
class Probed:
    """Log-probs of one answer's tokens, in nats."""

    fresh: list[float]
    cached: dict[int, float]
    trainer: list[float]

    @property
    def num_tokens(self) -> int:
        return len(self.fresh)

    @property
    def answer_gap(self) -> float:
        return abs(sum(self.fresh) - sum(self.trainer))

    @property
    def cache_gaps(self) -> list[float]:
        return [abs(logp - self.fresh[at]) for at, logp in self.cached.items()]

    @property
    def stand_in_gaps(self) -> list[float]:
        return [abs(self.trainer[at] - self.fresh[at]) for at in self.cached]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--probes", type=int, default=1000, help="answers that are compared")
    parser.add_argument("--tokens", type=int, default=32, help="most tokens of an answer")
    parser.add_argument("--hidden", type=int, default=256, help="width of the language model, a multiple of 64")
    parser.add_argument("--layers", type=int, default=12, help="of the language model")
    parser.add_argument("--vocab", type=int, default=4096, help="tokens")
    parser.add_argument(
        "--logit-std",
        type=float,
        default=4.0,
        help="standard deviation of a token's logits; the largest are 4 to 5 times that",
    )
    parser.add_argument("--gpu", action="store_true", help="on a GPU, engine and trainer one after the other")
    add_json_flag(parser)
    arguments = parser.parse_args()
    os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    with tempfile.TemporaryDirectory() as directory:
        rows = measure(arguments, directory=Path(directory))
    for row in rows:
        print(f"{row['name']:<56} {row['value']:>12.4g} {row['unit']}")
    write_result(
        arguments.json,
        name="proof",
        versions=versions_of("torch", "transformers", "vllm-cpu", "trl"),
        headline="false_alarms_answer [float32 logits]",
        settings={key: value for key, value in vars(arguments).items() if key != "json"},
        rows=rows,
    )


def measure(arguments: argparse.Namespace, *, directory: Path) -> list[dict[str, Any]]:
    model = _model(arguments, directory=directory)
    images = []
    for index in range(_NUM_IMAGES):
        images.append(directory / f"{index}.png")
        picture(index, side_px=112).save(images[-1])
    asks = [
        Ask(picture=Picture(path=str(images[index % _NUM_IMAGES])), text=f"w{index} w{index + 1} w{index + 2}")
        for index in range(arguments.probes)
    ]
    rows = []
    for head in ("bfloat16", "float32"):
        started_s = time.perf_counter()
        probed = _probed(model, asks=asks, head=head, num_tokens=arguments.tokens, on_gpu=arguments.gpu)
        _say(f"{head} logits: {len(probed)} probes in {time.perf_counter() - started_s:.0f} s")
        rows += _rows(probed, head=head)
    return rows


def _model(arguments: argparse.Namespace, *, directory: Path) -> Path:
    """A folder of a random LLaVA in bfloat16, its head scaled to logits of the wanted width."""
    import torch
    from safetensors.torch import load_file, save_file

    shape = Shape(
        hidden=arguments.hidden,
        layers=arguments.layers,
        heads=arguments.hidden // 64,
        intermediate=arguments.hidden * 8 // 3 // 64 * 64,
        vocab=arguments.vocab,
        image_px=112,
    )
    model = build(directory / "model", shape=shape)
    tensors = load_file(model / "model.safetensors")
    (head,) = (name for name in tensors if name.endswith("lm_head.weight"))
    # The last norm leaves vectors of length sqrt(hidden).
    tensors[head] *= arguments.logit_std / float(tensors[head].std()) / math.sqrt(arguments.hidden)
    half = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    save_file(half, model / "model.safetensors", metadata={"format": "pt"})
    return model


@contextlib.contextmanager
def _head_in(dtype: str) -> Iterator[None]:
    """Let engines that start here make their logits in `dtype`: "float32", as they do anyway, or "model"."""

    def arguments(*given: Any, **named: Any) -> dict[str, Any]:
        return {**engine_arguments(*given, **named), "hf_overrides": {"head_dtype": dtype}}

    with patch("actors.generate.engine.engine_arguments", arguments):
        yield


def _probed(model: Path, *, asks: Sequence[Ask], head: str, num_tokens: int, on_gpu: bool) -> list[Probed]:
    room = {"gpus": 1, "gpu_memory_utilization": 0.5} if on_gpu else {"kv_cache_gib": 1.0}
    config = parse_config(
        {
            "data": {"prompts": "-"},
            "policy": {"model": str(model), "dtype": "bfloat16", "max_model_len": 512},
            "scorer": {"model": "-"},
            "generators": {**room, "max_num_seqs": 64},
        }
    )
    engine = VllmEngine(EngineSettings.of(config), model=model, counting=Counting(actor="generator"))
    with _head_in("float32" if head == "float32" else "model"):
        answers, fresh, cached = asyncio.run(_by_engine(engine, asks=asks, num_tokens=num_tokens))
    kept = [index for index, ids in enumerate(answers) if len(ids) > 1]
    device = "cuda" if on_gpu else "cpu"
    trainer = _by_trainer(model, answers=[(asks[index], answers[index]) for index in kept], head=head, device=device)
    return [
        Probed(fresh=fresh[index], cached=cached[index], trainer=logps)
        for index, logps in zip(kept, trainer, strict=True)
    ]


async def _by_engine(
    engine: VllmEngine, *, asks: Sequence[Ask], num_tokens: int
) -> tuple[list[tuple[int, ...]], list[list[float]], list[dict[int, float]]]:
    await engine.start()
    try:
        image_token = engine._processor.image_token_id
        sampled = await _gathered(
            engine.answer(ask, temperature=1.0, max_tokens=num_tokens, seed=index) for index, ask in enumerate(asks)
        )
        # A random model samples the image's token; training leaves such answers out, too.
        answers = [() if image_token in one.token_ids else one.token_ids for one in sampled]
        cached: list[dict[int, float]] = []
        fresh: list[list[float]] = []
        for start in range(0, len(asks), 8):
            some = [(ask, ids) for ask, ids in zip(asks, answers, strict=True)][start : start + 8]
            positions = [engine.compared_positions(len(ids)) if ids else [] for _, ids in some]
            forced = await _gathered(
                engine._forced(ask, answer_ids=ids, position=at)
                for (ask, ids), places in zip(some, positions, strict=True)
                for at in places
            )
            at_last = iter(forced)
            cached += [{at: next(at_last) for at in places} for places in positions]
            forced_anew = await _gathered(
                engine._teacher_forced(ask, answer_ids=ids) if ids else _nothing() for ask, ids in some
            )
            fresh += [logps for logps, _ in forced_anew]
        return answers, fresh, cached
    finally:
        engine.close()


async def _nothing() -> tuple[list[float], int]:
    return [], 0


async def _gathered(calls: Any) -> list[Any]:
    return list(await asyncio.gather(*calls))


def _by_trainer(
    model: Path, *, answers: Sequence[tuple[Ask, Sequence[int]]], head: str, device: str
) -> list[list[float]]:
    """Log-probs of the answers' tokens by transformers under TRL's fused head."""
    import torch
    from transformers import AutoModelForImageTextToText
    from trl.trainer.utils import add_fused_lm_head

    from csr_ray.data.pictures import load_picture
    from csr_ray.training.collate import PairCollator

    policy = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.bfloat16).eval().to(device)
    add_fused_lm_head(policy, cast_lm_head_to_fp32=head == "float32")
    from csr_ray.policy.processor import load_processor

    collator = PairCollator(processor=load_processor(model), load_picture=load_picture)
    logps: list[list[float]] = []
    for start in range(0, len(answers), 8):
        some = answers[start : start + 8]
        batch = collator.batch(collator.prompts([ask for ask, _ in some]), answers=[ids for _, ids in some])
        is_answer = batch.pop("completion_mask")[:, 1:].bool()
        labels = batch["input_ids"].clone()
        labels[:, 1:][~is_answer] = -100
        labels[:, 0] = -100
        batch["pixel_values"] = batch["pixel_values"].to(policy.dtype)
        with torch.no_grad():
            there = {key: value.to(device) for key, value in batch.items()}
            found = policy(**there, labels=labels.to(device), fused_lm_head=True, use_cache=False).log_probs.cpu()
        logps += [row[mask].tolist() for row, mask in zip(found, is_answer, strict=True)]
    return logps


def _rows(probed: Sequence[Probed], *, head: str) -> list[dict[str, Any]]:
    noise = noise_of(("bfloat16",))
    token_gaps = [one - other for each in probed for one, other in zip(each.fresh, each.trainer, strict=True)]
    by_root = [each.answer_gap / math.sqrt(each.num_tokens) for each in probed]
    means = [statistics.mean(each.stand_in_gaps) for each in probed]
    lasts = [each.stand_in_gaps[-1] for each in probed]

    def share(alarms: Sequence[bool]) -> float:
        return sum(alarms) / len(alarms)

    def row(name: str, value: float, unit: str) -> dict[str, Any]:
        return {"name": f"{name} [{head} logits]", "value": value, "unit": unit}

    return [
        row("probes", len(probed), "answers"),
        row("tokens", statistics.mean(each.num_tokens for each in probed), "an answer"),
        row("token_gap_mean", statistics.mean(token_gaps), "nats, engine less trainer"),
        row("token_gap_std", statistics.pstdev(token_gaps), "nats"),
        row("token_gap_max", max(map(abs, token_gaps)), "nats"),
        row("answer_gap_by_root_max", max(by_root), "nats / sqrt(tokens)"),
        row("answer_gap_by_root_rms", math.sqrt(statistics.mean(one**2 for one in by_root)), "nats / sqrt(tokens)"),
        row("cache_gap_max", max(max(each.cache_gaps) for each in probed), "nats, one token, this engine"),
        row("one_token_max", max(lasts), "nats, last token, engine against trainer"),
        row("mean_of_8_max", max(means), "nats, eight tokens, engine against trainer"),
        row("mean_of_8_mean", statistics.mean(means), "nats, eight tokens, engine against trainer"),
        row("old_false_alarms_cache", share([gap > _OLD_TOLERANCE for gap in lasts]), "of probes, one token, 0.05"),
        row(
            "old_false_alarms_answer",
            share([each.answer_gap > _OLD_TOLERANCE * each.num_tokens for each in probed]),
            "of probes, 0.05 a token",
        ),
        row(
            "false_alarms_cache",
            share([gap > noise.of_cache(len(each.cached)) for gap, each in zip(means, probed, strict=True)]),
            "of probes",
        ),
        row(
            "false_alarms_answer",
            share([each.answer_gap > noise.of_answer(each.num_tokens) for each in probed]),
            "of probes",
        ),
    ]


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    told_in_a_line(main)
