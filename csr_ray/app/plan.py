"""The plan that `csr-ray run --dry-run` prints: actors counted, tokens estimated. Starts nothing.

What a run takes in hours and money is `csr_ray.app.forecast`, for `csr-ray plan`.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from csr_ray.app.console import result_console
from csr_ray.config.schema import Config, Train
from csr_ray.errors import ConfigError
from csr_ray.machine.clip_cost import GFLOPS_A_THREAD, ClipCost, clip_cost, open_clip_config
from csr_ray.machine.fit import Node, gpus_needed
from csr_ray.machine.kinds import gpu_memory_bytes
from csr_ray.machine.layout import in_words, lay_out
from csr_ray.machine.memory import count_weights
from csr_ray.machine.model_shape import shape_of_model
from csr_ray.machine.needs import (
    EXPECTED_SENTENCES,
    engine_bytes,
    train_worker_bytes,
)
from csr_ray.machine.placement import demands_of
from csr_ray.machine.workload import (
    GATE_ANSWERS,
    gate_answer_tokens,
    gate_answers,
    nodes_a_prompt,
    sentence_tokens,
)
from csr_ray.methods.base import answers_a_prompt, method_of

_GIB = 2**30
_CLIP_MARKS = 2  # tokens that CLIP puts around a sentence
# Tokens a second of one generator on a GPU: an assumption, of the order of a 7B model on a large GPU.
_TOKENS_PER_S = 3000.0
# In less the last column has a few letters a line; then each role has a line of its own.
_TABLE_WIDTH = 80
_SHOWN_GPUS = (0, 1, 2, 4, 8)
_MANY_CPUS = 10_000
_SHORT_S = 600.0  # nobody minds waiting so long for a scorer in a round


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The resolved run, for a person to read before it starts."""

    config: Config
    num_prompts_a_round: int | None
    nodes_a_prompt: int | None
    tokens_a_round: int | None
    scorer_cost: ClipCost | None = None
    num_prompts: int | None = None

    @property
    def cpu_scoring_s(self) -> float | None:
        """Seconds of a round's scoring if the scorers compute on the CPU; None if they do not, or it is not known."""
        scorers = self.config.scorers
        if scorers.gpus or self.scorer_cost is None or not self.num_prompts_a_round or not self.nodes_a_prompt:
            return None
        return self.scorer_cost.seconds(
            num_pictures=self.num_prompts_a_round,
            num_sentences=self.num_prompts_a_round * self.nodes_a_prompt,
            gflops=GFLOPS_A_THREAD * scorers.threads * scorers.min,
        )

    @property
    def gpu_rollout_s(self) -> float | None:
        """Seconds of a round's generating on GPUs; None on the CPU, or if the work is not known."""
        generators = self.config.generators
        if not generators.gpus or self.tokens_a_round is None:
            return None
        return self.tokens_a_round / (_TOKENS_PER_S * generators.min)


def make_plan(config: Config, *, num_prompts: int | None) -> Plan:
    """Count and estimate what a round needs.

    Args:
        num_prompts: how many usable prompts the prompt file has; None if it was not read.
    """
    per_round = config.data.per_round or num_prompts
    if num_prompts is not None and per_round is not None:
        per_round = min(per_round, num_prompts)
    # What is known of a tree is not known of other rollouts.
    if not any(answers_a_prompt(method_of(one)) is None for one in config.of_each_method):
        return Plan(
            config=config,
            num_prompts_a_round=per_round,
            nodes_a_prompt=None,
            tokens_a_round=None,
            num_prompts=num_prompts,
        )
    nodes, tokens_a_sentence = nodes_a_prompt(config.search), sentence_tokens(config.search)
    return Plan(
        config=config,
        num_prompts_a_round=per_round,
        nodes_a_prompt=nodes,
        tokens_a_round=None if per_round is None else per_round * nodes * tokens_a_sentence,
        scorer_cost=_scorer_cost(config, sentence_tokens=tokens_a_sentence + _CLIP_MARKS),
        num_prompts=num_prompts,
    )


def _scorer_cost(config: Config, *, sentence_tokens: int) -> ClipCost | None:
    clip = open_clip_config(config.scorer.model) if config.scorer is not None else None
    return clip_cost(clip, sentence_tokens=sentence_tokens) if clip is not None else None


