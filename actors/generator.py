"""The generator actor: a vLLM engine that grows trees, answers questions and takes new weights.

Each call of `grow` is one prompt's coroutine; the engine's continuous batching fills up from all of them. Everything
that leaves here is stamped with the policy version that made it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from actors.engine import VllmEngine
from actors.process import log_to_file
from actors.scorer import ScorerPool
from csr_ray.config import Config
from csr_ray.search import derive_seed, grow_tree
from csr_ray.types import Answer, PreferencePair, Prompt, Question, Tree


class GeneratorActor:
    """One engine. `start` must have returned before anything else is called."""

    def __init__(self, config: Config, *, model: str, scorers: Sequence[Any], log: str | None = None) -> None:
        if log:
            log_to_file(log)
        self._config = config
        self._engine = VllmEngine(config, model=model)
        self._scorers = ScorerPool(scorers)
        self._version = 0

    async def start(self, adapters: Sequence[str]) -> int:
        """Bring the engine up with the base and `adapters` merged; returns the policy version it serves."""
        await self._engine.start()
        if adapters:
            await self._engine.load_policy(adapters=adapters)
        self._version = len(adapters)
        return self._version

    async def grow(self, prompt: Prompt, round_index: int) -> Tree:
        """The sentence tree of one prompt."""
        version = self._version
        config = self._config
        tree = await grow_tree(
            prompt,
            engine=self._engine,
            scorer=self._scorers,
            search=config.search,
            reward=config.reward,
            policy_version=version,
            seed=derive_seed(config.run.seed, round_index, prompt.id),
        )
        assert self._version == version, "weights changed while a tree was growing"
        return tree

    async def answer(
        self, questions: Sequence[Question], temperature: float, max_tokens: int, seed: int
    ) -> list[Answer]:
        """One answer a question, without search."""
        version = self._version

        async def one(question: Question) -> Answer:
            sentence = await self._engine.answer(
                question, temperature=temperature, max_tokens=max_tokens, seed=derive_seed(seed, question.id)
            )
            return Answer(
                id=question.id,
                text=sentence.text,
                token_ids=sentence.token_ids,
                logp=sum(sentence.logps),
                policy_version=version,
            )

        return list(await asyncio.gather(*(one(question) for question in questions)))

    async def publish(
        self, adapters: Sequence[str], probes: Sequence[PreferencePair]
    ) -> tuple[int, str, float, list[float]]:
        """Serve base + `adapters`: the version, the checksum, the seconds, and the probes' chosen log-probs."""
        started_s = time.perf_counter()
        loaded = await self._engine.load_policy(adapters=adapters)
        self._version = len(adapters)
        logps = [
            await self._engine.answer_logp(
                Question(id=pair.id, image=pair.image, text=pair.prompt), answer_ids=pair.chosen_ids
            )
            for pair in probes
        ]
        return self._version, loaded.checksum, time.perf_counter() - started_s, logps

    async def figures(self) -> dict[str, float]:
        """The engine's counters since the last call."""
        return self._engine.figures()

    async def close(self) -> None:
        self._engine.close()
