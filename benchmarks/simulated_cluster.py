"""A cluster of generators that is only a heap of future events, under the product's own pool and its decisions.

Time is virtual, but for what the driver does: its own CPU seconds are measured as they pass and put on the virtual
clock, so a driver that is too slow leaves its generators idle here as it would there. Real are the code of
`GeneratorPool.rollout`, `Decisions` (dispatch, images' homes, failures, lives, scaling), and whoever takes results.
Ray is not there, and its calls cost what `Costs` says.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import pickle
import random
import time
from array import array
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from latency_model import LatencyModel, Weather, times_of

from actors.pool import supervisor as real_supervisor
from actors.pool.decisions import Decisions
from actors.pool.events import (
    Answered,
    Deliver,
    Died,
    Event,
    Finished,
    GiveUp,
    Grow,
    Joined,
    Kill,
    Ping,
    Quarantine,
    Replace,
    Replica,
    Room,
    Send,
    Shrink,
    Starting,
)
from actors.pool.failures import ItemLimits
from actors.pool.generators import GeneratorPool
from actors.pool.lives import RoleLimits
from actors.pool.scaling import Bounds
from actors.pool.supervisor import SetAside, settle_s_of
from csr_ray.config.schema import Generators
from csr_ray.counters import Counters
from csr_ray.errors import ActorFailure
from csr_ray.records import Candidate, Cycle, Prompt, PublishReceipt, Rejection, Rollout, RolloutStats, TrainResult

# As the real supervisor has them; it reads at most so many results a turn, and waits for the driver beyond that.
_MOST_WAITING = real_supervisor._MOST_WAITING
_FIRST_SIGN_S = 3.0  # from the start of a process until it can answer at all
_NOTICED_S = 1.0  # how long Ray takes to say that an actor is dead


@dataclass(frozen=True, kw_only=True)
class Costs:
    """CPU seconds of the driver that Ray takes, as `sim_scale.py --ray` measures them.

    Attributes:
        call_s: for a prompt: its call, and to fetch what it came to, without unpickling that.
        wait_s: for each call in flight, whenever the supervisor asks Ray what came back.
    """

    call_s: float = 0.0
    wait_s: float = 0.0


@dataclass
class _Actor:
    """What a generator really is, whatever the decisions know of it."""

    replica: Replica
    slowness: float
    state: Literal["starting", "up", "gone"] = "starting"
    calls: dict[int, float] = field(default_factory=dict)  # number: when it was sent


@dataclass
class Account:
    """What a round cost, in virtual seconds unless it says otherwise.

    Attributes:
        busy_slot_s, slot_s: of all places of living generators while prompts were left to be drawn: those in which
            there was work, and all.
        drawn_s: when the last prompt was drawn.
        first_idle_s, last_result_s: when the first generator had nothing left, and when the last result was there.
        end_s: when the driver was done with everything.
        gate_s: how long the policies' answers to the gate took, first to last. All other seconds are as if they had
            taken no time: the looks are small batches of their own, whose length has nothing to do with the round's.
        gate_driver_s: CPU seconds of the driver in them, with Ray's, also left out elsewhere.
        driver_s: CPU seconds of the driver, by what it did, with Ray's.
        ray_s, looking_s: what of them is Ray's, by `Costs`, and of that to ask what came back.
        num: of what happened, by name.
    """

    busy_slot_s: float = 0.0
    slot_s: float = 0.0
    drawn_s: float = math.inf
    first_idle_s: float = math.inf
    last_result_s: float = 0.0
    end_s: float = 0.0
    gate_s: float = 0.0
    gate_driver_s: float = 0.0
    driver_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    ray_s: float = 0.0
    looking_s: float = 0.0
    num: Counter[str] = field(default_factory=Counter)

    @property
    def overhead_share(self) -> float:
        """By how much of itself the round is longer than if driver and routing took no time.

        That is the time that places of generators stood empty while there was work, and what the driver still had
        to do after the last result.
        """
        empty_s = self.drawn_s * (1 - self.busy_slot_s / self.slot_s)
        return (empty_s + self.end_s - self.last_result_s) / self.end_s

    @property
    def tail_share(self) -> float:
        """From the first generator that has nothing left until the last result, as a share of the round."""
        return max(0.0, self.last_result_s - self.first_idle_s) / self.end_s

    @property
    def own_s(self) -> float:
        """CPU seconds of the driver for prompts, as they were measured: without Ray's, and without watching.

        What it does while nothing comes back and nobody can be sent anything goes by the second, not by the prompt.
        """
        return sum(self.driver_s.values()) - self.ray_s - self.driver_s["watch"]

    @property
    def busy_share(self) -> float:
        """How much of the round the driver computes; at 1 it is what the round waits for."""
        return sum(self.driver_s.values()) / self.end_s


class SimulatedCluster:
    """Does for `GeneratorPool` what `actors.pool.supervisor.Supervisor` does, turn by turn and with its limits.

    Args:
        num_generators: at most; some of them only find room later.
        in_flight: prompts that each has at once.
        num_nodes: candidates of a rollout.
        kills: at which seconds who dies, by slot, beside those that die by chance.
    """

    def __init__(
        self,
        *,
        num_generators: int,
        in_flight: int,
        latency: LatencyModel,
        weather: Weather,
        costs: Costs,
        num_nodes: int,
        seed: int,
        kills: Sequence[tuple[float, int]] = (),
    ) -> None:
        self._random, self._seed = random.Random(seed), seed
        self._latency, self._weather, self._costs = latency, weather, costs
        self._in_flight = in_flight
        self._looking: tuple[float, Account] | None = None  # since when the gate looks, and the round's account
        self._mean_s = in_flight / weather.rate_per_s
        self._payload = pickle.dumps(template(num_nodes))
        self._answers = pickle.dumps(answers_to_the_gate())
        self.account = Account()
        self._now_s = 0.0
        self._future: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._beside: list[Event] = []
        self._ready: deque[tuple[int, _Actor]] = deque()  # calls that have come back and were not read yet
        self._actors: dict[Replica, _Actor] = {}
        self._in_work: dict[int, tuple[Prompt, Cycle]] = {}
        self._results: deque[tuple[Any, Any]] = deque()
        self._turned_s, self._has_begun = -math.inf, False
        self._settle_s = 0.0
        self._looked_s = 0.0  # until when `account` has counted places
        self._num_up = self._num_busy = 0
        self._since_s = 0.0  # CPU seconds of this process when the driver's own work began
        late = int(num_generators * weather.late_share)
        self._room = 0
        limits = RoleLimits(start_s=3600.0, ping_s=2.0, silent_s=30.0, hang_s=600.0, restarts=10**6)
        self.decisions: Decisions[Any] = Decisions(
            limits={"generator": limits},
            item_limits=ItemLimits(call_s=3600.0),
            is_resident=True,
            bounds={"generator": Bounds(min=num_generators - late, max=num_generators)} if late else None,
            num=0,
        )
        for slot in range(num_generators - late):
            self._start(Replica("generator", slot), start_s=0.0)
            self._beside.append(Starting(Replica("generator", slot)))
        for number in range(late):
            self._later(self._random.uniform(0.0, weather.late_s), self._found_room, number)
        for at_s, slot in kills:
            self._later(at_s, self._die, self._actors[Replica("generator", slot)])
        self._happen()
        self.decisions.step([*self._beside], now_s=0.0)
        self._beside.clear()

    @property
    def now_s(self) -> float:
        """Virtual seconds since the round began."""
        return self._now_s

    # What `GeneratorPool` calls.

    def map(
        self,
        items: Iterable[Any],
        *,
        image_of: Callable[[Any], str],
        submit: Callable[[Any, Any], Any],
        in_flight: int,
        what: str,
        control: Any = None,
        num: int | None = None,
    ) -> Generator[tuple[Any, Any], None, None]:
        """See `Supervisor.map`."""
        self.decisions.begin(items, image_of=image_of, in_flight=in_flight, control=control, num=num)
        self.driver_stops("loop")
        self._submit, self._has_begun = submit, False
        while True:
            self._happen()
            if self._is_due():
                self._turn()
            elif self._results:
                got = self._results.popleft()
                self.driver_begins()
                yield got
                self.driver_stops("loop")
            elif self.decisions.done:
                break
            else:
                self._wait()
        self.driver_begins()

    def driver_begins(self) -> None:
        """From here on this process does what the real driver does, and its time counts."""
        self._since_s = time.process_time()

    def driver_stops(self, what: str, *, more_s: float = 0.0) -> None:
        """Put what it took on the clock, and what Ray would have taken."""
        seconds = time.process_time() - self._since_s + more_s
        self.account.driver_s[what] += seconds
        if what != "watch":
            self.account.ray_s += more_s
        self._now_s += seconds

    @contextlib.contextmanager
    def look(self) -> Iterator[None]:
        """In the block the gate's prompts are answered, which has an account of its own."""
        self.driver_stops("loop")
        self._count()
        since_s, account = self._now_s, self.account
        self.account = Account(gate_s=account.gate_s)
        self.driver_begins()
        yield
        self.driver_stops("loop")
        self._count()
        account.gate_s += self._now_s - since_s
        account.gate_driver_s += sum(self.account.driver_s.values())
        account.num.update(self.account.num)
        self.account = account
        self.driver_begins()

    def end(self) -> Account:
        """The round is over."""
        self.driver_stops("loop")
        self.account.end_s = self._round_s
        return self.account

    @property
    def _round_s(self) -> float:
        """Virtual seconds since the round began, without the gate's."""
        return self._now_s - self.account.gate_s

    # The supervisor's turn.

    def _is_due(self) -> bool:
        if not self._has_begun:
            return True
        if self._now_s < self._turned_s + self._settle_s:
            return False
        may_read = len(self._results) < _MOST_WAITING and self._ready
        return bool(self._beside or may_read or self.decisions.next_deadline_s() <= self._now_s)

    def _wait(self) -> None:
        """Nothing is to be done now: go on to the next moment at which something is."""
        soon_s = self._turned_s + self._settle_s if self._ready or self._beside else math.inf
        next_s = self._future[0][0] if self._future else math.inf
        due_s = min(soon_s, next_s, max(self.decisions.next_deadline_s(), self._turned_s + self._settle_s))
        assert due_s < math.inf, "nothing is done, and nothing will ever happen"
        self._now_s = max(self._now_s, due_s)

    def _turn(self) -> None:
        self._happen()
        self._turned_s, self._has_begun = self._now_s, True
        events, self._beside = self._beside, []
        done: list[int] = []
        if len(self._results) < _MOST_WAITING:
            while self._ready and len(done) < _MOST_WAITING:
                call, actor = self._ready.popleft()
                if actor.state == "up":
                    done.append(call)
        events += [Finished(call) for call in done]
        num_asked = self._num_busy + len(done)
        self._settle_s = settle_s_of(num_asked)
        self.driver_begins()
        actions = self.decisions.step(events, now_s=self._now_s)
        looking_s = self._costs.wait_s * num_asked
        self.account.looking_s += looking_s
        self.driver_stops("decisions" if done or actions else "watch", more_s=looking_s)
        for action in actions:
            self._carry_out(action)
        if self.decisions.dispatch.is_exhausted and self.account.drawn_s == math.inf:
            self._count()
            self.account.drawn_s = self._round_s

    def _carry_out(self, action: Any) -> None:
        match action:
            case Send(call, replica, prompt):
                self.driver_begins()
                self._in_work[call] = self._submit(_Handle, prompt)
                self.driver_stops("calls", more_s=self._costs.call_s)
                self._happen()  # a turn of many sends may take long
                self._call(self._actors[replica], call)
            case Deliver(call, prompt):
                _, cycle = self._in_work.pop(call)
                self.driver_begins()
                made: Rollout = pickle.loads(self._payload if cycle.phase.probing is None else self._answers)
                result = replace(made, prompt=prompt, policy_version=cycle.policy_version)
                self.driver_stops("calls")
                self._results.append((prompt, result))
            case Quarantine(call, prompt, reason, fault):
                self._in_work.pop(call)
                self._results.append((prompt, SetAside(reason, fault)))
            case Ping(replica):
                self._later(0.05, self._answer, self._actors[replica])
            case Kill(replica):
                self._die(self._actors[replica])
            case Replace(_, replica):
                self._start(replica, start_s=self._weather.start_s)
            case Grow(replica):
                self._room -= 1
                self._beside.append(Room("generator", self._room))
                self.account.num["joins"] += 1
                self._start(replica, start_s=self._weather.start_s)
            case Shrink(replica):
                self._count()
                self._num_up -= self._actors[replica].state == "up"
                self._actors[replica].state = "gone"
            case GiveUp(reason):
                raise ActorFailure(reason)

    # What happens by itself.

    def _happen(self) -> None:
        while self._future and self._future[0][0] <= self._now_s:
            at_s, _, happens, arguments = heapq.heappop(self._future)
            self._count(at_s)
            happens(*arguments)

    def _later(self, seconds: float, happens: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._future, (self._now_s + seconds, next(self._order), happens, arguments))

    def _start(self, replica: Replica, *, start_s: float) -> None:
        actor = self._actors[replica] = _Actor(replica, self._weather.slowness(replica.slot))
        if start_s:
            self._later(min(start_s / 2, _FIRST_SIGN_S), self._answer, actor)
        self._later(start_s, self._up, actor)

    def _up(self, actor: _Actor) -> None:
        if actor.state == "gone":
            return
        actor.state = "up"
        self._num_up += 1
        self._beside.append(Joined(actor.replica))
        self._later(self._random.expovariate(1 / (3600 * self._weather.hours_between_deaths)), self._die, actor)

    def _call(self, actor: _Actor, call: int) -> None:
        if actor.state != "up":
            return  # its death is still on its way to the decisions
        self._count()
        self._num_busy += 1
        actor.calls[call] = self._now_s
        prompt, _ = self._in_work[call]
        times = times_of(prompt.id, latency=self._latency, weather=self._weather, seed=self._seed)
        self._later(self._mean_s * times * actor.slowness, self._return, actor, call)

    def _return(self, actor: _Actor, call: int) -> None:
        if actor.state != "up":
            return
        del actor.calls[call]
        self._num_busy -= 1
        self._ready.append((call, actor))
        at_s = self._looked_s - self.account.gate_s
        self.account.last_result_s = at_s
        if not actor.calls and self.decisions.dispatch.is_exhausted:
            self.account.first_idle_s = min(self.account.first_idle_s, at_s)

    def _die(self, actor: _Actor) -> None:
        if actor.state == "gone":
            return
        self.account.num["deaths"] += 1
        self._num_up -= actor.state == "up"
        self._num_busy -= len(actor.calls)
        actor.state = "gone"
        self._later(_NOTICED_S, self._tell, Died(actor.replica, "killed by signal 9"))

    def _tell(self, event: Event) -> None:
        self._beside.append(event)

    def _answer(self, actor: _Actor) -> None:
        if actor.state != "gone":
            self._beside.append(Answered(actor.replica, 0.0, self._mean_s))

    def _found_room(self, number: int) -> None:
        self._room += 1
        self._beside.append(Room("generator", self._room))

    def _count(self, at_s: float | None = None) -> None:
        """The places of living generators up to now, and those with work."""
        at_s = self._now_s if at_s is None else at_s
        seconds = max(0.0, at_s - self._looked_s)
        self._looked_s = max(self._looked_s, at_s)
        if self.account.drawn_s == math.inf:
            self.account.slot_s += seconds * self._num_up * self._in_flight
            self.account.busy_slot_s += seconds * self._num_busy


