"""What generators and scorers count: one record, so that every counter has one name, one meaning and one sum.

Every field only ever grows by what is added, so the counters of several actors and of several units of work may be
added up; ratios are formed where they are read (`csr_ray.stages.summary`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields


@dataclass
class Counters:
    """Sums since somebody last took them. Seconds are wall time.

    Attributes:
        rollouts, candidates: finished by the generators.
        engine_steps: steps of the engine; the next three are sums over them, so `engine_running` over `engine_slots`
            is how full it was, and `engine_waiting` over `engine_steps` how deep its queue.
        engine_tokens, engine_preempted: tokens generated, requests that had to start again.
        prefix_queries, prefix_hits: tokens looked up in the prefix cache, and found there.
        processor_queries, processor_hits: images looked up in the processor's cache, and found there.
        image_encodes: images that went through the policy's vision tower.
        continuations, continuation_misses: requests that go on from an answer, and those whose prefix was not found.
        groups_redone: coupled groups that were decoded again, one member after the other.
        scorer_s: seconds in the scorer's forward passes; `scorer_batches` of them, of `scorer_sentences` in all.
        score_requests, score_wait_s: requests to the scorer, and how long they waited for their batch to start.
        score_queue: sum over batches of the sentences that waited when one began.
        scorer_image_encodes, scorer_text_encodes: what went through the scorer's towers.
        generator_deaths, scorer_deaths: actors that were lost.
    """

    rollouts: float = 0
    candidates: float = 0
    engine_steps: float = 0
    engine_running: float = 0
    engine_slots: float = 0
    engine_waiting: float = 0
    engine_tokens: float = 0
    engine_preempted: float = 0
    prefix_queries: float = 0
    prefix_hits: float = 0
    processor_queries: float = 0
    processor_hits: float = 0
    image_encodes: float = 0
    continuations: float = 0
    continuation_misses: float = 0
    groups_redone: float = 0
    scorer_s: float = 0
    scorer_batches: float = 0
    scorer_sentences: float = 0
    score_requests: float = 0
    score_wait_s: float = 0
    score_queue: float = 0
    scorer_image_encodes: float = 0
    scorer_text_encodes: float = 0
    generator_deaths: float = 0
    scorer_deaths: float = 0

    def add(self, other: Counters) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    @classmethod
    def sum(cls, parts: Iterable[Counters]) -> Counters:
        """All of them together."""
        total = cls()
        for part in parts:
            total.add(part)
        return total

    def to_plain(self) -> dict[str, float]:
        """What is not zero, for the journal."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name))}

    @classmethod
    def from_plain(cls, plain: Mapping[str, float]) -> Counters:
        return cls(**plain)