def print_plan(plan: Plan, *, console: Console | None = None, nodes: Sequence[Node] = ()) -> None:
    """The plan as a table: who runs, on what, and how much work to expect.

    Args:
        nodes: of the cluster that the run would join, for which `cluster.layout` is worked out as well; none: it is
            not known.
    """
    console = console or result_console()
    config = plan.config
    table = Table(
        title=f"{config.method}: {config.run.rounds} round{'s' * (config.run.rounds != 1)} into {config.run.dir}",
        title_justify="left",
    )
    for name in ("role", "actors", "CPUs each", "GPUs each", "what it runs"):
        table.add_column(name, overflow="fold")  # of a long path the end says which model it is
    rows = (
        ("generator", _span(config.generators.min, config.generators.max), config.generators.cpus,
         config.generators.gpus, f"vLLM, {config.policy.model}, {config.policy.dtype}"),
        *_scorer_rows(config),
        ("train worker", str(config.train.workers), config.train.cpus_per_worker, config.train.gpus_per_worker,
         f"{_objectives(config)}, LoRA r{config.train.lora_rank}, DeepSpeed ZeRO-{config.train.deepspeed_stage}, "
         f"{config.train.dtype}"),
    )  # fmt: skip
    method = method_of(config)
    trains = any(method.phases(index) for index in range(config.run.rounds))
    shown = rows if trains else rows[:1]
    for role, actors, cpus, gpus, what in shown:
        table.add_row(role, actors, f"{cpus:g}", f"{gpus:g}", what)
    if console.width < _TABLE_WIDTH:
        console.print(table.title, soft_wrap=True)
        for role, actors, cpus, gpus, what in shown:
            console.print(f"{role}: {actors}, with {cpus:g} CPU and {gpus:g} GPU each; {what}", soft_wrap=True)
    else:
        console.print(table)
    if not trains:
        console.print(
            f"evaluation: {', '.join(config.eval.benchmarks) or 'none'}, once plain and once with decoding.kind = "
            f"{config.decoding.kind}; nothing is rolled out or trained",
            soft_wrap=True,
        )
        return
    for words in _rounds_in_words(plan):
        console.print(words)
    console.print(f"evaluation: {', '.join(config.eval.benchmarks) or 'none'}")
    console.print(_gate_in_words(config, num_prompts=plan.num_prompts))
    if config.cluster.layout != "given":
        for layout in _layouts(config, nodes=nodes):
            console.print(layout, soft_wrap=True, markup=False)
    elif gpus := gpus_needed(demands_of(config, needs_scorer=method_of(config).needs_scorer)):
        console.print(f"GPUs: {gpus} on one machine; one with less is refused when the run starts")
    for words in _memory_lines(config):
        console.print(words, soft_wrap=True)
    if (line := _scoring_line(plan)) is not None:
        console.print(line)


def _objectives(config: Config) -> str:
    """What is trained, in a word: preferences, answers to be imitated, or both in turn."""
    method = method_of(config)
    phases = [phase for index in range(config.run.rounds) for phase in method.phases(index)]
    kinds = {2: "DPO", 1: "SFT"}
    return " and ".join(dict.fromkeys(kinds[phase.num_answers] for phase in phases))


def _rounds_in_words(plan: Plan) -> Iterator[str]:
    """What a round takes; of several methods a line for each."""
    config = plan.config
    turns = Counter(config.method_of_round(index) for index in range(config.run.rounds))
    prompts = "?" if plan.num_prompts_a_round is None else f"{plan.num_prompts_a_round:,}"
    tokens = "?" if plan.tokens_a_round is None else f"about {_rounded(plan.tokens_a_round):,}"
    steps = _steps_in_words(config.train, num_prompts=plan.num_prompts_a_round)
    for one in {one.method: one for one in config.of_each_method}.values():
        whose = f" of {one.method} ({turns[one.method]} of {config.run.rounds})" if config.sequence else ""
        tree = ""
        answers = answers_a_prompt(method_of(one))
        if answers is not None:
            tree = f"{answers:g} whole answers each in a phase, " if answers else "nothing to generate, "
        elif plan.nodes_a_prompt is not None:
            tree = (
                f"up to {plan.nodes_a_prompt} sentences each, {tokens} tokens to generate "
                f"(at {min(one.search.max_sentences, EXPECTED_SENTENCES)} sentences an answer), "
            )
        yield f"a round{whose}: {prompts} prompts, {tree}{steps} of {config.train.batch_size} pairs"


def _steps_in_words(train: Train, *, num_prompts: int | None) -> str:
    """The optimizer steps of a round; a pair of each prompt is the most there can be."""
    if num_prompts is None:
        return "? optimizer steps"
    a_pass = math.ceil(num_prompts / train.batch_size)
    if train.epochs is not None:
        return f"at most {train.epochs * a_pass:,} optimizer steps"
    return f"about {a_pass:,} optimizer steps, {train.max_epochs * a_pass:,} at most,"


