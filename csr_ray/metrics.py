"""Every metric of a run, in one list: what is not in it cannot be exported, and the dashboard asks for nothing else.

Names, units and suffixes are Prometheus': seconds, bytes, ratios in 0..1, and `_total` behind what only grows. Ray
puts `ray_` before every name and adds labels of its own (`RAY_LABELS`), `NodeAddress` among them, so no metric has a
tag for its node. Tags have few values: a round, a phase or an actor's slot is one, a prompt's id is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

Kind = Literal["counter", "gauge", "histogram"]
Unit = Literal["", "seconds", "bytes", "ratio", "nats", "usd"]

PREFIX = "ray_"
RAY_LABELS = ("Component", "NodeAddress", "SessionName", "Version", "WorkerId", "JobId")

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric of the catalogue.

    Attributes:
        unit: "" counts things, which the help sentence names.
        help: one sentence.
        tags: beside `run` and `role`, which every metric has.
        boundaries: of a histogram's buckets, in its unit.
        provoked_by: what has to happen before it is exported; "" if every run exports it.
    """

    name: str
    kind: Kind
    unit: Unit
    help: str
    tags: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = field(default=())
    provoked_by: str = ""

    @property
    def tag_keys(self) -> tuple[str, ...]:
        return ("run", "role", *self.tags)

    @property
    def exported(self) -> tuple[str, ...]:
        """The names under which Prometheus finds it."""
        name = PREFIX + self.name
        return tuple(name + end for end in ("_bucket", "_count", "_sum")) if self.kind == "histogram" else (name,)


class Exporter(Protocol):
    """Where figures go. No call blocks, takes long or raises for a reason outside this process.

    Every call names a metric of the catalogue, and all of its tags but `run` and `role`, which may be left to the
    exporter.
    """

    run: str

    def add(self, name: str, value: float = 1.0, **tags: str) -> None:
        """Let a counter grow; by 0 it does not, and is not exported for that alone."""
        ...

    def set(self, name: str, value: float, **tags: str) -> None:
        """Set a gauge, which keeps its value until it is set again or forgotten."""
        ...

    def forget(self, name: str, **tags: str) -> None:
        """Export a gauge as 0 once more, and then no longer."""
        ...

    def observe(self, name: str, value: float, **tags: str) -> None:
        """Put a value into a histogram."""
        ...

    def sample(self, look: Callable[[], None]) -> None:
        """Call `look` from now on, in a thread of the exporter's, before the gauges are exported."""
        ...

    def close(self) -> None:
        """Export what is left, and nothing after it."""
        ...


class NoExporter:
    """Exports nothing."""

    run = ""

    def add(self, name: str, value: float = 1.0, **tags: str) -> None: ...

    def set(self, name: str, value: float, **tags: str) -> None: ...

    def forget(self, name: str, **tags: str) -> None: ...

    def observe(self, name: str, value: float, **tags: str) -> None: ...

    def sample(self, look: Callable[[], None]) -> None: ...

    def close(self) -> None: ...


def run_name(folder: str) -> str:
    """The tag `run` of a run folder or its URL: its last name."""
    return folder.rstrip("/").rsplit("/", 1)[-1] or "run"


_CYCLE = ("round", "phase")
_USAGE = "a journal's line of what was used of the cluster (kind usage)"


def _counter(name: str, help: str, *tags: str, unit: Unit = "", provoked_by: str = "") -> Metric:
    return Metric(name=name, kind="counter", unit=unit, help=help, tags=tags, provoked_by=provoked_by)


def _gauge(name: str, help: str, *tags: str, unit: Unit = "", provoked_by: str = "") -> Metric:
    return Metric(name=name, kind="gauge", unit=unit, help=help, tags=tags, provoked_by=provoked_by)


