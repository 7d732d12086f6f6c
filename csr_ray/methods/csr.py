"""CSR: Calibrated Self-Rewarding Vision Language Models (Zhou et al. 2024, arXiv 2405.14622).

Answers grow sentence by sentence, each sentence is rewarded by the policy's own probability and by CLIP's score of it
against the picture, and the best answer is preferred to the worst (section 3.1, Algorithm 1). The search and the
rewards are config sections of their own (`search`, `reward`); docs/search.md and docs/reward.md say what they offer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from csr_ray.config.schema import Config, Pairs, Reward, Search
from csr_ray.errors import ConfigError
from csr_ray.methods.base import About, Dropped
from csr_ray.ports import Engine, Scorer
from csr_ray.records import Candidate, Example, Phase, Prompt, Rollout, Target
from csr_ray.rollout.reward import answer_reward, middle_reward
from csr_ray.rollout.search import grow_tree

ABOUT = About(
    title="calibrated self-rewarding",
    source="Zhou et al. 2024",
    arxiv="2405.14622",
    needs=("scorer",),
    rollouts="a tree of sentences",
    objective="DPO, the best against the worst whole answer",
)
NO_ANSWER = "no_whole_answer"
ONE_ANSWER = "only_one_answer"
EQUAL = "chosen_equals_rejected"
NO_MARGIN = "margin_too_small"


def build(config: Config) -> Csr:
    if config.scorer is None:
        raise ConfigError("scorer.model: missing; method = csr rewards sentences by CLIP; give it in the config")
    return Csr(search=config.search, reward=config.reward, pairs=config.pairs)


@dataclass(frozen=True, kw_only=True)
class Csr:
    """See `csr_ray.methods.base.Method`."""

    search: Search
    reward: Reward
    pairs: Pairs
    name: str = "csr"
    needs_scorer: bool = True

    def phases(self, round_index: int) -> Sequence[Phase]:
        return (Phase(),)

    def refuses(self, prompt: Prompt) -> str | None:
        return None

    async def rollout(
        self, phase: Phase, prompt: Prompt, *, engine: Engine, scorer: Scorer, policy_version: int, seed: int
    ) -> Rollout:
        return await grow_tree(
            prompt,
            engine=engine,
            scorer=scorer,
            search=self.search,
            reward=self.reward,
            policy_version=policy_version,
            seed=seed,
        )

    def examples(self, phase: Phase, rollout: Rollout) -> Sequence[Example] | Dropped:
        """The best against the worst whole answer of the tree, or the reason why there is no pair.

        Equal rewards go by the tree's order, depth first: chosen is the first of the best, rejected the last.
        """
        rated = rated_answers(rollout, config=self.reward)
        scored = [(reward, path) for reward, path in rated if reward is not None]
        if len(scored) < 2:
            return Dropped(ONE_ANSWER if scored else NO_ANSWER)
        scored.sort(key=lambda item: -item[0])
        (best_reward, best), (worst_reward, worst) = scored[0], scored[-1]
        if self.pairs.min_margin is not None and best_reward - worst_reward <= self.pairs.min_margin:
            return Dropped(NO_MARGIN)
        if answer_text(best) == answer_text(worst):
            return Dropped(EQUAL)
        example = Example(
            id=rollout.prompt.id,
            ask=rollout.prompt.ask,
            targets=(
                path_target(best, role="chosen", reward=best_reward),
                path_target(worst, role="rejected", reward=worst_reward),
            ),
            policy_version=rollout.policy_version,
            method=self.name,
            seed=rollout.seed,
        )
        return (example,)

    def rates(self, rollout: Rollout) -> Mapping[str, tuple[int, int]]:
        return {}


def rated_answers(rollout: Rollout, *, config: Reward) -> list[tuple[float | None, tuple[Candidate, ...]]]:
    """Every whole answer of a tree with its reward, in the tree's order, depth first.

    The reward is None where no sentence was scored, and where `reward.cleaning` dropped one.
    """
    paths = sorted(rollout.answers(), key=lambda path: [candidate.node for candidate in path])
    can_count = [config.cleaning == "none" or _is_clean(path) for path in paths]
    middle = middle_reward(path for path, counts in zip(paths, can_count, strict=True) if counts)
    return [
        (answer_reward(path, config=config, middle=middle) if counts else None, path)
        for path, counts in zip(paths, can_count, strict=True)
    ]


def answer_text(path: Sequence[Candidate]) -> str:
    """The answer as a person reads it."""
    return " ".join(candidate.text for candidate in path if candidate.text)


def path_target(path: Sequence[Candidate], *, role: str, reward: float) -> Target:
    """A path of sentences as one answer of an example."""
    return Target(
        role=role,
        text=answer_text(path),
        token_ids=tuple(token for candidate in path for token in candidate.token_ids),
        logp=sum(candidate.logp or 0.0 for candidate in path),  # the policy has said each of them
        reward=reward,
        nodes=tuple(candidate.node for candidate in path),
        num_sentences=sum(bool(candidate.text) for candidate in path),
    )


def _is_clean(path: Sequence[Candidate]) -> bool:
    """Whether the cleaning dropped none of the answer's sentences; a dropped one has no reward."""
    return all(candidate.reward is not None for candidate in path)
