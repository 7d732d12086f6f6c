"""All decisions about work that is spread over replicas: it takes events and the time, and returns a list of actions.

One object decides about all replicas, generators and scorers alike. It joins who gets what (`dispatch`), what becomes
of an item that went wrong (`failures`) and who is alive (`lives`), and does nothing itself: a thin shell carries the
actions out, with Ray or, in the tests, with thousands of simulated actors under a simulated clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Generic

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
    Joined,
    Kill,
    Left,
    Ping,
    Quarantine,
    Replace,
    Replica,
    Retry,
    Role,
    Starting,
    T,
)
from actors.pool.failures import Failures, ItemLimits, Verdict
from actors.pool.lives import Lives, RoleLimits, State
from actors.pool.seats import Call, Work


class Decisions(Generic[T]):
    """Every item ends exactly once, by a `Deliver` or a `Quarantine`, or the run ends by a `GiveUp` that says why.

    Items are sent to generators. Scorers are called by the generators; here they are only kept alive. An item whose
    call failed because a scorer died waits until the scorer's replacement serves.

    Args:
        items: drawn as there is room for them; see `Dispatch` for what is held at a time.
        image_of: names the image of an item, by which items are kept together.
        in_flight: items that a generator works on at once.
        limits: for each role; replicas of a role that is not named here are never replaced and never late.
        item_limits: when an item is set aside.
        look_ahead, remembered: see `Dispatch`.
    """

    def __init__(
        self,
        items: Iterable[T],
        *,
        image_of: Callable[[T], str],
        in_flight: int,
        limits: Mapping[Role, RoleLimits] | None = None,
        item_limits: ItemLimits | None = None,
        look_ahead: int | None = None,
        remembered: int = 256,
    ) -> None:
        limits = limits or {}
        self._item_limits = item_limits or ItemLimits()
        self.dispatch: Dispatch[T] = Dispatch(
            items, image_of=image_of, in_flight=in_flight, look_ahead=look_ahead, remembered=remembered
        )
        self._failures = Failures(self._item_limits)
        roles: tuple[Role, ...] = ("generator", "scorer")
        self._lives = {role: Lives(role, limits.get(role, RoleLimits())) for role in roles}
        self._parked: list[tuple[Work[T], bool]] = []  # lost to a scorer's death, until its replacement serves
        self._gave_up = False
        self._now_s = -math.inf
        # What this turn asks for, in the order in which it is to be done.
        self._deeds: list[Action[T]] = []
        self._ends: list[Action[T]] = []

    @property
    def done(self) -> bool:
        """Nothing is left to do: every item has ended, or the run was given up."""
        return self._gave_up or (self.dispatch.done and not self._parked)

    @property
    def num_held(self) -> int:
        """Items drawn that have not ended."""
        return self.dispatch.num_held + len(self._parked)

    def state_of(self, replica: Replica) -> State:
        return self._lives[replica.role].state_of(replica)

    def next_deadline_s(self) -> float:
        """By when `step` must be called although nothing happened; infinity if nothing is waited for with a limit."""
        call = next(iter(self.dispatch.calls.values()), None)
        call_s = math.inf if call is None else call.sent_s + self._item_limits.call_s
        return min(call_s, *(lives.next_deadline_s() for lives in self._lives.values()))

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
        if not self.done:
            self._send()
        deeds, self._deeds = self._deeds, []
        ends, self._ends = self._ends, []
        return deeds + ends

    def _take(self, event: Event) -> None:
        match event:
            case Starting(replica):
                self._lives[replica.role].starting(replica, now_s=self._now_s)
            case Joined(replica):
                if self._lives[replica.role].joined(replica, now_s=self._now_s) and replica.role == "generator":
                    self.dispatch.join(replica)
            case Left(replica):
                if self._lives[replica.role].left(replica):
                    for call in self.dispatch.leave(replica):
                        self._retry(call, f"{replica} left")
            case Died(replica, reason):
                self._died(replica, reason)
            case Answered(replica):
                self._heard(replica)
            case Finished(number, shows_health):
                if (done := self._ended(number)) is not None:
                    if shows_health:
                        self._failures.succeeded()
                        for lives in self._lives.values():
                            lives.worked()
                    self._ends.append(Deliver(number, done.work.item))
            case Failed(number, reason, None):
                if (failed := self._ended(number)) is not None:
                    self._judge(failed, self._failures.own_error(), reason)
            case Failed(number, reason, Replica() as blamed):
                self._blame(number, reason, blamed)

    def _ended(self, number: int) -> Call[T] | None:
        call = self.dispatch.end(number)
        if call is not None:
            self._heard(call.replica)
        return call

    def _heard(self, replica: Replica) -> None:
        has_work = self.dispatch.is_busy(replica)
        was_suspect = self._lives[replica.role].heard(replica, has_work=has_work, now_s=self._now_s)
        if was_suspect and replica.role == "generator":
            self.dispatch.pause(replica, paused=False)

    def _blame(self, number: int, reason: str, blamed: Replica) -> None:
        """The error says that a replica is dead. It is killed to be sure: somebody else may still reach it."""
        call = self.dispatch.calls.get(number)
        if call is None:
            return
        if self.state_of(blamed) != "dead":
            self._kill(blamed, reason)
        if self._ended(number) is not None:  # not lost with the blamed one, so a scorer's death
            self._judge(call, self._failures.died_with(call.work, alone=call.alone), reason, parked=True)

    def _kill(self, replica: Replica, reason: str) -> None:
        self._deeds.append(Kill(replica, reason))
        self._died(replica, reason)

    def _died(self, replica: Replica, reason: str) -> None:
        if self._lives[replica.role].died(replica, reason=reason):
            for call in self.dispatch.leave(replica):
                verdict = self._failures.died_with(call.work, alone=call.alone)
                self._judge(call, verdict, f"{replica} died: {reason}")

    def _look_at_the_clock(self) -> None:
        for lives in self._lives.values():
            for replica in lives.newly_suspect(now_s=self._now_s):
                if replica.role == "generator":
                    self.dispatch.pause(replica, paused=True)
            for replica, reason in lives.overdue(now_s=self._now_s):
                self._kill(replica, reason)
            self._deeds.extend(Ping(replica) for replica in lives.to_ping(now_s=self._now_s))
        for call in self._late_calls():
            self.dispatch.end(call.number)  # not heard: it is the replica's silence that made this call late
            self._deeds.append(Cancel(call.number, call.replica))
            verdict = self._failures.ran_out_of_time(call.work)
            times = f"{call.work.num_timeouts} of {self._item_limits.tries} times"
            self._judge(call, verdict, f"ran out of time ({self._item_limits.call_s:g} s) {times}")

    def _late_calls(self) -> list[Call[T]]:
        late = []
        for call in self.dispatch.calls.values():
            if call.sent_s + self._item_limits.call_s > self._now_s:
                break
            late.append(call)
        return late

    def _judge(self, call: Call[T], verdict: Verdict, reason: str, *, parked: bool = False) -> None:
        work = call.work
        if verdict == "quarantine":
            if work.num_deaths:
                reason = f"{work.num_deaths} replicas died with it in a row; the last: {reason}"
            self._ends.append(Quarantine(call.number, work.item, reason))
        elif verdict == "give up":
            self._give_up(GiveUp(f"every item so far failed; the last: {reason}", call=call.number))
        elif parked:
            self._deeds.append(Retry(work.item, reason))
            self._parked.append((work, verdict == "retry alone"))
        else:
            self._retry(call, reason, alone=verdict == "retry alone")

    def _retry(self, call: Call[T], reason: str, *, alone: bool = False) -> None:
        self._deeds.append(Retry(call.work.item, reason))
        self.dispatch.again(call.work, alone=alone)

    def _replace_or_give_up(self) -> None:
        if self.done:
            return
        for lives in self._lives.values():
            self._deeds.extend(Replace(dead, new) for dead, new in lives.replacements(now_s=self._now_s))
            if (why := lives.reason_to_give_up()) is not None:
                self._give_up(GiveUp(why[0], replica=why[1]))
                return

    def _give_up(self, action: GiveUp) -> None:
        self._gave_up = True
        self._ends.append(action)

    def _send(self) -> None:
        if self._parked and not self._lives["scorer"].has_vacancy:
            parked, self._parked = self._parked, []
            for work, alone in parked:
                self.dispatch.again(work, alone=alone)
        # What would be sent now might only fail and be parked as well; without a limit all items would end up here.
        if len(self._parked) > self.dispatch.num_slots:
            return
        for send in self.dispatch.sends(now_s=self._now_s):
            self._lives[send.replica.role].has_work(send.replica, now_s=self._now_s)
            self._deeds.append(send)
