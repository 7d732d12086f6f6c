"""The sentence tree: a hand-worked one, and the rules every tree keeps."""

from __future__ import annotations

import asyncio
import math
import random

import pytest
from fakes import ScriptedEngine, TableScorer, sentence, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from csr_ray.config.schema import Config
from csr_ray.methods.base import Dropped, method_of
from csr_ray.records import Candidate, Phase, Prompt, Rollout, Sentence
from csr_ray.rollout.reward import answer_reward, family_rewards, middle_reward, self_score
from csr_ray.rollout.search import derive_seed, grow_tree

PROMPT = Prompt(id="p", image="i.png", text="Describe.")
END = 2


def grow(engine, scorer, *, image_unit: str = "nats", **search) -> Rollout:
    config = tiny_config(search=search, reward={"weight": 0.5, "image_unit": image_unit})
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
    assert [node.text for node in tree.candidates] == ["A.", "B.", "C.", "D.", "", "E.", "", ""]
    assert [node.parent for node in tree.candidates] == [None, None, None, None, 0, 0, 1, 3]
    assert [node.kept for node in tree.candidates] == [True, True, False, True, False, False, False, False]
    assert [node.final for node in tree.candidates] == [False, False, False, False, True, True, True, True]
    expected = [(50 + own) / 2, (40 + own) / 2, (30 + own) / 2, (20 + own) / 2, None, own / 2, None, None]
    for node, reward in zip(tree.candidates, expected, strict=True):
        assert node.reward == (None if reward is None else pytest.approx(reward))
    config = tiny_config(reward={"weight": 0.5}).reward
    answers = {
        tuple(node.text for node in path): answer_reward(path, config=config, middle=middle_reward(tree.answers()))
        for path in tree.answers()
    }
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
    assert grow(engine, scorer, width=3, keep_worst=1).candidates == plain.candidates


def test_live_nodes_are_continued_best_first() -> None:
    """Also where all are kept: the released code sorts before it prunes, and later ties go by that order."""
    table = {(): [sentence(f"{name}.", ids=(number,)) for number, name in enumerate("ABC", start=10)]}
    table |= {(number,): [sentence("", ids=(END,), ended=True)] for number in (10, 11, 12)}
    engine = ScriptedEngine(table)
    grow(engine, TableScorer({"A.": 20.0, "B.": 50.0, "C.": 30.0}), width=3, keep_worst=1)
    assert engine.asked == [(), (11,), (12,), (10,)]


def test_a_path_at_the_depth_limit_is_a_whole_answer() -> None:
    engine, scorer = hand_worked()
    tree = grow(engine, scorer, max_sentences=1)
    assert all(node.final for node in tree.candidates)
    assert engine.asked == [()]


def test_guide_by_self_score_ignores_the_image() -> None:
    table = {(): [sentence("A.", ids=(10,), logp=-2.0), sentence("B.", ids=(11,), logp=-0.1)]}
    table |= {(10,): [sentence("", ids=(END,), ended=True)], (11,): [sentence("", ids=(END,), ended=True)]}
    scores = {"A.": 90.0, "B.": 1.0}
    by_reward = grow(ScriptedEngine(table), TableScorer(scores), width=1, keep_worst=0)
    by_self = grow(ScriptedEngine(table), TableScorer(scores), width=1, keep_worst=0, guide="self_score")
    assert [node.text for node in by_reward.candidates if node.kept] == ["A."]
    assert [node.text for node in by_self.candidates if node.kept] == ["B."]


def test_a_scorer_with_narrow_cosines_has_as_much_to_say_as_its_logits_mean() -> None:
    """Ten points a nat: OpenAI's CLIP (scale 100) scores a picture's sentences within a few points of 100 cos."""

    class Narrow(TableScorer):
        async def nats(self) -> float:
            return 100.0

    names, absent = sentence("s1.", ids=(1, END), logp=-1.0, ended=True), sentence("s2.", ids=(2, END), ended=True)
    table = {(): [names, absent]}
    chosen = {}
    for unit in ("points", "nats"):
        tree = grow(ScriptedEngine(table), Narrow({"s1.": 24.0, "s2.": 21.0}), image_unit=unit)
        best = max(tree.candidates, key=lambda node: node.reward)
        chosen[unit] = best.text
        assert [node.image_score for node in tree.candidates] == [24.0, 21.0]  # what is kept is 100 cos
        factor = 10.0 if unit == "nats" else 1.0
        assert [node.reward for node in tree.candidates] == pytest.approx(
            [0.5 * factor * node.image_score + 0.5 * node.self_score for node in tree.candidates]
        )
    assert chosen == {"points": "s2.", "nats": "s1."}


def test_self_score_is_the_geometric_mean_or_the_papers_product() -> None:
    assert self_score([-1.0, -3.0], kind="geometric_mean") == pytest.approx(100 * math.exp(-2.0))
    assert self_score([-1.0, -3.0], kind="product") == pytest.approx(math.exp(-4.0))


