"""What a run costs on GPUs of a kind, by the model's shape and the maker's figures; nearly all of it assumed.

Generating moves bytes: each step of an engine reads the weights once, and of every sequence its keys and values.
Reading a prompt, scoring and training compute: operations over a share of the maker's TFLOP/s. Every share and every
constant stands here, once, with its reason; docs/plan.md has the formulas. One figure of a GPU has been seen, that of
a train step (docs/gpus.md), which the share of training is from.
"""

from __future__ import annotations

from dataclasses import dataclass

from csr_ray.config.schema import Config
from csr_ray.machine.clip_cost import GFLOPS_A_THREAD, ClipCost
from csr_ray.machine.kinds import GB, GpuKind
from csr_ray.machine.memory import BYTES_OF
from csr_ray.machine.model_shape import ModelShape
from csr_ray.machine.needs import OTHER_BYTES, PROMPT_TOKENS, tree_tokens
from csr_ray.machine.rates import Cost, Rates
from csr_ray.machine.workload import Workload

# ---- shares of what the maker states ----

# Of the memory's bandwidth while decoding: kernels of attention over pages do not read in one stream.
DECODE_BANDWIDTH = 0.7
# Of the TFLOP/s in bfloat16 while a prompt is read: large products, in batches of some thousand tokens.
PREFILL_MFU = 0.45
# Of the same while training a LoRA. On an H200 a step of 4 pairs took 0.303 s (docs/gpus.md), which is 0.33 at 606
# tokens of prompt and picture and 120 of an answer.
TRAIN_MFU = 0.33
# Of the TFLOP/s in bfloat16 that there are in float32 without tensor cores: 19.5 of an A100's 312, 67 of an H100's
# 989 by the data sheets; smaller kinds have a larger share (a quarter on an L4, an eighth on a T4).
FLOAT32_SHARE = 1 / 15
# Of the TFLOP/s in bfloat16 in CLIP, by the numbers that it computes in. On that H200, 700 pictures or 33,000
# sentences a second of ViT-L/14-336 in bfloat16 were 0.27 and 0.15. By the data sheets of A100 and H100 TF32 has half
# of bfloat16's and float32 a fifteenth (19.5 of 312, 67 of 989), of which large products reach a greater share.
SCORE_MFU = {"bfloat16": 0.15, "tf32": 0.1, "float32": 0.04}

# ---- seconds and bytes a second ----

