"""What few have seen: csr_ray on a GPU. Run it on a machine with one (`make test-gpu`), from top to bottom.

The tests stand in the order in which to trust them: a kernel, the scorer, the engine, whole runs of the tiny world,
and then real shapes with random weights, which need 80 GB. Each says what it proves and how long it should take; the
times are estimates, as only the kernel and the scorer have been run. What the CPU suite proves already (loss and
gradients against TRL, trees of the released code, hand-overs) is not repeated here.

    make test-gpu                                   all of it
    .venv/bin/python -m pytest tests/gpu -x -s -k "not real_shapes"      what fits any GPU, with its figures
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import preference_pair, tiny_config
from PIL import Image
from tiny_clip import QUICK, draw_pictures, list_tiny_clip, scores
from tiny_models import FAMILIES, build_tiny_gemma3, build_tiny_llava

ROOT = Path(__file__).resolve().parents[2]


# ---- one kernel ----


def test_flex_attention_gives_the_log_probs_and_gradients_of_the_dense_mask(tmp_path: Path) -> None:
    """Proves that FlexAttention with our block mask computes what the dense mask does, which the CPU suite holds to
    TRL, and that its backward pass compiles. A minute, nearly all of it compiling.
    """
    from transformers import AutoModelForImageTextToText
    from trl.trainer.utils import add_fused_lm_head

    from actors.train.shared_step import (
        FLEX_BLOCK,
        SharedPrefixForward,
        can_use_flex,
        family_positions,
        keep_only_sources,
        set_flex,
    )
    from csr_ray.data.pictures import load_picture
    from csr_ray.policy.processor import load_processor
    from csr_ray.training.collate import SharedPrefixCollator, pair_rows

    model = build_tiny_llava(tmp_path / "model", seed=0)
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "image.png")
    pairs = [
        preference_pair(
            id=str(number),
            image=str(tmp_path / "image.png"),
            prompt="Describe.",
            chosen_ids=tuple(range(20, 24 + number)),
            rejected_ids=tuple(range(40, 49 - number)),
        )
        for number in range(3)
    ]
    policy = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).to("cuda")
    assert can_use_flex(policy)
    keep_only_sources(policy)
    add_fused_lm_head(policy)  # as TRL's trainer does
    collator = SharedPrefixCollator(
        processor=load_processor(model),
        load_picture=load_picture,
        positions=family_positions(policy),
        budget=4096,
        multiple=FLEX_BLOCK,
    )
    batch = collator(pair_rows(pairs))
    del batch["pair_index"], batch["ref_chosen_logps"], batch["ref_rejected_logps"]
    batch = {key: _to_gpu(value) for key, value in batch.items()}
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    weight = policy.get_parameter("model.language_model.layers.0.self_attn.q_proj.weight")
    rows, gradients = [], []
    for use_flex in (True, False):
        set_flex(policy, is_on=use_flex)
        forward = SharedPrefixForward(policy, shared=batch["shared"], use_flex=use_flex)
        logps = forward(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            labels=labels,
            fused_lm_head=True,
            use_cache=False,
        ).log_probs
        gradients += torch.autograd.grad(logps.sum(), [weight])
        rows.append(logps.detach())
    assert torch.allclose(rows[0], rows[1], rtol=1e-4, atol=1e-4)
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-3, atol=1e-3 * float(gradients[1].abs().max()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_mask_that_looks_ahead_is_found_and_no_other_is(tmp_path: Path, dtype: str) -> None:
    """Proves that a GPU's kernels give the same bits for what nothing behind it may touch, and that Gemma 3, whose
    image tokens see each other, is told apart by that. Seconds.
    """
    from transformers import AutoModelForImageTextToText

    from actors.train.causality import sees_ahead
    from csr_ray.data.pictures import load_picture
    from csr_ray.policy.processor import load_processor
    from csr_ray.training.collate import PairCollator, pair_rows

    Image.linear_gradient("L").convert("RGB").save(tmp_path / "image.png")
    image = {"image": str(tmp_path / "image.png"), "prompt": "Describe."}
    pairs = [
        preference_pair(id="0", **image, chosen_ids=tuple(range(20, 40)), rejected_ids=tuple(range(40, 49))),
        preference_pair(id="1", **image, chosen_ids=tuple(range(30, 34)), rejected_ids=tuple(range(40, 60))),
    ]
    found = {}
    for build in (*FAMILIES.values(), build_tiny_gemma3):
        model = build(tmp_path / build.__name__, seed=0)
        policy = AutoModelForImageTextToText.from_pretrained(model, dtype=getattr(torch, dtype)).to("cuda")
        collator = PairCollator(processor=load_processor(model), load_picture=load_picture)
        batch = {key: value for key, value in collator(pair_rows(pairs)).items() if torch.is_tensor(value)}
        given = {
            key: (value.to(policy.dtype) if value.is_floating_point() else value).to("cuda")
            for key, value in batch.items()
            if not key.startswith("ref_") and key != "completion_mask"
        }
        with torch.no_grad():
            found[build.__name__] = sees_ahead(
                policy,
                compute=lambda policy=policy, given=given: policy(**given, use_cache=False),
                batch=batch,
                image_token=policy.config.image_token_id,
            )
    assert found == {build.__name__: False for build in FAMILIES.values()} | {"build_tiny_gemma3": True}


def test_mask_and_batch_are_made_without_waiting_for_the_gpu() -> None:
    """Proves that no line of ours makes the CPU wait in a micro-batch: torch raises where Python would. Seconds."""
    from actors.train.shared_step import FLEX_BLOCK, block_mask
    from csr_ray.training.shared_prefix import PairTokens, lay_out, spread

    pair = PairTokens(
        prefix=torch.arange(300), positions=torch.arange(300)[None], kinds={}, chosen=(1,) * 90, rejected=(2,) * 70
    )
    layout = lay_out([[pair], [pair]], pad_token_id=0, multiple=FLEX_BLOCK)
    on_gpu = [
        tensor.pin_memory().to("cuda", non_blocking=True)
        for tensor in (layout.pair, layout.branch, layout.is_answer, torch.rand(len(layout.sources)))
    ]
    values = on_gpu[3].requires_grad_()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        block_mask(on_gpu[0], on_gpu[1], num_pairs=2)
        spread(values, is_answer=on_gpu[2]).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(values.grad.cpu(), torch.ones(len(layout.sources)))


def test_what_another_thread_forms_is_queued_where_the_loader_copies() -> None:
    """Proves that a thread that forms tensors works on the stream of the thread that loads them. Seconds."""
    from concurrent.futures import ThreadPoolExecutor

    from actors.handover.loader import _in_order_of_this_thread

    own = torch.cuda.Stream()

    def stream_of(block: Any) -> int:
        with block():
            return torch.cuda.current_stream().cuda_stream

    with torch.cuda.stream(own), ThreadPoolExecutor(1) as beside:
        block = _in_order_of_this_thread(torch.device("cuda", torch.cuda.current_device()))
        assert beside.submit(stream_of, block).result() == own.cuda_stream


# ---- the scorer ----


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-3), ("tf32", 0.2), ("bfloat16", 1.0)])
def test_a_score_is_the_cpus_as_near_as_its_dtype_promises(tmp_path: Path, dtype: str, most: float) -> None:
    """Proves that the reward is the same on a GPU, and that `scorer.dtype` says how it rounds there. Seconds."""
    model = f"{QUICK}/{list_tiny_clip(tmp_path)}"
    pictures = draw_pictures(tmp_path)
    on_cpu = scores(model, pictures)
    on_gpu = scores(model, pictures, dtype=dtype, device="cuda")
    off = (on_gpu - on_cpu).abs().max()
    assert off < most
    if torch.cuda.get_device_capability() >= (8, 0) and dtype != "float32":
        assert off > 1e-4, "the GPU was asked to round"


# ---- the engine ----


@pytest.mark.parametrize("expand", ["sample", "first_token", "diverse_greedy"])
def test_log_probs_of_what_the_engine_grows_are_those_of_transformers(tmp_path: Path, expand: str) -> None:
    """Proves that vLLM's GPU kernels, its second model runner (the first for coupled decodes) and CUDA graphs give
    the log-probs that DPO takes for its reference, and that coupled decodes come out without phantom tokens. Two
    minutes each: an engine starts and captures its graphs.
    """
    from actors.handover.proofs import noise_of
    from csr_ray.policy.processor import load_processor

    model = build_tiny_llava(tmp_path / "model", seed=0)
    grown = asyncio.run(_grow(model, expand=expand, images=_images(tmp_path, num=4)))
    image_token, gaps = load_processor(model).image_token_id, []
    for ask, sentences in grown:
        assert len(sentences) > 1
        for sentence in sentences:
            assert len(sentence.token_ids) == len(sentence.logps) > 0
            if image_token in sentence.token_ids:  # a random model says it now and then; transformers takes it badly
                continue
            expected = _by_transformers(model, ask, token_ids=sentence.token_ids)
            gaps.append(abs(sum(sentence.logps) - expected) / math.sqrt(len(sentence.token_ids)))
    mean, most = statistics.mean(gaps), max(gaps)
    print(f"{expand}: {len(gaps)} sentences, off by {mean:.3g}, at most {most:.3g} nats by root of tokens")
    # The engine's own float32 products may use TF32.
    assert most < noise_of(["bfloat16"]).of_answer(1)
    if expand == "diverse_greedy":
        assert all(len({sentence.token_ids[0] for sentence in sentences}) == len(sentences) for _, sentences in grown)


def test_the_proof_of_a_hand_over_raises_no_false_alarm(tmp_path: Path) -> None:
    """Proves that the limits of `actors.handover.proofs`, measured in bfloat16 on a CPU, hold for a GPU's kernels,
    cached prefixes included. Three minutes; the figures go to stdout and belong into benchmarks/README.md.
    """
    command = [sys.executable, str(ROOT / "benchmarks/bench_proof.py"), "--probes", "200", "--gpu"]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "proof.json")], check=True, cwd=ROOT, env=_environment(), timeout=1500
    )
    assert done.returncode == 0
    rows = {row["name"]: row["value"] for row in json.loads((tmp_path / "proof.json").read_text())["rows"]}
    print(json.dumps(rows, indent=1))
    assert rows["false_alarms_answer [float32 logits]"] == rows["false_alarms_cache [float32 logits]"] == 0.0


# ---- whole runs of the tiny world ----

# The tiny models on a part of the GPU each; what differs from a CPU is left at its defaults.
ON_ONE_GPU = (
    "generators.gpus=0.4", "scorers.gpus=0.2", "train.gpus_per_worker=0.4", "generators.gpu_memory_utilization=0.35",
)  # fmt: skip
IN_BFLOAT16 = ("policy.dtype=bfloat16", "scorer.dtype=bfloat16", "train.dtype=bfloat16")
TINY = (
    "world.quick=true", "world.num_train_images=32", "world.num_heldout_images=16", "data.per_round=16",
    "eval.limit=16", "run.rounds=2", "train.reference=check",
)  # fmt: skip


@pytest.mark.parametrize(
    "overrides",
    [
        (),  # float32, which kernels there round to TF32
        IN_BFLOAT16,
        (*IN_BFLOAT16, "train.streaming=true"),
        (*IN_BFLOAT16, "generators.publish=adapter"),
        (*IN_BFLOAT16, "search.preset=paper"),
    ],
    ids=["float32", "bfloat16", "streaming", "hot adapter", "coupled decodes"],
)
def test_a_run_ends_and_every_hand_over_is_proved(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    """Proves that engine, scorer and trainer share one GPU, over NCCL and with CUDA graphs; that every policy is
    handed over and proved; and that the trainer finds the engine's log-probs (`train.reference: check` stops the run
    where it does not). Three minutes each.
    """
    summary = _run(ROOT / "configs/tiny-world.yaml", *ON_ONE_GPU, *TINY, *overrides, folder=tmp_path)
    assert summary["finished"] and [entry["policy_version"] for entry in summary["rounds"]] == [1, 2]
    for entry in summary["rounds"]:
        print({key: entry["publish"][key] for key in ("max_probe_gap", "swallowed", "kept", "seconds")})
        assert 0 < entry["publish"]["max_probe_gap"] < 5.0
        assert entry["pairs"]["made"] > 0 and entry["rollout"]["failed"] == 0


def test_the_demo_learns_on_a_gpu_what_it_learns_on_a_cpu(tmp_path: Path) -> None:
    """Proves that the whole method works there, by what `make demo` runs: hallucinations fall by more than half and
    recall stays. Six minutes, half of them for the world's models, which are trained on the CPU.
    """
    summary = _run(ROOT / "configs/tiny-world.yaml", *ON_ONE_GPU, folder=tmp_path)
    base, last = summary["base"]["eval"], summary["rounds"][-1]["eval"]
    print({key: (base[key], last[key]) for key in ("chair_s", "recall", "pope_acc")})
    assert last["chair_s"] < base["chair_s"] / 2
    assert last["recall"] > base["recall"] - 0.05


# ---- real shapes, random weights ----


@pytest.fixture(scope="module")
def real_shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """LLaVA-1.5-7B and ViT-L/14-336 with random weights in bfloat16, and 24 photos: 15 GB, some five minutes."""
    if torch.cuda.get_device_properties(0).total_memory < 75 * 2**30:
        pytest.skip("needs a GPU with 80 GB")
    from random_llava import LLAVA_7B

    return build_shapes(tmp_path_factory.mktemp("real"), shape=LLAVA_7B, clip="ViT-L-14-336-quickgelu", num_photos=24)


def test_a_round_at_real_shapes_fits_one_gpu(real_shapes: dict[str, str], tmp_path: Path) -> None:
    """Proves the arithmetic of configs/own-data.yaml for one GPU of 80 GB: that engine, scorer and trainer fit beside
    each other, and that hand-over and proof work at the size of a real adapter. Ten minutes. The figures it prints
    (tokens/s, seconds a step, seconds to publish) are the first of their kind.
    """
    summary = _run(ROOT / "configs/own-data.yaml", *at_real_shapes(real_shapes), folder=tmp_path)
    (entry,) = summary["rounds"]
    print(json.dumps({key: entry[key] for key in ("rollout", "train", "publish", "stages")}, indent=1))
    assert summary["finished"] and entry["rollout"]["failed"] == 0 and entry["train"]["steps"] > 0
    assert entry["train"]["metrics"]["shared_prefix"] == 1.0
    assert entry["publish"]["swallowed"] >= 0.0


def build_shapes(folder: Path, *, shape: Any, clip: str, num_photos: int) -> dict[str, str]:
    """A policy, a CLIP and a prompt file of photos, as overrides of a config."""
    import open_clip
    from random_llava import build, picture

    policy = build(folder / "policy", shape=shape, dtype="bfloat16")
    towers = open_clip.create_model(clip)
    (folder / "clip").mkdir()
    torch.save(towers.state_dict(), folder / "clip" / "open_clip_pytorch_model.bin")
    config = {"model_cfg": open_clip.get_model_config(clip), "preprocess_cfg": {}}
    (folder / "clip" / "open_clip_config.json").write_text(json.dumps(config))
    rows = []
    for number in range(num_photos):
        picture(number, side_px=336).save(folder / f"{number}.png")
        rows.append({"id": str(number), "image": f"{number}.png", "prompt": "w1 w2 w3 w4"})
    (folder / "prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return {
        "policy.model": str(policy),
        "scorer.model": str(folder / "clip"),
        "data.prompts": str(folder / "prompts.jsonl"),
    }


def at_real_shapes(shapes: dict[str, str]) -> tuple[str, ...]:
    return (
        *(f"{key}={value}" for key, value in shapes.items()),
        "run.rounds=1", "data.per_round=24", "search.max_sentences=3", "train.batch_size=4",
        "generators.gpus=0.5", "generators.gpu_memory_utilization=0.45", "train.gpus_per_worker=0.4",
    )  # fmt: skip


# ---- helpers ----


def _run(config: Path, *overrides: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "csr_ray", "run", str(config), *overrides, f"run.dir={folder / 'run'}"]
    subprocess.run(command, check=True, cwd=folder, env=_environment(), timeout=3000)
    return dict(json.loads((folder / "run/summary.json").read_text()))


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}


def _images(folder: Path, *, num: int) -> list[Path]:
    paths = []
    for number in range(num):
        paths.append(folder / f"{number}.png")
        Image.linear_gradient("L").rotate(30 * number).convert("RGB").save(paths[-1])
    return paths


async def _grow(model: Path, *, expand: str, images: Sequence[Path]) -> list[tuple[Any, list[Any]]]:
    from actors.generate.engine import EngineSettings, VllmEngine
    from actors.process.counters import Counting
    from csr_ray.records import Ask, Picture

    config = tiny_config(
        policy={"model": str(model), "dtype": "float32", "max_model_len": 512},
        search={"expand": expand},
        generators={"gpus": 1, "gpu_memory_utilization": 0.3, "max_num_seqs": 32},
    )
    engine = VllmEngine(EngineSettings.of(config), model=model, counting=Counting(actor="generator"))
    await engine.start()
    try:
        asks = [Ask(picture=Picture(path=str(path)), text="Describe the image.") for path in images]
        grown = await asyncio.gather(
            *(engine.continuations(ask, prefix_ids=(), num=5, max_tokens=16, seed=at) for at, ask in enumerate(asks))
        )
        return list(zip(asks, grown, strict=True))
    finally:
        engine.close()


def _by_transformers(model: Path, ask: Any, *, token_ids: Sequence[int]) -> float:
    """The summed log-prob of an answer by transformers on the CPU, in float32."""
    from transformers import AutoModelForImageTextToText

    from csr_ray.data.pictures import load_picture
    from csr_ray.policy.processor import load_processor
    from csr_ray.training.collate import PairCollator

    policy = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval()
    collator = PairCollator(processor=load_processor(model), load_picture=load_picture)
    batch = collator.batch(collator.prompts([ask]), answers=[token_ids])
    is_answer = batch.pop("completion_mask")[:, 1:]
    with torch.no_grad():
        logps = policy(**batch, use_cache=False).logits[:, :-1].log_softmax(-1)
    return float((logps.gather(-1, batch["input_ids"][:, 1:, None])[..., 0] * is_answer).sum())


def _to_gpu(value: object) -> object:
    if isinstance(value, dict):
        return {key: _to_gpu(one) for key, one in value.items()}
    return value.to("cuda") if isinstance(value, torch.Tensor) else value