# What generators (role generator) and scorers (role scorer) count, each under the name of its slot; by the fields of
# `csr_ray.counters.Counters`, of which the deaths are counted by the driver (csr_ray_deaths_total).
OF_COUNTERS: Mapping[str, Metric] = {
    "rollouts": _counter("csr_ray_rollouts_total", "Rollouts that a generator has finished.", "actor"),
    "candidates": _counter("csr_ray_candidates_total", "Candidates (tree nodes) in finished rollouts.", "actor"),
    "engine_steps": _counter("csr_ray_engine_steps_total", "Steps of the engine.", "actor"),
    "engine_running": _counter(
        "csr_ray_engine_running_total", "Running requests, added up over the engine's steps.", "actor"
    ),
    "engine_slots": _counter(
        "csr_ray_engine_slots_total", "Requests that may run at once, added up over the engine's steps.", "actor"
    ),
    "engine_waiting": _counter(
        "csr_ray_engine_waiting_total",
        "Requests that waited in the engine, added up over its steps.",
        "actor",
        provoked_by="more requests at once than generators.max_num_seqs or the KV cache takes",
    ),
    "engine_tokens": _counter("csr_ray_engine_tokens_total", "Tokens that the engine has generated.", "actor"),
    "engine_preempted": _counter(
        "csr_ray_engine_preemptions_total",
        "Requests that had to start again because the KV cache was full.",
        "actor",
        provoked_by="a KV cache too small for what runs at once",
    ),
    "prefix_queries": _counter(
        "csr_ray_prefix_queries_total", "Tokens that were looked up in the prefix cache.", "actor"
    ),
    "prefix_hits": _counter("csr_ray_prefix_hits_total", "Tokens that were found in the prefix cache.", "actor"),
    "processor_queries": _counter(
        "csr_ray_processor_queries_total", "Images that were looked up in the processor's cache.", "actor"
    ),
    "processor_hits": _counter(
        "csr_ray_processor_hits_total", "Images that were found in the processor's cache.", "actor"
    ),
    "image_encodes": _counter(
        "csr_ray_image_encodes_total", "Images that went through the policy's vision tower.", "actor"
    ),
    "continuations": _counter(
        "csr_ray_continuations_total", "Requests that go on from a part of an answer.", "actor"
    ),
    "continuation_misses": _counter(
        "csr_ray_continuation_misses_total",
        "Continuations whose prefix was not in the cache.",
        "actor",
        provoked_by="a KV cache too small for the trees that grow at once",
    ),
    "groups_redone": _counter(
        "csr_ray_groups_redone_total",
        "Coupled groups that were decoded again, one member after the other.",
        "actor",
        provoked_by="search.expand=diverse_greedy, and a group whose members could not be kept together",
    ),
    "scorer_s": _counter(
        "csr_ray_scorer_busy_seconds_total", "Time in the scorer's forward passes.", "actor", unit="seconds"
    ),
    "scorer_sentences": _counter("csr_ray_scorer_sentences_total", "Sentences that were scored.", "actor"),
    "scorer_batches": _counter("csr_ray_scorer_batches_total", "Batches that were scored.", "actor"),
    "score_requests": _counter("csr_ray_score_requests_total", "Requests to the scorer.", "actor"),
    "score_wait_s": _counter(
        "csr_ray_score_wait_seconds_total",
        "Time that requests to the scorer waited for their batch to start.",
        "actor",
        unit="seconds",
    ),
    "score_queue": _counter(
        "csr_ray_score_queue_total", "Sentences that waited when a batch began, added up over batches.", "actor"
    ),
    "scorer_image_encodes": _counter(
        "csr_ray_scorer_image_encodes_total", "Images that went through the scorer's tower.", "actor"
    ),
    "scorer_text_encodes": _counter(
        "csr_ray_scorer_text_encodes_total", "Texts that went through the scorer's tower.", "actor"
    ),
}

