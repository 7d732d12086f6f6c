"""What actors count, and what they hold: records, so that every figure has one name, one meaning and one sum.

Every field only ever grows by what is added, so the counters of several actors and of several units of work may be
added up; ratios are formed where they are read (`csr_ray.stages.summary`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace


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


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What the actors of one role have held of one kind of GPU, over some time.

    Attributes:
        role: generator, scorer or train_worker; or unused, the rest of GPUs of which these hold a part.
        kind: of the GPUs, as Ray names it; "" where there is none, or nobody knows.
        gpus, cpus: that Ray keeps for each of these actors.
        held_s: seconds of actors: of two over a minute it is 120.
        busy_s: the part of them in which an actor had work.
    """

    role: str
    kind: str
    gpus: float
    cpus: float
    held_s: float
    busy_s: float

    @property
    def gpu_s(self) -> float:
        return self.gpus * self.held_s

    @property
    def cpu_s(self) -> float:
        return self.cpus * self.held_s

    @classmethod
    def merged(cls, parts: Iterable[Usage]) -> list[Usage]:
        """Those of the same role, kind and size added up, in the order of their first."""
        sums: dict[tuple[str, str, float, float], Usage] = {}
        for part in parts:
            key = (part.role, part.kind, part.gpus, part.cpus)
            known = sums.get(key, replace(part, held_s=0.0, busy_s=0.0))
            sums[key] = replace(known, held_s=known.held_s + part.held_s, busy_s=known.busy_s + part.busy_s)
        return list(sums.values())

    def to_plain(self) -> dict[str, float | str]:
        return asdict(self)
