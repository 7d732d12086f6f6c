"""Answers a benchmark's questions: the worker of a bulk pipeline holds the engine that generators hold."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

from actors.data.bulk import Workers
from actors.generate.engine import EngineSettings
from actors.generate.host import EngineHost
from actors.process.counters import Counting
from actors.process.exporter import RayExporter
from actors.process.fitness import Wanted
from actors.process.logs import tail
from csr_ray.config.schema import Decoding, Generators, Policy
from csr_ray.data.files import UnreadableError
from csr_ray.errors import ActorFailure, UserError
from csr_ray.evaluation.chunks import AnswerJob, calls_at_once
from csr_ray.machine.placement import generator_options
from csr_ray.records import Question
from csr_ray.store.answers import ANSWERS

_LOOK_EVERY_S: Final = 1.0

T = TypeVar("T")


def answerers(
    policy: Policy,
    *,
    generators: Generators,
    decoding: Decoding = Decoding(),  # noqa: B008
    model: str,
    seed: int,
    wanted: Wanted | None,
    logs: Path,
) -> Workers:
    """The actors that answer questions, `generators.min` of them; a job is an `AnswerJob`.

    Args:
        decoding: how answers may be decoded; each question says how it is.
        model: reference of the policy (`csr_ray.policy.source`).
        seed: what is sampled for a question follows from it and the question's id, as in a run's evaluation.
        wanted: what an actor's node has to have; None: it is the driver's.
        logs: folder of the actors' logs.
    """
    settings = EngineSettings(policy=policy, generators=generators, **EngineSettings.of_decoding(decoding))
    return Workers(
        make=Answerer,
        arguments={
            "settings": settings,
            "model": model,
            "seed": seed,
            "wanted": wanted,
            "logs": str(logs.absolute()),
        },
        schema=ANSWERS,
        num=generators.min,
        options=generator_options(generators, slot=0),  # all alike: an evaluation names no kinds of GPU
        calls_at_once=calls_at_once(generators.max_num_seqs),
        retries=generators.restarts,
    )


class Answerer:
    """One engine; see `actors.data.bulk.Worker`. Calls come from several threads, and the engine has one of its own.

    The process ends with its engine, and where the engine makes no step for `generators.hang_s`: that is how Ray
    comes to know that it has to start another one.

    Raises:
        UserError: the engine cannot start for a reason that the user can mend.
        ActorFailure: the engine could not start; the message ends with the actor's log.
    """

    def __init__(self, settings: EngineSettings, *, model: str, seed: int, wanted: Wanted | None, logs: str) -> None:
        log = Path(logs) / f"engine_{_actor_name()}.log"
        # There is no run folder here, and so no name of a run.
        counting = Counting(actor=_actor_name(), exporter=RayExporter(run="bulk", role="generator"))
        self._host = EngineHost(settings, model=model, counting=counting, wanted=wanted, log=str(log))
        self._seed = seed
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="engine", daemon=True).start()
        try:
            self._wait(self._host.start())
        except UserError:
            raise
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ActorFailure(f"an engine could not start: {reason}\nlast lines of {log}:\n{tail(log)}") from error
        watch = _Watch(self._host, hang_s=settings.generators.hang_s)
        threading.Thread(target=watch.look, name="watch", daemon=True).start()

    def rows(self, job: AnswerJob) -> list[dict[str, Any]]:
        return self._wait(self._rows(job))

    async def _rows(self, job: AnswerJob) -> list[dict[str, Any]]:
        return list(await asyncio.gather(*(self._row(question, job=job) for question in job.questions)))

    async def _row(self, question: Question, *, job: AnswerJob) -> dict[str, Any]:
        row = {
            "id": question.id,
            "asked_as": job.asked_as,
            "image": question.image,
            "question": question.text,
            "source": question.image,
        }
        try:
            sentence = await self._host.answer(
                question, temperature=job.temperature, max_tokens=job.max_tokens, seed=self._seed
            )
        except UnreadableError as error:
            return {**row, "reason": str(error), "fault": error.fault}
        except Exception as error:
            if self._host.engine.has_died:
                end_process("its engine died")
            # A prompt that is too long for the model is a ValueError, and will be the next time, too.
            fault = "policy" if isinstance(error, ValueError) else "machine"
            return {**row, "reason": " ".join(f"{type(error).__name__}: {error}".split()), "fault": fault}
        return {
            **row,
            "answer": sentence.text,
            "token_ids": list(sentence.token_ids),
            "logp": sum(sentence.logps),
        }

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def __del__(self) -> None:
        """Ray Data lets go of its actors when the last result is there."""
        self._host.close()


@dataclass(frozen=True)
class _Watch:
    """Ends the process of an engine that is dead or stands still."""

    host: EngineHost
    hang_s: float

    def look(self) -> NoReturn:
        while True:
            time.sleep(_LOOK_EVERY_S)
            if self.host.engine.has_died:
                end_process("its engine died")
            if (stalled_s := self.host.engine.progress.stalled_s()) > self.hang_s:
                end_process(f"its engine has made no step for {stalled_s:.0f} s")


def end_process(reason: str) -> NoReturn:
    """End this process and those below it at once, in a way that Ray takes for a death."""
    import psutil

    print(f"ending this process: {reason}", file=sys.stderr, flush=True)
    for child in psutil.Process().children(recursive=True):
        try:
            child.kill()
        except psutil.Error:
            continue
    os._exit(1)


def _actor_name() -> str:
    """Names this actor and those that take its place."""
    import ray

    return str(ray.get_runtime_context().get_actor_id())[:12]