def _gate_in_words(config: Config, *, num_prompts: int | None) -> str:
    """What the policies answer to the gate in the whole run, if none is refused."""
    if not config.gate.enabled:
        return "gate: none (gate.enabled=false)"
    method = method_of(config)
    looks = 1 + sum(len(method.phases(index)) for index in range(config.run.rounds))
    there = config.gate.prompts if num_prompts is None else num_prompts
    answers = gate_answers(config, num_prompts=there)
    sentences = min(config.search.max_sentences, EXPECTED_SENTENCES)
    tokens = looks * answers * min(sentences * sentence_tokens(config.search), gate_answer_tokens(config))
    at_most = "at most " if num_prompts is None else ""
    return (
        f"gate: {at_most}{answers // GATE_ANSWERS} prompts answered twice by each of {looks} policies, "
        f"about {_rounded(tokens):,} tokens"
    )


def _memory_lines(config: Config) -> list[str]:
    """What of a GPU's memory an engine and a train worker need; nothing where no GPU is used or no shape is known."""
    uses_gpus = config.generators.gpus or config.cluster.layout not in ("given", "cpu")
    shape = shape_of_model(config.policy.model, visual_tokens=config.policy.visual_tokens) if uses_gpus else None
    if shape is None:
        return []
    needed = {
        "an engine": engine_bytes(config, shape=shape),
        "a train worker": train_worker_bytes(config, shape=shape),
    }
    where = "" if config.generators.gpus else ", where there are GPUs"
    return [
        f"memory of {who}{where}, about {sum(parts.values()) / _GIB:.0f} GiB of each GPU: "
        + ", ".join(f"{num_bytes / _GIB:.1f} {part}" for part, num_bytes in parts.items())
        for who, parts in needed.items()
    ]


def _layouts(config: Config, *, nodes: Sequence[Node]) -> list[str]:
    """What `cluster.layout` would make of one machine with some GPUs, and of the nodes there are, a line each."""
    lines = [
        f"layout {config.cluster.layout}: actors and GPUs are set anew from the nodes there are when the run starts"
    ]
    for num in _SHOWN_GPUS:
        machine = Node(name="a machine", cpus=_MANY_CPUS, gpus=num)
        lines.append(f"  on {num} GPU{'s' * (num != 1)}: {_layout_in_words(config, nodes=[machine], num_weights=0)}")
    if nodes:
        folder = Path(os.path.expanduser(config.policy.model))
        words = _layout_in_words(config, nodes=nodes, num_weights=count_weights(folder) if folder.is_dir() else 0)
        lines.append(f"  on this cluster ({_gpus_in_words(nodes)}): {words}")
    return lines


def _layout_in_words(config: Config, *, nodes: Sequence[Node], num_weights: int) -> str:
    needs_scorer = method_of(config).needs_scorer
    try:
        changed = lay_out(
            config, nodes=nodes, needs_scorer=needs_scorer, engine_needs_gpu=False, num_weights=num_weights
        )
    except ConfigError as error:
        return f"refused, {str(error).partition(': ')[2]}"
    return in_words(changed, needs_scorer=needs_scorer)


def _gpus_in_words(nodes: Sequence[Node]) -> str:
    nums: Counter[str] = Counter()
    for node in nodes:
        nums[node.accelerator_type] += node.gpus
    kinds = sorted(nums, key=lambda kind: (-(gpu_memory_bytes(kind) or 0), kind))
    words = [f"{nums[kind]} {kind or ('GPUs' if nums[kind] > 1 else 'GPU')}" for kind in kinds if nums[kind]]
    return ", ".join(words) or "no GPU"


def _scoring_line(plan: Plan) -> str | None:
    """How long the CPU scores a round, with a warning if GPUs generate in less time; None: nothing to say."""
    scoring_s, rollout_s = plan.cpu_scoring_s, plan.gpu_rollout_s
    if scoring_s is None:
        return None
    line = f"scoring on the CPU: about {_duration(scoring_s)} a round (assumed: {GFLOPS_A_THREAD:g} GFLOP/s a thread)"
    if rollout_s is None or scoring_s <= max(rollout_s, _SHORT_S):
        return line
    return (
        f"WARNING: {line}, while generating takes about {_duration(rollout_s)} (assumed: {_TOKENS_PER_S:g} "
        "tokens/s a generator): the generators would wait; set scorers.gpus=0.1 and generators.gpus=0.9"
    )


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"


def _scorer_rows(config: Config) -> list[tuple[str, str, float, float, str]]:
    """The table's row of the scorers; no row if the config has no scorer."""
    if config.scorer is None or not method_of(config).needs_scorer:
        return []
    what = f"open_clip, {config.scorer.model}, {config.scorer.dtype}"
    actors = _span(config.scorers.min, config.scorers.max)
    return [("scorer", actors, config.scorers.cpus, config.scorers.gpus, what)]


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def _rounded(value: int) -> int:
    digits = max(len(str(value)) - 2, 0)
    return round(value, -digits)
