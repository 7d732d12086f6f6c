"""What a run costs on this machine's CPU.

A tiny model waits for Python more than it computes, so its costs are not worked out but counted: they lie in the
middle of three runs of configs/tiny-world.yaml on two cores that had other work, too (docs/plan.md). A machine that
multiplies matrices faster or slower is taken to do everything so, and a larger model adds its arithmetic.
"""

from __future__ import annotations

from csr_ray.config.schema import Config
from csr_ray.machine.clip_cost import GFLOPS_A_THREAD, ClipCost
from csr_ray.machine.model_shape import ModelShape
from csr_ray.machine.rates import Cost, Rates
from csr_ray.machine.workload import Workload

# 1e9 operations a second of one thread of the machine that the rest was taken on (`csr_ray.app.speed`).
REFERENCE_GFLOPS = 125.0
# Until the engine serves: imports of vLLM and torch in several processes.
START_S = 25.0
# Of building the embedded world where the cache does not have it, by its own record (world.json); `world.quick` too.
WORLD_S, QUICK_WORLD_S = 80.0, 17.0
# Of the first answers more than of later ones: the train group starts beside them, and the processor is loaded.
FIRST_ANSWERS_S = 12.0
# Of an answer of an evaluation, of which some hundred are under way at once.
ANSWER_S = 2.9e-3
# Of an answer to the gate, with its scoring: 128 of 23 tokens took 0.8 to 2.7 s, in ten looks of three runs.
GATE_ANSWER_S = 10e-3
# Of a sentence of a tree, with its scoring; and of the last trees, when there is nothing else to do.
NODE_S, LAST_TREES_S = 3.4e-3, 0.6
# Of a pair, of a cycle's training beside its pairs, and of the first one more.
PAIR_S, TRAIN_S, FIRST_TRAIN_S = 12e-3, 0.2, 0.8
PUBLISH_S = 0.3
# The merged model, the page, the end of the processes, and the start of the command itself.
END_S = 7.0
# Of the policy that these were taken with, whose arithmetic is in them.
_COUNTED_WEIGHTS = 3_500_000


def cpu_rates(
    config: Config,
    *,
    shape: ModelShape | None,
    work: Workload,
    clip: ClipCost | None,
    gflops: float,
    num_cores: float,
    builds_world: bool = False,
) -> Rates:
    """The costs of a run's stages on CPUs.

    Args:
        shape: of the policy; None: not known, and taken to be as small as the embedded world's.
        clip: of the scorer; None: not known, and taken to be as small.
        gflops: 1e9 float32 operations a second of one thread of this machine.
        num_cores: of this machine.
        builds_world: the embedded world is not in the cache, and built first.
    """
    slower = REFERENCE_GFLOPS / gflops
    more_weights = 0 if shape is None else max(0, shape.num_weights - _COUNTED_WEIGHTS)
    token_s = 2 * more_weights / (gflops * 1e9 * num_cores)
    picture = 0 if shape is None else shape.image_tokens
    score_s = 0.0
    if clip is not None:
        rate = GFLOPS_A_THREAD * config.scorers.threads * config.scorers.min
        score_s = clip.seconds(num_pictures=1, num_sentences=round(work.nodes), gflops=rate)
    passes = 2 + config.train.gradient_checkpointing + (config.train.reference == "recompute")
    source = (
        f"assumed: counted on a machine of {REFERENCE_GFLOPS:g} GFLOP/s a thread; here {gflops:.0f}, so "
        f"{slower:.2f} times as long"
    )

    def cost(each_s: float = 0.0, *, fixed_s: float = 0.0, first_s: float = 0.0, more_s: float = 0.0) -> Cost:
        taken = Cost(fixed_s=fixed_s, each_s=each_s, first_s=first_s, source=source).times(slower)
        return Cost(
            fixed_s=taken.fixed_s, each_s=taken.each_s + more_s, first_s=taken.first_s, unit="", source=source
        )

    world_s = 0.0
    if builds_world:
        world_s = QUICK_WORLD_S if config.world.quick else WORLD_S
    asked = work.evaluations[0] if work.evaluations else None
    answer_tokens = asked.tokens / asked.answers if asked and asked.answers else 0.0
    gate_tokens = work.gate_tokens / work.gate_answers if work.gate_answers else 0.0
    return Rates(
        start=cost(fixed_s=START_S + world_s),
        rollout=cost(
            NODE_S * work.nodes,
            fixed_s=LAST_TREES_S,
            more_s=token_s * (picture + work.nodes * work.sentence_tokens) + score_s,
        ),
        train=cost(
            PAIR_S,
            fixed_s=TRAIN_S,
            first_s=FIRST_TRAIN_S,
            more_s=passes * token_s * (picture + 2 * work.answer_tokens),
        ),
        publish=cost(fixed_s=PUBLISH_S),
        gate=cost(
            GATE_ANSWER_S, more_s=token_s * (picture / 2 + gate_tokens) + score_s * work.sentences / (work.nodes or 1)
        )
        if work.gate_answers
        else Cost(unit="answer", source="gate.enabled=false"),
        evaluate=cost(
            ANSWER_S, first_s=FIRST_ANSWERS_S if work.evaluations else 0.0, more_s=token_s * (picture + answer_tokens)
        ),
        end=cost(fixed_s=END_S),
    )
