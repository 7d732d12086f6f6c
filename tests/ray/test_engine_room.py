"""The engine's two caches, on the real one: of pictures, where a loss must not be noticed, and of keys and values."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from fakes import tiny_config
from PIL import Image
from tiny_models import build_tiny_llava

from actors.generate.arguments import engine_arguments
from actors.generate.capacity import Limit, Room
from actors.generate.engine import EngineSettings, VllmEngine
from actors.process.counters import Counting
from csr_ray.errors import ConfigError, DoesNotFit
from csr_ray.records import Ask, Picture, Prompt
from csr_ray.rollout.search import grow_tree


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[VllmEngine]:
    model = build_tiny_llava(tmp_path_factory.mktemp("model"), seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        patch.setenv("OMP_NUM_THREADS", "1")
        config = tiny_config(
            policy={"model": str(model), "dtype": "float32", "max_model_len": 256},
            generators={"kv_cache_gib": 0.01},
        )
        made = VllmEngine(EngineSettings.of(config), model=model, counting=Counting(actor="test"))
        await made.start()
    yield made
    made.close()


@pytest.mark.asyncio(loop_scope="module")
async def test_a_picture_that_the_engines_process_has_lost_is_sent_again(engine: VllmEngine, tmp_path: Path) -> None:
    """vLLM answers such a request with nothing, which would be taken for an empty sentence."""
    Image.new("RGB", (40, 40), (200, 30, 30)).save(tmp_path / "red.png")
    ask = Ask(picture=Picture(path=str(tmp_path / "red.png")), text="What do you see?")
    before = await engine.answer(ask, temperature=0.0, max_tokens=6, seed=0)
    await engine._llm.engine_core.reset_mm_cache_async()  # of the engine's process alone
    assert len(before.token_ids) == 6
    assert await engine.answer(ask, temperature=0.0, max_tokens=6, seed=0) == before


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("num_words", [70, 300])
async def test_what_does_not_fit_into_the_context_is_told_as_such(
    engine: VllmEngine, tmp_path: Path, num_words: int
) -> None:
    """vLLM refuses it with an error of its own, with the picture's tokens (the shorter one) and without."""
    Image.new("RGB", (40, 40), (200, 30, 30)).save(tmp_path / "red.png")
    long = Ask(picture=Picture(path=str(tmp_path / "red.png")), text="What do you see? " * num_words)
    with pytest.raises(DoesNotFit, match=r"256"):
        await engine.answer(long, temperature=0.0, max_tokens=6, seed=0)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_context_that_the_model_does_not_have_is_refused_in_a_line(engine: VllmEngine) -> None:
    """vLLM's own error cannot be sent from one process to another, so the run would not say what is wrong."""
    config = tiny_config(policy={"model": engine._model, "dtype": "float32", "max_model_len": 100_000})
    other = VllmEngine(EngineSettings.of(config), model=engine._model, counting=Counting(actor="test"))
    with pytest.raises(ConfigError, match=r"^vLLM refuses the settings of policy and generators: .*max_model_len"):
        await other.start()


@pytest.mark.asyncio(loop_scope="module")
async def test_the_engine_knows_how_many_trees_its_cache_holds(engine: VllmEngine) -> None:
    cache = engine._llm.vllm_config.cache_config
    assert cache.kv_cache_size_tokens == cache.num_gpu_blocks * cache.block_size
    limit = engine.room._limit
    assert limit.most == 64
    assert 1 <= limit.now == limit.fits < limit.most


class _AnyScorer:
    """Scores that have nothing to do with the texts."""

    async def score(self, picture: Picture, *, texts: Sequence[str]) -> tuple[list[float], int]:
        return [float(zlib.crc32(text.encode()) % 100) for text in texts], 0

    async def nats(self) -> float:
        return 10.0


@pytest.mark.asyncio(loop_scope="module")
async def test_more_trees_than_the_cache_holds_become_fewer(
    engine: VllmEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The estimate is made too high by ten, and what falls out of the real cache corrects it."""
    right = engine.room._limit.fits
    limit = Limit(most=64, fits=min(64, 10 * right))
    monkeypatch.setattr(engine, "room", Room(limit))
    Image.new("RGB", (40, 40), (30, 200, 30)).save(tmp_path / "green.png")
    search = tiny_config(search={"max_sentences": 6, "max_sentence_tokens": 16}).search
    reward = tiny_config().reward

    async def grow(number: int) -> None:
        # A question of its own for each, so that trees share no prefix.
        prompt = Prompt(id=str(number), image=str(tmp_path / "green.png"), text=f"{'near ' * (number % 40)}{number}?")
        rest = {"search": search, "reward": reward, "policy_version": 0, "seed": number}
        async with engine.room:
            await grow_tree(prompt, engine=engine, scorer=_AnyScorer(), **rest)

    before = limit.now
    await asyncio.gather(*(grow(number) for number in range(96)))
    assert limit.now < before, (before, right)
    assert "did not find their prefix in the KV cache" in caplog.text


@pytest.mark.asyncio(loop_scope="module")
async def test_seeded_answers_are_the_same_where_prompts_are_taken_in_parts(
    engine: VllmEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU vLLM's own worker dies of the first part."""
    from actors.generate import engine as module

    def in_parts(*given: Any, **options: Any) -> dict[str, Any]:
        small = {"enable_chunked_prefill": True, "max_num_batched_tokens": 24, "max_num_seqs": 8}
        return {**engine_arguments(*given, **options), **small}

    asks = []
    for number in range(6):
        Image.new("RGB", (40, 40), (40 * number, 30, 30)).save(tmp_path / f"{number}.png")
        asks.append(Ask(picture=Picture(path=str(tmp_path / f"{number}.png")), text="What do you see? " * 5))
    monkeypatch.setattr(module, "engine_arguments", in_parts)
    other = VllmEngine(engine._settings, model=engine._model, counting=Counting(actor="test"))
    await other.start()
    try:
        whole, parts = [
            await asyncio.gather(*(one.answer(ask, temperature=1.0, max_tokens=6, seed=7) for ask in asks))
            for one in (engine, other)
        ]
    finally:
        other.close()
    assert [answer.token_ids for answer in parts] == [answer.token_ids for answer in whole]
