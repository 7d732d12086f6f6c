"""The generator actor: a vLLM engine on which a method rolls out. It also answers questions and takes new weights.

Each call of `rollout` is one prompt's coroutine; the engine's continuous batching fills up from all of them, as many
at once as its KV cache holds (`actors.generate.capacity`).
Everything that leaves here is stamped with the policy version that made it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from actors.generate.engine import EngineSettings, VllmEngine
from actors.generate.host import EngineHost
from actors.handover.proofs import Served
from actors.handover.registry import Receiver
from actors.handover.stopwatch import Stopwatch
from actors.process.exporter import RayExporter
from actors.process.fitness import Wanted
from actors.process.pulse import Heart, Pulse
from actors.process.tracing import TracedCounting, doing, in_flight, spans_of
from actors.score.client import ScorerPool
from csr_ray.counters import Counters
from csr_ray.errors import DoesNotFit, EngineFailure, StalePolicyError
from csr_ray.methods.base import Method
from csr_ray.ports import Engine
from csr_ray.records import Answer, Cycle, Probe, Prompt, Question, Rejection, Rollout
from csr_ray.rollout.contrasting import ContrastingEngine
from csr_ray.rollout.search import derive_seed
from csr_ray.rollout.served import answer_as_served
from csr_ray.spans import Recorded


class GeneratorActor:
    """One engine. Serves nothing until `start` has brought it to the current policy version.

    Args:
        model: reference of the base policy (`csr_ray.policy.source`).
        scorer_wait_s: for how many seconds to wait for the replacement of a scorer that died.
        method: what rolls out; None: this generator answers questions only.
        seed: of the run; what is drawn for a prompt follows from it, the cycle and the prompt's id.
        wanted: what this actor's node has to have; None: it is the driver's.
        run, slot: name this actor in its metrics; without a run it exports none.
        log: file that this process's output goes to; None: wherever Ray puts it.
        is_traced: record what is done when, for `spans`.
    """

    engine_class: type[VllmEngine] = VllmEngine

    def __init__(
        self,
        settings: EngineSettings,
        *,
        model: str,
        scorer_wait_s: float = 60.0,
        method: Method | None = None,
        seed: int = 0,
        wanted: Wanted | None = None,
        run: str = "",
        slot: int = 0,
        log: str | None = None,
        is_traced: bool = False,
    ) -> None:
        self._method = method
        self._seed = seed
        exporter = RayExporter(run=run, role="generator") if run else None
        self._counting = TracedCounting.of(f"generator {slot}", exporter=exporter, is_traced=is_traced)
        self._host = EngineHost(
            settings,
            model=model,
            counting=self._counting,
            wanted=wanted,
            log=log,
            engine_class=self.engine_class,
        )
        self._engine = self._host.engine
        contrast = settings.rollout_contrast
        self._asked: Engine = (
            self._engine if contrast is None else ContrastingEngine(engine=self._engine, contrast=contrast)
        )
        self._scorers = ScorerPool(wait_s=scorer_wait_s)
        self._heart = Heart(self._engine.progress, what="its engine")
        self._version: int | None = None
        self._receiver: Receiver | None = None

    async def start(self, registry: Any) -> int:
        """Bring the engine up with the registry's current policy; returns the version it serves.

        Raises:
            ConfigError: this node is not fit for a generator, or has no way to the policy.
        """
        self._heart.start()
        self._heart.doing = lambda: self._host.doing()
        self._receiver = Receiver(registry, folder=self._host.folder)
        with doing(self._counting, "start the engine", track="policy"):
            await self._host.start()
        self._heart.doing = lambda: "fetching the policy"
        with doing(self._counting, "pull", track="policy"):
            version = await self._receiver.pull()
        if version:
            self._heart.doing = lambda: f"loading policy version {version}"
            with doing(self._counting, "load", track="policy"):
                await self._engine.load_policy(adapters=self._receiver.adapters)
        self._heart.doing = str
        self._serve(version)
        return version

    async def rollout(self, prompt: Prompt, cycle: Cycle) -> Rollout | Rejection:
        """Roll out one prompt by the method; a rejection if the prompt's picture cannot be used.

        Raises:
            StalePolicyError: this generator does not hold the current policy.
            EngineFailure: the engine is dead.
            ScorerFailure: a scorer is dead, and nobody took its place.
        """
        assert self._method is not None, "started to answer questions only"
        version = self._current_version()
        name = "rollout" if cycle.phase.probing is None else "gate"
        with self._engine_failures(), in_flight(self._counting, name, id=prompt.id):
            return await self._rollout(prompt, cycle=cycle, version=version, method=self._method)

    async def _rollout(self, prompt: Prompt, *, cycle: Cycle, version: int, method: Method) -> Rollout | Rejection:
        async with self._engine.room:
            if (error := await self._engine.unreadable(prompt.ask.picture)) is not None:
                return prompt.refused(str(error), fault=error.fault)
            try:
                rollout = await self._speak(prompt, cycle=cycle, version=version, method=method)
            except DoesNotFit as error:
                return prompt.refused(str(error))
        assert self._version == version, "weights changed while the policy spoke"
        if not rollout.candidates:  # a unit keeps candidates, so a rollout without any would be lost
            return prompt.refused("the policy said nothing", fault="policy")
        self._counting.add(Counters(rollouts=1, candidates=len(rollout.candidates)))
        self._counting.exporter.observe("csr_ray_prompt_seconds", rollout.stats.seconds, actor=self._counting.actor)
        return rollout

    async def _speak(self, prompt: Prompt, *, cycle: Cycle, version: int, method: Method) -> Rollout:
        if (probing := cycle.phase.probing) is not None:
            return await answer_as_served(
                prompt,
                probing=probing,
                engine=self._engine,
                scorer=self._scorers,
                policy_version=version,
                # The same draws for every version, so that answers differ by the policy alone.
                seed=derive_seed(self._seed, cycle.phase.name, prompt.id),
            )
        return await method.rollout(
            cycle.phase,
            prompt,
            engine=self._asked,
            scorer=self._scorers,
            policy_version=version,
            seed=derive_seed(self._seed, *cycle.seed_parts, prompt.id),
        )

    async def answer(
        self, questions: Sequence[Question], temperature: float, max_tokens: int, seed: int
    ) -> list[Answer]:
        """Answer each question once, without search; answers are in the order of the questions.

        Raises:
            StalePolicyError: this generator does not hold the current policy.
            EngineFailure: the engine is dead.
        """
        version = self._current_version()

        async def one(question: Question) -> Answer:
            sentence = await self._host.answer(question, temperature=temperature, max_tokens=max_tokens, seed=seed)
            return Answer(
                id=question.id,
                text=sentence.text,
                token_ids=sentence.token_ids,
                logp=sum(sentence.logps),
                policy_version=version,
            )

        with self._engine_failures(), in_flight(self._counting, "answer", id=questions[0].id):
            return list(await asyncio.gather(*(one(question) for question in questions)))

    async def publish(self, probes: Sequence[Probe]) -> Served:
        """Pull and serve the registry's current policy, which may be an earlier one than before; say what proves it.

        Raises:
            TransferError: a package did not arrive as it was sent; the old policy is still loaded but not served.
        """
        assert self._receiver is not None, "not started"
        watch = Stopwatch("rest")
        sent = self._receiver.num_bytes
        try:
            # The old weights are served until all of the new ones are here.
            with doing(self._counting, "pull", track="policy"):
                version = await self._receiver.pull(watch)
        finally:
            self._version = None  # a failure leaves weights that nobody has vouched for
        with doing(self._counting, "load", track="policy"), watch.at("load"):
            loaded = await self._engine.load_policy(adapters=self._receiver.adapters)
        self._serve(version)
        engine = self._engine
        with doing(self._counting, "prove", track="policy"), watch.at("probes"):
            # The first one alone: nobody else's prefix may be in the cache by then.
            replies = [await engine.probe(one.ask, answer_ids=one.answer_ids) for one in probes[:1]]
            num_stale = sum(reply.num_stale for reply in replies)
            rest = (engine.probe(one.ask, answer_ids=one.answer_ids) for one in probes[1:])
            replies += await asyncio.gather(*rest)
        parts, within = watch.end(), dict(loaded.seconds)
        seconds = sum(parts.values())
        parts["load"] += within.pop("load", 0.0) - sum(loaded.seconds.values())
        return Served(
            version=version,
            checksum=loaded.checksum,
            wrong_tensors=loaded.wrong_tensors,
            num_unseen=loaded.num_unseen,
            swallowed=loaded.swallowed,
            kept=loaded.kept,
            num_stale=num_stale,
            probe_logps=tuple(reply.logp for reply in replies),
            cache_gaps=tuple(reply.cache_gap for reply in replies),
            num_bytes=self._receiver.num_bytes - sent,
            seconds=seconds,
            parts={**parts, **within},
        )

    def _serve(self, version: int) -> None:
        self._version = version
        self._counting.exporter.set("csr_ray_policy_version_served", version, actor=self._counting.actor)

    def _current_version(self) -> int:
        if self._version is None:
            raise StalePolicyError("this generator does not hold the current policy: not started, or failed")
        return self._version

    @contextlib.contextmanager
    def _engine_failures(self) -> Iterator[None]:
        """Whatever goes wrong once the engine is dead is the engine's failure, and not the prompt's."""
        try:
            yield
        except Exception as error:
            if not self._engine.has_died:
                raise
            raise EngineFailure(f"its engine died: {type(error).__name__}: {error}") from error

    async def use_scorer(self, slot: int, life: int, scorer: Any) -> None:
        """Ask this scorer from now on, too, or in place of the one that had its slot before."""
        self._scorers.replace(slot, life=life, scorer=scorer)

    async def drop_scorer(self, slot: int, life: int) -> None:
        """Ask this scorer no more; it is about to end."""
        self._scorers.remove(slot, life=life)

    async def sleep(self) -> None:
        """Leave the GPU to the train workers until `wake`; nothing may be asked meanwhile."""
        with self._engine_failures():
            await self._engine.sleep()

    async def wake(self) -> None:
        """Serve again the policy of before."""
        with self._engine_failures():
            await self._engine.wake()

    async def pulse(self) -> Pulse:
        """See `actors.process.pulse`."""
        return self._heart.pulse(ends="its engine died" if self._engine.has_died else "")

    async def counters(self) -> Counters:
        """What this actor and its engine have counted since the last call."""
        return self._counting.take()

    async def spans(self) -> Recorded:
        """What this actor, which is traced, has recorded since the last call."""
        return spans_of(self._counting)

    async def close(self) -> None:
        self._host.close()
