"""The pool of generators behind the loop's `Generators` port: bounded work in flight, first come first served.

A prompt is one actor call, so a slow tree holds up nobody and a fast generator simply takes more. What this module
does not know: what a tree is for, and where results are kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.handover.proofs import Proof, Served, faults
from actors.handover.registry import Registry
from actors.pool.events import T
from actors.pool.shell import Shell, reason_of
from actors.process.logs import tail
from csr_ray.config.schema import Config
from csr_ray.errors import ActorFailure, StalePolicyError, UserError
from csr_ray.records import Answer, PreferencePair, Prompt, PublishReceipt, Question, Rejection, TrainResult, Tree

_log = logging.getLogger(__name__)

_QUESTIONS_A_CALL = 32


class GeneratorPool:
    """Generators and scorers that are already starting; `wait_until_ready` blocks until they serve.

    Args:
        adapters: of the rounds already done, oldest first.
        start_generator: starts the actor of a given number; None: a generator that fails is not replaced.
    """

    def __init__(
        self,
        config: Config,
        *,
        generators: Sequence[Any],
        scorers: Sequence[Any],
        adapters: Sequence[str],
        logs: Path,
        start_generator: Callable[[int], Any] | None = None,
    ) -> None:
        self._config = config
        self._generators = list(generators)
        self._scorers = list(scorers)
        self._version = len(adapters)
        self._logs = logs
        self._start_generator = start_generator
        self._replacements: list[Any] = []
        self._registry = Registry(adapters, chunk_bytes=int(config.generators.chunk_mib * 2**20))
        self._started = [generator.start.remote(self._registry.actor) for generator in self._generators]

    @property
    def version(self) -> int:
        return self._version

    def close(self) -> None:
        """End what this pool itself started."""
        for actor in self._replacements:
            ray.kill(actor)
        self._registry.close()

    def wait_until_ready(self) -> None:
        """Raises ActorFailure with the end of the actor's log if one cannot start, UserError if it says why."""
        for index, started in enumerate(self._started):
            try:
                version = self._get(started, index=index)
            except RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise error.cause from None
                raise
            assert version == self.version, (version, self.version)

    def rollout(self, prompts: Sequence[Prompt], *, round_index: int) -> Iterator[Tree | Rejection]:
        """See `csr_ray.ports.Generators`."""
        for prompt, result in self._map(
            prompts,
            image_of=lambda prompt: prompt.image,
            submit=lambda generator, prompt: generator.grow.remote(prompt, round_index),
            in_flight=self._config.generators.in_flight,
        ):
            if isinstance(result, RayTaskError):
                yield Rejection(id=prompt.id, source=prompt.image, reason=f"rollout failed: {reason_of(result)}")
                continue
            if result.policy_version != self.version:
                raise StalePolicyError(
                    f"tree {prompt.id}: policy version {result.policy_version}, expected {self.version}"
                )
            yield result

    def answer(
        self, questions: Sequence[Question], *, temperature: float, max_tokens: int, seed: int
    ) -> Iterator[Answer]:
        """See `csr_ray.ports.Generators`."""
        chunks = _by_image(questions)
        calls = max(2, self._config.generators.max_num_seqs // _QUESTIONS_A_CALL)
        for _, answers in self._map(
            chunks,
            image_of=lambda chunk: chunk[0].image,
            submit=lambda generator, chunk: generator.answer.remote(list(chunk), temperature, max_tokens, seed),
            in_flight=calls,
        ):
            if isinstance(answers, RayTaskError):
                raise ActorFailure(f"evaluation failed: {reason_of(answers)}") from answers
            yield from answers

    def publish(self, trained: TrainResult, *, pairs: Sequence[PreferencePair]) -> PublishReceipt:
        """See `csr_ray.ports.Generators`.

        A generator that dies, or whose answer is not the trainer's, is taken out and replaced by a new one.

        Raises:
            ActorFailure: none passed, or a replacement failed too (it says which tensor or probe differs), or the
                version is neither the one that is served nor the next.
        """
        started_s = time.perf_counter()
        self._registry.add(trained.adapter, version=trained.version)
        probes = list(pairs[: len(trained.probe_logps)])
        proof = Proof(trained=trained, probes=probes, tolerance=self._config.generators.probe_tolerance)
        served, failed = self._served(range(len(self._generators)), proof=proof)
        if len(failed) == len(self._generators):
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
            num_generators=len(self._generators),
            max_probe_gap=max(proof.gap(answer) for answer in served.values()),
        )

    def _served(self, indices: Sequence[int], *, proof: Proof) -> tuple[dict[int, Served], dict[int, str]]:
        """What these generators serve now, and what is wrong with some of them."""
        calls = {index: self._generators[index].publish.remote(list(proof.probes)) for index in indices}
        served: dict[int, Served] = {}
        failed: dict[int, str] = {}
        for index, call in calls.items():
            try:
                served[index] = self._get(call, index=index)
            except RayTaskError as error:
                failed[index] = reason_of(error)
            except ActorFailure as error:
                failed[index] = str(error)
        failed |= faults(served, proof=proof)
        return {index: answer for index, answer in served.items() if index not in failed}, failed

    def _replace(self, indices: Sequence[int]) -> None:
        if self._start_generator is None:
            raise ActorFailure(f"generators {list(indices)} failed and cannot be replaced here")
        started = []
        for index in indices:
            ray.kill(self._generators[index])
            self._generators[index] = self._start_generator(index)
            self._replacements.append(self._generators[index])
            started.append(self._generators[index].start.remote(self._registry.actor))
        for index, call in zip(indices, started, strict=True):
            self._get(call, index=index)

    def figures(self) -> dict[str, float]:
        """Counters of generators and scorers since the last call, summed over each kind."""
        total: dict[str, float] = {}
        for figures in ray.get([actor.figures.remote() for actor in (*self._generators, *self._scorers)]):
            for name, value in figures.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def _map(
        self, items: Iterable[T], *, image_of: Callable[[T], str], submit: Callable[[Any, T], Any], in_flight: int
    ) -> Iterator[tuple[T, Any]]:
        """`submit` every item to a generator that has room; results (or task errors) as they come."""
        shell = Shell(
            generators=self._generators,
            scorers=self._scorers,
            logs=self._logs,
            hang_s=self._config.generators.hang_s,
        )
        return shell.map(items, image_of=image_of, submit=submit, in_flight=in_flight)

    def _get(self, reference: Any, *, index: int) -> Any:
        try:
            return ray.get(reference)
        except RayTaskError:
            raise  # the call failed; Ray makes its error look like its cause, which may be another actor's death
        except RayActorError as error:
            raise ActorFailure(
                f"generator {index} died: {error}\nlast lines of {self._log(index)}:\n{tail(self._log(index))}"
            ) from error

    def _log(self, index: int) -> Path:
        return self._logs / f"generator_{index}.log"


def _by_image(questions: Sequence[Question]) -> list[list[Question]]:
    """Calls of about `_QUESTIONS_A_CALL` questions; those about one image are never split."""
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
    return "; ".join(f"generator {index}: {fault}" for index, fault in sorted(failed.items()))
