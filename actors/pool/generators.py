"""The pool of generators behind the loop's `Generators` port: bounded work in flight, first come first served.

A prompt is one actor call, so a slow rollout holds up nobody and a fast generator simply takes more. A generator or
scorer that dies is replaced while the others go on, and what it had in work is done again. This module does not know
what a rollout is for, or where results are kept.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from ray.exceptions import RayTaskError

from actors.handover.expected import Expected
from actors.handover.proofs import Proof, Served, noise_of
from actors.handover.registry import Registry
from actors.pool.counting import Counting
from actors.pool.events import Replica, Role
from actors.pool.failures import ItemLimits
from actors.pool.lives import RoleLimits
from actors.pool.replicas import Replicas
from actors.pool.scaling import Bounds
from actors.pool.supervisor import SetAside, Supervisor, reason_of
from actors.process import pulse
from actors.process.ledger import Ledger, Place, kind_of_node
from csr_ray.config.schema import Generators, Replicated, Scorers
from csr_ray.counters import Counters, Usage
from csr_ray.data.images import fault_elsewhere
from csr_ray.errors import ActorFailure, StalePolicyError
from csr_ray.evaluation.chunks import by_image, calls_at_once
from csr_ray.metrics import Exporter
from csr_ray.records import Answer, Cycle, Prompt, PublishReceipt, Question, Rejection, Rollout, TrainResult
from csr_ray.stages.parts import Parts

_log = logging.getLogger(__name__)

# An actor that was not heard for so long is asked whether it is there.
_PING_S = 2.0
_REGISTRY_START_S = 45.0
# Calls that bring a generator up, at most: the version may change while it starts.
_TRIES = 4


class GeneratorPool:
    """Generators that are starting already, with their scorers; `wait_until_ready` blocks until they serve.

    Args:
        replicas: owner of the actors.
        adapters: folders of the phases already trained, oldest first.
        precisions: in which generators and trainer compute (`csr_ray.machine.placement.precision_of`); the proofs
            allow for as much rounding.
        scorers: limits of the scorers.
        notice: told in words who died, who is replaced and what is waited for.
        wait_s: how long an actor may be without a place in the cluster, in seconds.
        room, what_is_pending, exporter, parts: see `actors.pool.supervisor.Supervisor`.
    """

    def __init__(
        self,
        config: Generators,
        *,
        replicas: Replicas,
        adapters: Sequence[str],
        precisions: Collection[str],
        scorers: Scorers | None = None,
        notice: Callable[[str], None] = lambda line: None,
        wait_s: float = math.inf,
        room: Callable[[Role], float] = lambda role: 0,
        what_is_pending: Callable[[], str] = str,
        exporter: Exporter | None = None,
        parts: Parts | None = None,
    ) -> None:
        self._config = config
        self._expected: Expected[Replica] = Expected(
            len(adapters), noise=noise_of(precisions), tolerance=config.probe_tolerance
        )
        self._replicas = replicas
        self._counting = Counting(replicas)
        self._registry = Registry(adapters, chunk_bytes=int(config.chunk_mib * 2**20))
        replicas.adopt_registry(self._registry.actor)
        sections: dict[Role, Replicated] = {"generator": config, "scorer": scorers or Scorers()}
        limits = {
            role: _limits(
                section, can_replace=replicas.can_replace(role), num=len(replicas.slots(role)), wait_s=wait_s
            )
            for role, section in sections.items()
        }
        bounds = {
            role: Bounds(min=section.min, max=section.max, idle_s=section.idle_s)
            for role, section in sections.items()
            if isinstance(section, Generators | Scorers) and replicas.can_replace(role)
        }
        limits["registry"] = RoleLimits(
            start_s=_REGISTRY_START_S, ping_s=_PING_S, silent_s=config.silent_s, restarts=config.restarts
        )
        self._supervisor = Supervisor(
            replicas,
            limits=limits,
            item_limits=ItemLimits(call_s=config.call_s),
            bring_up=self._bring_up,
            bounds=bounds,
            room=room,
            what_is_pending=what_is_pending,
            notice=notice,
            ledger=Ledger(
                {
                    "generator": Place(gpus=config.gpus, cpus=config.cpus),
                    **({} if scorers is None else {"scorer": Place(gpus=scorers.gpus, cpus=scorers.cpus)}),
                },
                kind_of=kind_of_node,
            ),
            exporter=exporter,
            parts=parts,
        )

    @property
    def version(self) -> int:
        return self._expected.proof.version

    def close(self) -> None:
        """End the actors, and the registry from which they pull their weights."""
        self._supervisor.close()
        self._replicas.close()
        self._registry.close()

    def wait_until_ready(self) -> None:
        """Block until every scorer has its model and every generator serves the current policy.

        Raises:
            ActorFailure: one could not start; names it, and ends with its log.
            UserError: one cannot start for a reason that the user can mend.
        """
        self._supervisor.wait_until_ready()

    def _bring_up(self, replica: Replica, actor: Any, answers: Sequence[Any]) -> Any:
        """See `actors.pool.supervisor.BringUp`. A generator that comes late proves what it serves like all others."""
        if replica.role == "registry":
            return None if answers else pulse.ask(actor)
        if replica.role == "scorer":
            return None if answers else actor.ready.remote()
        if not answers:
            return actor.start.remote(self._registry.actor)
        proof, answer = self._expected.proof, answers[-1]
        if answer == proof.version and not proof.knows_logps and not proof.probes:
            return None  # what the run began with, and nothing is known of it
        if not isinstance(answer, Served) or (answer.version != proof.version and len(answers) < _TRIES):
            return actor.publish.remote(list(proof.probes))
        if fault := self._expected.faults({replica: answer}, proof=proof).get(replica):
            raise ActorFailure(fault)
        self._expected.passed({replica: answer})
        return None

    def rollout(
        self, prompts: Iterable[Prompt], *, cycle: Cycle, control: Prompt | None = None, num: int | None = None
    ) -> Iterator[Rollout | Rejection]:
        """See `csr_ray.ports.Generators`."""
        results = self._supervisor.map(
            prompts,
            image_of=lambda prompt: prompt.ask.picture.key,
            submit=lambda generator, prompt: generator.rollout.remote(prompt, cycle),
            in_flight=self._config.most_in_flight,
            what="prompts",
            control=control,
            num=num,
        )
        with contextlib.closing(results):
            for prompt, result in results:
                if isinstance(result, SetAside):
                    yield prompt.refused(f"rollout failed: {result.reason}", fault=result.fault)
                    continue
                if isinstance(result, Rollout) and result.policy_version != self.version:
                    raise StalePolicyError(
                        f"rollout {prompt.id}: policy version {result.policy_version}, expected {self.version}"
                    )
                if isinstance(result, Rejection):
                    reason, fault = fault_elsewhere(prompt.image, reason=result.reason, fault=result.fault)
                    result = prompt.refused(reason, fault=fault)
                yield result

    def answer(
        self, questions: Sequence[Question], *, temperature: float, max_tokens: int, seed: int
    ) -> Iterator[Answer]:
        """See `csr_ray.ports.Generators`."""
        chunks = by_image(questions)
        results = self._supervisor.map(
            chunks,
            image_of=lambda chunk: chunk[0].ask.picture.key,
            submit=lambda generator, chunk: generator.answer.remote(list(chunk), temperature, max_tokens, seed),
            in_flight=calls_at_once(self._config.max_num_seqs),
            what="chunks of questions",
            num=len(chunks),
        )
        with contextlib.closing(results):
            for _, answers in results:
                if isinstance(answers, SetAside):
                    raise ActorFailure(f"evaluation failed: {answers.reason}")
                yield from answers

    def publish(self, trained: TrainResult) -> PublishReceipt:
        """See `csr_ray.ports.Generators`.

        A generator that dies, or whose answer is not the trainer's, is replaced by a new one, which proves what it
        serves before it gets work. Those that are replaced are not waited for, as long as others serve.

        Raises:
            ActorFailure: of those that answered none passed (it says which tensor or probe differs), or the version
                is neither the one that is served nor the next.
        """
        started_s = time.perf_counter()
        self._registry.add(trained.adapter, version=trained.version)
        proof = self._expected.hand_over(trained)
        served = self._bring_to(proof)
        return PublishReceipt(
            version=trained.version,
            num_bytes=sum(answer.num_bytes for answer in served.values()),
            seconds=time.perf_counter() - started_s,
            num_generators=len(served),
            max_probe_gap=max(proof.gap(answer) for answer in served.values()),
            swallowed=max(answer.swallowed for answer in served.values()),
            kept=min(answer.kept for answer in served.values()),
            num_unseen=max(answer.num_unseen for answer in served.values()),
            parts=max(served.values(), key=lambda answer: answer.seconds).parts,
        )

    def withdraw(self, version: int) -> None:
        """See `csr_ray.ports.Generators`. Who does not go back is replaced, as at a hand-over.

        They prove that they serve the version before by what proved it then (`actors.handover.expected`), its
        checksum included, and so does whoever starts later.
        """
        self._registry.withdraw(version)
        self._bring_to(self._expected.take_back())

    def _bring_to(self, proof: Proof) -> dict[Replica, Served]:
        """Bring every generator to the registry's current policy; returns the answers of those that proved it.

        Raises:
            ActorFailure: none of those that answered did.
        """
        probes = list(proof.probes)
        served: dict[Replica, Served] = {}
        while not served:
            answers = self._supervisor.ask(
                "generator", lambda actor: actor.publish.remote(probes), limit_s=self._config.publish_s
            )
            served = {replica: answer for replica, answer in answers.items() if isinstance(answer, Served)}
            failed = self._expected.faults(served, proof=proof)
            failed |= {
                replica: reason_of(answer) for replica, answer in answers.items() if isinstance(answer, RayTaskError)
            }
            if failed and len(failed) == len(answers):
                raise ActorFailure(f"no generator can be brought to version {proof.version}: {_listed(failed)}")
            for replica, fault in failed.items():
                _log.error("hand-over of version %d: replacing %s: %s", proof.version, replica, fault)
                self._supervisor.condemn(replica, f"hand-over of version {proof.version}: {fault}")
            served = {replica: answer for replica, answer in served.items() if replica not in failed}
            self._expected.passed(served)
        return served

    def health(self) -> str:
        """Who serves and who does not, in words. May be asked in any thread."""
        return self._supervisor.health()

    def sleep(self) -> None:
        """Leave the GPUs to the train workers until `wake`. Who does not is replaced, but not before."""
        self._supervisor.give_way(lambda actor: actor.sleep.remote(), limit_s=self._config.publish_s)

    def wake(self) -> None:
        """Serve again; who cannot wake up is replaced."""
        self._supervisor.take_back(lambda actor: actor.wake.remote(), limit_s=self._config.publish_s)

    def counters(self) -> Counters:
        """See `csr_ray.ports.Generators`."""
        counted = self._counting.take()
        counted.add(self._supervisor.take_deaths())
        return counted

    def usage(self) -> list[Usage]:
        """What generators and scorers have held since the last call."""
        return self._supervisor.take_usage()

    def held_gpus(self) -> dict[tuple[str, str], float]:
        """See `Ledger.gpus_by_node`."""
        return self._supervisor.held_gpus()


def _limits(section: Replicated, *, can_replace: bool, num: int, wait_s: float) -> RoleLimits:
    """The limits of a role; where nobody can be replaced (in tests, say) any death is one too many."""
    return RoleLimits(
        place_s=wait_s,
        start_s=section.start_s,
        ping_s=_PING_S,
        silent_s=section.silent_s,
        hang_s=section.hang_s,
        restarts=section.restarts if can_replace else 0,
        min_replicas=1 if can_replace else max(1, num),
    )


def _listed(failed: dict[Replica, str]) -> str:
    return "; ".join(f"{replica.role} {replica.slot}: {fault}" for replica, fault in sorted(failed.items()))
