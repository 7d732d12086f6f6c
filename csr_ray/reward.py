"""What a sentence is worth, and what an answer made of sentences is worth. Pure arithmetic on floats.

CSR section 3.1: R(s) = lambda * R_I(s) + (1 - lambda) * R_T(s), with R_I(s) = max(100 cos, 0) and R_T(s) the policy's
own probability of the sentence. The paper's R_T is a product of probabilities, at most 1, beside an R_I of 20 to 60:
lambda then hardly matters, and a longer sentence is always worth less. The default here is the geometric mean,
100 exp(mean log p), on the same 0..100 scale and independent of length. See docs/reward.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from csr_ray.config import Reward
from csr_ray.types import Node


def self_score(logps: Sequence[float], *, kind: str) -> float:
    """R_T of one sentence from its tokens' log-probs; `geometric_mean` in 0..100, `product` in 0..1."""
    if not logps:
        return 0.0
    total = math.fsum(logps)
    return 100.0 * math.exp(total / len(logps)) if kind == "geometric_mean" else math.exp(total)


def image_score(cosine_100: float) -> float:
    """R_I of one sentence: 100 times the cosine, never below zero (paper, section 3.1)."""
    return max(cosine_100, 0.0)


def blend(*, image: float, own: float, config: Reward) -> float:
    """R = lambda R_I + (1 - lambda) R_T."""
    return config.weight * image + (1.0 - config.weight) * own


def answer_reward(path: Iterable[Node], *, config: Reward) -> float | None:
    """The reward of an answer from its sentences'; None for an answer without a scored sentence.

    `mean` by default: with the paper's `sum` every further sentence adds a positive amount, so the longest and most
    repetitive answer wins.
    """
    rewards = [node.reward for node in path if node.reward is not None]
    if not rewards:
        return None
    total = math.fsum(rewards)
    return total if config.aggregate == "sum" else total / len(rewards)
