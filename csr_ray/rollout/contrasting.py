"""An engine whose whole answers are decoded by VDD, for any method that rolls out whole answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from csr_ray.ports import Engine
from csr_ray.records import Ask, Contrast, Sentence


@dataclass(frozen=True, kw_only=True)
class ContrastingEngine:
    """See `csr_ray.ports.Engine`. Sentences of a tree, and log-probs of given answers, are the engine's own."""

    engine: Engine
    contrast: Contrast

    async def continuations(
        self, ask: Ask, *, prefix_ids: tuple[int, ...], num: int, max_tokens: int, seed: int
    ) -> list[Sentence]:
        return await self.engine.continuations(ask, prefix_ids=prefix_ids, num=num, max_tokens=max_tokens, seed=seed)

    async def answer(
        self,
        ask: Ask,
        *,
        temperature: float,
        max_tokens: int,
        seed: int,
        top_p: float = 1.0,
        contrast: Contrast | None = None,
    ) -> Sentence:
        return await self.engine.answer(
            ask,
            temperature=temperature,
            max_tokens=max_tokens,
            seed=seed,
            top_p=top_p,
            contrast=contrast or self.contrast,
        )

    async def first_tokens(self, ask: Ask, *, num: int) -> list[tuple[str, int, float]]:
        return await self.engine.first_tokens(ask, num=num)

    async def answer_logp(self, ask: Ask, *, answer_ids: Sequence[int]) -> float:
        return await self.engine.answer_logp(ask, answer_ids=answer_ids)

    def token_ids(self, text: str) -> tuple[int, ...]:
        return self.engine.token_ids(text)

    def answer_ids(self, text: str) -> tuple[int, ...]:
        return self.engine.answer_ids(text)
