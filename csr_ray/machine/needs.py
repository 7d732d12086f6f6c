"""What an engine and a train worker take of a GPU's memory, part by part, from a config and a model's shape.

Arithmetic, not measurement: docs/gpus.md says what of it a GPU has confirmed.
"""

from __future__ import annotations

from collections.abc import Mapping

from csr_ray.config.schema import Config
from csr_ray.machine.memory import BYTES_OF
from csr_ray.machine.model_shape import ModelShape

# The longest of the released questions with the words of the chat template, and some to spare.
PROMPT_TOKENS = 64
# A description, as plans expect it.
EXPECTED_SENTENCES = 6
EXPECTED_SENTENCE_TOKENS = 25
# So many trees at once make a batch that is worth an engine; the engine itself finds out how many more it can hold.
_FEWEST_TREES = 16
# Of an engine: vLLM measures it with the largest picture and batch; CUDA graphs and NCCL are in it. Of a train
# worker: a tile of the output head in float32, gathered layers of ZeRO-3, CUDA and NCCL.
OTHER_BYTES = 4 * 2**30
# What their processes hold on the CPU beside a tiny model: 1.3 and 0.7 GiB in an hour's soak (docs/chaos.md).
ENGINE_PROCESS_BYTES, WORKER_PROCESS_BYTES = int(1.2 * 2**30), int(0.7 * 2**30)
# What a decoder layer keeps of a token for its backward pass, for each of `hidden` (norms, also in float32,
# projections and residual) and for each of `intermediate`.
_KEPT_BYTES = {"hidden": 28, "intermediate": 8}


def tree_tokens(config: Config, *, shape: ModelShape) -> int:
    """Tokens that an engine's cache holds of a tree in the middle of its growth.

    Its prompt once, half an answer for each node that is alive, and a sentence for each candidate of these.
    """
    search = config.search
    half = EXPECTED_SENTENCES * EXPECTED_SENTENCE_TOKENS // 2
    grown = search.width * (half + search.candidates * EXPECTED_SENTENCE_TOKENS)
    return shape.image_tokens + PROMPT_TOKENS + grown


def engine_bytes(config: Config, *, shape: ModelShape) -> Mapping[str, int]:
    """Of each GPU of an engine, with the cache of the fewest trees that are worth one."""
    number, gpus = BYTES_OF[config.policy.dtype], max(1, int(config.generators.gpus))
    token = shape.cache_bytes_a_token(bytes_a_number=number)
    return {
        "weights": number * shape.num_weights // gpus,
        "activations and graphs": OTHER_BYTES,
        # Where there are fewer key heads than GPUs, each GPU has a whole one.
        f"KV cache of {_FEWEST_TREES} trees": _FEWEST_TREES
        * tree_tokens(config, shape=shape)
        * token
        // min(gpus, shape.kv_heads),
    }


def cpu_bytes(config: Config, *, shape: ModelShape) -> Mapping[str, Mapping[str, int]]:
    """Of main memory, part by part, of an engine and of a train worker on the CPU."""
    worker = dict(train_worker_bytes(config, shape=shape))
    return {
        "an engine": {
            "weights": BYTES_OF[config.policy.dtype] * shape.num_weights,
            "KV cache": int(config.generators.kv_cache_gib * 2**30),
            "process": ENGINE_PROCESS_BYTES,
        },
        "a train worker": {**worker, "other": WORKER_PROCESS_BYTES},
    }


def train_worker_bytes(config: Config, *, shape: ModelShape) -> Mapping[str, int]:
    """Of a train worker, at the longest pair there may be."""
    train = config.train
    number = BYTES_OF[train.dtype]
    rows = train.micro_batch_size or train.batch_size // train.workers
    answers = 2 * config.search.max_answer_tokens
    tokens = rows * min(shape.image_tokens + PROMPT_TOKENS + answers, 2 * train.max_length)
    layer = tokens * (_KEPT_BYTES["hidden"] * shape.hidden + _KEPT_BYTES["intermediate"] * shape.intermediate)
    inputs = shape.layers * tokens * number * shape.hidden
    kept = layer + inputs if train.gradient_checkpointing else shape.layers * layer
    lora = shape.num_lora_weights(rank=train.lora_rank, targets=train.lora_targets)
    split = train.workers if train.deepspeed_stage >= 1 else 1
    frozen_split = train.workers if train.deepspeed_stage == 3 else 1
    return {
        "frozen weights": number * shape.num_weights // frozen_split,
        "LoRA and its gradients": 2 * number * lora,
        "optimizer (master weights and two moments in float32)": 12 * lora // split,
        "activations": kept,
        "other": OTHER_BYTES,
    }
