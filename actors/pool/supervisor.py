"""The shell around the pool's decisions: one thread makes the calls they ask for, and tells them what came back.

It decides nothing. A replica of the decisions (`generator 1`) is a Ray actor here, and a call is an object reference.
The thread goes on for as long as the pool lives, whether there is work or not, so that deaths are noticed and mended
while the driver trains, writes or waits; and results are fetched while the driver still works on earlier ones. Nobody
but this thread touches the decisions or calls a replica.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayTaskError, TaskCancelledError

from actors.pool.decisions import Decisions
from actors.pool.events import (
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
    Useless,
)
from actors.pool.failures import ItemLimits
from actors.pool.lives import RoleLimits
from actors.pool.replicas import Replicas
from actors.pool.scaling import Bounds
from actors.process import pulse
from actors.process.ledger import Ledger
from csr_ray.counters import Counters, Usage
from csr_ray.errors import ActorFailure, ConfigError, EngineFailure, ScorerFailure, StalePolicyError, UserError
from csr_ray.metrics import Exporter, NoExporter
from csr_ray.records import Fault, Rejection
from csr_ray.stages.parts import Parts
from csr_ray.store.pool_events import GROWS, LOST, SERVES_AGAIN, SHRINKS, write_event

_log = logging.getLogger(__name__)
_R = TypeVar("_R")

# Results that the driver may be behind; the others stay in the object store until these are handed on.
_MOST_WAITING = 256
_TURN_S = 0.2
_SETTLE_S = 0.02
# What Ray takes to look at one call, of the supervisor's time, and the share of it that looking may take.
_LOOK_S = 1e-6
_LOOK_SHARE = 0.1
_SAY_EVERY_S = 30.0
_RECORD_EVERY_S = 2.0
_LOOK_FOR_ROOM_EVERY_S = 2.0
_CLOSE_S = 5.0
# Who does not say within this time for how long it has worked says it the next time.
_USAGE_S = 1.0
_GAUGES_S = 1.0

BringUp = Callable[[Replica, Any, Sequence[Any]], Any]
"""Called with a replica, its actor and the answers so far: the reference of the next call that brings it up, or None
when it is ready to serve. An exception from it is why the replica cannot serve."""


@dataclass(frozen=True)
class SetAside:
    """In place of a result: the item has none, why not, and whose fault it is."""

    reason: str
    fault: Fault


@dataclass
class _Job:
    """Items that a caller of `map` wants results of."""

    submit: Callable[[Any, Any], Any]
    what: str
    results: queue.SimpleQueue[tuple[Any, Any] | None] = field(default_factory=queue.SimpleQueue)
    by_call: dict[int, Any] = field(default_factory=dict)  # results that are not delivered yet
    error: BaseException | None = None  # of the iterator of the items
    is_over: bool = False


@dataclass(frozen=True)
class _BringingUp:
    replica: Replica
    answers: tuple[Any, ...] = ()


@dataclass(frozen=True)
class _Asked:
    """A call that is not work: the caller of `ask` waits for its answer."""

    replica: Replica
    answers: queue.SimpleQueue[tuple[Replica, Any]]


class Supervisor:
    """Starts to bring the replicas up at once; `wait_until_ready` blocks until all of them serve.

    Args:
        replicas: owner of the actors, which are starting already.
        bring_up: see `BringUp`.
        bounds: of the roles of which there may be more or fewer.
        room: for how many more replicas of a role the cluster has room; asked every few seconds.
        what_is_pending: what the cluster says of who has no place yet, in words; empty if it says nothing.
        notice: told in words what a person should know: who died, who is replaced, what is waited for.
        ledger: keeps who has held what.
        exporter: gets the metrics of the pool (`csr_ray.metrics`).
        parts: is told what each replica does while it starts.
    """

    def __init__(
        self,
        replicas: Replicas,
        *,
        limits: Mapping[Role, RoleLimits],
        item_limits: ItemLimits,
        bring_up: BringUp,
        bounds: Mapping[Role, Bounds] | None = None,
        room: Callable[[Role], float] = lambda role: 0,
        what_is_pending: Callable[[], str] = str,
        notice: Callable[[str], None] = lambda line: None,
        ledger: Ledger | None = None,
        exporter: Exporter | None = None,
        parts: Parts | None = None,
    ) -> None:
        self._replicas = replicas
        self._parts = parts or Parts()
        self._ledger = ledger or Ledger({}, kind_of=lambda node: "")
        self._exporter: Exporter = exporter or NoExporter()
        self._bring_up = bring_up
        self._notice = notice
        self._elastic = {role: one for role, one in (bounds or {}).items() if one.is_elastic}
        self._room, self._what_is_pending = room, what_is_pending
        self._looked_for_room_s = 0.0
        self._decisions: Decisions[Any] = Decisions(
            limits=limits, item_limits=item_limits, is_resident=True, bounds=self._elastic, num=0
        )
        self._job: _Job | None = None
        self._inbox: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._running: dict[Any, Send[Any] | Cancel] = {}  # calls with items
        self._beside: dict[Any, Ping | _BringingUp | _Asked] = {}  # all other calls
        self._reference_of: dict[int, Any] = {}
        self._events: list[Event] = []
        self._lost_s: dict[tuple[Role, int], float] = {}  # slots that nobody serves in, since when
        self._mourned: set[Replica] = set()
        self._started_s = time.monotonic()
        self._said_s = self._started_s
        self._failure: BaseException | None = None
        self._is_closed = False
        self._num_deaths: Counter[Role] = Counter()
        self._num_sent, self._sent_s = 0, self._started_s
        self._first = {Replica(role, slot) for role in replicas.roles for slot in replicas.slots(role)}
        for role in replicas.roles:
            for slot in replicas.slots(role):
                self._events.append(Starting(Replica(role, slot)))
                self._watch(Replica(role, slot), replicas.actor(role, slot))
        self._thread = threading.Thread(target=self._run, name="pool-supervisor", daemon=True)
        self._thread.start()
        self._exporter.sample(lambda: self._do(self._set_gauges, patience_s=_GAUGES_S))

    # What other threads call.

    def wait_until_ready(self) -> None:
        """Block until every replica serves.

        Raises:
            ActorFailure, UserError: one cannot start; names it, and ends with its log.
        """
        while missing := self._do(self._not_serving):
            self._raise_failure()
            self._say_now_and_then(lambda: self._who_has_no_place(missing))
            time.sleep(0.05)

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
        """Yield each item with its result, or with why it is `SetAside`, in the order they finish.

        Items are drawn in the supervisor's thread. If this iterator is closed early, what is under way is cancelled.

        Args:
            what: the items, as `logs/pool.jsonl` calls them.
            control, num: see `Decisions`.

        Raises:
            ActorFailure: too few replicas are left, or nothing but errors comes back. Says who, ends with its log.
        """
        job = _Job(submit=submit, what=what)
        self._said_s = time.monotonic()
        options = {"image_of": image_of, "in_flight": in_flight, "control": control, "num": num}
        self._do(lambda: self._begin(job, items, **options))
        try:
            while (got := self._next(job)) is not None:
                yield got
            if job.error is not None:
                raise job.error
        finally:
            if not job.is_over and self._thread.is_alive():
                self._do(lambda: self._abandon(job))

    def ask(self, role: Role, submit: Callable[[Any], Any], *, limit_s: float) -> dict[Replica, Any]:
        """Call every replica of a role that serves, and return its answer or the exception it came to.

        Waits until at least one serves. Who does not answer within `limit_s` is ended and replaced.
        """
        self._said_s = time.monotonic()
        while not (found := self._ask_those_that_serve(role, submit, limit_s=limit_s)):
            self._raise_failure()
            self._say_now_and_then(lambda: f"waiting for a {role} that serves{self._pending()}")
            time.sleep(_TURN_S)
        return found

    def _ask_those_that_serve(
        self, role: Role, submit: Callable[[Any], Any], *, limit_s: float
    ) -> dict[Replica, Any]:
        answers: queue.SimpleQueue[tuple[Replica, Any]] = queue.SimpleQueue()
        left = set(self._do(lambda: self._ask(role, submit, answers)))
        found: dict[Replica, Any] = {}
        deadline_s = time.monotonic() + limit_s
        while left:
            try:
                replica, answer = answers.get(timeout=1.0)
            except queue.Empty:
                self._raise_failure()
                self._say_now_and_then(lambda: f"waiting for an answer of {', '.join(sorted(map(str, left)))}")
                if time.monotonic() > deadline_s:
                    for replica in left:
                        self.condemn(replica, f"did not answer within {limit_s:g} s")
                    deadline_s = float("inf")
                continue
            left.discard(replica)
            found[replica] = answer
        return found

    def give_way(self, submit: Callable[[Any], Any], *, limit_s: float) -> None:
        """Call every generator that serves, and let none start until `take_back`; those that start now come first."""
        self._do(lambda: self._decisions.hold_starts(True))
        while self._do(lambda: self._decisions.starting_since("generator")):
            self._raise_failure()
            self._say_now_and_then(lambda: "waiting for generators that start, before their GPUs are used by others")
            time.sleep(_TURN_S)
        self._tell_all(submit, limit_s=limit_s)

    def take_back(self, submit: Callable[[Any], Any], *, limit_s: float) -> None:
        """Call every generator that serves; whoever died meanwhile is replaced from now on."""
        self._do(lambda: self._decisions.hold_starts(False))
        self._tell_all(submit, limit_s=limit_s)

    def _tell_all(self, submit: Callable[[Any], Any], *, limit_s: float) -> None:
        for replica, answer in self._ask_those_that_serve("generator", submit, limit_s=limit_s).items():
            if isinstance(answer, RayTaskError):
                self.condemn(replica, reason_of(answer))

    def condemn(self, replica: Replica, reason: str) -> None:
        """End a replica that is of no more use; it is replaced like one that died."""
        self._do(lambda: self._events.append(Useless(replica, reason)))

    def serving(self, role: Role) -> list[Replica]:
        return list(self._do(lambda: self._decisions.serving(role)))

    def health(self) -> str:
        """Who serves and who does not, in words; empty if that cannot be said now."""
        with contextlib.suppress(Exception):
            return self._do(self._health, patience_s=1.0)
        return ""

    def _health(self) -> str:
        parts, waited_for = [], False
        for role in self._replicas.roles:
            num = len(self._decisions.serving(role))
            if role != "registry" and self._replicas.slots(role):
                parts.append(f"{num} {role}{'s' * (num != 1)}")
                waited_for = waited_for or not num
        now_s = time.monotonic()
        lost = [
            f"{_named(Replica(role, slot))} lost {now_s - since_s:.0f} s ago"
            for (role, slot), since_s in self._lost_s.items()
        ]
        starting = []
        for role in self._replicas.roles:
            unplaced = self._decisions.unplaced(role)
            for replica, since_s in self._decisions.starting_since(role).items():
                how = "without a place" if replica in unplaced else "starting"
                doing = "" if replica in unplaced else f" ({self._parts.what(_named(replica)) or 'starting'})"
                starting.append(f"{_named(replica)} {how} for {now_s - since_s:.0f} s{doing}")
        word = "not whole: " if lost else "not ready: " if waited_for else "healthy: "
        return word + ", ".join(parts) + "".join(f"; {what}" for what in (*lost, *starting))

    def _set_gauges(self) -> None:
        out, job = self._exporter, self._job
        for role in self._replicas.roles:
            unplaced = len(self._decisions.unplaced(role))
            serving, starting = len(self._decisions.serving(role)), len(self._decisions.starting_since(role))
            out.set("csr_ray_replicas", serving, role=role, state="serving")
            out.set("csr_ray_replicas", starting - unplaced, role=role, state="starting")
            out.set("csr_ray_replicas", unplaced, role=role, state="unplaced")
            out.set("csr_ray_replicas_wanted", len(self._replicas.slots(role)), role=role)
        num_sent = len(self._decisions.dispatch.calls)
        out.set("csr_ray_calls_in_flight", num_sent)
        out.set("csr_ray_dispatch_queue", self._decisions.num_held - num_sent)
        out.set("csr_ray_results_waiting", 0 if job is None or job.is_over else job.results.qsize())

    def take_deaths(self) -> Counters:
        """The deaths since the last call."""
        deaths, self._num_deaths = self._num_deaths, Counter()
        return Counters(generator_deaths=deaths["generator"], scorer_deaths=deaths["scorer"])

    def take_usage(self) -> list[Usage]:
        """What replicas have held since the last call; each is asked first how much of that it has worked."""
        asked = self._do(self._ping_all)
        until_s = time.monotonic() + _USAGE_S
        while self._do(lambda: not asked.isdisjoint(self._beside)) and time.monotonic() < until_s:
            time.sleep(_SETTLE_S)
        return list(self._do(lambda: self._ledger.take(now_s=time.monotonic())))

    def held_gpus(self) -> dict[tuple[str, str], float]:
        """See `Ledger.gpus_by_node`."""
        return self._do(self._ledger.gpus_by_node)

    def _ping_all(self) -> set[Any]:
        pings = {
            pulse.ask(self._replicas.actor(role, replica.slot)): Ping(replica)
            for role in self._replicas.roles
            for replica in self._decisions.serving(role)
        }
        self._beside.update(pings)
        return set(pings)

    def close(self) -> None:
        """Stop the thread; what is still under way is of no interest any more."""
        self._is_closed = True
        self._thread.join(timeout=_CLOSE_S)

    def _do(self, deed: Callable[[], _R], *, patience_s: float = float("inf")) -> _R:
        """Let the supervisor's thread do something between two turns, and wait for it."""
        done: Future[_R] = Future()
        self._inbox.put((deed, done))
        until_s = time.monotonic() + patience_s
        while True:
            try:
                return done.result(timeout=1.0)
            except futures.TimeoutError:
                if done.done() or time.monotonic() > until_s:
                    raise
                if not self._thread.is_alive():
                    self._raise_failure()
                    raise ActorFailure("the pool of generators is closed") from None

    def _next(self, job: _Job) -> tuple[Any, Any] | None:
        while True:
            try:
                got = job.results.get(timeout=1.0)
                if got is None:
                    self._raise_failure()
                self._said_s = time.monotonic()
                return got
            except queue.Empty:
                self._raise_failure()
                if job.error is not None:
                    raise job.error from None
                self._say_now_and_then(self._what_is_waited_for)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _say_now_and_then(self, line: Callable[[], str]) -> None:
        if time.monotonic() - self._said_s >= _SAY_EVERY_S:
            self._said_s = time.monotonic()
            if words := line():
                self._notice(words)

    def _what_is_waited_for(self) -> str:
        starting = ", ".join(self._do(self._not_serving))
        waits = f"; {starting} cannot serve yet{self._pending()}" if starting else ""
        return f"no result for {_SAY_EVERY_S:.0f} s, {len(self._running)} under way{waits}"

    def _who_has_no_place(self, missing: Sequence[str]) -> str:
        """What of a start is worth a line that stays; what each replica does meanwhile is in `parts`."""
        pending = self._pending()
        return f"waiting for {', '.join(missing)} to start{pending}" if pending else ""

    def _pending(self) -> str:
        unplaced = self._do(lambda: [one for role in self._replicas.roles for one in self._decisions.unplaced(role)])
        if not unplaced:
            return ""
        cluster = self._what_is_pending()
        return f" (without a place in the cluster: {', '.join(map(str, unplaced))}{'; ' if cluster else ''}{cluster})"

    # What the supervisor's thread does.

    def _run(self) -> None:
        try:
            while not self._is_closed:
                self._turn()
        except BaseException as error:  # whatever it is, it has to be raised where results are awaited
            if not self._is_closed:
                _log.exception("the supervisor of the pool")
                self._failure = self._failure or error
                self._wake()
        while not self._inbox.empty():
            self._inbox.get()[1].set_exception(self._failure or ActorFailure("the pool of generators is closed"))

    def _turn(self) -> None:
        while not self._inbox.empty():
            deed, done = self._inbox.get()
            try:
                done.set_result(deed())
            except BaseException as error:
                done.set_exception(error)
        # What is known already comes first: who is not known to start cannot be seen to be ready.
        came_back = [] if self._events else self._what_came_back()  # which may add to the events, too
        events, self._events = [*self._events, *self._found_room(), *came_back], []
        for action in self._decisions.step(events, now_s=time.monotonic()):
            self._carry_out(action)
        job = self._job
        if job is not None and not job.is_over and self._decisions.done and self._failure is None:
            job.is_over = True
            self._record_sent()
            job.results.put(None)
        self._record_sent()

    def _found_room(self) -> list[Event]:
        now_s = time.monotonic()
        if not self._elastic or now_s - self._looked_for_room_s < _LOOK_FOR_ROOM_EVERY_S:
            return []
        self._looked_for_room_s = now_s
        return [Room(role, self._room(role)) for role in self._elastic]

    def _begin(self, job: _Job, items: Iterable[Any], **options: Any) -> None:
        def drawn() -> Iterator[Any]:
            try:
                yield from items
            except BaseException as error:  # the caller's own iterator: it is raised where the results are awaited
                job.error = error

        self._job = job
        self._decisions.begin(drawn(), **options)

    def _abandon(self, job: _Job) -> None:
        job.is_over = True
        self._record_sent()
        for reference, action in self._running.items():
            if isinstance(action, Send):
                ray.cancel(reference)
                self._running[reference] = Cancel(action.call, action.replica)
        self._reference_of.clear()
        self._decisions.begin((), image_of=str, in_flight=1, num=0)

    def _ask(self, role: Role, submit: Callable[[Any], Any], answers: queue.SimpleQueue[Any]) -> list[Replica]:
        asked = self._decisions.serving(role)
        for replica in asked:
            self._beside[submit(self._replicas.actor(role, replica.slot))] = _Asked(replica, answers)
        return asked

    def _not_serving(self) -> list[str]:
        return [
            f"{role} {slot}"
            for role in self._replicas.roles
            for slot in sorted(set(self._replicas.slots(role)) - {one.slot for one in self._decisions.serving(role)})
        ]

    def _watch(self, replica: Replica, actor: Any) -> None:
        """The replica is starting: bring it up, and wait for its first sign of life meanwhile."""
        if replica.role == "generator":
            # Not of one that is still starting, unless all are: what is asked of it would wait.
            serving = self._decisions.serving("scorer")
            known = serving or [Replica("scorer", slot) for slot in self._replicas.slots("scorer")]
            for scorer in known:
                actor.use_scorer.remote(scorer.slot, scorer.life, self._replicas.actor("scorer", scorer.slot))
        self._parts.does(_named(replica), "waiting for its process")
        self._beside[pulse.ask(actor)] = Ping(replica)
        self._go_on(_BringingUp(replica), actor)

    def _go_on(self, bringing_up: _BringingUp, actor: Any) -> None:
        replica = bringing_up.replica
        try:
            reference = self._bring_up(replica, actor, bringing_up.answers)
        except ActorFailure as error:
            self._events.append(Useless(replica, str(error)))
            return
        if reference is not None:
            self._beside[reference] = bringing_up
            return
        self._events.append(Joined(replica))
        self._parts.is_up(_named(replica))
        lost_s = self._lost_s.pop((replica.role, replica.slot), None)
        if lost_s is not None:
            seconds = time.monotonic() - lost_s
            self._notice(f"{_named(replica)} serves again, {seconds:.0f} s after it was lost")
            self._record(SERVES_AGAIN, replica, seconds=seconds)
        if replica.role == "scorer":
            for generator in self._replicas.actors("generator"):
                generator.use_scorer.remote(replica.slot, replica.life, actor)

    def _carry_out(self, action: Any) -> None:
        match action:
            case Send(call, replica, item):
                assert self._job is not None
                reference = self._job.submit(self._replicas.actor("generator", replica.slot), item)
                self._running[reference] = action
                self._reference_of[call] = reference
                self._num_sent += 1
            case Deliver(call, item):
                self._hand_on(item, self._result(call))
            case Quarantine(call, item, reason, fault):
                self._result(call)
                self._hand_on(item, SetAside(reason, fault))
            case Cancel(call):
                reference = self._reference_of.pop(call)
                ray.cancel(reference)
                self._running[reference] = action
            case Ping(replica):
                self._beside[pulse.ask(self._replicas.actor(replica.role, replica.slot))] = action
            case Kill(replica, reason):
                self._mourn(replica, reason)
                self._replicas.kill(replica.role, replica.slot)
            case Replace(dead, new):
                if dead.role != "registry":
                    self._replicas.kill(dead.role, dead.slot)  # Ray may only have lost sight of it
                self._exporter.add("csr_ray_replacements_total", role=dead.role)
                self._watch(new, self._replicas.start(dead.role, dead.slot))
            case Grow(replica):
                self._notice(f"starting {_named(replica)}: there is work and room for it")
                self._record(GROWS, replica)
                self._watch(replica, self._replicas.start(replica.role, replica.slot))
            case Shrink(replica, reason):
                self._notice(f"{_named(replica)} is let go: {reason}")
                self._record(SHRINKS, replica, reason=reason)
                self._lost_s.pop((replica.role, replica.slot), None)  # nobody is missed there any more
                self._parts.is_gone(_named(replica))
                self._ledger.end(replica, now_s=time.monotonic())
                if replica.role == "scorer":
                    for generator in self._replicas.actors("generator"):
                        generator.drop_scorer.remote(replica.slot, replica.life)
                self._replicas.remove(replica.role, replica.slot)
            case GiveUp():
                self._fail(action)
            case Retry():
                self._exporter.add("csr_ray_retries_total")
            case _:
                raise AssertionError(action)

    def _hand_on(self, item: Any, result: Any) -> None:
        assert self._job is not None
        self._job.results.put((item, result))

    def _result(self, call: int) -> Any:
        assert self._job is not None
        self._reference_of.pop(call, None)
        return self._job.by_call.pop(call, None)

    def _fail(self, action: GiveUp) -> None:
        lines = "" if action.replica is None else self._replicas.last_lines(action.replica.role, action.replica.slot)
        if self._failure is None and action.lacks_room:
            asks_less = "ask for fewer or for less of a node, let the cluster add nodes, or raise cluster.wait_s"
            pending = self._what_is_pending() or "the cluster says nothing of it"
            self._failure = ConfigError(f"cluster.wait_s: {action.reason} ({pending}); {asks_less}")
        elif self._failure is None:  # else the pool gives up because of what was said there
            self._failure = ActorFailure(f"{action.reason}\n{lines}".rstrip())
        if action.call is not None and isinstance(cause := self._result(action.call), BaseException):
            self._failure.__cause__ = cause
        self._wake()

    def _wake(self) -> None:
        """Let whoever waits for a result look at `_failure`, behind the results that are there already."""
        if self._job is not None:
            self._job.results.put(None)

    def _mourn(self, replica: Replica, reason: str) -> None:
        """Say and write down that a replica is lost, once for each."""
        if replica in self._mourned:
            return
        self._mourned.add(replica)
        self._num_deaths[replica.role] += 1
        self._parts.is_gone(_named(replica))
        self._ledger.end(replica, now_s=time.monotonic())
        self._exporter.add("csr_ray_deaths_total", role=replica.role)
        # If a successor dies as well the slot goes on being empty since the first death.
        self._lost_s.setdefault((replica.role, replica.slot), time.monotonic())
        self._notice(f"{_named(replica)} is lost: {reason}")
        self._record(LOST, replica, reason=reason)

    def _record_sent(self) -> None:
        """Write down how many prompts were sent, which beside those that were needed shows what was done again."""
        is_over = self._job is not None and self._job.is_over
        if self._num_sent and (is_over or time.monotonic() - self._sent_s >= _RECORD_EVERY_S):
            assert self._job is not None
            self._record("sent", None, what=self._job.what, num=self._num_sent)
            self._num_sent, self._sent_s = 0, time.monotonic()

    def _record(self, event: str, replica: Replica | None, **fields: Any) -> None:
        who = {} if replica is None else {"replica": str(replica)}
        write_event(self._replicas.logs, event, **who, **fields)

    # What came back.

    def _what_came_back(self) -> list[Event]:
        """What has happened since the last turn; waits for a moment if nothing has."""
        waits_for_driver = self._job is not None and self._job.results.qsize() >= _MOST_WAITING
        references = [*self._beside, *(() if waits_for_driver else self._running)]
        if not references:
            time.sleep(_SETTLE_S)
            return []
        settle_s = settle_s_of(len(references))
        ready, _ = ray.wait(references, num_returns=len(references), timeout=settle_s, fetch_local=True)
        if not ready and self._inbox.empty():
            until_s = self._decisions.next_deadline_s() - time.monotonic()
            ready, _ = ray.wait(references, num_returns=1, timeout=min(_TURN_S, max(0.0, until_s)))
        # What is beside the work comes first: results may be many, and they can wait in the object store.
        ready = sorted(ready, key=lambda reference: reference not in self._beside)[:_MOST_WAITING]
        return [event for reference in ready if (event := self._read(reference)) is not None]

    def _read(self, reference: Any) -> Event | None:
        if reference in self._running:
            return self._read_work(reference, self._running.pop(reference))
        asked = self._beside.pop(reference)
        match asked:
            case Ping(replica):
                return self._read_pulse(reference, replica)
            case _BringingUp(replica):
                return self._read_start(reference, asked)
            case _Asked(replica, answers):
                answer = _answer(reference)
                answers.put((replica, answer))
                is_dead = isinstance(answer, BaseException) and not isinstance(answer, RayTaskError)
                return self._death(replica, answer) if is_dead else Answered(replica)

    def _read_work(self, reference: Any, sent: Send[Any] | Cancel) -> Event:
        if isinstance(sent, Cancel):
            return Answered(sent.replica)
        assert self._job is not None
        results = self._job.by_call
        answer = results[sent.call] = _answer(reference)
        if isinstance(answer, RayTaskError):
            return _failed(sent, answer)
        if isinstance(answer, BaseException):
            return self._death(sent.replica, answer)
        return Finished(sent.call, shows_health=not isinstance(answer, Rejection))

    def _read_pulse(self, reference: Any, replica: Replica) -> Event:
        answer = _answer(reference)
        if isinstance(answer, BaseException):
            return self._death(replica, answer)
        if replica not in self._mourned and self._decisions.state_of(replica) != "dead":
            self._ledger.begin(replica, role=replica.role, node=answer.node, now_s=time.monotonic())
            self._ledger.worked(replica, seconds=answer.worked_s)
            if self._decisions.state_of(replica) == "starting":
                self._parts.does(_named(replica), answer.doing or "starting")
        if answer.ends:
            return Useless(replica, answer.ends)
        return Answered(replica, answer.stalled_s, answer.longest_s, answer.what, answer.busy, answer.is_stopped)

    def _read_start(self, reference: Any, bringing_up: _BringingUp) -> Event | None:
        replica, answer = bringing_up.replica, _answer(reference)
        if self._decisions.state_of(replica) == "dead":
            return None
        if isinstance(answer, RayTaskError):
            return self._cannot_start(replica, answer)
        if isinstance(answer, BaseException):
            return self._death(replica, answer)
        actor = self._replicas.actor(replica.role, replica.slot)
        self._go_on(_BringingUp(replica, (*bringing_up.answers, answer)), actor)
        return None

    def _cannot_start(self, replica: Replica, error: RayTaskError) -> Event:
        """What one of the first says of the config, or of its node, is the run's end; what others say is not.

        A successor, or one more, may have come to a node that is not fit, and the next one to a better one.
        """
        if isinstance(error.cause, UserError):
            if replica in self._first:
                self._failure = self._failure or error.cause
        elif replica in self._first and not isinstance(error.cause, ActorFailure):
            lines = self._replicas.last_lines(replica.role, replica.slot)
            self._failure = self._failure or ActorFailure(f"{replica} cannot start: {reason_of(error)}\n{lines}")
        return Useless(replica, f"cannot start: {reason_of(error)}")

    def _death(self, replica: Replica, error: BaseException) -> Event:
        reason = why_dead(error)
        if self._decisions.state_of(replica) != "dead":
            self._mourn(replica, reason)
        return Died(replica, reason)


