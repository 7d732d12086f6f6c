"""`search.preset: reference` grows the trees that the released code itself grew, node for node.

`tests/data/reference_trees` holds what the released sample.py, score.py and construct.py (YiyangZhou/CSR at 353de42,
unmodified, with transformers 4.37.2 in float32) made of six pictures of the embedded world, with the weights that
they used. It is data, not our reading of the code. It is compared with what the real engine and the real scorer grow,
and with the plain loop of `released_search`, which serves as an oracle for other policies (`test_reference_tree`).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from released_search import Branch, Models, released_tree
from test_reference_tree import SLOTS_IF_TIGHT, grow_all, reference_config

from actors.generate.engine import EngineSettings, VllmEngine
from actors.process.counters import Counting
from csr_ray.config.schema import Config
from csr_ray.methods.base import Dropped, method_of
from csr_ray.records import Candidate, Phase, Prompt, Rollout

DATA = Path(__file__).parents[1] / "data" / "reference_trees"
TOLERANCE = 1e-4
SIZES = {
    name: (size["max_new_tokens"], size["max_chars"])
    for name, size in json.loads((DATA / "trees.json").read_text()).items()
}


def released(size: str) -> list[dict[str, Any]]:
    return json.loads((DATA / "trees.json").read_text())[size]["trees"]


def prompts(size: str) -> list[Prompt]:
    rows = {row["id"]: row for row in map(json.loads, (DATA / "prompts.jsonl").read_text().splitlines())}
    return [
        Prompt(id=tree["id"], image=str(DATA / "pictures" / tree["image"]), text=rows[tree["id"]]["prompt"])
        for tree in released(size)
    ]


def config_of(size: str, *, is_tight: bool = False) -> Config:
    max_new_tokens, max_chars = SIZES[size]
    return reference_config(
        DATA, max_new_tokens=max_new_tokens, max_chars=max_chars, max_model_len=640, is_tight=is_tight
    )


def families(nodes: Sequence[Any], parent: Any) -> dict[int | None, list[Any]]:
    """The children of every node, in their order."""
    found: dict[int | None, list[Any]] = {}
    for node in nodes:
        found.setdefault(parent(node), []).append(node)
    return found


def cost_of(node: dict[str, Any], *, weight: float) -> float:
    """A released node's cost from its ranks (construct.py)."""
    return (1 - weight) * node["rank_self"] + weight * node["rank_clip"]


def check(tree: Rollout, expected: dict[str, Any], *, config: Config) -> tuple[float, float]:
    """Assert that tree and pair are the released ones; returns the largest differences of score and CLIP score."""
    ours = families(tree.candidates, lambda node: node.parent)
    theirs = families(expected["nodes"], lambda node: node["parent"])
    gaps = {"score": 0.0, "clip_score": 0.0}

    def compare(mine: Candidate, other: dict[str, Any]) -> None:
        where = f"{tree.prompt.id}: released {other}, ours {mine}"
        assert mine.text == other["text"].strip(), where
        assert (mine.depth, mine.final) == (other["depth"], other["final"]), where
        values = {"score": mine.self_score}
        if other["clip_score"] is None:
            assert mine.image_score is mine.reward is None, where  # its scoring did not keep the node
        else:
            values["clip_score"] = mine.image_score
            assert mine.reward == pytest.approx(-cost_of(other, weight=config.reward.weight), abs=1e-9), where
        for name, value in values.items():
            assert value == pytest.approx(other[name], abs=TOLERANCE), where
            gaps[name] = max(gaps[name], abs(value - other[name]))
        walk(mine.node, other["node"])

    def walk(mine: int | None, other: int | None) -> None:
        left, right = ours.get(mine, []), theirs.get(other, [])
        assert len(left) == len(right), (
            tree.prompt.id,
            [node.text for node in left],
            [node["text"] for node in right],
        )
        for pair in zip(left, right, strict=True):
            compare(*pair)

    walk(None, None)
    examples = method_of(config).examples(Phase(), tree)
    assert not isinstance(examples, Dropped), (tree.prompt.id, examples)
    (pair,) = examples
    assert (pair.chosen.text, pair.rejected.text) == (expected["chosen"], expected["rejected"]), tree.prompt.id
    return gaps["score"], gaps["clip_score"]