# Of an engine's step, beside the GPU's work: the scheduler in Python and the launch of a captured graph; and for each
# sequence of the batch, what is sampled and looked at there.
STEP_S, STEP_SEQUENCE_S = 3e-3, 2e-5
# Of the collective operations of a layer, two of which a step needs where an engine has several GPUs.
ALL_REDUCE_S = 3e-5
# A continued sentence finds its prefix in the cache in whole blocks of 16 tokens, and computes half of one again.
RECOMPUTED_TOKENS = 8
# Pictures that one thread opens and resizes (the 75 a second of docs/gpus.md).
PICTURES_A_THREAD_PER_S = 75.0
# Threads that do it beside an engine.
PICTURE_THREADS = 4
# Of an optimizer step, beside the pairs: optimizer, clipping, the collective of gradients, the next batch.
TRAIN_STEP_S = 0.05
# What is compiled in the first round (docs/gpus.md: 15 to 25 s).
COMPILE_S = 20.0
# An engine's start without its weights (imports, profile, graphs), and a disk that weights are read from.
ENGINE_START_S, DISK_BYTES_PER_S = 90.0, 1e9
# What ZeRO-3 fetches of other GPUs, as a share of a GPU's own bandwidth: those with fast memory have NVLink, of whose
# bandwidth DeepSpeed reaches a part (an H100 170 GB/s), and the others PCIe (an L4 15 GB/s).
GATHER_BANDWIDTH = 0.05
# Between nodes, and between main memory and a GPU.
NETWORK_BYTES_PER_S, BUS_BYTES_PER_S = 1e9, 20e9
# Merging reads and writes all weights of the base on the host, in float32; the proof asks a few answers.
MERGE_BYTES_PER_S, PROOF_S = 2e9, 5.0
# The page, and the processes' end, beside the merged model on disk.
END_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a run computes on.

    Attributes:
        kind: of each of its GPUs; memory, TFLOP/s and bandwidth have to be known.
    """

    name: str
    kind: GpuKind
    num_gpus: int

    @property
    def memory_bytes(self) -> float:
        return (self.kind.memory_gb or 0) * GB

    @property
    def flops(self) -> float:
        """Operations a second of a GPU, as its maker states them."""
        return (self.kind.tflops or 0) * 1e12

    @property
    def bytes_per_s(self) -> float:
        return (self.kind.memory_gb_per_s or 0) * GB


@dataclass(frozen=True, kw_only=True)
class Decode:
    """An engine while it generates.

    Attributes:
        batch: sequences that it decodes at once.
        step_s: seconds of a step, which gives each of them a token.
        limit: what keeps the batch from being larger, in words.
    """

    batch: int
    step_s: float
    limit: str

    @property
    def tokens_per_s(self) -> float:
        return self.batch / self.step_s


def flops_of(machine: Machine, *, dtype: str) -> float:
    """Operations a second in these numbers. In float32 torch computes without tensor cores unless it is told to."""
    return machine.flops * (FLOAT32_SHARE if dtype == "float32" else 1.0)


def decode(config: Config, *, shape: ModelShape, machine: Machine, work: Workload) -> Decode:
    """How an engine decodes trees: batch = min(max_num_seqs, sequences of the trees that the cache holds)."""
    generators, search = config.generators, config.search
    gpus = max(1, int(generators.gpus))
    number = BYTES_OF[config.policy.dtype]
    # Where there are fewer key heads than GPUs, each GPU has a whole one.
    token = shape.cache_bytes_a_token(bytes_a_number=number) * max(1.0, gpus / shape.kv_heads)
    weights = number * shape.num_weights
    cache = gpus * (machine.memory_bytes * generators.gpu_memory_utilization - OTHER_BYTES) - weights
    sequences = search.width * search.candidates  # of a tree in the middle of its growth
    trees = max(1, int(cache / (token * tree_tokens(config, shape=shape))))
    in_flight = min(generators.most_in_flight, max(1, -(-work.prompts // generators.min)))
    limits = {
        "generators.max_num_seqs": generators.max_num_seqs,
        "the KV cache": trees * sequences,
        "the prompts in flight": in_flight * sequences,
    }
    limit = min(limits, key=lambda name: limits[name])
    context = shape.image_tokens + PROMPT_TOKENS + work.answer_tokens / 2
    return Decode(
        batch=limits[limit],
        step_s=_step_s(
            shape,
            batch=limits[limit],
            context=context,
            number=number,
            gpus=gpus,
            machine=machine,
            flops=flops_of(machine, dtype=config.policy.dtype),
        ),
        limit=limit,
    )


def _step_s(
    shape: ModelShape, *, batch: int, context: float, number: int, gpus: int, machine: Machine, flops: float
) -> float:
    """Bytes or operations, whichever takes longer, and what a step costs beside them."""
    moved = number * shape.num_text_weights + batch * context * shape.cache_bytes_a_token(bytes_a_number=number)
    read_s = moved / (gpus * machine.bytes_per_s * DECODE_BANDWIDTH)
    compute_s = 2 * shape.num_text_weights * batch / (gpus * flops * PREFILL_MFU)
    together_s = 2 * shape.layers * ALL_REDUCE_S if gpus > 1 else 0.0
    return max(read_s, compute_s) + together_s + STEP_S + STEP_SEQUENCE_S * batch


def vision_flops(shape: ModelShape) -> float:
    """Of one picture through the policy's tower: two for each weight and token of it."""
    return 2.0 * (shape.num_weights - shape.num_text_weights) * shape.tower_tokens


def prompt_flops(shape: ModelShape, *, nodes: float) -> float:
    """Of a prompt, its picture and its tree's cache misses, each token once."""
    tokens = shape.image_tokens + PROMPT_TOKENS + nodes * RECOMPUTED_TOKENS
    return vision_flops(shape) + 2.0 * shape.num_text_weights * tokens


def pair_flops(
    config: Config, *, shape: ModelShape, answer_tokens: float, prompt_tokens: int = PROMPT_TOKENS
) -> float:
    """Of training on one pair with prompt and picture in it once.

    For each token two a weight forward and two backward, because the frozen weights need no gradient of their own;
    two more if activations are computed again, and two for the reference's own pass. A LoRA's weights need four
    backward. The vision tower is frozen and runs forward only.

    Args:
        answer_tokens: of each of the two answers.
    """
    train = config.train
    prefix = shape.image_tokens + prompt_tokens
    tokens = prefix + 2 * answer_tokens if train.step != "concatenated" else 2 * (prefix + answer_tokens)
    passes = 4 + 2 * train.gradient_checkpointing
    lora = shape.num_lora_weights(rank=train.lora_rank, targets=train.lora_targets)
    policy = tokens * (passes * shape.num_text_weights + (passes + 2) * lora)
    reference = 2.0 * tokens * shape.num_text_weights if train.reference == "recompute" else 0.0
    return policy + reference + vision_flops(shape)


