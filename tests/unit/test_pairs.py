"""Which answers become a pair, and the counted reasons why there is none."""

from __future__ import annotations

import math

import pytest
from fakes import tiny_config

from csr_ray.config.schema import Config
from csr_ray.methods.base import Dropped, method_of
from csr_ray.methods.csr import EQUAL, NO_ANSWER, NO_MARGIN, ONE_ANSWER
from csr_ray.records import Candidate, Example, Phase, Prompt, Rollout


def node(
    position: int, text: str, reward: float | None, *, parent: int | None = None, final: bool = True
) -> Candidate:
    return Candidate(
        node=position,
        parent=parent,
        depth=1 if parent is None else 2,
        text=text,
        scored_text=text,
        token_ids=(100 + position,),
        logp=-float(position),
        scores={"self": 1.0, "image": reward},
        reward=reward,
        final=final,
        kept=False,
    )


def tree(*nodes: Candidate) -> Rollout:
    return Rollout(prompt=Prompt(id="p", image="i", text="q"), candidates=nodes, policy_version=2, seed=7)


def chosen_from(rollout: Rollout, *, config: Config) -> Example | str:
    """The one pair, or the reason why there is none."""
    examples = method_of(config).examples(Phase(), rollout)
    if isinstance(examples, Dropped):
        return examples.reason
    (example,) = examples
    return example


def test_best_mean_reward_is_chosen_and_worst_rejected() -> None:
    # Paths: "A B" mean (40+20)/2 = 30, "A" + bare end 40, "C" 35.
    grown = tree(
        node(0, "A", 40.0, final=False),
        node(1, "C", 35.0),
        node(2, "B", 20.0, parent=0),
        node(3, "", None, parent=0),
    )
    pair = chosen_from(grown, config=tiny_config())
    assert (pair.chosen.text, pair.rejected.text) == ("A", "A B")
    assert (pair.chosen.reward, pair.rejected.reward) == (40.0, 30.0)
    assert pair.chosen.token_ids == (100, 103) and pair.rejected.token_ids == (100, 102)
    assert pair.chosen.logp == -3.0 and pair.rejected.logp == -2.0
    assert pair.policy_version == 2 and pair.seed == 7
    assert pair.margin == 10.0


def test_a_true_sentence_that_is_harder_to_see_does_not_make_an_answer_worse() -> None:
    """By the plain mean the best answer would leave out B, and so would a policy that learns from it."""
    grown = tree(
        node(0, "A", 80.0, final=False),
        node(1, "", None, parent=0),
        node(2, "B", 74.0, parent=0),
        node(3, "C", 45.0, parent=0),
    )
    pair = chosen_from(grown, config=tiny_config())
    assert (pair.chosen.text, pair.rejected.text) == ("A B", "A C")
    middle = (80.0 + 45.0) / 2
    assert pair.chosen.reward == pytest.approx(middle + (80.0 + 74.0 - 2 * middle) / math.sqrt(2))
    by_mean = chosen_from(grown, config=tiny_config(reward={"aggregate": "mean"}))
    assert (by_mean.chosen.text, by_mean.rejected.text) == ("A", "A C")


def test_a_false_sentence_makes_an_answer_worse_the_more_so_the_shorter_it_is() -> None:
    grown = tree(
        node(0, "A", 80.0, final=False),
        node(1, "", None, parent=0),
        node(2, "C", 45.0, parent=0),
        node(3, "D", 40.0),
    )
    pair = chosen_from(grown, config=tiny_config())
    assert (pair.chosen.text, pair.rejected.text) == ("A", "D")
    assert pair.chosen.reward == 80.0 and pair.rejected.reward == 40.0  # of one sentence: its own


def test_the_papers_sum_prefers_the_longer_answer() -> None:
    grown = tree(node(0, "A", 40.0, final=False), node(1, "", None, parent=0), node(2, "B", 20.0, parent=0))
    pair = chosen_from(grown, config=tiny_config(reward={"aggregate": "sum"}))
    assert (pair.chosen.text, pair.chosen.reward) == ("A B", 60.0)


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ((node(0, "A", 40.0, final=False),), NO_ANSWER),
        ((node(0, "", None),), NO_ANSWER),
        ((node(0, "A", 40.0),), ONE_ANSWER),
        ((node(0, "A", 40.0), node(1, "A", 30.0)), EQUAL),
        ((node(0, "A", 40.0), node(1, "B", 40.0)), NO_MARGIN),
    ],
)
def test_no_pair_has_a_reason(nodes: tuple[Candidate, ...], reason: str) -> None:
    assert chosen_from(tree(*nodes), config=tiny_config()) == reason


def test_equal_rewards_go_by_the_order_of_the_tree_depth_first() -> None:
    # Depth first: "A B" stands before "C", though "C" was grown first. Reference: ties make pairs.
    grown = tree(node(0, "Alpha", 2.0, final=False), node(1, "Gamma", 2.0), node(2, "Beta", 2.0, parent=0))
    config = tiny_config(pairs={"min_margin": None})
    pair = chosen_from(grown, config=config)
    assert (pair.chosen.text, pair.rejected.text) == ("Alpha Beta", "Gamma")
    assert chosen_from(grown, config=tiny_config()) == NO_MARGIN


def test_a_dropped_sentence_takes_its_answers_along_when_cleaning() -> None:
    grown = tree(
        node(0, "Good one.", 9.0),
        node(1, "Not so good.", 1.0, final=False),
        node(2, "No.", None, parent=1),
        node(3, "Fair one.", 5.0),
    )
    pair = chosen_from(grown, config=tiny_config(reward={"cleaning": "released"}))
    assert (pair.chosen.text, pair.rejected.text) == ("Good one.", "Fair one.")
    assert chosen_from(grown, config=tiny_config()).rejected.text == "Not so good. No."
