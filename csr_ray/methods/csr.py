"""From a finished tree to a preference pair, or to a counted reason why there is none.

Chosen is the answer with the highest reward, rejected the one with the lowest (CSR section 3.1).
"""

from __future__ import annotations

from csr_ray.config.schema import Config
from csr_ray.records import Node, PreferencePair, Tree
from csr_ray.rollout.reward import answer_reward

NO_ANSWER = "no_whole_answer"
ONE_ANSWER = "only_one_answer"
EQUAL = "chosen_equals_rejected"
NO_MARGIN = "margin_too_small"


def choose_pair(tree: Tree, *, config: Config) -> PreferencePair | str:
    """The best against the worst whole answer of the tree, or the reason why there is no pair.

    Equal rewards go by the tree's order, depth first: chosen is the first of the best, rejected the last.
    """
    paths = [path for path in tree.answers() if config.reward.cleaning == "none" or _is_clean(path)]
    paths.sort(key=lambda path: [node.node for node in path])
    scored = [(reward, path) for path in paths if (reward := answer_reward(path, config=config.reward)) is not None]
    if len(scored) < 2:
        return NO_ANSWER if not scored else ONE_ANSWER
    scored.sort(key=lambda item: -item[0])
    (best_reward, best), (worst_reward, worst) = scored[0], scored[-1]
    if config.pairs.min_margin is not None and best_reward - worst_reward <= config.pairs.min_margin:
        return NO_MARGIN
    if answer_text(best) == answer_text(worst):
        return EQUAL
    return PreferencePair(
        id=tree.prompt.id,
        image=tree.prompt.image,
        prompt=tree.prompt.text,
        chosen=answer_text(best),
        rejected=answer_text(worst),
        chosen_ids=_ids(best),
        rejected_ids=_ids(worst),
        chosen_logp=sum(node.logp for node in best),
        rejected_logp=sum(node.logp for node in worst),
        chosen_reward=best_reward,
        rejected_reward=worst_reward,
        chosen_nodes=tuple(node.node for node in best),
        rejected_nodes=tuple(node.node for node in worst),
        policy_version=tree.policy_version,
        method=config.method,
        seed=tree.seed,
    )


def answer_text(path: tuple[Node, ...]) -> str:
    """The answer as a person reads it."""
    return " ".join(node.text for node in path if node.text)


def _is_clean(path: tuple[Node, ...]) -> bool:
    """Whether the cleaning dropped none of the answer's sentences; a dropped one has no reward."""
    return all(node.reward is not None for node in path)


def _ids(path: tuple[Node, ...]) -> tuple[int, ...]:
    return tuple(token for node in path for token in node.token_ids)
