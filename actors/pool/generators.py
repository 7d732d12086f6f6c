"""The pool of generators behind the loop's `Generators` port: bounded work in flight, first come first served.

A prompt is one actor call, so a slow rollout holds up nobody and a fast generator simply takes more. This module does
not know what a rollout is for, or where results are kept.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.handover.proofs import Proof, Served, faults, noise_of
from actors.handover.registry import Registry
from actors.pool.ahead import Ahead
from actors.pool.events import Role
from actors.pool.replicas import Replicas
from actors.pool.shell import Shell, reason_of
from csr_ray.config.schema import Generators
from csr_ray.counters import Counters
from csr_ray.errors import ActorFailure, StalePolicyError, UserError
from csr_ray.records import Answer, Cycle, Prompt, PublishReceipt, Question, Rejection, Rollout, TrainResult

_log = logging.getLogger(__name__)

_QUESTIONS_A_CALL = 32
_MOST_COUNTING_S = 2.0


class GeneratorPool:
    """Generators that are starting already, with their scorers; `wait_until_ready` blocks until they serve.

    Args:
        replicas: owner of the actors.
        adapters: folders of the phases already trained, oldest first.
        precisions: in which generators and trainer compute (`csr_ray.machine.placement.precision_of`); the proofs
            allow for as much rounding.
    """

    def __init__(
        self, config: Generators, *, replicas: Replicas, adapters: Sequence[str], precisions: Collection[str]
    ) -> None:
        self._config = config
        self._noise = noise_of(precisions)
        self._replicas = replicas
        self._version = len(adapters)
        self._counting: dict[Any, Any] = {}  # actors that are asked for their counters, and the open calls
        self._shell = Shell(replicas, hang_s=config.hang_s)
        self._registry = Registry(adapters, chunk_bytes=int(config.chunk_mib * 2**20))
        self._loaded = [actor.ready.remote() for actor in replicas.actors("scorer")]
        self._started = [actor.start.remote(self._registry.actor) for actor in replicas.actors("generator")]

    @property
    def version(self) -> int:
        return self._version

    def close(self) -> None:
        """End the actors, and the registry from which they pull their weights."""
        self._replicas.close()
        self._registry.close()

    def wait_until_ready(self) -> None:
        """Block until every scorer has its model and every generator serves the current policy.

        Raises:
            ActorFailure: one could not start; names it, and ends with its log.
            UserError: one cannot start for a reason that the user can mend.
        """
        for slot, loaded in enumerate(self._loaded):
            self._result_of_start(loaded, role="scorer", slot=slot)
        for slot, started in enumerate(self._started):
            version = self._result_of_start(started, role="generator", slot=slot)
            assert version == self.version, (version, self.version)

    def _result_of_start(self, call: Any, *, role: Role, slot: int) -> Any:
        try:
            return self._replicas.result(call, role=role, slot=slot)
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            last_lines = self._replicas.last_lines(role, slot)
            raise ActorFailure(f"{role} {slot} cannot start: {reason_of(error)}\n{last_lines}") from error

    def rollout(self, prompts: Iterable[Prompt], *, cycle: Cycle) -> Iterator[Rollout | Rejection]:
        """See `csr_ray.ports.Generators`."""

        def results(stopped: Callable[[], bool]) -> Iterator[tuple[Prompt, Any]]:
            return self._shell.map(
                prompts,
                image_of=lambda prompt: prompt.ask.picture.key,
                submit=lambda generator, prompt: generator.rollout.remote(prompt, cycle),
                in_flight=self._config.most_in_flight,
                stopped=stopped,
            )

        for prompt, result in Ahead(results):
            if isinstance(result, RayTaskError):
                yield prompt.refused(f"rollout failed: {reason_of(result)}")
                continue
            if isinstance(result, Rollout) and result.policy_version != self.version:
                raise StalePolicyError(
                    f"rollout {prompt.id}: policy version {result.policy_version}, expected {self.version}"
                )
            yield result

    def answer(
        self, questions: Sequence[Question], *, temperature: float, max_tokens: int, seed: int
    ) -> Iterator[Answer]:
        """See `csr_ray.ports.Generators`."""
        chunks = _by_image(questions)
        calls = max(2, self._config.max_num_seqs // _QUESTIONS_A_CALL)
        for _, answers in self._shell.map(
            chunks,
            image_of=lambda chunk: chunk[0].ask.picture.key,
            submit=lambda generator, chunk: generator.answer.remote(list(chunk), temperature, max_tokens, seed),
            in_flight=calls,
        ):
            if isinstance(answers, RayTaskError):
                raise ActorFailure(f"evaluation failed: {reason_of(answers)}") from answers
            yield from answers

    def publish(self, trained: TrainResult) -> PublishReceipt:
        """See `csr_ray.ports.Generators`.

        A generator that dies, or whose answer is not the trainer's, is taken out and replaced by a new one.

        Raises:
            ActorFailure: none passed, or a replacement failed too (it says which tensor or probe differs), or the
                version is neither the one that is served nor the next.
        """
        started_s = time.perf_counter()
        self._registry.add(trained.adapter, version=trained.version)
        proof = Proof(trained=trained, noise=self._noise, tolerance=self._config.probe_tolerance)
        num_generators = self._replicas.num("generator")
        served, failed = self._served(range(num_generators), proof=proof)
        if len(failed) == num_generators:
            raise ActorFailure(f"no generator can be brought to version {trained.version}: {_listed(failed)}")
        if failed:
            _log.error("hand-over of version %d: replacing %s", trained.version, _listed(failed))
            self._replace(list(failed))
            again, failed = self._served(list(failed), proof=proof)
            served |= again
        if failed:
            raise ActorFailure(f"replaced at version {trained.version}, and failed again: {_listed(failed)}")
        self._version = trained.version
        return PublishReceipt(
            version=trained.version,
            num_bytes=sum(answer.num_bytes for answer in served.values()),
            seconds=time.perf_counter() - started_s,
            num_generators=num_generators,
            max_probe_gap=max(proof.gap(answer) for answer in served.values()),
            swallowed=max(answer.swallowed for answer in served.values()),
            kept=min(answer.kept for answer in served.values()),
        )

    def _served(self, slots: Sequence[int], *, proof: Proof) -> tuple[dict[int, Served], dict[int, str]]:
        """Let these generators pull and prove the current version: the proofs that hold, and the faults of others."""
        probes = list(proof.trained.probes)
        calls = {slot: self._replicas.actor("generator", slot).publish.remote(probes) for slot in slots}
        served: dict[int, Served] = {}
        failed: dict[int, str] = {}
        for slot, call in calls.items():
            try:
                served[slot] = self._replicas.result(call, role="generator", slot=slot)
            except RayTaskError as error:
                failed[slot] = reason_of(error)
            except ActorFailure as error:
                failed[slot] = str(error)
        failed |= faults(served, proof=proof)
        return {slot: answer for slot, answer in served.items() if slot not in failed}, failed

    def _replace(self, slots: Sequence[int]) -> None:
        started = [self._replicas.replace_generator(slot).start.remote(self._registry.actor) for slot in slots]
        for slot, call in zip(slots, started, strict=True):
            self._replicas.result(call, role="generator", slot=slot)

    def counters(self) -> Counters:
        """See `csr_ray.ports.Generators`.

        Waits for nobody for long: the count of an actor that is silent comes with a later call, and one that is dead
        is left out, because the rollout that it is missed in says so with its name and log.
        """
        for actor in (*self._replicas.actors("generator"), *self._replicas.actors("scorer")):
            if actor not in self._counting:
                self._counting[actor] = actor.counters.remote()
        ready, _ = ray.wait(list(self._counting.values()), num_returns=len(self._counting), timeout=_MOST_COUNTING_S)
        counted = []
        for actor in [actor for actor, reference in self._counting.items() if reference in ready]:
            with contextlib.suppress(RayActorError):
                counted.append(ray.get(self._counting[actor]))
            del self._counting[actor]
        return Counters.sum(counted)


def _by_image(questions: Sequence[Question]) -> list[list[Question]]:
    """Put questions together into calls of about `_QUESTIONS_A_CALL`; those about one image are never split."""
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.image, []).append(question)
    chunks: list[list[Question]] = []
    for group in groups.values():
        if chunks and len(chunks[-1]) + len(group) <= _QUESTIONS_A_CALL:
            chunks[-1].extend(group)
        else:
            chunks.append(group)
    return chunks


def _listed(failed: dict[int, str]) -> str:
    return "; ".join(f"generator {slot}: {fault}" for slot, fault in sorted(failed.items()))