def gpu_rates(config: Config, *, shape: ModelShape, machine: Machine, work: Workload, clip: ClipCost | None) -> Rates:
    """The costs of a run's stages with the actors that the config says, all on GPUs of one kind.

    Args:
        clip: what the scorer computes; None: nothing is scored, or it is not known.
    """
    turns = config.cluster.layout == "colocated"
    weights = BYTES_OF[config.policy.dtype] * shape.num_weights
    moves_s = 2 * weights / max(1, int(config.generators.gpus)) / BUS_BYTES_PER_S if turns else 0.0
    return Rates(
        start=Cost(
            fixed_s=ENGINE_START_S + weights / DISK_BYTES_PER_S,
            source=f"assumed: {ENGINE_START_S:g} s, and weights read at {DISK_BYTES_PER_S / GB:g} GB/s",
        ),
        rollout=_rollout(config, shape=shape, machine=machine, work=work, clip=clip),
        train=_train(config, shape=shape, machine=machine, work=work, moves_s=moves_s),
        publish=_publish(config, shape=shape),
        gate=_gate(config, shape=shape, machine=machine, work=work, clip=clip),
        evaluate=_evaluate(config, shape=shape, machine=machine, work=work),
        end=Cost(
            fixed_s=END_S + 2 * weights / DISK_BYTES_PER_S,
            source=f"assumed: {END_S:g} s, and the merged model read and written",
        ),
    )


def _rollout(config: Config, *, shape: ModelShape, machine: Machine, work: Workload, clip: ClipCost | None) -> Cost:
    engines, gpus = config.generators.min, max(1, int(config.generators.gpus))
    decoding = decode(config, shape=shape, machine=machine, work=work)
    share = _compute_share(config)
    flops = flops_of(machine, dtype=config.policy.dtype)
    read_s = prompt_flops(shape, nodes=work.nodes) / (gpus * flops * PREFILL_MFU)
    decode_s = work.nodes * work.sentence_tokens / decoding.tokens_per_s
    picture_s = 1 / (PICTURES_A_THREAD_PER_S * PICTURE_THREADS)
    engine_s = max(read_s + decode_s, picture_s) / engines / share
    score_s, scoring = _score(config, clip=clip, machine=machine, sentences=work.nodes)
    # A scorer on an engine's GPU takes its time from that engine; one with hardware of its own works beside it.
    shared = 0 < config.scorers.gpus < 1 and config.generators.gpus < 1
    generate_s = engine_s + score_s / engines if shared else engine_s
    if score_s > generate_s:
        scoring += ", which is what the engines wait for"
    each_s = max(generate_s, score_s)
    latency_s = work.sentences * work.sentence_tokens * decoding.step_s  # of the last tree, when others have ended
    return Cost(
        fixed_s=latency_s,
        each_s=each_s,
        unit="prompt",
        source=(
            f"assumed: {engines * decoding.tokens_per_s * share:,.0f} tokens/s of {engines} engine"
            f"{'s' * (engines > 1)} ({decoding.batch} sequences a step of {1e3 * decoding.step_s:.0f} ms, limited by "
            f"{decoding.limit}; {DECODE_BANDWIDTH:.0%} of the bandwidth), prompts read at {PREFILL_MFU:.0%} of the "
            f"TFLOP/s{scoring}"
        ),
    )


def _compute_share(config: Config) -> float:
    """Of an engine's GPU that it has for itself in a rollout; a train worker that lies beside it is idle then."""
    return 1.0 if not config.train.streaming or config.generators.gpus >= 1 else max(config.generators.gpus, 0.1)


def _score(config: Config, *, clip: ClipCost | None, machine: Machine, sentences: float) -> tuple[float, str]:
    """Seconds of scoring a prompt by all scorers together, and how that is worked out."""
    if clip is None:
        return 0.0, ""
    scorers, scorer = config.scorers, config.scorer
    assert scorer is not None
    operations = clip.picture + sentences * clip.sentence
    if not scorers.gpus:
        flops = GFLOPS_A_THREAD * 1e9 * scorers.threads * scorers.min
        return operations / flops, f", scored on the CPU at {GFLOPS_A_THREAD:g} GFLOP/s a thread"
    share = SCORE_MFU[scorer.dtype]
    compute_s = operations / (machine.flops * share * scorers.min)
    seconds = max(compute_s, 1 / (PICTURES_A_THREAD_PER_S * scorers.min))
    return seconds, f", scored at {share:.0%} of them ({scorer.dtype})"