def check_all(size: str, trees: Sequence[Rollout], *, config: Config, how: str) -> None:
    gaps = [check(tree, expected, config=config) for tree, expected in zip(trees, released(size), strict=True)]
    num_nodes = sum(len(tree.candidates) for tree in trees)
    score, clip = (max(column) for column in zip(*gaps, strict=True))
    print(f"{size}, {how}: {len(gaps)} trees identical, {num_nodes} nodes; score within {score:.1e}, CLIP {clip:.1e}")


def test_the_data_is_whole() -> None:
    assert [len(released(size)) for size in ("small", "full")] == [6, 3]
    assert [sum(len(tree["nodes"]) for tree in released(size)) for size in ("small", "full")] == [440, 1405]


# Size, members side by side (or in turn), prompts in flight. `make test-long` goes every way; that takes ten minutes.
ALL_WAYS = list(itertools.product(("small", "full"), (True, False), (6, 1)))
WAYS = {
    "roomy": [("small", True, 1), ("small", False, 6), ("full", True, 3)],
    "tight": [("small", True, 6), ("full", False, 3)],
}


@pytest.mark.parametrize("kind", ["roomy", pytest.param("tight", marks=pytest.mark.long)])
def test_the_real_engine_grows_the_released_trees(kind: str) -> None:
    """All prompts at once and one at a time, side by side and in the forced in-turn mode, roomy and in few slots."""
    configs = {size: config_of(size) for size in SIZES}

    async def run() -> None:
        counting = Counting(actor="generator")
        settings = EngineSettings.of(config_of("full", is_tight=kind == "tight"))
        engine = VllmEngine(settings, model=DATA / "policy", counting=counting)
        await engine.start()
        try:
            for size, together, in_flight in ALL_WAYS if os.environ.get("CSR_RAY_LONG_TESTS") else WAYS[kind]:
                config = configs[size]
                engine._expansion = replace(engine._expansion, search=config.search, together=together)
                trees = await grow_all(config, engine, prompts(size), in_flight=in_flight)
                how = f"{kind}, {in_flight} in flight, {'together' if together else 'in turn'}"
                check_all(size, trees, config=config, how=how)
                counters = counting.take()
                assert counters.groups_redone == 0, "side by side was in turn after all"
                num_slots = SLOTS_IF_TIGHT if kind == "tight" else 256
                assert counters.engine_slots == counters.engine_steps * num_slots, "as the engine itself counts them"
        finally:
            engine.close()

    asyncio.run(run())


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("size", ["small", pytest.param("full", marks=pytest.mark.long)])
def test_the_plain_loop_grows_the_released_trees(size: str, one_thread: None) -> None:
    """The oracle is itself held to the released code's data."""
    models = Models.load(DATA)
    max_new_tokens, max_chars = SIZES[size]

    def compare(branch: Branch, children: Sequence[dict[str, Any]], all_of: dict[int | None, list[Any]]) -> int:
        assert [child.text for child in branch.children] == [other["text"].strip() for other in children]
        num_nodes = len(children)
        for child, other in zip(branch.children, children, strict=True):
            where = f"released {other}, ours {child}"
            assert child.score == pytest.approx(other["score"], abs=TOLERANCE), where
            if other["clip_score"] is None:
                assert child.clip is child.cost is None, where
            else:
                assert child.clip == pytest.approx(other["clip_score"], abs=TOLERANCE), where
                assert child.cost == pytest.approx(cost_of(other, weight=0.9), abs=1e-9), where
            assert child.final == other["final"], where
            num_nodes += compare(child, all_of.get(other["node"], []), all_of)
        return num_nodes

    for prompt, expected in zip(prompts(size), released(size), strict=True):
        root, chosen, rejected = released_tree(
            models, question=prompt.text, image=Path(prompt.image), max_new_tokens=max_new_tokens, max_chars=max_chars
        )
        all_of = families(expected["nodes"], lambda node: node["parent"])
        assert compare(root, all_of[None], all_of) == len(expected["nodes"])
        assert (chosen, rejected) == (expected["chosen"], expected["rejected"])
