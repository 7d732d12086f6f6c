"""What a sentence is worth, and what an answer made of sentences is worth. Plain arithmetic on floats.

CSR section 3.1: R(s) = lambda * R_I(s) + (1 - lambda) * R_T(s), with R_I(s) = max(100 cos, 0) and R_T(s) the policy's
own probability of the sentence. The paper's R_T is a product of probabilities, at most 1, beside an R_I of 20 to 60:
lambda then hardly matters, and a longer sentence is always worth less. The default here is the geometric mean,
100 exp(mean log p), on the same 0..100 scale and independent of length. The released code blends ranks instead. Each
difference is one key of the `reward` section; docs/reward.md has the table.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from csr_ray.config.schema import Reward
from csr_ray.records import Candidate

# What a nat of the scorer's logits counts where the policy's own score of a sentence is 0 to 100. Ten leave the
# embedded world's scorers, whose logit scales are 10 to 15, about what 100 cos gave them (docs/reward.md).
_POINTS_A_NAT = 10.0


def self_score(logps: Sequence[float], *, kind: str, penalties: Sequence[float] = ()) -> float:
    """R_T of one sentence: the policy's own score of it.

    Args:
        logps: natural log-probs of the sentence's tokens.
        kind: as in `reward.self_score`. `geometric_mean` gives 0..100, `product` 0..1, and `mean_logp` at most 0 (in
            the released code it is the sequence score of group beam search).
        penalties: what is subtracted from each log-prob first, one for each token; empty: nothing.
    """
    if not logps:
        return 0.0
    total = sum(logps) - sum(penalties)
    if kind == "mean_logp":
        return total / len(logps)
    return 100.0 * math.exp(total / len(logps)) if kind == "geometric_mean" else math.exp(total)


def image_score(cosine_100: float, *, floor: bool) -> float:
    """R_I of one sentence: 100 times the cosine, and with `floor` never below zero (section 3.1 of the paper)."""
    return max(cosine_100, 0.0) if floor else cosine_100


def image_factor(nats: float | None) -> float:
    """What R_I is multiplied by before it is blended.

    Args:
        nats: what a cosine of 1 is in the logits of the scorer (see `csr_ray.ports`); None: `reward.image_unit` is
            `points`.
    """
    return 1.0 if nats is None else _POINTS_A_NAT * nats / 100.0


def family_rewards(
    family: Sequence[tuple[float | None, float]], *, config: Reward, factor: float = 1.0
) -> list[float | None]:
    """The rewards of siblings from their (image, self) scores, in their order; None where the image score is None.

    With `reward.blend: sibling_ranks` (construct.py of the released code) rank 1 is the best of n siblings, and of
    equal scores the first has the better rank. The released code's cost (1 - a) rank_T / n + a rank_I / n, where a is
    `reward.weight`, is negated, so that more is better here too. A lone sibling gets -1.

    Args:
        factor: of the image scores where values are blended (`image_factor`).
    """
    scored = [position for position, (image, _) in enumerate(family) if image is not None]
    rewards: list[float | None] = [None] * len(family)
    weight = config.weight
    if config.blend == "values":
        for position in scored:
            image, own = family[position]
            assert image is not None
            rewards[position] = weight * factor * image + (1.0 - weight) * own
        return rewards
    by_image = sorted(scored, key=lambda position: -(family[position][0] or 0.0))
    by_self = sorted(scored, key=lambda position: -family[position][1])
    for position in scored:
        rank_image = (by_image.index(position) + 1) / len(scored)
        rank_self = (by_self.index(position) + 1) / len(scored)
        rewards[position] = -((1.0 - weight) * rank_self + weight * rank_image)
    return rewards


def plain_sum(values: Iterable[float]) -> float:
    """Add one value after the other, as the released code does.

    From Python 3.12 on `sum` compensates for rounding, so sums that are equal in the released code might differ.
    """
    total = 0.0
    for value in values:
        total += value
    return total


def middle_reward(paths: Iterable[Iterable[Candidate]]) -> float:
    """Halfway between the best and the worst sentence of a tree's answers; 0 where none is scored."""
    rewards = [node.reward for path in paths for node in path if node.reward is not None]
    return (min(rewards) + max(rewards)) / 2 if rewards else 0.0


def answer_reward(path: Iterable[Candidate], *, config: Reward, middle: float | None) -> float | None:
    """The reward of an answer from the rewards of its sentences; None for an answer without a scored sentence.

    With the paper's `sum` every further sentence adds a positive amount, so the longest and most repetitive answer
    wins. With `mean` a further sentence that is true lowers the reward if it scores a little less than the others, so
    the best answer leaves out what is hard to see. The default, `stretched_mean`, is

        middle + sqrt(n) * (mean - middle)

    for n sentences: of two answers that are equally good on average the longer one is better if that is above the
    tree's middle, and worse if it is below. So evidence adds up as in Stouffer's combination of z-scores (sum /
    sqrt(n)). An answer of one sentence has that sentence's reward.

    The released code's `mean_with_root` divides by one more than the number of sentences, so the costs of short
    answers come out too low.

    Args:
        middle: of the tree that the answer is from (`middle_reward`), on the scale of the rewards; None: the tree
            still grows, and `stretched_mean` is the plain mean, which orders answers of as many sentences alike.
    """
    rewards = [node.reward for node in path if node.reward is not None]
    if not rewards:
        return None
    total = plain_sum(rewards)
    if config.aggregate == "sum":
        return total
    if config.aggregate == "stretched_mean" and middle is not None:
        return middle + math.sqrt(len(rewards)) * (total / len(rewards) - middle)
    return total / (len(rewards) + (config.aggregate == "mean_with_root"))
