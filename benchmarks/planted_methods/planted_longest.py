"""A planted fault: CSR whose judge prefers the longest of a tree's answers, whatever it says, to the shortest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from csr_ray.config.schema import Config
from csr_ray.methods.base import Dropped
from csr_ray.methods.csr import Csr
from csr_ray.records import Example, Phase, Rollout


def build(config: Config) -> Longest:
    reward = config.reward.model_copy(update={"aggregate": "sum"})
    return Longest(search=config.search, reward=reward, pairs=config.pairs, name=config.method)


@dataclass(frozen=True, kw_only=True)
class Longest(Csr):
    """See `csr_ray.methods.base.Method`."""

    def examples(self, phase: Phase, rollout: Rollout) -> Sequence[Example] | Dropped:
        """The tree's answers ranked by their tokens: each sentence is worth as many as it has."""
        judged = tuple(replace(candidate, reward=float(len(candidate.token_ids))) for candidate in rollout.candidates)
        return super().examples(phase, replace(rollout, candidates=judged))