def test_seeds_differ_by_work_and_repeat_for_the_same_work() -> None:
    assert derive_seed(0, 1, "a") == derive_seed(0, 1, "a")
    assert len({derive_seed(0, 1, "a"), derive_seed(0, 2, "a"), derive_seed(1, 1, "a"), derive_seed(0, 1, "b")}) == 4


class RandomEngine:
    """Answers made up from the seed: any number of sentences, some of which end the answer, some at random delays."""

    def __init__(self, *, hurry: int = 0) -> None:
        self.hurry = random.Random(hurry)

    async def continuations(self, prompt, *, prefix_ids, num, max_tokens, seed):
        for _ in range(self.hurry.randrange(4)):
            await asyncio.sleep(0)
        rng = random.Random(seed)
        rows = []
        for _ in range(num):
            word = rng.randrange(100, 112)
            ended = rng.random() < 0.3 and max_tokens > 1
            text = "" if ended and rng.random() < 0.5 else f"s{word}."
            ids = ((word, END) if ended else (word,))[:max_tokens]
            rows.append(sentence(text, ids=ids, logp=-rng.random(), ended=ended))
        return rows


class HashScorer:
    def __init__(self, *, hurry: int = 0) -> None:
        self.hurry = random.Random(hurry)

    async def score(self, image, *, texts):
        for _ in range(self.hurry.randrange(4)):
            await asyncio.sleep(0)
        return [float(sum(map(ord, text)) % 60) for text in texts], 0

    async def nats(self):
        return 10.0


searches = st.fixed_dictionaries(
    {
        "width": st.integers(1, 6),
        "keep_worst": st.integers(0, 1),
        "candidates": st.integers(2, 6),
        "max_sentences": st.integers(1, 5),
        "max_answer_tokens": st.integers(1, 6),
        "keep_all_up_to": st.sampled_from([None, 6, 9]),
        "guide": st.sampled_from(["reward", "self_score"]),
        "merge_equal": st.booleans(),
        "refuse_repeats": st.booleans(),
    }
)
rewards = st.fixed_dictionaries(
    {
        "blend": st.sampled_from(["values", "sibling_ranks"]),
        "aggregate": st.sampled_from(["stretched_mean", "mean", "sum", "mean_with_root"]),
        "self_score": st.sampled_from(["geometric_mean", "product", "mean_logp"]),
        "weight": st.sampled_from([0.0, 0.5, 0.9]),
    }
)


def grown(search: dict, reward: dict, *, hurry: int = 0) -> tuple[Rollout, Config]:
    config = tiny_config(search=search, reward=reward)
    tree = asyncio.run(
        grow_tree(
            PROMPT,
            engine=RandomEngine(hurry=hurry),
            scorer=HashScorer(hurry=hurry + 1),
            search=config.search,
            reward=config.reward,
            policy_version=3,
            seed=11,
        )
    )
    return tree, config


@settings(max_examples=150, deadline=None)
@given(searches, rewards)
def test_every_tree_keeps_the_rules(search: dict, reward: dict) -> None:
    tree, config = grown(search, reward)
    rules = config.search
    children = {node.parent for node in tree.candidates}
    for node in tree.candidates:
        alive = [other for other in tree.candidates if other.depth == node.depth and other.kept]
        assert len(alive) <= max(rules.width, rules.keep_all_up_to or 0)
        assert node.depth <= rules.max_sentences
        assert sum(len(step.token_ids) for step in tree.path(node.node)) <= rules.max_answer_tokens
        assert not (node.final and node.node in children), "a whole answer was continued"
        assert (node.node in children) <= node.kept, "a node that was not kept was continued"
        assert not (node.final and node.kept)
        if rules.merge_equal:
            ends = [
                (other.text, other.token_ids[-1:] == (END,))
                for other in tree.candidates
                if other.parent == node.parent
            ]
            assert len(ends) == len(set(ends)), "duplicates were not merged"
        if rules.refuse_repeats:
            texts = [step.text for step in tree.path(node.node) if step.text]
            assert len(texts) == len(set(texts)), "an answer repeats a sentence"
    for leaf in (node for node in tree.candidates if node.node not in children):
        open_end = leaf.kept and not leaf.final
        assert leaf.final or not leaf.kept or open_end
        if open_end:  # kept, but every continuation repeated a sentence of its own answer
            assert rules.refuse_repeats


