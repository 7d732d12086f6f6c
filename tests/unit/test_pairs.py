"""Which answers become a pair, and the counted reasons why there is none."""

from __future__ import annotations

import pytest
from fakes import tiny_config

from csr_ray.methods.csr import EQUAL, NO_ANSWER, NO_MARGIN, ONE_ANSWER, choose_pair
from csr_ray.records import Node, Prompt, Tree


def node(position: int, text: str, reward: float | None, *, parent: int | None = None, final: bool = True) -> Node:
    return Node(
        node=position,
        parent=parent,
        depth=1 if parent is None else 2,
        text=text,
        scored_text=text,
        token_ids=(100 + position,),
        logp=-float(position),
        self_score=1.0,
        image_score=reward,
        reward=reward,
        final=final,
        kept=False,
    )


def tree(*nodes: Node) -> Tree:
    return Tree(prompt=Prompt(id="p", image="i", text="q"), nodes=nodes, policy_version=2, seed=7)


def test_best_mean_reward_is_chosen_and_worst_rejected() -> None:
    # Paths: "A B" mean (40+20)/2 = 30, "A" + bare end 40, "C" 35.
    grown = tree(
        node(0, "A", 40.0, final=False),
        node(1, "C", 35.0),
        node(2, "B", 20.0, parent=0),
        node(3, "", None, parent=0),
    )
    pair = choose_pair(grown, config=tiny_config())
    assert (pair.chosen, pair.rejected) == ("A", "A B")
    assert (pair.chosen_reward, pair.rejected_reward) == (40.0, 30.0)
    assert pair.chosen_ids == (100, 103) and pair.rejected_ids == (100, 102)
    assert pair.chosen_logp == -3.0 and pair.rejected_logp == -2.0
    assert pair.policy_version == 2 and pair.seed == 7
    assert pair.margin == 10.0


def test_the_papers_sum_prefers_the_longer_answer() -> None:
    grown = tree(node(0, "A", 40.0, final=False), node(1, "", None, parent=0), node(2, "B", 20.0, parent=0))
    pair = choose_pair(grown, config=tiny_config(reward={"aggregate": "sum"}))
    assert (pair.chosen, pair.chosen_reward) == ("A B", 60.0)


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
def test_no_pair_has_a_reason(nodes: tuple[Node, ...], reason: str) -> None:
    assert choose_pair(tree(*nodes), config=tiny_config()) == reason


def test_equal_rewards_go_by_the_order_of_the_tree_depth_first() -> None:
    # Depth first: "A B" stands before "C", though "C" was grown first. Reference: ties make pairs.
    grown = tree(node(0, "Alpha", 2.0, final=False), node(1, "Gamma", 2.0), node(2, "Beta", 2.0, parent=0))
    config = tiny_config(pairs={"min_margin": None})
    pair = choose_pair(grown, config=config)
    assert (pair.chosen, pair.rejected) == ("Alpha Beta", "Gamma")
    assert choose_pair(grown, config=tiny_config()) == NO_MARGIN


def test_a_dropped_sentence_takes_its_answers_along_when_cleaning() -> None:
    grown = tree(
        node(0, "Good one.", 9.0),
        node(1, "Not so good.", 1.0, final=False),
        node(2, "No.", None, parent=1),
        node(3, "Fair one.", 5.0),
    )
    pair = choose_pair(grown, config=tiny_config(reward={"cleaning": "released"}))
    assert (pair.chosen, pair.rejected) == ("Good one.", "Fair one.")
    assert choose_pair(grown, config=tiny_config()).rejected == "Not so good. No."
