"""How many trees an engine lets grow at once: the estimate, and how misses of the prefix cache correct it."""

from __future__ import annotations

import asyncio
import logging

import pytest

from actors.generate.capacity import Limit, Room, tree_tokens, trees_that_fit
from csr_ray.config.schema import Search

GIB = 2**30
PAPER = Search(width=5, keep_worst=2, candidates=5, max_sentences=12, max_sentence_tokens=74, max_answer_tokens=448)
DEFAULT = Search(max_answer_tokens=448)
# Bytes a token: 2 (keys, values) x layers x key-value heads x head size x 2 (bfloat16).
LLAVA_7B = 2 * 32 * 32 * 128 * 2
QWEN_7B = 2 * 28 * 4 * 128 * 2
assert (LLAVA_7B, QWEN_7B) == (512 * 1024, 56 * 1024)


@pytest.mark.parametrize(
    ("search", "prompt_tokens", "context", "cache_gib", "token_bytes", "needed", "fits"),
    [
        # H100: 0.85 of 79 GiB, less 13.2 of weights and about 3 of activations and graphs.
        pytest.param(PAPER, 620, 2048, 51, LLAVA_7B, 1248, 83, id="LLaVA-1.5-7B on an H100"),
        pytest.param(DEFAULT, 1420, 4096, 49, QWEN_7B, 1796, 510, id="Qwen2.5-VL-7B on an H100"),
        pytest.param(DEFAULT, 1420, 4096, 3, QWEN_7B, 1796, 31, id="Qwen2.5-VL-7B on an L4"),
        pytest.param(PAPER, 620, 700, 51, LLAVA_7B, 941, 110, id="a short context"),
        pytest.param(PAPER, 2048, 2048, 1, LLAVA_7B, 2151, 1, id="a prompt that fills it"),
        pytest.param(PAPER, 620, 2048, 0.5, LLAVA_7B, 1248, 1, id="not even one tree fits"),
    ],
)
def test_what_a_tree_needs_and_how_many_fit(
    search: Search, prompt_tokens: int, context: int, cache_gib: float, token_bytes: int, needed: int, fits: int
) -> None:
    tokens = tree_tokens(search, prompt_tokens=prompt_tokens, max_model_len=context, block_tokens=16)
    assert tokens == needed
    assert trees_that_fit(int(cache_gib * GIB) // token_bytes, needed=tokens) == fits


def windows(limit: Limit, *, share: float, num: int = 1, growing: int | None = None) -> list[int]:
    """The limit after each of `num` windows in which this share of continuations missed."""
    seen = []
    for _ in range(num):
        size = max(200, 25 * limit.now)
        limit.saw(continuations=size, misses=round(share * size), growing=limit.now if growing is None else growing)
        seen.append(limit.now)
    return seen


@pytest.mark.parametrize(
    ("most", "fits", "share", "expected"),
    [
        pytest.param(128, 36, 0.0, [40, 45, 50, 56, 63], id="rises slowly while nothing is lost"),
        pytest.param(40, 36, 0.0, [40, 40, 40], id="never above what the pool sends"),
        pytest.param(128, 64, 0.08, [64, 64], id="stays where a few are lost"),
        # Every second window is the one after a fall, which does not count.
        pytest.param(128, 64, 0.5, [48, 48, 36, 36, 27, 27, 20, 20, 16, 16, 16], id="falls to a quarter at most"),
        pytest.param(8, 64, 1.0, [8, 8], id="so much room that misses have another cause"),
        pytest.param(128, 1, 1.0, [1, 1], id="one tree always grows"),
    ],
)
def test_misses_lower_the_limit_and_hits_raise_it(most: int, fits: int, share: float, expected: list[int]) -> None:
    assert windows(Limit(most=most, fits=fits), share=share, num=len(expected)) == expected


def test_what_is_seen_while_too_many_grow_does_not_count() -> None:
    limit = Limit(most=128, fits=64)
    assert windows(limit, share=1.0) == [48]
    assert windows(limit, share=1.0, growing=60, num=5) == [48] * 5
    assert windows(limit, share=0.0, num=2) == [48, 54], "the first window settles"


def test_a_limit_does_not_rise_by_what_it_never_held_back() -> None:
    assert windows(Limit(most=128, fits=64), share=0.0, growing=3, num=4) == [64] * 4


def test_a_tree_waits_until_another_ends_and_more_come_in_when_the_limit_rises() -> None:
    async def play() -> list[int]:
        limit = Limit(most=4, fits=1)
        room, growing, counts = Room(limit), set(), []

        async def tree(number: int, ends: asyncio.Event) -> None:
            async with room:
                growing.add(number)
                try:
                    await ends.wait()
                finally:
                    growing.discard(number)

        ends = [asyncio.Event() for _ in range(6)]
        tasks = [asyncio.create_task(tree(number, event)) for number, event in enumerate(ends)]

        async def settled() -> int:
            for _ in range(20):
                await asyncio.sleep(0)
            return len(growing)

        counts.append(await settled())
        for _ in range(2):
            room.saw(continuations=200, misses=0)
            ends[min(growing)].set()
            counts.append(await settled())
        for task in tasks[-2:]:  # a cancelled tree leaves its place to others
            task.cancel()
        for event in ends:
            event.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (await settled()) == 0
        async with room:
            pass
        return counts

    assert asyncio.run(play()) == [1, 2, 3]


def test_a_fall_is_logged_once_with_its_figures(caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> None:
        room = Room(Limit(most=8, fits=8))
        room.saw(continuations=1000, misses=1000)  # no tree grows: these are a hand-over's proofs
        async with room:
            for _ in range(10):
                room.saw(continuations=20, misses=9)

    with caplog.at_level(logging.WARNING):
        asyncio.run(play())
    assert [record.message for record in caplog.records] == [
        "45% of the last 200 continuations did not find their prefix in the KV cache: 6 trees at once instead of 8"
    ]
