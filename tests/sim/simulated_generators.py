"""The real pool of generators, on a simulated supervisor: what `GeneratorPool` asks of Ray, a simulated pool answers.

So hand-overs, proofs and the versions of those that come late are the product's own code, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from fakes import TableScorer, TwoAnswerEngine, answers_as_served, tiny_config
from gate_referee import Harm, Weights, health_of
from simulated_pool import Actor, Item, Scenario, SimulatedPool

from actors.handover.expected import Expected
from actors.handover.proofs import Served, noise_of
from actors.handover.registry import Package, Registry, RegistryActor
from actors.pool.events import Answered, Deliver, Event, Replica, Useless
from actors.pool.generators import GeneratorPool
from actors.pool.supervisor import SetAside
from csr_ray.config.schema import Config
from csr_ray.counters import Counters
from csr_ray.errors import ActorFailure
from csr_ray.methods.base import method_of
from csr_ray.records import Cycle, Prompt, PublishReceipt, Rejection, Rollout, TrainResult

HANDS_OVER, HANDED_OVER = "before a hand-over", "after a hand-over"
GOES_BACK, WENT_BACK = "before the generators go back", "after the generators went back"
ANSWERS = "within a probe"
AROUND_A_VERSION = (HANDS_OVER, HANDED_OVER, GOES_BACK, WENT_BACK, ANSWERS)
# What the rows of a prompt file do, by the beginning of their id.
_KINDS = ("bad", "poison", "stuck", "cursed", "unreadable")


@dataclass
class Trouble:
    """What goes wrong beside the work. Shares are of answers."""

    wrong_share: float = 0.0
    uncounted_share: float = 0.0
    silent_share: float = 0.0


class _Method:
    """A remote method: `.remote(...)` of the simulated actor returns at once, with what the call comes to."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.remote = call


class _Actor:
    """What a generator is to `GeneratorPool`."""

    def __init__(self, pool: ServingPool, replica: Replica) -> None:
        self.start = _Method(lambda registry: pool.pull(replica))
        self.publish = _Method(lambda probes: pool.served(replica, probes))
        self.rollout = _Method(lambda prompt, cycle: pool.rollout(replica, prompt, cycle))


@dataclass(frozen=True)
class _Held:
    """An adapter that a generator has pulled."""

    identity: int
    weights: Weights


class _RegistryActor(RegistryActor):
    """The real one, but what it sends are no tensors, and it remembers without a file."""

    def __init__(self) -> None:
        super().__init__(chunk_bytes=1, memory="/nowhere/registry")

    def _remember(self, adapters: list[Any], *, num_added: int) -> None:
        self._adapters, self._num_added = adapters, num_added

    def _package(self, *, version: int) -> Package:
        added = self._adapters[version - 1]
        weights = Weights.read(Path(added.folder))
        return Package(identity=added.identity, manifest=None, chunks=(weights,))  # type: ignore[arg-type]


class ServingPool(SimulatedPool):
    """A simulated pool whose generators hold adapters of the policy, which they pull while they start.

    Args:
        harms: what is wrong with them, by version.

    Attributes:
        expected: digests of what every generator has to hold while it answers.
    """

    def __init__(self, scenario: Scenario, *, seed: int, harms: dict[int, Harm], trouble: Trouble) -> None:
        self.registry = _RegistryActor()
        self.expected: tuple[str, ...] = ()
        self._harms = harms
        self._chains: dict[Replica, list[_Held]] = {}
        self.bring_up: Callable[[Replica, Any, list[Any]], Any] | None = None
        self.trouble = trouble
        super().__init__(scenario, seed=seed, is_resident=True, trace=[])

    def _up(self, actor: Actor, answers: tuple[Any, ...] = ()) -> None:
        """It has loaded the base model; now it pulls its weights, and proves them if it has to."""
        replica = actor.replica
        if replica.role != "generator" or actor.state != "starting":
            super()._up(actor)
            return
        assert self.bring_up is not None
        if not answers:
            self.tell(Answered(replica))  # its process runs, and is asked for a sign of life from the first moment
        try:
            asked = self.bring_up(replica, _Actor(self, replica), list(answers))
        except ActorFailure as error:
            self._inbox.append(Useless(replica, str(error)))
            return
        if asked is None:
            if len(answers) > 1 and answers[0] != len(self._chains[replica]):
                self.referee.tally["generators that started with an older version"] += 1
            super()._up(actor)
            return
        self._later(self._random.uniform(0.5, 20), self._up, actor, (*answers, asked))

    @property
    def now_s(self) -> float:
        return self._now_s

    def draw_s(self, low_s: float, high_s: float) -> float:
        return self._random.uniform(low_s, high_s)

    def stays_silent(self) -> bool:
        return self._random.random() < self.trouble.silent_share

    def state_of(self, replica: Replica) -> str:
        return self._actors[replica].state

    def break_hand_overs(self) -> None:
        """No generator serves what it should."""
        self.trouble = Trouble(wrong_share=1.0)

    def tell(self, event: Event) -> None:
        self._inbox.append(event)

    def pull(self, replica: Replica) -> int:
        """As `actors.handover.registry.Receiver` does; returns the version."""
        held = self._chains.setdefault(replica, [])
        while True:
            answer = self.registry.package(held=[one.identity for one in held])
            del held[answer.num_right :]
            if answer.package is None:
                return len(held)
            held.append(_Held(answer.package.identity, answer.package.chunks[0]))

    def served(self, replica: Replica, probes: list[Any]) -> Served:
        version = self.pull(replica)
        chain = [one.weights for one in self._chains[replica]]
        is_wrong = self._random.random() < self.trouble.wrong_share
        return Served(
            version=version,
            checksum=" ".join(weights.digest for weights in chain),
            wrong_tensors=("layers.0.weight",) if is_wrong else (),
            swallowed=0.0,
            kept=1.0,
            num_stale=0,
            probe_logps=(chain[-1].logp if chain else 0.0,) * len(probes),
            cache_gaps=(0.0,) * len(probes),
            num_bytes=100,
            seconds=0.1,
        )

    def rollout(self, replica: Replica, prompt: Prompt, cycle: Cycle) -> Rollout | Rejection:
        chain = [one.weights for one in self._chains[replica]]
        assert tuple(weights.digest for weights in chain) == self.expected, f"{cycle}: {replica} serves {chain}"
        if prompt.id.startswith("unreadable"):
            return prompt.refused("cannot read the image")
        is_mute = prompt.id.startswith("mute")
        if cycle.phase.probing is not None:
            reward, num_tokens = health_of(chain, harms=self._harms)
            says = "" if is_mute else None
            return answers_as_served(prompt, reward=reward, num_tokens=num_tokens, version=len(chain), says=says)
        if is_mute:
            return prompt.refused("says nothing", fault="policy")
        is_against = self._harms[len(chain) + 1].in_examples
        return replace(_rollout_of(len(chain), is_against=is_against), prompt=prompt)


