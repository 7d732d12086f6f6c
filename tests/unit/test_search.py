"""The sentence tree: a hand-worked one, and the rules every tree keeps."""

from __future__ import annotations

import asyncio
import math

import pytest
from fakes import ScriptedEngine, TableScorer, sentence, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from csr_ray.reward import answer_reward, self_score
from csr_ray.search import derive_seed, grow_tree
from csr_ray.types import Prompt, Tree

PROMPT = Prompt(id="p", image="i.png", text="Describe.")
END = 2


def grow(engine, scorer, **search) -> Tree:
    config = tiny_config(search=search, reward={"weight": 0.5})
    return asyncio.run(
        grow_tree(
            PROMPT,
            engine=engine,
            scorer=scorer,
            search=config.search,
            reward=config.reward,
            policy_version=3,
            seed=11,
        )
    )


def hand_worked() -> tuple[ScriptedEngine, TableScorer]:
    """Four first sentences of which the best, the second and the worst live; each then ends its answer."""
    table = {
        (): [
            sentence("A.", ids=(10,)),
            sentence("B.", ids=(11,)),
            sentence("C.", ids=(12,)),
            sentence("D.", ids=(13,)),
            sentence("A.", ids=(10,)),  # a duplicate: merged
        ],
        (10,): [sentence("", ids=(END,), ended=True), sentence("E.", ids=(14, END), ended=True)],
        (11,): [sentence("", ids=(END,), ended=True)],
        (13,): [sentence("", ids=(END,), ended=True), sentence("D.", ids=(13,))],  # D repeats itself: refused
    }
    return ScriptedEngine(table), TableScorer({"A.": 50.0, "B.": 40.0, "C.": 30.0, "D.": 20.0, "E.": -5.0})


def test_a_tree_worked_by_hand() -> None:
    engine, scorer = hand_worked()
    tree = grow(engine, scorer, width=3, keep_worst=1)
    # Self score of every one-token sentence: 100 exp(-0.5) = 60.65. Rewards at lambda 0.5: A 55.33, B 50.33, C 45.33,
    # D 40.33; E: image max(-5, 0) = 0, so 30.33.
    own = 100 * math.exp(-0.5)
    assert [node.text for node in tree.nodes] == ["A.", "B.", "C.", "D.", "", "E.", "", ""]
    assert [node.parent for node in tree.nodes] == [None, None, None, None, 0, 0, 1, 3]
    assert [node.kept for node in tree.nodes] == [True, True, False, True, False, False, False, False]
    assert [node.final for node in tree.nodes] == [False, False, False, False, True, True, True, True]
    expected = [(50 + own) / 2, (40 + own) / 2, (30 + own) / 2, (20 + own) / 2, None, own / 2, None, None]
    for node, reward in zip(tree.nodes, expected, strict=True):
        assert node.reward == (None if reward is None else pytest.approx(reward))
    config = tiny_config(reward={"weight": 0.5}).reward
    answers = {tuple(node.text for node in path): answer_reward(path, config=config) for path in tree.answers()}
    assert answers[("A.", "")] == pytest.approx((50 + own) / 2)
    assert answers[("A.", "E.")] == pytest.approx(((50 + own) / 2 + own / 2) / 2)
    assert tree.policy_version == 3
    assert engine.asked == [(), (10,), (11,), (13,)]
    # One score call for the root's family and one for A's; the bare ends have nothing to score.
    assert scorer.calls == 2


def test_order_of_arrival_does_not_change_the_tree() -> None:
    engine, scorer = hand_worked()
    plain = grow(engine, scorer, width=3, keep_worst=1)
    engine, scorer = hand_worked()
    engine.delay_s = lambda prefix: {(10,): 0.03, (11,): 0.02}.get(prefix, 0.0)
    assert grow(engine, scorer, width=3, keep_worst=1).nodes == plain.nodes


def test_a_path_at_the_depth_limit_is_a_whole_answer() -> None:
    engine, scorer = hand_worked()
    tree = grow(engine, scorer, max_sentences=1)
    assert all(node.final for node in tree.nodes)
    assert engine.asked == [()]


def test_guide_by_self_score_ignores_the_image() -> None:
    table = {(): [sentence("A.", ids=(10,), logp=-2.0), sentence("B.", ids=(11,), logp=-0.1)]}
    table |= {(10,): [sentence("", ids=(END,), ended=True)], (11,): [sentence("", ids=(END,), ended=True)]}
    scores = {"A.": 90.0, "B.": 1.0}
    by_reward = grow(ScriptedEngine(table), TableScorer(scores), width=1, keep_worst=0)
    by_self = grow(ScriptedEngine(table), TableScorer(scores), width=1, keep_worst=0, guide="self_score")
    assert [node.text for node in by_reward.nodes if node.kept] == ["A."]
    assert [node.text for node in by_self.nodes if node.kept] == ["B."]


def test_self_score_is_the_geometric_mean_or_the_papers_product() -> None:
    assert self_score([-1.0, -3.0], kind="geometric_mean") == pytest.approx(100 * math.exp(-2.0))
    assert self_score([-1.0, -3.0], kind="product") == pytest.approx(math.exp(-4.0))


def test_seeds_differ_by_work_and_repeat_for_the_same_work() -> None:
    assert derive_seed(0, 1, "a") == derive_seed(0, 1, "a")
    assert len({derive_seed(0, 1, "a"), derive_seed(0, 2, "a"), derive_seed(1, 1, "a"), derive_seed(0, 1, "b")}) == 4


class RandomEngine:
    """Answers made up from the seed: any number of sentences, some of which end the answer."""

    async def continuations(self, prompt, *, prefix_ids, num, max_tokens, seed):
        import random

        rng = random.Random(seed)
        rows = []
        for _ in range(num):
            word = rng.randrange(100, 112)
            ended = rng.random() < 0.3
            text = "" if ended and rng.random() < 0.5 else f"s{word}."
            rows.append(sentence(text, ids=(word, END) if ended else (word,), logp=-rng.random(), ended=ended))
        return rows


class HashScorer:
    async def score(self, image, *, texts):
        return [float(sum(map(ord, text)) % 60) for text in texts], 0


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 6), worst=st.integers(0, 3), candidates=st.integers(2, 6), depth=st.integers(1, 4))
def test_every_tree_keeps_the_rules(width: int, worst: int, candidates: int, depth: int) -> None:
    worst = min(worst, width)
    tree = grow(
        RandomEngine(), HashScorer(), width=width, keep_worst=worst, candidates=candidates, max_sentences=depth
    )
    children = {node.parent for node in tree.nodes}
    for node in tree.nodes:
        alive = [other for other in tree.nodes if other.depth == node.depth and other.kept]
        assert len(alive) <= width
        assert node.depth <= depth
        assert not (node.final and node.node in children), "a whole answer was continued"
        siblings = [
            (other.text, other.token_ids[-1:] == (END,)) for other in tree.nodes if other.parent == node.parent
        ]
        assert len(siblings) == len(set(siblings)), "duplicates were not merged"
        texts = [step.text for step in tree.path(node.node) if step.text]
        assert len(texts) == len(set(texts)), "an answer repeats a sentence"
