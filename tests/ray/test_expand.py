"""The three ways of `search.expand` on the real engine: what they promise, and what they cost the caches."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import tiny_config

from actors.generate.engine import EngineSettings, VllmEngine
from actors.generate.expand import Tokens
from actors.process.counters import Counting
from csr_ray.app.run import world_spec
from csr_ray.config.schema import Config, Search, World
from csr_ray.records import Picture, Prompt, Rollout
from csr_ray.rollout.search import grow_tree
from csr_ray.rollout.sentences import first_end
from csr_ray.world.build import cached_world

NUM_PROMPTS = 8
LIMITS = {"max_sentences": 4, "max_sentence_tokens": 24, "max_answer_tokens": 72}


class LengthScorer:
    async def score(self, picture: Picture, *, texts: list[str]) -> tuple[list[float], int]:
        return [float(len(text) % 17) for text in texts], 0

    async def nats(self) -> float:
        return 10.0


def config_of(world: Path, **search: object) -> Config:
    return tiny_config(
        search={**LIMITS, **search},
        policy={"model": str(world / "policy"), "dtype": "float32", "max_model_len": 256},
        scorer={"model": str(world / "clip")},
        generators={"kv_cache_gib": 0.25},
    )


async def grow(engine: VllmEngine, prompts: list[Prompt], *, config: Config, seed: int) -> list[Rollout]:
    search, tokenizer = config.search, engine._processor.tokenizer
    tokens = Tokens.of(
        tokenizer,
        search=search,
        ends=list(engine._expansion.tokens.ends),
        unused=engine._expansion.tokens.broken,
    )
    engine._expansion = replace(engine._expansion, search=search, tokens=tokens)
    return list(
        await asyncio.gather(
            *(
                grow_tree(
                    prompt,
                    engine=engine,
                    scorer=LengthScorer(),
                    search=search,
                    reward=config.reward,
                    policy_version=0,
                    seed=seed,
                )
                for prompt in prompts
            )
        )
    )


def shapes(trees: list[Rollout]) -> list[list[tuple]]:
    """Everything but the scores, whose last digits depend on who shares a batch."""
    return [[(node.parent, node.token_ids, node.final, node.kept) for node in tree.candidates] for tree in trees]


def families(trees: list[Rollout]) -> list[list[tuple[int, ...]]]:
    found: dict[tuple[str, int | None], list[tuple[int, ...]]] = {}
    for tree in trees:
        for node in tree.candidates:
            found.setdefault((tree.prompt.id, node.parent), []).append(node.token_ids)
    return list(found.values())


def check_sentences(trees: list[Rollout], search: Search) -> None:
    """Every sentence ends where the rule says, or at a limit or the answer's end."""
    for tree in trees:
        for node in tree.candidates:
            limit = len(node.token_ids) == search.max_sentence_tokens or node.final
            assert limit or first_end(node.text) == len(node.text), node.text


def test_every_expansion_keeps_its_promises_and_spares_the_caches() -> None:
    spec = world_spec(World(quick=True, num_train_images=32, num_heldout_images=48))
    world = cached_world(spec, progress=False)
    rows = [json.loads(line) for line in (world / "heldout/prompts.jsonl").read_text().splitlines()[:NUM_PROMPTS]]
    prompts = [Prompt(id=row["id"], image=str(world / "heldout" / row["image"]), text=row["prompt"]) for row in rows]
    configs = {expand: config_of(world, expand=expand) for expand in ("diverse_greedy", "sample", "first_token")}

    async def run() -> None:
        counting = Counting(actor="generator")
        settings = EngineSettings.of(configs["diverse_greedy"])
        engine = VllmEngine(settings, model=world / "policy", counting=counting)
        await engine.start()
        try:
            for expand, config in configs.items():
                counting.take()
                trees = await grow(engine, prompts, config=config, seed=3)
                counters = counting.take()
                check_sentences(trees, config.search)
                assert counters.continuations > 0 and counters.continuation_misses == 0, (expand, counters)
                # The first of the three sees each image for the first time; nobody ever encodes one again.
                assert counters.image_encodes == (NUM_PROMPTS if expand == "diverse_greedy" else 0), (
                    expand,
                    counters,
                )
                assert counters.prefix_hits > 0.5 * counters.prefix_queries, (expand, counters)
                assert 0 < counters.engine_running <= counters.engine_slots
                again = await grow(engine, prompts[::-1], config=config, seed=3)
                assert shapes(again[::-1]) == shapes(trees), expand
                if expand == "first_token":
                    # Distinct first tokens, most probable first.
                    for family in families(trees):
                        assert len({ids[0] for ids in family}) == len(family)
                if expand == "sample":
                    other = await grow(engine, prompts, config=config, seed=4)
                    assert shapes(other) != shapes(trees)
            with pytest.raises(Exception, match="maximum context length"):
                await grow(engine, [replace(prompts[0], text="star " * 400)], config=configs["sample"], seed=0)
            # And the engine is none the worse for it; a tree that fills the context ends there.
            config = config_of(world, sentence_end="period_token", max_sentence_tokens=250, max_answer_tokens=4096)
            (tree,) = await grow(engine, [replace(prompts[0], text="star " * 100)], config=config, seed=0)
            assert tree.answers()
        finally:
            engine.close()

    asyncio.run(run())
