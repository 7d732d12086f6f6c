"""A cluster that exists only as a heap of future events: it runs the pool's real decisions under a simulated clock.

Everything is drawn from one seed: how long calls take, who dies, hangs, joins, leaves or does not start, which
messages come late, twice or never. The referee looks at every decision.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from referee import Referee

from actors.pool.decisions import Decisions
from actors.pool.events import (
    Action,
    Answered,
    Cancel,
    Deliver,
    Died,
    Event,
    Failed,
    Finished,
    GiveUp,
    Grow,
    Joined,
    Kill,
    Left,
    Ping,
    Quarantine,
    Replace,
    Replica,
    Retry,
    Role,
    Room,
    Send,
    Shrink,
    Starting,
)
from actors.pool.failures import ItemLimits
from actors.pool.lives import RoleLimits
from actors.pool.scaling import Bounds
from csr_ray.errors import ActorFailure

MAX_SIMULATED_S = 5e4
_ALIVE = ("up", "stalled", "broken")

Kind = Literal["good", "bad", "poison", "unscorable", "stuck", "cursed", "unreadable"]
# Tried where nothing else succeeds, to see whether it is the machine.
_CONTROL_ID = -1
# Whoever joins without being asked for has no slot that the decisions would give to another.
_FAR_SLOT = 100_000


@dataclass(frozen=True)
class Item:
    """`bad` fails by its own error, `poison` kills the replica that works on it, `stuck` never returns.

    `unscorable` kills the scorer that is asked about it, and the next one; then its generator gives it back.
    Calls of `cursed` fail by an error that is not the item's own, on every replica. `unreadable` has a result, which
    says that nothing could be made of the item, and shows nothing of the replica's health.
    """

    id: int
    image: str
    kind: Kind = "good"


End = Deliver[Item] | Quarantine[Item]
"""What becomes of an item."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What a history is like. Rates are per replica and second of simulated time, shares are of items or replicas."""

    num_generators: int
    num_scorers: int
    num_items: int
    num_images: int
    in_flight: int
    deaths_per_s: float = 0.0
    hangs_per_s: float = 0.0
    stalls_per_s: float = 0.0
    breaks_per_s: float = 0.0
    num_joiners: int = 0
    num_leavers: int = 0
    num_scorer_joiners: int = 0
    num_more_generators: int = 0
    num_more_scorers: int = 0
    idle_s: float = 20.0
    knows_num: bool = True
    most_room: int = 0
    bad_share: float = 0.0
    num_poison: int = 0
    num_unscorable: int = 0
    num_stuck: int = 0
    num_cursed: int = 0
    straggler_share: float = 0.02
    failed_start_share: float = 0.0
    stale_share: float = 0.0
    has_control: bool = False
    lost_share: float = 0.0
    unreadable_share: float = 0.0
    restarts: int = 0
    min_replicas: int = 1
    tries: int = 3
    look_ahead: int | None = None
    remembered: int = 16
    hang_s: float = 60.0
    call_s: float = 200.0
    start_s: float = 40.0

    @property
    def calm(self) -> bool:
        """Nothing goes wrong but that some calls take long."""
        troubles = (self.deaths_per_s, self.hangs_per_s, self.stalls_per_s, self.breaks_per_s, self.num_leavers)
        items = (self.bad_share, self.num_poison, self.num_unscorable, self.num_stuck, self.num_cursed)
        return not any(troubles) and not any(items) and not self.failed_start_share and not self.lost_share


@dataclass
class Actor:
    """What a replica really is, whatever the decisions know of it.

    One that is hung says nothing, one that stalls answers pings but its work stands still, and of a broken one every
    call fails, like those of a GPU after its first fault. One that is halted starts for ever, because a process below
    it is stopped, and says so when it is asked.
    """

    replica: Replica
    state: Literal["starting", "up", "hung", "stalled", "broken", "halted", "gone"] = "starting"
    calls: dict[int, Item] = field(default_factory=dict)
    stalled_s: float = 0.0  # since when, also of one that is halted


