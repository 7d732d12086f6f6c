"""The generator actor: a vLLM engine that grows trees, answers questions and takes new weights.

Each call of `grow` is one prompt's coroutine; the engine's continuous batching fills up from all of them. Everything
that leaves here is stamped with the policy version that made it.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.generate.engine import VllmEngine
from actors.handover.proofs import Served
from actors.handover.registry import Receiver
from actors.process.counters import Figures
from actors.process.logs import log_to_file
from actors.score.client import ScorerPool
from csr_ray.config.schema import Config
from csr_ray.errors import StalePolicyError
from csr_ray.policy.source import local_folder
from csr_ray.records import Answer, PreferencePair, Prompt, Question, Tree
from csr_ray.rollout.search import derive_seed, grow_tree

GENERATOR_FIGURES = ("trees", "nodes")


class GeneratorActor:
    """One engine. Serves nothing until `start` has brought it to the current policy version."""

    def __init__(self, config: Config, *, model: str, scorers: Sequence[Any], log: str | None = None) -> None:
        if log:
            log_to_file(log)
        self._config = config
        self._engine = VllmEngine(config, model=local_folder(model))
        self._scorers = ScorerPool(scorers)
        self._version: int | None = None
        self._receiver: Receiver | None = None
        self._directory = tempfile.TemporaryDirectory(prefix="csr-ray-adapters-")
        self._figures = Figures(*GENERATOR_FIGURES, actor="generator")

    async def start(self, registry: Any) -> int:
        """Bring the engine up with the registry's current policy; returns the version it serves."""
        self._receiver = Receiver(registry, folder=Path(self._directory.name))
        await self._engine.start()
        version = await self._receiver.pull()
        if version:
            await self._engine.load_policy(adapters=self._receiver.adapters)
        self._version = version
        return version

    async def grow(self, prompt: Prompt, round_index: int) -> Tree:
        """The sentence tree of one prompt."""
        version = self._current_version()
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
        self._figures.add(trees=1, nodes=len(tree.nodes))
        return tree

    async def answer(
        self, questions: Sequence[Question], temperature: float, max_tokens: int, seed: int
    ) -> list[Answer]:
        """One answer a question, without search."""
        version = self._current_version()

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

    async def publish(self, probes: Sequence[PreferencePair]) -> Served:
        """Pull and serve the registry's current policy, and say what can be checked about it.

        Raises:
            TransferError: a package did not arrive as it was sent; the old policy is still loaded but not served.
        """
        assert self._receiver is not None, "not started"
        started_s = time.perf_counter()
        self._version = None  # a failure below leaves weights that nobody has vouched for
        sent = self._receiver.num_bytes
        version = await self._receiver.pull()
        loaded = await self._engine.load_policy(adapters=self._receiver.adapters)
        self._version = version
        questions = [Question(id=pair.id, image=pair.image, text=pair.prompt) for pair in probes]
        answers = [pair.chosen_ids for pair in probes]
        engine = self._engine
        asked = list(zip(questions, answers, strict=True))
        logps = await asyncio.gather(*(engine.answer_logp(question, answer_ids=answer) for question, answer in asked))
        gaps = await asyncio.gather(*(engine.cached_gap(question, answer_ids=answer) for question, answer in asked))
        return Served(
            version=version,
            checksum=loaded.checksum,
            wrong_tensors=loaded.wrong_tensors,
            probe_logps=tuple(logps),
            cache_gaps=tuple(gaps),
            num_bytes=self._receiver.num_bytes - sent,
            seconds=time.perf_counter() - started_s,
        )

    def _current_version(self) -> int:
        if self._version is None:
            raise StalePolicyError("this generator does not hold the current policy: not started, or failed")
        return self._version

    async def figures(self) -> dict[str, float]:
        """The counters of this actor and its engine since the last call."""
        return self._figures.take() | self._engine.figures()

    async def close(self) -> None:
        self._engine.close()
        self._directory.cleanup()