@cache
def _rollout_of(version: int, *, is_against: bool) -> Rollout:
    """A rollout as CSR makes it; those of other prompts differ from it by their prompt alone.

    Args:
        is_against: whatever ranked the answers, the scorer alone prefers the other one.
    """
    method = method_of(tiny_config())
    prompt = Prompt(id="template", image="-", text="-")
    phase = method.phases(0)[0]
    rollout = asyncio.run(
        method.rollout(
            phase,
            prompt,
            engine=TwoAnswerEngine(),
            scorer=TableScorer({"Good.": 60.0, "Bad.": 10.0}),
            policy_version=version,
            seed=1,
        )
    )
    if not is_against:
        return rollout
    of_text = {"Good.": 10.0, "Bad.": 60.0}
    candidates = tuple(
        replace(one, scores={**one.scores, "image": of_text.get(one.text)}) for one in rollout.candidates
    )
    return replace(rollout, candidates=candidates)


@dataclass
class Work:
    """What a start did of one cycle: prompts in the order in which they were drawn, and those that came to an end.

    `at_fault` are those of them that were set aside by no fault of the policy: whether pictures can be read at all is
    looked at first.
    """

    drawn: list[str] = field(default_factory=list)
    handed_on: list[str] = field(default_factory=list)
    at_fault: set[str] = field(default_factory=set)
    all_drawn: bool = False


class SimulatedSupervisor:
    """`actors.pool.supervisor.Supervisor` for `GeneratorPool`, without threads."""

    def __init__(self, pool: ServingPool, *, ahead: int) -> None:
        self._pool = pool
        self._ahead = ahead

    def map(
        self,
        items: Iterable[Prompt],
        *,
        image_of: Callable[[Prompt], str],
        submit: Callable[[Any, Prompt], Any],
        in_flight: int,
        what: str,
        control: Prompt | None = None,
        num: int | None = None,
    ) -> Iterator[tuple[Prompt, Any]]:
        prompts: dict[int, Prompt] = {}

        def drawn() -> Iterator[Item]:
            for number, prompt in enumerate(items):
                prompts[number] = prompt
                kind = next((kind for kind in _KINDS if prompt.id.startswith(kind)), "good")
                yield Item(id=number, image=image_of(prompt), kind=kind)  # type: ignore[arg-type]

        for replica, end in self._pool.work(drawn(), ahead=self._ahead, has_control=control is not None, num=num):
            prompt = prompts.pop(end.item.id)
            if isinstance(end, Deliver):
                yield prompt, submit(_Actor(self._pool, replica), prompt)
            else:
                yield prompt, SetAside(end.reason, end.fault)

    def ask(self, role: Any, submit: Callable[[Any], Any], *, limit_s: float) -> dict[Replica, Any]:
        pool = self._pool
        while not (asked := pool.decisions.serving(role)):
            pool.turn()
            pool.raise_failure()
        due_s = {replica: pool.now_s + pool.draw_s(0.5, 20) for replica in asked}
        deadline_s = pool.now_s + limit_s
        answers: dict[Replica, Any] = {}
        while due_s:
            pool.turn(until_s=min(*due_s.values(), deadline_s))
            pool.raise_failure()
            for replica in [replica for replica, at_s in due_s.items() if at_s <= pool.now_s]:
                state = pool.state_of(replica)
                if state in ("hung", "stalled") or pool.stays_silent():
                    due_s[replica] = float("inf")
                    continue
                del due_s[replica]
                answers[replica] = ConnectionError("gone") if state == "gone" else submit(_Actor(pool, replica))
            if pool.now_s >= deadline_s:
                for replica in due_s:
                    self.condemn(replica, f"did not answer within {limit_s:g} s")
                break
        return answers

    def condemn(self, replica: Replica, reason: str) -> None:
        self._pool.tell(Useless(replica, reason))

    def take_deaths(self) -> Counters:
        return Counters()


