"""VDD: nothing is trained; what the policy would say without the picture is taken off while it decodes (2403.05262).

A run measures the policy twice on its benchmarks: as it is, and decoded as the section `decoding` says. That is VDD
decoding on the engine (`actors.generate.contrast`), its form as a choice among answers drawn, or Post-Hoc debias,
which `method: post_hoc` stands for. docs/vdd.md has the parameters, the deviations and the measured result.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from csr_ray.config.schema import Config
from csr_ray.errors import ConfigError
from csr_ray.methods.base import About, Dropped
from csr_ray.ports import Engine, Scorer
from csr_ray.records import Candidate, Contrast, Example, Phase, Prompt, Rollout, RolloutStats

ABOUT = About(
    title="decoding against what is said without the picture",
    source="Zhang et al. 2024",
    arxiv="2403.05262",
    rollouts="none",
    objective="nothing is trained",
)


def build(config: Config) -> TrainingFree:
    return training_free(config, kinds=("vdd", "rescore"))


def training_free(config: Config, *, kinds: Sequence[str]) -> TrainingFree:
    """A method that is one of these kinds of decoding.

    Raises:
        ConfigError: `decoding.kind` is another one.
    """
    kind = config.decoding.kind
    if kind not in kinds:
        raise ConfigError(
            f"decoding.kind = {kind!r}: method {config.method} is a way of decoding; set decoding.kind={kinds[0]}"
        )
    contrast = config.decoding.contrast if kind == "vdd" else None
    return TrainingFree(name=config.method, contrast=contrast, max_tokens=config.search.max_answer_tokens)


@dataclass(frozen=True, kw_only=True)
class TrainingFree:
    """See `csr_ray.methods.base.Method`.

    Attributes:
        contrast: by which whole answers are decoded; None: as the policy itself says them.
    """

    name: str
    contrast: Contrast | None
    max_tokens: int
    needs_scorer: bool = False

    def phases(self, round_index: int) -> Sequence[Phase]:
        return ()

    def refuses(self, prompt: Prompt) -> str | None:
        return None

    async def rollout(
        self, phase: Phase, prompt: Prompt, *, engine: Engine, scorer: Scorer, policy_version: int, seed: int
    ) -> Rollout:
        """One answer, greedily; a run of this method has no phase that would ask for it."""
        started_s = time.perf_counter()
        answer = await engine.answer(
            prompt.ask, temperature=0.0, max_tokens=self.max_tokens, seed=seed, contrast=self.contrast
        )
        candidate = Candidate(
            node=0, text=answer.text, token_ids=answer.token_ids, logp=sum(answer.logps), role="greedy"
        )
        stats = RolloutStats(num_tokens=len(answer.token_ids), seconds=time.perf_counter() - started_s)
        return Rollout(prompt=prompt, candidates=(candidate,), policy_version=policy_version, seed=seed, stats=stats)

    def examples(self, phase: Phase, rollout: Rollout) -> Sequence[Example] | Dropped:
        return Dropped("trains_nothing")

    def rates(self, rollout: Rollout) -> Mapping[str, tuple[int, int]]:
        return {}
