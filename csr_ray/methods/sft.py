"""SFT on the truth: the policy imitates the reference answer of each prompt; nothing is rolled out, nobody judges.

The baseline of SIMA and mllm-dpo (arXiv 2402.10884, "SFT"). docs/annotated.md has parameters, deviations and the
measured result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from csr_ray.config.schema import Config
from csr_ray.methods.base import About, Dropped
from csr_ray.ports import Engine, Scorer
from csr_ray.records import Candidate, Example, Phase, Prompt, Rollout
from csr_ray.rollout.whole_answers import target_of

ABOUT = About(
    title="SFT on the reference answer",
    source="the baseline of Wang et al. 2024 and Li et al. 2024",
    needs=("truth",),
    rollouts="none",
    objective="SFT on the truth",
)
TRUTH = "truth"


def build(config: Config) -> Sft:
    return Sft()


@dataclass(frozen=True, kw_only=True)
class Sft:
    """See `csr_ray.methods.base.Method`."""

    name: str = "sft"
    needs_scorer: bool = False

    @property
    def answers_a_prompt(self) -> float:
        return 0.0

    def phases(self, round_index: int) -> Sequence[Phase]:
        return (Phase(objective="sft", num_answers=1),)

    def refuses(self, prompt: Prompt) -> str | None:
        return None if prompt.truth and prompt.truth.strip() else "truth is missing; sft imitates it"

    async def rollout(
        self, phase: Phase, prompt: Prompt, *, engine: Engine, scorer: Scorer, policy_version: int, seed: int
    ) -> Rollout:
        return truth_rollout(prompt, engine=engine, policy_version=policy_version, seed=seed)

    def examples(self, phase: Phase, rollout: Rollout) -> Sequence[Example] | Dropped:
        return (truth_example(rollout, method=self.name),)

    def rates(self, rollout: Rollout) -> Mapping[str, tuple[int, int]]:
        return {}


def truth_rollout(prompt: Prompt, *, engine: Engine, policy_version: int, seed: int) -> Rollout:
    """The reference answer, in the tokens in which the policy would give it; the policy says nothing."""
    text = str(prompt.truth).strip()
    answer = Candidate(node=0, text=text, token_ids=engine.answer_ids(text), logp=None, role=TRUTH)
    return Rollout(prompt=prompt, candidates=(answer,), policy_version=policy_version, seed=seed)


def truth_example(rollout: Rollout, *, method: str) -> Example:
    """What imitates the answer of a `truth_rollout`."""
    (answer,) = rollout.candidates
    return Example(
        id=rollout.prompt.id,
        ask=rollout.prompt.ask,
        targets=(target_of(answer, role="answer"),),
        policy_version=rollout.policy_version,
        method=method,
        seed=rollout.seed,
    )