_OF_ACTORS = (
    _gauge(
        "csr_ray_engine_occupancy_ratio",
        "How full the engine was in the last seconds: running requests over those that may run.",
        "actor",
        unit="ratio",
    ),
    _gauge(
        "csr_ray_engine_queue",
        "How many requests waited in the engine in the last seconds, as a mean over its steps.",
        "actor",
    ),
    _gauge(
        "csr_ray_prefix_hit_ratio",
        "Share of the looked-up tokens that the prefix cache had, in the last seconds with any.",
        "actor",
        unit="ratio",
    ),
    _gauge("csr_ray_policy_version_served", "The policy version that a generator serves.", "actor"),
    _gauge("csr_ray_scorer_queue", "Requests that wait for the scorer's next batch.", "actor"),
    Metric(
        name="csr_ray_prompt_seconds",
        kind="histogram",
        unit="seconds",
        help="How long the rollout of one prompt took in its generator.",
        tags=("actor",),
        boundaries=_SECONDS,
    ),
    _counter("csr_ray_train_steps_total", "Optimizer steps.", "actor", *_CYCLE),
    _gauge("csr_ray_train_loss", "Loss of the last optimizer step.", "actor", *_CYCLE),
    Metric(
        name="csr_ray_train_step_seconds",
        kind="histogram",
        unit="seconds",
        help="Time from one optimizer step to the next, of a cycle's first from its order on, waits included.",
        tags=("actor", *_CYCLE),
        boundaries=_SECONDS,
    ),
)

# What follows from the journal's lines, once each is on the disk (role driver).
_OF_JOURNAL = (
    _counter("csr_ray_journal_lines_total", "Committed lines of the journal.", "kind"),
    _counter("csr_ray_prompts_total", "Prompts whose rollouts are committed.", *_CYCLE),
    _counter(
        "csr_ray_set_aside_total",
        "Prompts that were set aside in a rollout; whose fault it was: input, policy or machine.",
        "fault",
        *_CYCLE,
        provoked_by="a picture that cannot be read",
    ),
    _counter("csr_ray_nodes_total", "Candidates (tree nodes) in committed rollouts.", *_CYCLE),
    _counter("csr_ray_tokens_total", "Tokens generated for committed rollouts.", *_CYCLE),
    _counter("csr_ray_sentences_scored_total", "Sentences scored for committed rollouts.", *_CYCLE),
    _counter(
        "csr_ray_texts_cut_total",
        "Sentences that were longer than the scorer's context.",
        *_CYCLE,
        provoked_by="a sentence longer than the scorer's context",
    ),
    _counter("csr_ray_rollout_seconds_total", "Wall time of the rollout stage.", *_CYCLE, unit="seconds"),
    _counter(
        "csr_ray_prompt_time_seconds_total",
        "Time of all committed rollouts, each by its own clock.",
        *_CYCLE,
        unit="seconds",
    ),
    _counter(
        "csr_ray_prompt_score_wait_seconds_total",
        "Of that, the time that rollouts waited for their scores.",
        *_CYCLE,
        unit="seconds",
    ),
    _counter("csr_ray_examples_made_total", "Training examples that were made.", *_CYCLE),
    _counter(
        "csr_ray_examples_dropped_total",
        "Rollouts that gave no training example, by the method's reason.",
        "reason",
        *_CYCLE,
        provoked_by="a rollout whose answers are alike",
    ),
    _counter("csr_ray_build_seconds_total", "Time in which examples were made.", *_CYCLE, unit="seconds"),
    _gauge("csr_ray_pair_reward", "Mean reward of a cycle's chosen and rejected answers.", "side", *_CYCLE),
    _counter("csr_ray_train_examples_total", "Examples that were trained on.", *_CYCLE),
    _counter(
        "csr_ray_train_seconds_total", "Wall time of training, until the adapter is there.", *_CYCLE, unit="seconds"
    ),
    _counter(
        "csr_ray_train_optimizer_seconds_total",
        "Of that, the time from the first optimizer step's start to the last one's end.",
        *_CYCLE,
        unit="seconds",
    ),
    _gauge("csr_ray_train_cycle_loss", "Loss of the first and of the last step of a cycle.", "edge", *_CYCLE),
    _gauge("csr_ray_policy_version_trained", "The policy version that was trained last."),
    _counter("csr_ray_publish_bytes_total", "Bytes of adapters that were sent to generators.", *_CYCLE, unit="bytes"),
    _counter("csr_ray_publish_seconds_total", "Wall time of hand-overs, proofs included.", *_CYCLE, unit="seconds"),
    _gauge(
        "csr_ray_publish_probe_gap_nats",
        "Largest difference between the generators' and the trainer's log-prob of a probe's answer.",
        *_CYCLE,
        unit="nats",
    ),
    _gauge(
        "csr_ray_publish_kept_ratio",
        "Share of the update that arrived in the rounded weights.",
        *_CYCLE,
        unit="ratio",
    ),
    _gauge(
        "csr_ray_publish_swallowed_ratio",
        "Size of the rounding's noise over that of the update.",
        *_CYCLE,
        unit="ratio",
    ),
    _gauge(
        "csr_ray_eval_score", "A benchmark's figure (chair_s, recall, pope_acc, ...) by version.", "metric", "version"
    ),
    _counter("csr_ray_eval_seconds_total", "Wall time of evaluations.", unit="seconds"),
    _counter("csr_ray_start_seconds_total", "Wall time of the starts of all actors.", unit="seconds"),
    _counter("csr_ray_rounds_total", "Rounds that are done."),
    _counter("csr_ray_round_seconds_total", "Wall time of the rounds that are done.", unit="seconds"),
    _gauge(
        "csr_ray_gpu_seconds",
        "GPU time that a role's actors have held in the whole run.",
        unit="seconds",
        provoked_by=_USAGE,
    ),
    _gauge(
        "csr_ray_cpu_seconds",
        "CPU time that Ray has kept for a role's actors in the whole run.",
        unit="seconds",
        provoked_by=_USAGE,
    ),
    _gauge(
        "csr_ray_actor_seconds",
        "Time for which a role's actors have held their places in the whole run.",
        unit="seconds",
        provoked_by=_USAGE,
    ),
    _gauge("csr_ray_actor_busy_seconds", "Of that, the time with work.", unit="seconds", provoked_by=_USAGE),
    _gauge(
        "csr_ray_cost_usd",
        "What a role's actors have cost in the whole run, where the price of all that they hold is known.",
        unit="usd",
        provoked_by=_USAGE,
    ),
)

