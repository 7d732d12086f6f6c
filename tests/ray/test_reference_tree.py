"""`search.preset: reference` grows the plain loop's trees node for node, on the real engine and real scorer.

The loop is `released_search`; `test_released_trees` holds it, and the engine too, to what the released code made.
Here it serves for another policy and for more prompts than there is such data for.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from fakes import tiny_config
from released_search import Branch, Models, released_tree

from actors.generate.engine import EngineSettings, VllmEngine
from actors.process.counters import Counting
from actors.score.clip import ClipModel
from csr_ray.app.run import world_spec
from csr_ray.config.schema import Config, World
from csr_ray.methods.base import Dropped, method_of
from csr_ray.records import Phase, Picture, Prompt, Rollout
from csr_ray.rollout.search import grow_tree
from csr_ray.world.build import cached_world

NUM_PROMPTS = 16
SLOTS_IF_TIGHT = 7
MAX_CHARS = 200  # so that some answers end by length and others by their end token
MAX_NEW_TOKENS = 16
# Where a decode's best two candidates are closer than rounding, two right implementations may take different ones.
ROUNDING = 1e-4

Released = dict[str, tuple[Branch, str | None, str | None]]


class DirectScorer:
    """The scorer's model without its actor."""

    def __init__(self, world: Path) -> None:
        self._clip = ClipModel(str(world / "clip"), dtype="float32", device="cpu")

    async def score(self, picture: Picture, *, texts: Sequence[str]) -> tuple[list[float], int]:
        scores, cut = self._clip.scores([(picture, text) for text in texts])
        return scores, sum(cut)

    async def nats(self) -> float:
        return self._clip.nats()


@pytest.fixture(scope="module")
def world() -> Path:
    return cached_world(world_spec(World(quick=True, num_train_images=32, num_heldout_images=48)), progress=False)


@pytest.fixture(scope="module")
def prompts(world: Path) -> list[Prompt]:
    rows = [json.loads(line) for line in (world / "heldout/prompts.jsonl").read_text().splitlines()[:NUM_PROMPTS]]
    return [Prompt(id=row["id"], image=str(world / "heldout" / row["image"]), text=row["prompt"]) for row in rows]


@pytest.fixture(scope="module")
def released(world: Path, prompts: list[Prompt]) -> Iterator[Released]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    models = Models.load(world)
    yield {
        prompt.id: released_tree(
            models,
            question=prompt.text,
            image=Path(prompt.image),
            max_new_tokens=MAX_NEW_TOKENS,
            max_chars=MAX_CHARS,
        )
        for prompt in prompts
    }
    torch.set_num_threads(threads)


def reference_config(
    world: Path,
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    max_chars: int = MAX_CHARS,
    max_model_len: int = 320,
    is_tight: bool = False,
) -> Config:
    """The reference preset.

    Args:
        is_tight: so few tokens and sequences a step that the members of a group are admitted in different steps.
    """
    tight = {"max_num_batched_tokens": max_model_len, "max_num_seqs": SLOTS_IF_TIGHT, "in_flight": NUM_PROMPTS}
    return tiny_config(
        search={"preset": "reference", "max_chars": max_chars, "max_sentence_tokens": max_new_tokens},
        policy={"model": str(world / "policy"), "dtype": "float32", "max_model_len": max_model_len},
        scorer={"model": str(world / "clip")},
        generators={"kv_cache_gib": 0.25, **(tight if is_tight else {})},
    )


async def grow_all(config: Config, engine: VllmEngine, prompts: Sequence[Prompt], *, in_flight: int) -> list[Rollout]:
    slots = asyncio.Semaphore(in_flight)
    scorer = DirectScorer(Path(config.scorer.model).parent)

    async def one(prompt: Prompt) -> Rollout:
        async with slots:
            return await grow_tree(
                prompt,
                engine=engine,
                scorer=scorer,
                search=config.search,
                reward=config.reward,
                policy_version=0,
                seed=0,
            )

    return list(await asyncio.gather(*(one(prompt) for prompt in prompts)))


def compare(tree: Rollout, root: Branch) -> int:
    """Assert that all nodes are the same; returns how many. Rows are found by their places among their siblings."""
    places: dict[int | None, tuple[int, ...]] = {None: ()}
    num_children: dict[int | None, int] = {}
    expected: dict[tuple[int, ...], Branch] = {}

    def walk(branch: Branch) -> None:
        for child in branch.children:
            expected[child.place] = child
            walk(child)

    walk(root)
    for node in tree.candidates:
        position = num_children.get(node.parent, 0)
        num_children[node.parent] = position + 1
        place = places[node.node] = (*places[node.parent], position)
        branch = expected.pop(place)
        where = f"{tree.prompt.id} at {place}: {branch.text!r} (closest choice {branch.gap:.2e}), ours {node.text!r}"
        assert list(node.token_ids) == branch.new_ids, where
        assert node.text == branch.text, where
        assert node.self_score == pytest.approx(branch.score, abs=1e-4), where
        assert (node.image_score is None) == (branch.clip is None), where
        assert branch.clip is None or node.image_score == pytest.approx(branch.clip, abs=1e-4), where
        assert branch.cost is None or node.reward == pytest.approx(-branch.cost, abs=1e-6), where
        assert (node.final, node.kept) == (branch.final, branch.kept), where
    assert not expected, f"{tree.prompt.id}: {len(expected)} nodes were not grown"
    return len(tree.candidates)


def check(config: Config, trees: Sequence[Rollout], released: Released) -> None:
    num_nodes = num_pairs = 0
    for tree in trees:
        root, chosen, rejected = released[tree.prompt.id]
        num_nodes += compare(tree, root)
        examples = method_of(config).examples(Phase(), tree)
        if isinstance(examples, Dropped):
            assert chosen == rejected, (tree.prompt.id, examples)
        else:
            (pair,) = examples
            num_pairs += 1
            assert (pair.chosen.text, pair.rejected.text) == (chosen, rejected), tree.prompt.id
    assert len(trees) == NUM_PROMPTS and num_nodes > 5 * NUM_PROMPTS and num_pairs > NUM_PROMPTS // 2


@pytest.mark.parametrize("kind", ["roomy", pytest.param("tight", marks=pytest.mark.long)])
def test_the_reference_preset_grows_the_plain_loops_trees(
    world: Path, prompts: list[Prompt], released: Released, kind: str
) -> None:
    """With four prompts and all in flight, with members side by side and squeezed into few slots."""
    config = reference_config(world, is_tight=kind == "tight")

    async def run() -> None:
        counting = Counting(actor="generator")
        engine = VllmEngine(EngineSettings.of(config), model=world / "policy", counting=counting)
        await engine.start()
        try:
            for in_flight in (NUM_PROMPTS, 4) if kind == "roomy" else (NUM_PROMPTS,):
                check(config, await grow_all(config, engine, prompts, in_flight=in_flight), released)
            counters = counting.take()
            # Every image went through the tower once, and every continuation found what its parent had computed.
            assert counters.image_encodes <= NUM_PROMPTS
            assert counters.continuations > 0
            num_slots = SLOTS_IF_TIGHT if kind == "tight" else 256
            assert counters.engine_slots == counters.engine_steps * num_slots, "as the engine itself counts them"
            if kind != "tight":
                assert counters.continuation_misses == 0, counters
            print(kind, counters)
        finally:
            engine.close()

    asyncio.run(run())