def settle_s_of(num_calls: int) -> float:
    """For how long results are gathered before they are read, in seconds, with so many calls under way.

    Ray looks at each of them whenever it is asked what came back, which is a core's work where there are thousands.
    """
    return max(_SETTLE_S, num_calls * _LOOK_S / _LOOK_SHARE)


def _answer(reference: Any) -> Any:
    """What a call returned, or the exception that it came to."""
    try:
        return ray.get(reference)
    except (RayTaskError, RayActorError, TaskCancelledError) as error:
        return error
    except ray.exceptions.RayError as error:  # a result that was lost with its node
        return error


def _failed(sent: Send[Any], error: RayTaskError) -> Failed:
    cause, reason = error.cause, reason_of(error)
    if isinstance(cause, ScorerFailure):
        fault: Fault = "input" if cause.is_suspect else "machine"
        return Failed(sent.call, cause.reason, Replica("scorer", cause.index, cause.life), fault)
    if isinstance(cause, EngineFailure | StalePolicyError):
        return Failed(sent.call, str(cause), sent.replica)
    # vLLM refuses what it cannot take, such as a prompt that is too long, by a ValueError.
    return Failed(sent.call, reason, fault="input" if isinstance(cause, ValueError) else "machine")


def reason_of(error: RayTaskError) -> str:
    """The error of the task itself in one line, without the traceback."""
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}"


def why_dead(error: BaseException) -> str:
    """What Ray says of an actor's death, in one line and without the ids."""
    lines = str(error).strip().splitlines()
    if "error raised in its creation task" in lines[0]:
        return f"its start failed: {lines[-1].strip()}"[:200]
    words = " ".join(" ".join(lines).split())
    _, found, why = words.partition("The actor is dead because ")
    return (why if found else words)[:200]


def _named(replica: Replica) -> str:
    """As a person knows it: the slot, whoever has it."""
    return f"{replica.role} {replica.slot}" if replica.role != "registry" else "the registry of weights"