class SimulatedPool:
    """One history; `run` plays it to its end.

    Args:
        trace: gets a line for everything that happens.
        is_resident: the pool lives on between the items of one `work` and those of the next; `run` is not for it.
    """

    def __init__(
        self, scenario: Scenario, *, seed: int, trace: list[str] | None = None, is_resident: bool = False
    ) -> None:
        self.scenario = scenario
        self._random = random.Random(seed)
        self._trace = trace
        self._now_s = 0.0
        self._future: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._inbox: list[Event] = []
        self._actors: dict[Replica, Actor] = {}
        self._scorers: dict[int, Actor] = {}  # the latest life of each slot
        self._sent_to: dict[int, Replica] = {}
        self._scorers_killed_by: Counter[int] = Counter()  # calls
        self._ends: deque[tuple[Replica, End]] = deque()
        self.decisions: Decisions[Item] = Decisions(
            () if is_resident else self._draw(),
            image_of=lambda item: item.image,
            in_flight=scenario.in_flight,
            limits={"generator": self._limits(scenario.hang_s), "scorer": self._limits(scenario.hang_s / 4)},
            item_limits=ItemLimits(tries=scenario.tries, call_s=scenario.call_s),
            look_ahead=scenario.look_ahead,
            remembered=scenario.remembered,
            control=_control() if scenario.has_control else None,
            is_resident=is_resident,
            bounds=self._bounds(),
            num=scenario.num_items if scenario.knows_num and not is_resident else None,
        )
        if scenario.most_room:
            self._later(0.0, self._look_for_room)
        self.referee = Referee(self.decisions, scenario)
        for slot in range(scenario.num_generators):
            self._begin(Replica("generator", slot), start_s=0.0 if slot == 0 else self._random.uniform(0, 5))
        for slot in range(scenario.num_scorers):
            self._begin(Replica("scorer", slot), start_s=0.0)
        for slot in range(scenario.num_joiners):
            joiner = Replica("generator", _FAR_SLOT + slot)
            self._later(self._random.uniform(1, 60), self._begin, joiner, self._random.uniform(0, 10))
        for slot in range(scenario.num_scorer_joiners if scenario.num_scorers else 0):
            joiner = Replica("scorer", _FAR_SLOT + slot)
            self._later(self._random.uniform(1, 60), self._begin, joiner, self._random.uniform(0, 10), False)
        for _ in range(scenario.num_leavers):
            self._later(self._random.uniform(1, 60), self._leave)

    def run(self) -> None:
        while not self.decisions.done:
            self.turn()
        self.referee.final()

    def work(
        self, items: Iterable[Item], *, ahead: int = 0, has_control: bool = False, num: int | None = None
    ) -> Generator[tuple[Replica, End], None, None]:
        """Yield what becomes of each item, as it is decided, and the replica that had it last.

        Args:
            ahead: so many results lie ready before the first is handed on, as whoever takes them may be slow.
        """
        self.referee.begin()
        self._ends.clear()
        self.decisions.begin(
            self._drawn(items),
            image_of=lambda item: item.image,
            in_flight=self.scenario.in_flight,
            control=_control() if has_control else None,
            num=num,
        )
        try:
            while True:
                while not self.decisions.done and len(self._ends) <= ahead:
                    self.turn()
                if not self._ends:
                    break
                yield self._ends.popleft()
            self.raise_failure()
            self.referee.final()
        finally:
            self.referee.begin()
            self.decisions.begin((), image_of=str, in_flight=1)

    def raise_failure(self) -> None:
        if self.referee.gave_up is not None:
            raise ActorFailure(self.referee.gave_up)

    def turn(self, *, until_s: float = math.inf) -> None:
        """Go on to the next moment at which something happens, or to `until_s`."""
        next_s = self._future[0][0] if self._future else math.inf
        due_s = self._now_s if self._inbox else min(next_s, self.decisions.next_deadline_s(), until_s)
        assert due_s < math.inf, "nothing is done, and nothing will ever happen"
        self._now_s = max(self._now_s, due_s)
        if self._random.random() < 0.3:  # the shell was busy for a moment: several events at once
            self._now_s += self._random.uniform(0, 0.3)
        assert self._now_s < MAX_SIMULATED_S, "it does not come to an end"
        while self._future and self._future[0][0] <= self._now_s:
            _, _, happens, arguments = heapq.heappop(self._future)
            happens(*arguments)
        events, self._inbox = self._inbox, []
        self._log(events)
        self.referee.now_s = self._now_s
        for event in events:
            self.referee.told(event)
        for action in self.referee.judge(self.decisions.step(events, now_s=self._now_s)):
            self._log([action])
            self._carry_out(action)

    def _carry_out(self, action: Action[Item]) -> None:
        match action:
            case Send(call, replica, item):
                self._sent_to[call] = replica
                self._call(self._actors[replica], call, item)
            case Cancel(call, replica):
                actor = self._actors[replica]
                actor.calls.pop(call, None)
                if actor.state in _ALIVE:
                    self._later(0.1, self._tell_if_up, actor, Answered(replica))
            case Ping(replica):
                self._later(0.1, self._pulse, self._actors[replica])
            case Kill(replica, _):
                if self._actors[replica].state not in _ALIVE and self._random.random() < 0.3:
                    self._later(0.5, self._tell, Joined(replica))  # it had been ready all the same
                self._end(self._actors[replica], notice=self._random.random() < 0.5)
            case Replace(_, new):
                self._begin(new, start_s=self._random.uniform(1, 20), announced=False)
            case Grow(replica):
                self._begin(replica, start_s=self._random.uniform(1, 20), announced=False)
            case Shrink(replica):
                self._end(self._actors[replica], notice=self._random.random() < 0.5)
            case Deliver(call) | Quarantine(call):
                self._ends.append((self._sent_to[call], action))
            case Retry() | GiveUp():
                pass

    def _begin(self, replica: Replica, start_s: float, announced: bool = True) -> None:
        actor = self._actors[replica] = Actor(replica)
        if replica.role == "scorer":
            self._scorers[replica.slot] = actor
        if self._random.random() < 0.5:
            self._later(start_s / 2, self._first_sign, actor)
        if announced:
            self._inbox.append(Starting(replica))
        chance = self._random.random()
        if chance < self.scenario.failed_start_share / 4:
            actor.state, actor.stalled_s = "halted", self._now_s
            self._later(start_s / 2, self._first_sign, actor)
        elif chance < self.scenario.failed_start_share / 2:
            actor.state = "hung"
        elif chance < self.scenario.failed_start_share:
            self._later(start_s, self._end, actor)
        else:
            self._later(start_s, self._up, actor)

    def _first_sign(self, actor: Actor) -> None:
        if actor.state in ("starting", "halted", *_ALIVE):
            self._inbox.append(Answered(actor.replica))

    def _up(self, actor: Actor) -> None:
        if actor.state != "starting":
            return
        actor.state = "up"
        if not self._is_lost("that a replica is ready"):
            self._inbox.append(Joined(actor.replica))
        scenario = self.scenario
        rates = (scenario.deaths_per_s, scenario.hangs_per_s, scenario.stalls_per_s, scenario.breaks_per_s)
        for rate, happens in zip(rates, (self._end, self._hang, self._stall, self._break), strict=True):
            if rate:
                self._later(self._random.expovariate(rate), happens, actor)

    def _call(self, actor: Actor, call: int, item: Item) -> None:
        if actor.state == "gone":
            return  # its death is still on its way to the decisions
        actor.calls[call] = item
        seconds = self._random.lognormvariate(0, 0.5)
        if self._random.random() < self.scenario.straggler_share:
            seconds *= self._random.uniform(10, 40)
        if item.kind == "poison":
            self._later(seconds / 2, self._end, actor)
        elif item.kind != "stuck":
            self._later(seconds, self._return, actor, call, item)

    def _return(self, actor: Actor, call: int, item: Item) -> None:
        """The call comes to its end, if its replica still lives and its scorer answers."""
        if call not in actor.calls or actor.state in ("hung", "stalled"):
            return
        if actor.state == "gone" and self._random.random() < 0.5:
            return  # the other half had been sent before the replica died, and arrives late
        scorer = self._scorer_of(item)
        if scorer is not None and scorer.state in ("hung", "stalled", "starting") and actor.state in _ALIVE:
            self._later(1.0, self._return, actor, call, item)
            return
        if item.kind == "unscorable" and scorer is not None:
            self._ask_what_kills(scorer, actor, call, item)
            return
        del actor.calls[call]
        if self._is_lost("what a call came to"):
            return
        if item.kind == "cursed" or actor.state == "broken":
            self._inbox.append(Failed(call, "CUDA error", fault="machine"))
        elif item.kind == "bad":
            self._inbox.append(Failed(call, "cannot read the image"))
        elif scorer is not None and scorer.replica.life and self._random.random() < self.scenario.stale_share:
            dead = scorer.replica._replace(life=scorer.replica.life - 1)
            self._inbox.append(Failed(call, "the generator still knows a scorer that is gone", dead, "machine"))
        elif scorer is not None and scorer.state == "gone":
            self._inbox.append(Failed(call, "the scorer is gone", scorer.replica, "machine"))
        else:
            self._inbox.append(Finished(call, shows_health=item.kind != "unreadable"))
            if self._random.random() < 0.02:
                self._later(1.0, self._tell, Finished(call))  # the same message once more

    def _ask_what_kills(self, scorer: Actor, actor: Actor, call: int, item: Item) -> None:
        if actor.state not in _ALIVE:
            return
        if self._scorers_killed_by[call] == 2:
            del actor.calls[call]
            self._inbox.append(Failed(call, "two scorers died with it", scorer.replica, "input"))
            return
        if scorer.state != "gone":
            self._scorers_killed_by[call] += 1
            self._end(scorer)
        self._later(1.0, self._return, actor, call, item)

    def _scorer_of(self, item: Item) -> Actor | None:
        if not self.scenario.num_scorers:
            return None
        return self._scorers[item.id % self.scenario.num_scorers]

    def _end(self, actor: Actor, notice: bool = True) -> None:
        """It dies. What it had in flight may still be on its way, or come back as an error that says so."""
        if actor.state == "gone":
            return
        actor.state = "gone"
        if notice and actor.calls and self._random.random() < 0.3:
            for call in actor.calls:
                self._later(0.5, self._tell, Failed(call, "the engine is dead", actor.replica))
        elif notice:
            self._later(self._random.uniform(0, 3), self._tell, Died(actor.replica, "killed by signal 9"))

    def _hang(self, actor: Actor) -> None:
        if actor.state == "up":
            actor.state = "hung"

    def _stall(self, actor: Actor) -> None:
        if actor.state == "up":
            actor.state, actor.stalled_s = "stalled", self._now_s

    def _break(self, actor: Actor) -> None:
        if actor.state == "up" and actor.replica.role == "generator":
            actor.state = "broken"

    def _pulse(self, actor: Actor) -> None:
        stalled_s = self._now_s - actor.stalled_s if actor.state == "stalled" and actor.calls else 0.0
        if actor.state == "stalled" and actor.replica.role == "scorer":
            stalled_s = self._now_s - actor.stalled_s
        if actor.state == "halted":
            self._inbox.append(Answered(actor.replica, self._now_s - actor.stalled_s, 0.0, is_stopped=True))
        elif not self._is_lost("the answer to a ping"):
            busy = self._random.choice((0.0, 0.3, 1.0)) if actor.replica.role == "scorer" else None
            self._tell_if_up(actor, Answered(actor.replica, stalled_s, 0.1, busy=busy))

    def _is_lost(self, what: str) -> bool:
        """Whether a message never arrives, although who sent it lives."""
        if self.scenario.lost_share and self._random.random() < self.scenario.lost_share:
            self.referee.tally[f"lost: {what}"] += 1
            return True
        return False

    def _leave(self) -> None:
        """A generator is taken out on purpose, never the last one."""
        up = [a for a in self._actors.values() if a.state in _ALIVE and a.replica.role == "generator"]
        if len(up) > max(1, self.scenario.min_replicas):
            actor = self._random.choice(up)
            actor.state = "gone"
            self._inbox.append(Left(actor.replica))

    def _bounds(self) -> dict[Role, Bounds]:
        scenario = self.scenario
        least: dict[Role, int] = {"generator": scenario.num_generators, "scorer": max(1, scenario.num_scorers)}
        more = {"generator": scenario.num_more_generators, "scorer": scenario.num_more_scorers}
        return {role: Bounds(min=num, max=num + more[role], idle_s=scenario.idle_s) for role, num in least.items()}

    def _look_for_room(self) -> None:
        roles: tuple[Role, ...] = ("generator", "scorer") if self.scenario.num_scorers else ("generator",)
        for role in roles:
            self._inbox.append(Room(role, self._random.randrange(self.scenario.most_room + 1)))
        self._later(self._random.uniform(1, 10), self._look_for_room)

    def _tell(self, event: Event) -> None:
        self._inbox.append(event)

    def _tell_if_up(self, actor: Actor, event: Event) -> None:
        if actor.state in _ALIVE:
            self._inbox.append(event)

    def _later(self, seconds: float, happens: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._future, (self._now_s + seconds, next(self._order), happens, arguments))

    def _limits(self, hang_s: float) -> RoleLimits:
        scenario = self.scenario
        return RoleLimits(
            place_s=scenario.start_s,
            start_s=scenario.start_s,
            ping_s=hang_s / 8,
            silent_s=hang_s / 4,
            hang_s=hang_s,
            restarts=scenario.restarts,
            restart_window_s=600.0,
            min_replicas=scenario.min_replicas,
        )

    def _drawn(self, items: Iterable[Item]) -> Iterator[Item]:
        for item in items:
            self.referee.drawn(item)
            yield item

    def _draw(self) -> Iterator[Item]:
        scenario = self.scenario
        odd = ["poison"] * scenario.num_poison + ["unscorable"] * scenario.num_unscorable
        odd += ["stuck"] * scenario.num_stuck + ["cursed"] * scenario.num_cursed
        odd = odd[: scenario.num_items]
        kinds: dict[int, Any] = dict(zip(self._random.sample(range(scenario.num_items), len(odd)), odd, strict=True))
        for number in range(scenario.num_items):
            kind = kinds.get(number, "good")
            if kind == "good" and self._random.random() < scenario.bad_share:
                kind = "bad"
            elif kind == "good" and self._random.random() < scenario.unreadable_share:
                kind = "unreadable"
            # Prompts about one image stand close to each other, as in most data.
            image = number * scenario.num_images // scenario.num_items + self._random.choice((0, 0, 0, 1, 2))
            item = Item(id=number, image=f"image {image}", kind=kind)
            self.referee.drawn(item)
            yield item

    def _log(self, happened: list[Any]) -> None:
        if self._trace is not None:
            self._trace.extend(f"{self._now_s:10.3f} {what}" for what in happened)


def _control() -> Item:
    return Item(id=_CONTROL_ID, image="control")