# What the driver sees of the stage that is going on and of the actors; `role` is that of the actors where it says so.
_OF_DRIVER = (
    _gauge("csr_ray_stage_running", "1 for the stage that is going on.", "stage", "round"),
    _gauge(
        "csr_ray_stage_done",
        "What the running stage has done, in its own unit (prompts, steps, answers).",
        "stage",
        "round",
    ),
    _gauge("csr_ray_stage_left", "What is left of it, where that is known.", "stage", "round"),
    _counter(
        "csr_ray_stage_seconds_total",
        "Wall time of stages, of the running one so far.",
        "stage",
        "round",
        unit="seconds",
    ),
    _gauge(
        "csr_ray_replicas",
        "Actors of a role by state: serving, starting, or unplaced (no place in the cluster).",
        "state",
    ),
    _gauge("csr_ray_replicas_wanted", "Actors of a role that the run wants now."),
    _gauge("csr_ray_calls_in_flight", "Prompts (or chunks of questions) that generators work on or hold."),
    _gauge("csr_ray_dispatch_queue", "Prompts that were drawn and wait for a generator's free slot."),
    _gauge("csr_ray_results_waiting", "Results that the driver has not taken yet."),
    _counter(
        "csr_ray_deaths_total",
        "Actors of a role that were lost.",
        provoked_by="an actor that is killed, or whose node goes",
    ),
    _counter(
        "csr_ray_replacements_total",
        "Actors of a role that were started in place of one that was lost.",
        provoked_by="an actor that is killed, or whose node goes",
    ),
    _counter(
        "csr_ray_retries_total",
        "Prompts that were sent again.",
        provoked_by="an actor that is killed while it works",
    ),
)

CATALOGUE: Mapping[str, Metric] = {
    metric.name: metric for metric in (*OF_COUNTERS.values(), *_OF_ACTORS, *_OF_JOURNAL, *_OF_DRIVER)
}
