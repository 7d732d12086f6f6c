"""All decisions about work that is spread over replicas: it takes events and the time, and returns a list of actions.

One object decides about all replicas, generators and scorers alike. It joins who gets what (`dispatch`), what becomes
of an item that went wrong (`failures`) and who is alive (`lives`), and does nothing itself: a thin shell carries the
actions out, with Ray or, in the tests, with thousands of simulated actors under a simulated clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, get_args

from actors.pool.dispatch import Dispatch
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
    Shrink,
    Starting,
    T,
    Useless,
)
from actors.pool.failures import Failures, ItemLimits, Verdict
from actors.pool.lives import Lives, RoleLimits, State
from actors.pool.scaling import Bounds, Queue, Scaling
from actors.pool.seats import Call, Work
from csr_ray.records import Fault

_SCALE_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class _Held(Generic[T]):
    """An item that is to be set aside once something else has succeeded."""

    work: Work[T]
    aside: Quarantine[T]


class Decisions(Generic[T]):
    """Every item ends exactly once, by a `Deliver` or a `Quarantine`, or the run ends by a `GiveUp` that says why.

    Items are sent to generators. Scorers are called by the generators; here they are only kept alive, and so is the
    registry. An item whose call failed because a scorer died waits until the scorer's replacement serves.

    Nothing is set aside for what a broken machine did to everything. So an item that failed by the machine's fault
    is held back until another succeeds; what was held back before the first success is then tried once more. If
    nothing else is left that could succeed, `control` is tried: an item that is known to be good. If that fails, too,
    or there is none, the run is given up. As long as nothing has succeeded, an item that kills replicas is held back
    as well if there is a control, and otherwise tried until no replica is left.

    Args:
        items: drawn as there is room for them; see `Dispatch` for what is held at a time.
        image_of: names the image of an item, by which items are kept together.
        in_flight: items that a generator works on at once.
        limits: for each role; replicas of a role that is not named here are never replaced and never late.
        item_limits: when an item is set aside.
        look_ahead, remembered: see `Dispatch`.
        control: an item that has succeeded before, in an earlier start of the run. Its result goes nowhere.
        is_resident: replicas are kept alive also while there are no items.
        bounds: how many replicas of a role there may be; of a role that is not named here there are always as many.
        num: how many items there are, at most; None: nobody knows.
    """

    def __init__(
        self,
        items: Iterable[T] = (),
        *,
        image_of: Callable[[T], str] = str,
        in_flight: int = 1,
        limits: Mapping[Role, RoleLimits] | None = None,
        item_limits: ItemLimits | None = None,
        look_ahead: int | None = None,
        remembered: int = 256,
        control: T | None = None,
        is_resident: bool = False,
        bounds: Mapping[Role, Bounds] | None = None,
        num: int | None = None,
    ) -> None:
        limits = limits or {}
        self._scaling = {role: Scaling(one) for role, one in (bounds or {}).items() if one.is_elastic}
        self._scaled_s = -math.inf
        self._room: dict[Role, float] = {}
        self._busy: dict[Replica, float] = {}
        self._started_s: dict[Replica, float] = {}  # of the elastic roles, until they serve
        self._item_limits = item_limits or ItemLimits()
        self._is_resident = is_resident
        self._lives: dict[Role, Lives] = {
            role: Lives(role, limits.get(role, RoleLimits())) for role in get_args(Role)
        }
        self._gave_up = self._holds_starts = False
        self._now_s = -math.inf
        # What this turn asks for, in the order in which it is to be done.
        self._deeds: list[Action[T]] = []
        self._ends: list[Action[T]] = []
        options = {"look_ahead": look_ahead, "remembered": remembered}
        self._begin(items, image_of=image_of, in_flight=in_flight, control=control, num=num, **options)

    def begin(
        self,
        items: Iterable[T],
        *,
        image_of: Callable[[T], str],
        in_flight: int,
        control: T | None = None,
        num: int | None = None,
    ) -> None:
        """Work on other items; those before have ended, or nobody wants their results any more.

        Calls that are still under way are forgotten, and what is told of them is ignored.
        """
        assert self._is_resident
        first_call = self.dispatch.num_calls
        self._begin(items, image_of=image_of, in_flight=in_flight, control=control, num=num, first_call=first_call)

    def _begin(
        self,
        items: Iterable[T],
        *,
        image_of: Callable[[T], str],
        in_flight: int,
        control: T | None,
        num: int | None,
        **options: Any,
    ) -> None:
        self._in_flight, self._num_items = in_flight, num
        self._num_ended, self._served_s = 0, 0.0  # of these items, and seconds that generators served for them
        self.dispatch: Dispatch[T] = Dispatch(items, image_of=image_of, in_flight=in_flight, **options)
        self._failures = Failures(self._item_limits)
        self._parked: list[tuple[Work[T], bool]] = []  # lost to a scorer's death, until its replacement serves
        self._held: list[_Held[T]] = []
        self._control = None if control is None else Work(item=control, image=image_of(control))
        self._control_is_out = False
        for replica in self._lives["generator"].serving:
            self.dispatch.join(replica)
            self.dispatch.pause(replica, paused=self.state_of(replica) == "suspect")

    @property
    def done(self) -> bool:
        """Nothing is left to do: every item has ended, or the run was given up."""
        return self._gave_up or (self.dispatch.done and not self._parked and not self._held)

    @property
    def num_held(self) -> int:
        """Items drawn that have not ended."""
        return self.dispatch.num_held + len(self._parked) + len(self._held) - self._control_is_out

    def state_of(self, replica: Replica) -> State:
        return self._lives[replica.role].state_of(replica)

    def serving(self, role: Role) -> list[Replica]:
        """Replicas of a role that serve."""
        return self._lives[role].serving

    def unplaced(self, role: Role) -> list[Replica]:
        """Replicas of a role that were told to start and have not given a sign of life yet."""
        return list(self._lives[role].unplaced_since)

    def starting_since(self, role: Role) -> dict[Replica, float]:
        """Replicas of a role that are starting, and since when."""
        return self._lives[role].starting_since

    def is_expecting(self, role: Role) -> bool:
        """Whether a replica of this role is starting, or will be after a pause."""
        return self._lives[role].is_expecting(now_s=self._now_s)

    def hold_starts(self, hold: bool) -> None:
        """While it is held, nobody is started or replaced, and nobody is missed: their GPUs are others' meanwhile."""
        self._holds_starts = hold

    def next_deadline_s(self) -> float:
        """By when `step` must be called although nothing happened; infinity if nothing is waited for with a limit."""
        call = next(iter(self.dispatch.calls.values()), None)
        call_s = math.inf if call is None else call.sent_s + self._item_limits.call_s
        scale_s = self._now_s + _SCALE_EVERY_S if self._scaling else math.inf
        return min(call_s, scale_s, *(lives.next_deadline_s() for lives in self._lives.values()))

    def step(self, events: Sequence[Event], *, now_s: float) -> list[Action[T]]:
        """Take in what has happened since the last step, and the time, which never runs backwards.

        Actions are in the order in which they have to be done: what keeps replicas busy comes before what hands
        results on, for whoever takes them may be slow. What is told of a replica or a call that has ended is ignored.
        """
        assert now_s >= self._now_s, (now_s, self._now_s)
        self._now_s = now_s
        for event in events:
            if not self._gave_up:
                self._take(event)
        if not self._gave_up:
            self._look_at_the_clock()
        self._replace_or_give_up()
        may_scale = self._scaling and not self._gave_up and not self._holds_starts
        if may_scale and now_s - self._scaled_s >= _SCALE_EVERY_S:
            self._scale()
        if not self.done:
            self._send()
        self._release_at_the_end()
        deeds, self._deeds = self._deeds, []
        ends, self._ends = self._ends, []
        return deeds + ends

    def _take(self, event: Event) -> None:
        match event:
            case Starting(replica):
                self._lives[replica.role].starting(replica, now_s=self._now_s, begins=True)
                if replica.role in self._scaling:
                    self._started_s.setdefault(replica, self._now_s)
            case Joined(replica):
                if self._lives[replica.role].joined(replica, now_s=self._now_s):
                    self._joined(replica)
            case Left(replica):
                self._left(replica)
            case Room(role, num):
                self._room[role] = num
            case Died(replica, reason):
                self._died(replica, reason)
            case Useless(replica, reason):
                if self.state_of(replica) != "dead":
                    self._kill(replica, reason)
            case Answered(replica):
                self._answered(event)
            case Finished(number, shows_health):
                if (done := self._ended(number)) is not None:
                    self._finished(done, shows_health=shows_health)
            case Failed(number, reason, None, "machine"):
                self._machines_error(number, reason)
            case Failed(number, reason, None):
                if (failed := self._ended(number)) is not None:
                    self._judge(failed, self._failures.own_error(), reason, fault=event.fault)
            case Failed(number, reason, Replica() as blamed):
                self._blame(number, reason, blamed, fault=event.fault)

    def _joined(self, replica: Replica) -> None:
        started_s = self._started_s.pop(replica, None)
        if started_s is not None:
            self._scaling[replica.role].started(seconds=self._now_s - started_s)
        if replica.role == "generator":
            self.dispatch.join(replica)

    def _left(self, replica: Replica) -> None:
        if self._lives[replica.role].left(replica):
            for call in self._lost(replica):
                self._retry(call, f"{replica} left")

    def _finished(self, call: Call[T], *, shows_health: bool) -> None:
        is_first = not self._failures.has_succeeded
        if shows_health:
            self._failures.succeeded(call.replica)
            for lives in self._lives.values():
                lives.worked()
            held, self._held = self._held, []
            for one in held:
                if is_first:
                    self._deeds.append(Retry(one.work.item, one.aside.reason))
                    self._failures.once_more(one.work)
                    self.dispatch.again(one.work, alone=one.work.num_deaths > 0 or one.work.kills_scorers)
                else:
                    self._ends.append(one.aside)
        if call.work is not self._control:
            self._ends.append(Deliver(call.number, call.work.item))
            return
        self._control_is_out = False
        if not shows_health:
            self._give_up(GiveUp("every item failed, and what has succeeded before is refused now", call=call.number))

    def _ended(self, number: int) -> Call[T] | None:
        call = self.dispatch.end(number)
        if call is not None:
            self._num_ended += 1
            self._heard(call.replica)
        return call

    def _answered(self, event: Answered) -> None:
        """The replica lives; whether its work goes on is told as well."""
        replica = event.replica
        lives = self._lives[replica.role]
        # One that starts may load for minutes, and its event loop may stand still over imports meanwhile.
        if lives.state_of(replica) in ("serving", "suspect") or event.is_stopped:
            stalls = lives.stalls(stalled_s=event.stalled_s, longest_s=event.longest_s)
            if stalls is not None:
                self._kill(replica, f"{event.what} has stood still {stalls}")
                return
        if event.busy is not None and replica.role in self._scaling:
            self._busy[replica] = event.busy
        self._heard(replica)

    def _heard(self, replica: Replica) -> None:
        was_suspect = self._lives[replica.role].heard(replica, now_s=self._now_s)
        if was_suspect and replica.role == "generator":
            self.dispatch.pause(replica, paused=False)

    def _machines_error(self, number: int, reason: str) -> None:
        if (call := self._ended(number)) is None:
            return
        verdict, is_broken = self._failures.machines_error(call.work, replica=call.replica)
        self._judge(call, verdict, reason, fault="machine")
        if is_broken and not self._gave_up:
            self._kill(call.replica, f"gave nothing but errors; the last: {reason}")

    def _blame(self, number: int, reason: str, blamed: Replica, *, fault: Fault) -> None:
        """The error says that a replica is dead. It is killed to be sure: somebody else may still reach it.

        If it was a scorer, the item only waited for it, unless it is a suspect.
        """
        call = self.dispatch.calls.get(number)
        if call is None:
            return
        if self.state_of(blamed) != "dead":
            self._kill(blamed, reason)
        if self._ended(number) is None:
            return  # it was lost with the blamed one
        if fault == "machine":
            verdict, _ = self._failures.machines_error(call.work, replica=None)
        else:
            verdict = self._failures.killed_scorers(call.work, alone=call.alone)
        self._judge(call, verdict, reason, parked=True, fault="machine")

    def _kill(self, replica: Replica, reason: str) -> None:
        self._deeds.append(Kill(replica, reason))
        self._died(replica, reason)

    def _died(self, replica: Replica, reason: str) -> None:
        if self._lives[replica.role].died(replica, reason=reason, now_s=self._now_s):
            for call in self._lost(replica):
                verdict = self._failures.died_with(call.work, alone=call.alone)
                self._judge(call, verdict, f"{replica} died: {reason}")

    def _lost(self, replica: Replica) -> list[Call[T]]:
        self._busy.pop(replica, None)
        self._started_s.pop(replica, None)
        self._failures.gone(replica)
        return self.dispatch.leave(replica)

    def _look_at_the_clock(self) -> None:
        for lives in self._lives.values():
            for replica in lives.newly_suspect(now_s=self._now_s):
                if replica.role == "generator":
                    self.dispatch.pause(replica, paused=True)
            for replica, reason in lives.overdue(now_s=self._now_s):
                self._kill(replica, reason)
            self._deeds.extend(Ping(replica) for replica in lives.to_ping(now_s=self._now_s))
        for call in self._late_calls():
            self.dispatch.end(call.number)
            self._deeds.append(Cancel(call.number, call.replica))
            verdict = self._failures.ran_out_of_time(call.work)
            times = f"{call.work.num_timeouts} of {self._item_limits.tries} times"
            self._judge(call, verdict, f"ran out of time ({self._item_limits.call_s:g} s) {times}", fault="machine")

    def _late_calls(self) -> list[Call[T]]:
        late = []
        for call in self.dispatch.calls.values():
            if call.sent_s + self._item_limits.call_s > self._now_s:
                break
            late.append(call)
        return late

    def _judge(
        self, call: Call[T], verdict: Verdict, reason: str, *, parked: bool = False, fault: Fault = "input"
    ) -> None:
        if self._gave_up:
            return  # one of several calls that ended in the same moment has decided it
        work = call.work
        is_doubtful = fault == "input" and work.num_deaths > 0 and not self._failures.has_succeeded
        if verdict == "quarantine" and work is self._control:
            reason = f"every item failed, also one that has succeeded before; the last: {reason}"
            self._give_up(GiveUp(reason, call=call.number))
        elif verdict == "quarantine":
            if work.num_deaths and fault == "input":
                reason = f"{work.num_deaths} replicas died with it in a row; the last: {reason}"
            aside = Quarantine(call.number, work.item, reason, fault)
            if fault == "machine" or is_doubtful:
                self._held.append(_Held(work, aside))
            else:
                self._ends.append(aside)
            if len(self._held) >= self._item_limits.failures_before_giving_up:
                reason = f"every item since the last success failed; the last: {reason}"
                self._give_up(GiveUp(reason, call=call.number))
        elif verdict == "give up":
            self._give_up(GiveUp(f"every item so far failed; the last: {reason}", call=call.number))
        elif parked:
            self._deeds.append(Retry(work.item, reason))
            self._parked.append((work, verdict == "retry alone"))
        else:
            self._retry(call, reason, alone=verdict == "retry alone", elsewhere=fault == "machine")

    def _retry(self, call: Call[T], reason: str, *, alone: bool = False, elsewhere: bool = False) -> None:
        self._deeds.append(Retry(call.work.item, reason))
        if elsewhere:
            self.dispatch.elsewhere(call)
        else:
            self.dispatch.again(call.work, alone=alone)

    def _replace_or_give_up(self) -> None:
        if self._gave_up or self._holds_starts or (self.done and not self._is_resident):
            return
        for lives in self._lives.values():
            self._deeds.extend(Replace(dead, new) for dead, new in lives.replacements(now_s=self._now_s))
            if (why := lives.reason_to_give_up(now_s=self._now_s)) is not None:
                self._give_up(GiveUp(why[0], replica=why[1], lacks_room=lives.lacks_room))
                return

    def _scale(self) -> None:
        """Start replicas where there is work for more, and let go of those without."""
        if self._scaled_s > -math.inf:
            self._served_s += len(self._lives["generator"].serving) * (self._now_s - self._scaled_s)
        self._scaled_s = self._now_s
        for role, scaling in self._scaling.items():
            lives = self._lives[role]
            more = self._scale_generators(scaling) if role == "generator" else self._scale_scorers(scaling)
            waiting = lives.unplaced_since
            homeless = scaling.without_room(
                waiting,
                num_alive=lives.num_expected(now_s=self._now_s),
                num_room=self._room.get(role, 0),
                now_s=self._now_s,
            )
            self._let_go(homeless, "the cluster has no room for it")
            for _ in range(more):
                replica = lives.newcomer()
                lives.starting(replica, now_s=self._now_s)
                self._started_s[replica] = self._now_s
                self._deeds.append(Grow(replica))

    def _scale_generators(self, scaling: Scaling) -> int:
        """Let go of those that are too many, and return how many are too few."""
        lives, bounds = self._lives["generator"], scaling.bounds
        queue = self._queue()
        if not queue.num_left:  # an autoscaler would go on adding nodes for those without a place
            unplaced = sorted(lives.unplaced_since, reverse=True)
            self._let_go(
                unplaced[: max(0, lives.num_expected(now_s=self._now_s) - bounds.min)], "there is no work left for it"
            )
        else:
            room = self._room_left("generator")
            if more := scaling.num_for_queue(queue, num_alive=lives.num_expected(now_s=self._now_s), num_room=room):
                return more
        idle = scaling.idle(self.dispatch.idle(), num_alive=lives.num_expected(now_s=self._now_s), now_s=self._now_s)
        self._let_go(idle, f"nothing to do for {bounds.idle_s:g} s")
        return 0

    def _scale_scorers(self, scaling: Scaling) -> int:
        """As `_scale_generators`."""
        lives, room = self._lives["scorer"], self._room_left("scorer")
        busy = {replica: self._busy[replica] for replica in lives.serving if replica in self._busy}
        if more := scaling.num_for_load(
            busy, num_alive=lives.num_expected(now_s=self._now_s), num_room=room, now_s=self._now_s
        ):
            return more
        spare = scaling.least_loaded(busy, num_alive=lives.num_expected(now_s=self._now_s), now_s=self._now_s)
        self._let_go(spare, f"the others could do its work for {scaling.bounds.idle_s:g} s")
        return 0

    def _room_left(self, role: Role) -> float:
        """Room for more replicas than those that have been started for it and have no place yet."""
        return max(0.0, self._room.get(role, 0) - len(self._lives[role].unplaced_since))

    def _let_go(self, replicas: Sequence[Replica], reason: str) -> None:
        for replica in replicas:
            self._deeds.append(Shrink(replica, reason))
            self._left(replica)

    def _queue(self) -> Queue:
        if self.dispatch.is_exhausted:
            num_left = float(self.num_held)
        elif self._num_items is not None:
            num_left = float(max(0, self._num_items - self._num_ended))
        else:
            num_left = math.inf
        rate_per_s = 0.0
        if self._num_ended >= self._in_flight and self._served_s > 0:
            rate_per_s = self._num_ended / self._served_s
        return Queue(num_left=num_left, num_each=self._in_flight, rate_per_s=rate_per_s)

    def _give_up(self, action: GiveUp) -> None:
        self._gave_up = True
        self._ends.append(action)

    def _release_at_the_end(self) -> None:
        """Items that are held back, when nothing is left that could succeed after them."""
        if self._gave_up or not self._held or self._parked or not self.dispatch.done:
            return
        if not self._failures.has_succeeded and self._control is not None:
            self._control_is_out = True
            self.dispatch.again(self._control)
            self._send()
            return
        held, self._held = self._held, []
        if self._failures.has_succeeded:
            self._ends += [one.aside for one in held]
        elif killers := [one for one in held if one.work.num_deaths]:
            # Replicas may be dying of something else; who is right shows when one of these is answered.
            self._held = [one for one in held if one is not killers[0]]
            self._deeds.append(Retry(killers[0].work.item, killers[0].aside.reason))
            self.dispatch.again(killers[0].work, alone=True)
            self._send()
        else:
            last = held[-1].aside
            self._give_up(GiveUp(f"every item failed; the last: {last.reason}", call=last.call))

    def _send(self) -> None:
        if self._parked and not self.is_expecting("scorer"):
            parked, self._parked = self._parked, []
            for work, alone in parked:
                self.dispatch.again(work, alone=alone)
        # What would be sent now might only fail and be parked as well; without a limit all items would end up here.
        if len(self._parked) > self.dispatch.num_slots:
            return
        self._deeds.extend(self.dispatch.sends(now_s=self._now_s))