class _Rollout:
    @staticmethod
    def remote(prompt: Prompt, cycle: Cycle) -> tuple[Prompt, Cycle]:
        return prompt, cycle


class _Handle:
    """What stands for an actor of Ray: the call is there at once, and what it comes to when the heap says so."""

    rollout = _Rollout


class SimulatedGenerators(GeneratorPool):
    """The real pool, on a simulated cluster instead of a supervisor of Ray's actors."""

    def __init__(self, cluster: SimulatedCluster, *, config: Generators) -> None:
        self._config = config
        self._handed_over = 0
        self._supervisor: Any = cluster
        self._cluster = cluster
        self.results_s = array("d")

    @property
    def version(self) -> int:
        """Of the policy that was handed over last."""
        return self._handed_over

    def rollout(
        self, prompts: Iterable[Prompt], *, cycle: Cycle, control: Prompt | None = None, num: int | None = None
    ) -> Iterator[Rollout | Rejection]:
        """See `GeneratorPool`; writes down when each result is handed on, but for those of the gate."""
        if cycle.phase.probing is not None:
            with self._cluster.look():
                yield from super().rollout(prompts, cycle=cycle, control=control, num=num)
            return
        for result in super().rollout(prompts, cycle=cycle, control=control, num=num):
            self.results_s.append(self._cluster.now_s)
            yield result

    def publish(self, trained: TrainResult) -> PublishReceipt:
        """Hands nothing over."""
        self._handed_over = trained.version
        return PublishReceipt(version=trained.version, num_bytes=0, seconds=0.0, num_generators=1, max_probe_gap=0.0)

    def withdraw(self, version: int) -> None:
        """Takes nothing back; no policy is worse here."""
        raise AssertionError(f"version {version} was refused")

    def counters(self) -> Counters:
        """Of nobody."""
        return Counters(engine_steps=1)