@settings(max_examples=100, deadline=None)
@given(searches, rewards)
def test_an_answers_reward_is_made_of_its_sentences_and_chosen_is_never_below_rejected(
    search: dict, reward: dict
) -> None:
    tree, config = grown(search, reward)
    answers = {}
    all_parts = [node.reward for path in tree.answers() for node in path if node.reward is not None]
    middle = (min(all_parts) + max(all_parts)) / 2 if all_parts else 0.0
    assert middle_reward(tree.answers()) == middle
    for path in tree.answers():
        parts = [node.reward for node in path if node.reward is not None]
        value = answer_reward(path, config=config.reward, middle=middle)
        if config.reward.aggregate == "stretched_mean":
            expected = middle + sum(part - middle for part in parts) / math.sqrt(len(parts)) if parts else None
        else:
            divisor = {"sum": 1, "mean": len(parts), "mean_with_root": len(parts) + 1}[config.reward.aggregate]
            expected = sum(parts) / divisor if parts else None
        assert value == (None if expected is None else pytest.approx(expected, abs=1e-9))
        if value is not None:
            answers[tuple(node.node for node in path)] = value
    examples = method_of(config).examples(Phase(), tree)
    if not isinstance(examples, Dropped):
        (pair,) = examples
        assert pair.chosen.reward == max(answers.values()) > min(answers.values()) == pair.rejected.reward
        assert pair.chosen.text != pair.rejected.text


@settings(max_examples=60, deadline=None)
@given(searches, rewards, st.integers(1, 1000))
def test_who_answers_first_does_not_change_the_tree(search: dict, reward: dict, hurry: int) -> None:
    assert grown(search, reward, hurry=hurry)[0].candidates == grown(search, reward)[0].candidates


@settings(max_examples=60, deadline=None)
@given(searches, rewards)
def test_pruning_keeps_the_best_and_the_worst(search: dict, reward: dict) -> None:
    tree, config = grown(search, reward)
    rules = config.search
    for depth in {node.depth for node in tree.candidates}:
        pool = [tree.path(node.node) for node in tree.candidates if node.depth == depth and not node.final]

        def rank(path: tuple[Candidate, ...]) -> float:
            if rules.guide == "self_score":
                return sum(node.self_score for node in path)
            value = answer_reward(path, config=config.reward, middle=None)
            return float("-inf") if value is None else value

        kept = [path for path in pool if path[-1].kept]
        if len(pool) <= (rules.keep_all_up_to or rules.width):
            assert kept == pool
            continue
        values = sorted((rank(path) for path in pool), reverse=True)
        num_best = rules.width - rules.keep_worst
        expected = values[:num_best] + (values[-rules.keep_worst :] if rules.keep_worst else [])
        assert sorted((rank(path) for path in kept), reverse=True) == expected


def test_ranks_among_siblings_are_worked_by_hand() -> None:
    # Four siblings, one without a score. By image: b, a, c; by self: c, a, b. Costs at lambda 0.9:
    # a (0.1 * 2 + 0.9 * 2) / 3 = 0.667, b (0.1 * 3 + 0.9 * 1) / 3 = 0.4, c (0.1 * 1 + 0.9 * 3) / 3 = 0.933.
    config = tiny_config(reward={"blend": "sibling_ranks", "weight": 0.9}).reward
    family = [(20.0, -1.0), (30.0, -2.0), (None, -0.5), (10.0, -0.1)]
    a, b, none, c = family_rewards(family, config=config)
    assert (a, b, none, c) == (pytest.approx(-2 / 3), pytest.approx(-0.4), None, pytest.approx(-2.8 / 3))
    # A lone sibling has the worst rank of all, as in the release.
    assert family_rewards([(20.0, -1.0)], config=config) == [-1.0]


def test_the_diversity_penalty_counts_only_when_asked_for() -> None:
    assert self_score([-1.0, -3.0], kind="mean_logp", penalties=[3.0, 0.0]) == pytest.approx(-3.5)
    penalised = Sentence(text="A.", token_ids=(10, 11), logps=(-1.0, -3.0), ended=True, penalties=(3.0, 0.0))
    table = {(): [penalised, sentence("B.", ids=(12,), ended=True)]}
    for counts, expected in ((True, -3.5), (False, -2.0)):
        config = tiny_config(reward={"self_score": "mean_logp", "count_penalty": counts})
        tree = asyncio.run(
            grow_tree(
                PROMPT,
                engine=ScriptedEngine(table),
                scorer=TableScorer({"A.": 1.0, "B.": 2.0}),
                search=config.search,
                reward=config.reward,
                policy_version=0,
                seed=0,
            )
        )
        assert tree.candidates[0].self_score == pytest.approx(expected)


@pytest.mark.parametrize(("characters", "final"), [(99, False), (100, True)])
def test_an_answer_ends_at_its_characters(characters: int, final: bool) -> None:
    first = Sentence(text="A.", token_ids=(10,), logps=(-1.0,), ended=False, num_chars=characters)
    engine = ScriptedEngine({(): [first], (10,): [sentence("B.", ids=(11,), ended=True)]})
    tree = grow(engine, TableScorer({"A.": 1.0, "B.": 1.0}), max_chars=100)
    assert tree.candidates[0].final is final


def test_a_full_context_ends_the_answer() -> None:
    first = Sentence(text="A.", token_ids=(10,), logps=(-1.0,), ended=False, full=True)
    tree = grow(ScriptedEngine({(): [first]}), TableScorer({"A.": 1.0}))
    assert [node.final for node in tree.candidates] == [True]