class _Counting:
    def __init__(self, pool: ServingPool) -> None:
        self._pool = pool

    def take(self) -> Counters:
        """Hardly ever, whoever is asked for what it counted fails at that."""
        if self._pool.draw_s(0, 1) < self._pool.trouble.uncounted_share:
            raise ActorFailure("no counters")
        return Counters(scorer_batches=1.0)


class _Registry(Registry):
    """The real one, and its actor answers at once."""

    def __init__(self, pool: ServingPool, adapters: Iterable[str]) -> None:
        self.actor = _Remote(pool.registry)
        self._num_packages = 0
        for version, adapter in enumerate(adapters, start=1):
            self.add(adapter, version=version)

    def _wait_for(self, call: Any, what: str) -> None:
        pass


class _Remote:
    """An actor's methods, called at once."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> _Method:
        return _Method(getattr(self._actor, name))


def generators_of(pool: ServingPool, *, adapters: list[str], config: Config, ahead: int) -> GeneratorPool:
    """A `GeneratorPool` that was never told of Ray."""
    generators: Any = object.__new__(GeneratorPool)
    generators._config = config.generators
    generators._expected = Expected(len(adapters), noise=noise_of(["float32"]))
    generators._counting = _Counting(pool)
    generators._registry = _Registry(pool, adapters)
    generators._supervisor = SimulatedSupervisor(pool, ahead=ahead)
    pool.bring_up = generators._bring_up
    return generators


class WatchedGenerators:
    """The port, with a book of which prompts went in and out.

    Args:
        committed: the prompts of a round that are committed.
        served: digests of what has to be served, by version and whether that is for its probe.
        instant: told of each of `AROUND_A_VERSION`; may raise.
    """

    def __init__(
        self,
        generators: GeneratorPool,
        *,
        pool: ServingPool,
        on_result: Callable[[], None],
        committed: Callable[[int], Collection[str]],
        served: Callable[[int, bool], tuple[str, ...]],
        instant: Callable[[str], None],
    ) -> None:
        self._generators = generators
        self._pool = pool
        self._committed = committed
        self._served = served
        self._on_result = on_result
        self._instant = instant
        self.work: dict[int, Work] = {}
        self.counters = generators.counters

    def publish(self, trained: TrainResult) -> PublishReceipt:
        self._instant(HANDS_OVER)
        receipt = self._generators.publish(trained)
        self._instant(HANDED_OVER)
        return receipt

    def withdraw(self, version: int) -> None:
        self._instant(GOES_BACK)
        self._generators.withdraw(version)
        self._instant(WENT_BACK)

    def rollout(
        self, prompts: Iterable[Prompt], *, cycle: Cycle, control: Prompt | None = None, num: int | None = None
    ) -> Iterator[Rollout | Rejection]:
        committed = set(self._committed(cycle.round_index))
        is_probing = cycle.phase.probing is not None
        self._pool.expected = self._served(cycle.policy_version, is_probing)
        if is_probing:
            yield from self._probed(list(prompts), cycle=cycle, control=control, num=num)
            return
        assert control is None or control.id.startswith("good"), f"{control.id} is no control"
        work = self.work[cycle.round_index] = Work()

        def drawn() -> Iterator[Prompt]:
            for prompt in prompts:
                assert prompt.id not in committed, f"{prompt.id} is committed, and rolled out again"
                work.drawn.append(prompt.id)
                yield prompt
            work.all_drawn = True

        for result in self._generators.rollout(drawn(), cycle=cycle, control=control, num=num):
            work.handed_on.append(_id_of(result))
            if isinstance(result, Rejection) and result.fault != "policy":
                work.at_fault.add(str(result.id))
            self._on_result()
            yield result

    def _probed(
        self, prompts: list[Prompt], *, cycle: Cycle, control: Prompt | None, num: int | None
    ) -> Iterator[Rollout | Rejection]:
        ids = [prompt.id for prompt in prompts]
        assert len(set(ids)) == len(ids), f"asked twice for one look: {ids}"
        came = []
        for result in self._generators.rollout(prompts, cycle=cycle, control=control, num=num):
            came.append(_id_of(result))
            self._on_result()
            if len(came) == len(ids) // 2:
                self._instant(ANSWERS)
            yield result
        assert sorted(came) == sorted(ids), f"asked {ids}, and answered {came}"


def _id_of(result: Rollout | Rejection) -> str:
    return result.prompt.id if isinstance(result, Rollout) else str(result.id)