def template(num_nodes: int) -> Rollout:
    """A rollout of so many candidates, all of them whole answers of one sentence or the sentences of a tree.

    The tree is of the default search: three kept nodes a depth, with five children each.
    """
    candidates: list[Candidate] = []
    roots: list[int | None] = [None]
    depth = 1
    while len(candidates) < num_nodes:
        row: list[int | None] = []
        for parent in roots:
            for child in range(5):
                node = len(candidates)
                if node < num_nodes:
                    candidates.append(_candidate(node, parent=parent, depth=depth, is_kept=child == 0))
                    row.append(node)
        roots, depth = row[::5][:3], depth + 1
    parents = {candidate.parent for candidate in candidates}
    whole = tuple(replace(one, final=one.node not in parents) for one in candidates)
    stats = RolloutStats(num_tokens=13 * num_nodes, num_sentences_scored=num_nodes)
    prompt = Prompt(id="-", image="-", text="-")
    return Rollout(prompt=prompt, candidates=whole, policy_version=0, seed=0, stats=stats)


def answers_to_the_gate() -> Rollout:
    """What `csr_ray.rollout.served` makes of a prompt: two whole answers of a few sentences."""
    text = " ".join(f"There is a star in red on the left side of number {number}." for number in range(4))
    answers = tuple(
        Candidate(
            node=node,
            role=role,
            text=text,
            token_ids=tuple(range(52)),
            logp=-8.0,
            scores={"self": 80.0, "image": 30.0, "cut": 0.0},
            reward=50.0,
        )
        for node, role in enumerate(("greedy", "sampled"))
    )
    prompt = Prompt(id="-", image="-", text="-")
    return Rollout(prompt=prompt, candidates=answers, policy_version=0, seed=0, stats=RolloutStats(num_tokens=2 * 52))


def _candidate(node: int, *, parent: int | None, depth: int, is_kept: bool) -> Candidate:
    text = f"There is a star in red on the left side of number {node}."
    return Candidate(
        node=node,
        parent=parent,
        depth=depth,
        text=text,
        scored_text=text,
        token_ids=(*range(20, 32), 40 + node),
        logp=-2.0,
        scores={"self": 80.0, "image": 30.0 + node},
        reward=50.0 + node,
        kept=is_kept,
    )
