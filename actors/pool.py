"""The pool of generators behind the loop's `Generators` port: bounded work in flight, first come first served.

A prompt is one actor call, so a slow tree holds up nobody and a fast generator simply takes more. What this module
does not know: what a tree is for, and where results are kept.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.process import tail
from csr_ray.config import Config
from csr_ray.errors import ActorFailure, StalePolicyError
from csr_ray.types import Answer, PreferencePair, Prompt, PublishReceipt, Question, Rejection, TrainResult, Tree

T = TypeVar("T")

_QUESTIONS_A_CALL = 32
# So many prompts failing before a single one succeeds is not bad data but a broken engine.
_FAILURES_BEFORE_GIVING_UP = 16


class GeneratorPool:
    """Generators and scorers that are already starting; `wait_until_ready` blocks until they serve."""

    def __init__(
        self,
        config: Config,
        *,
        generators: Sequence[Any],
        scorers: Sequence[Any],
        adapters: Sequence[str],
        logs: Path,
    ) -> None:
        self._config = config
        self._generators = list(generators)
        self._scorers = list(scorers)
        self._adapters = list(adapters)
        self._logs = logs
        self._started = [generator.start.remote(list(adapters)) for generator in self._generators]

    @property
    def version(self) -> int:
        return len(self._adapters)

    def wait_until_ready(self) -> None:
        """Raises ActorFailure with the end of the actor's log if one cannot start."""
        for index, started in enumerate(self._started):
            version = self._get(started, index=index)
            assert version == self.version, (version, self.version)

    def rollout(self, prompts: Sequence[Prompt], *, round_index: int) -> Iterator[Tree | Rejection]:
        """See `csr_ray.ports.Generators`."""
        num_done = 0
        for prompt, result in self._map(
            prompts,
            submit=lambda generator, prompt: generator.grow.remote(prompt, round_index),
            in_flight=self._config.generators.in_flight,
        ):
            if isinstance(result, RayTaskError):
                if num_done == 0 and self._failures >= _FAILURES_BEFORE_GIVING_UP:
                    raise ActorFailure(f"every prompt so far failed; the last: {_reason(result)}") from result
                yield Rejection(id=prompt.id, source=prompt.image, reason=f"rollout failed: {_reason(result)}")
                continue
            if result.policy_version != self.version:
                raise StalePolicyError(
                    f"tree {prompt.id}: policy version {result.policy_version}, expected {self.version}"
                )
            num_done += 1
            yield result

    def answer(
        self, questions: Sequence[Question], *, temperature: float, max_tokens: int, seed: int
    ) -> Iterator[Answer]:
        """See `csr_ray.ports.Generators`."""
        chunks = [
            questions[start : start + _QUESTIONS_A_CALL] for start in range(0, len(questions), _QUESTIONS_A_CALL)
        ]
        calls = max(2, self._config.generators.max_num_seqs // _QUESTIONS_A_CALL)
        for _, answers in self._map(
            chunks,
            submit=lambda generator, chunk: generator.answer.remote(list(chunk), temperature, max_tokens, seed),
            in_flight=calls,
        ):
            if isinstance(answers, RayTaskError):
                raise ActorFailure(f"evaluation failed: {_reason(answers)}") from answers
            yield from answers

    def publish(self, trained: TrainResult, *, pairs: Sequence[PreferencePair]) -> PublishReceipt:
        """See `csr_ray.ports.Generators`. Raises ActorFailure if a generator does not answer as the trainer does."""
        started_s = time.perf_counter()
        adapters = [*self._adapters, trained.adapter]
        probes = list(pairs[: len(trained.probe_logps)])
        calls = [generator.publish.remote(adapters, probes) for generator in self._generators]
        answers = [self._get(call, index=index) for index, call in enumerate(calls)]
        checksums = {checksum for _, checksum, _, _ in answers}
        if len(checksums) > 1:
            raise ActorFailure(f"generators hold different weights after version {trained.version}: {checksums}")
        gap = 0.0
        for index, (version, _, _, logps) in enumerate(answers):
            if version != trained.version:
                raise StalePolicyError(f"generator {index} serves version {version}, expected {trained.version}")
            for probe, ours, theirs in zip(probes, logps, trained.probe_logps, strict=True):
                gap = max(gap, abs(ours - theirs))
                self._check_gap(abs(ours - theirs), probe=probe, index=index, version=version)
        self._adapters = adapters
        return PublishReceipt(
            version=trained.version,
            num_bytes=_size_bytes(Path(trained.adapter)) * len(self._generators),
            seconds=time.perf_counter() - started_s,
            num_generators=len(self._generators),
            max_probe_gap=gap,
        )

    def figures(self) -> dict[str, float]:
        """Counters of generators and scorers since the last call, summed over each kind."""
        total: dict[str, float] = {}
        for figures in ray.get([actor.figures.remote() for actor in (*self._generators, *self._scorers)]):
            for name, value in figures.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def _check_gap(self, gap: float, *, probe: PreferencePair, index: int, version: int) -> None:
        allowed = self._config.generators.probe_tolerance * len(probe.chosen_ids)
        if not gap <= allowed:
            raise ActorFailure(
                f"generator {index} at version {version}: log-prob of probe answer {probe.id} is {gap:.4g} off the "
                f"trainer's, allowed {allowed:.4g} (generators.probe_tolerance a token); it serves other weights"
            )

    def _map(self, items: Sequence[T], *, submit: Callable[[Any, T], Any], in_flight: int) -> Iterator[tuple[T, Any]]:
        """`submit` every item to whichever generator has a free slot; results (or task errors) as they come."""
        self._failures = 0
        slots = itertools.chain.from_iterable(itertools.repeat(range(len(self._generators)), in_flight))
        free = list(slots)[::-1]
        waiting = iter(items)
        running: dict[Any, tuple[T, int]] = {}
        while True:
            while free:
                item = next(waiting, None)
                if item is None:
                    break
                index = free.pop()
                running[submit(self._generators[index], item)] = (item, index)
            if not running:
                return
            ready, _ = ray.wait(list(running), num_returns=len(running), timeout=0.02, fetch_local=True)
            if not ready:
                ready, _ = ray.wait(list(running), num_returns=1, timeout=self._config.generators.hang_s)
            if not ready:
                raise ActorFailure(
                    f"no generator answered for {self._config.generators.hang_s:.0f} s (generators.hang_s); "
                    f"last lines of its log:\n{tail(self._log(0))}"
                )
            for reference in ready:
                item, index = running.pop(reference)
                free.append(index)
                try:
                    yield item, self._get(reference, index=index)
                except RayTaskError as error:
                    self._failures += 1
                    yield item, error

    def _get(self, reference: Any, *, index: int) -> Any:
        try:
            return ray.get(reference)
        except RayActorError as error:
            raise ActorFailure(
                f"generator {index} died: {error}\nlast lines of {self._log(index)}:\n{tail(self._log(index))}"
            ) from error

    def _log(self, index: int) -> Path:
        return self._logs / f"generator_{index}.log"


def _reason(error: RayTaskError) -> str:
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}"


def _size_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
