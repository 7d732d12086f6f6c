"""How many trees may grow at once in one engine: as many as its KV cache holds, corrected by what the cache says.

Trees that do not fit push each other's prefixes out of the cache, and then every continuation computes its whole
prompt again. How much a tree needs is estimated before the first one grows (`tree_tokens`); afterwards the share of
continuations whose prefix was gone moves the number (`Limit`). The generator actor alone holds trees back (`Room`),
because it sees each miss at once; what the pool sends beyond that (`Generators.most_in_flight`) waits in the actor.
Knows no vLLM and no trees.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any, Final

from csr_ray.config.schema import Search

_log = logging.getLogger(__name__)

# The most tokens that an answer or a sentence may have, over what most have.
_MOST_OVER_USUAL: Final = 3
# Continuations by which a limit is judged, at least and for each tree (about one depth of it), and the shares of
# misses above which it falls and below which it rises. Even a cache of a tenth of what is needed loses 15 % only:
# vLLM lets the requests of some trees wait, and those it has begun finish.
_WINDOW: Final = 200
_WINDOW_A_TREE: Final = 25
_MANY_MISSES: Final = 0.1
_FEW_MISSES: Final = 0.05


def tree_tokens(search: Search, *, prompt_tokens: int, max_model_len: int, block_tokens: int) -> int:
    """Tokens of KV cache that a tree needs, averaged over its life, if it is like most.

    The prompt with its picture is held once. Behind it are the kept nodes' answers and their children's sentences,
    and most of either are a third as long as they may be (a sentence of LLaVA-1.5 has 20 to 25 tokens, of 74). Over a
    tree's life answers grow from nothing, so half of that on average. Half of a depth's children are still being
    decoded at a time; those hold half of their sentence and half of a block. The largest tree needs about four times
    as much as this.

    Args:
        prompt_tokens: image tokens included.
        block_tokens: tokens of one block of the cache.
    """
    longest = min(search.max_answer_tokens, search.max_sentences * search.max_sentence_tokens)
    answer = min(longest, max(1, max_model_len - prompt_tokens)) / _MOST_OVER_USUAL
    sentence = min(search.max_sentence_tokens / _MOST_OVER_USUAL, answer)
    nodes = max(search.width, search.keep_all_up_to or 0)
    children = nodes * search.candidates
    return round(prompt_tokens + nodes * answer / 2 + children * (sentence + block_tokens) / 4)


def trees_that_fit(cache_tokens: int, *, needed: int) -> int:
    """Trees of `needed` tokens each that a KV cache holds; 1 if it cannot even hold one, which then grows slowly."""
    return max(1, cache_tokens // needed)


@dataclass
class Limit:
    """How many trees may grow at once, as a pure decision.

    It starts at what is estimated to fit. When more than a tenth of a window's continuations miss the cache, a
    quarter of the trees has to go; when fewer than a twentieth do, one tree in eight may come on top, up to `most`.
    It never falls below a quarter of the estimate: so few trees cannot be the cause, whatever else it may be (a cache
    that finds only some prefixes again, say), and one tree after the other would cost more than the misses.
    """

    most: int
    fits: int
    now: int = field(init=False)
    _num_seen: int = field(init=False, default=0)
    _num_missed: int = field(init=False, default=0)
    _is_settling: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.now = min(self.most, self.fits)

    def saw(self, *, continuations: int, misses: int, growing: int) -> str | None:
        """Take in what was seen while `growing` trees grew; returns what to log if the limit fell.

        After a fall, what is seen does not count while more trees grow than the limit now allows, nor for one window
        more, in which they find again what they lost before. While no tree grows, somebody else asks.
        """
        if not 0 < growing <= self.now:
            return None
        self._num_seen += continuations
        self._num_missed += misses
        if self._num_seen < max(_WINDOW, _WINDOW_A_TREE * self.now):
            return None
        share = self._num_missed / self._num_seen
        before, seen = self.now, self._num_seen
        self._num_seen = self._num_missed = 0
        if self._is_settling:
            self._is_settling = False
            return None
        if share > _MANY_MISSES:
            self.now = min(before, max(1, self.fits // 4, before * 3 // 4))
        elif share < _FEW_MISSES and growing == before:
            self.now = min(self.most, before + max(1, before // 8))
        if self.now >= before:
            return None
        self._is_settling = True
        return (
            f"{share:.0%} of the last {seen} continuations did not find their prefix in the KV cache: "
            f"{self.now} trees at once instead of {before}"
        )


class Room:
    """Lets trees in: `async with room:` waits for a place. Those who wait are served in order."""

    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        self._growing = 0
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._growing < self._limit.now)
            self._growing += 1

    async def __aexit__(self, *_: Any) -> None:
        async with self._changed:
            self._growing -= 1
            # The limit may have risen since somebody last came in, so there may be room for more than one.
            self._changed.notify(max(0, self._limit.now - self._growing))

    def saw(self, *, continuations: int, misses: int) -> None:
        """Adjust the limit by what the engine found in its cache."""
        if (
            lowered := self._limit.saw(continuations=continuations, misses=misses, growing=self._growing)
        ) is not None:
            _log.warning(lowered)
