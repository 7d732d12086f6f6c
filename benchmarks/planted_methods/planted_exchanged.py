"""A planted fault: CSR with chosen and rejected exchanged, in all pairs (a sign the wrong way round) or at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import xxhash
from pydantic import Field

from csr_ray.config.schema import Config, Section
from csr_ray.methods.base import Dropped
from csr_ray.methods.csr import Csr
from csr_ray.records import Example, Phase, Rollout


class Keys(Section):
    """The section `planted_exchanged` of a config."""

    share: float = Field(1.0, ge=0, le=1, description="of the pairs that are exchanged")


def build(config: Config) -> Exchanged:
    keys = config.method_keys
    assert isinstance(keys, Keys), keys
    return Exchanged(
        search=config.search, reward=config.reward, pairs=config.pairs, name=config.method, share=keys.share
    )


@dataclass(frozen=True, kw_only=True)
class Exchanged(Csr):
    """See `csr_ray.methods.base.Method`."""

    share: float

    def examples(self, phase: Phase, rollout: Rollout) -> Sequence[Example] | Dropped:
        made = super().examples(phase, rollout)
        # Drawn by the id and the rollout's seed, so that a resumed run draws the same.
        drawn = xxhash.xxh3_64_intdigest(rollout.prompt.id.encode(), seed=rollout.seed)
        if isinstance(made, Dropped) or drawn >= self.share * 2**64:
            return made
        return tuple(exchanged(example) for example in made)


def exchanged(example: Example) -> Example:
    """The same two answers, each in the other's role."""
    chosen, rejected = example.targets
    return replace(example, targets=(replace(rejected, role="chosen"), replace(chosen, role="rejected")))