def _train(config: Config, *, shape: ModelShape, machine: Machine, work: Workload, moves_s: float) -> Cost:
    train = config.train
    flops = pair_flops(config, shape=shape, answer_tokens=work.answer_tokens)
    gather_s = 0.0
    if train.deepspeed_stage == 3 and train.workers > 1:  # every layer is fetched forward and backward
        number_bytes = BYTES_OF[train.dtype] * shape.num_weights
        rows = train.micro_batch_size or train.batch_size // train.workers
        gather_s = (
            (2 + train.gradient_checkpointing)
            * number_bytes
            / (GATHER_BANDWIDTH * machine.bytes_per_s)
            / (rows * train.workers)
        )
    per_s = flops_of(machine, dtype=train.dtype) * TRAIN_MFU * train.workers
    each_s = flops / per_s + TRAIN_STEP_S / train.batch_size + gather_s
    return Cost(
        fixed_s=moves_s,
        each_s=each_s,
        first_s=COMPILE_S,
        unit="pair",
        source=(
            f"assumed: {1 / each_s:,.1f} pairs/s of {train.workers} worker{'s' * (train.workers > 1)} "
            f"({TRAIN_MFU:.0%} of the TFLOP/s, the share of a step seen on an H200; {TRAIN_STEP_S:g} s a step more)"
        ),
    )


def _publish(config: Config, *, shape: ModelShape) -> Cost:
    lora = shape.num_lora_weights(rank=config.train.lora_rank, targets=config.train.lora_targets)
    adapter = BYTES_OF[config.train.dtype] * lora
    merged = BYTES_OF[config.policy.dtype] * shape.num_weights if config.generators.publish == "merge" else 0
    # The registry's node sends to every engine; each engine merges for itself.
    seconds = adapter * config.generators.min / NETWORK_BYTES_PER_S + merged / MERGE_BYTES_PER_S + PROOF_S
    return Cost(
        fixed_s=seconds,
        source=(
            f"assumed: {NETWORK_BYTES_PER_S / GB:g} GB/s of network, merged at {MERGE_BYTES_PER_S / GB:g} GB/s, "
            f"{PROOF_S:g} s of proof"
        ),
    )


def _gate(config: Config, *, shape: ModelShape, machine: Machine, work: Workload, clip: ClipCost | None) -> Cost:
    """Of an answer to the gate. They are few, so all are under way at once if an engine serves so many."""
    if not work.gate_answers:
        return Cost(unit="answer", source="gate.enabled=false")
    engines, gpus = config.generators.min, max(1, int(config.generators.gpus))
    flops = flops_of(machine, dtype=config.policy.dtype)
    most = min(config.generators.max_num_seqs, 2 * config.generators.most_in_flight)  # two of a prompt
    batch = min(most, -(-work.gate_answers // engines))
    tokens = work.gate_tokens / work.gate_answers
    step_s = _step_s(
        shape,
        batch=batch,
        context=shape.image_tokens + PROMPT_TOKENS + tokens / 2,
        number=BYTES_OF[config.policy.dtype],
        gpus=gpus,
        machine=machine,
        flops=flops,
    )
    read_s = prompt_flops(shape, nodes=0) / (gpus * flops * PREFILL_MFU)
    prompt_s = max(read_s, 1 / (PICTURES_A_THREAD_PER_S * PICTURE_THREADS))  # both answers share it
    score_s, _ = _score(config, clip=clip, machine=machine, sentences=2 * work.sentences)
    each_s = max((prompt_s / 2 + tokens * step_s / batch) / engines, score_s / 2)
    return Cost(
        each_s=each_s,
        unit="answer",
        source=(
            f"assumed: {work.gate_answers:,} answers of {tokens:,.0f} tokens by each policy, {batch} at once on an "
            f"engine (a step of {1e3 * step_s:.0f} ms), read and scored as in the rollout"
        ),
    )


def _evaluate(config: Config, *, shape: ModelShape, machine: Machine, work: Workload) -> Cost:
    asked = work.evaluations[0] if work.evaluations else None
    if asked is None or not asked.answers:
        return Cost(unit="answer", source="no benchmark")
    engines, gpus = config.generators.min, max(1, int(config.generators.gpus))
    decoding = decode(config, shape=shape, machine=machine, work=work)
    read_s = prompt_flops(shape, nodes=0) / (gpus * flops_of(machine, dtype=config.policy.dtype) * PREFILL_MFU)
    each_s = max(
        read_s + asked.tokens / asked.answers / decoding.tokens_per_s, 1 / (PICTURES_A_THREAD_PER_S * PICTURE_THREADS)
    )
    return Cost(each_s=each_s / engines, unit="answer", source="assumed: as the rollout's engines")
