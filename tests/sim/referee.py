"""Looks at everything the pool's decisions are told and everything they answer, and holds them to their promises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

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
    Room,
    Send,
    Shrink,
    Starting,
    Useless,
)
from actors.pool.failures import ItemLimits


class Referee:
    """Keeps its own books, from nothing but events and actions. `tally` counts what was seen, by name."""

    def __init__(self, decisions: Decisions[Any], scenario: Any) -> None:
        self._decisions = decisions
        self._scenario = scenario
        self._in_flight = scenario.in_flight
        self._tries = scenario.tries
        self.tally: Counter[str] = Counter()
        self.quarantined: list[Any] = []
        self.gave_up: str | None = None
        self._items: dict[int, Any] = {}
        self._ended: dict[int, str] = {}
        self._calls: dict[int, tuple[Replica, Any, bool, bool]] = {}  # in flight, as the decisions were told
        self._on: dict[Replica, set[int]] = {}  # replicas that serve and may be sent to, and what they have
        self._where: dict[str, Counter[Replica]] = {}  # image: who has it in flight, not counting trials alone
        self._homes: dict[str, Replica] = {}
        self._finished: dict[int, Any] = {}
        self._deaths: Counter[int] = Counter()
        self._killed: set[Replica] = set()
        self._gone: set[Replica] = set()
        self._joined: set[Replica] = set()
        self._in_flight_ids: set[int] = set()
        self._late: Counter[int] = Counter()
        self._errors: Counter[int] = Counter()
        self._scorers_died: Counter[int] = Counter()
        self._last_was_alone: dict[int, bool] = {}
        self._failed: set[int] = set()
        self._ever: set[Replica] = set()
        self.now_s = 0.0
        self._failed_starts: Counter[tuple[str, int]] = Counter()  # by role and slot, in a row
        self._died_s: dict[Replica, float] = {}
        self._replaced_s: dict[tuple[str, int], list[float]] = {}
        self._max_slots = 0
        self._num_events = 0

    def drawn(self, item: Any) -> None:
        self._items[item.id] = item
        self.tally["drawn"] += 1

    def begin(self) -> None:
        """The pool begins with other items; those before have ended, or nobody wants their results any more."""
        for book in (self._items, self._ended, self._calls, self._where, self._homes, self._finished, self._deaths):
            book.clear()
        for other in (self._in_flight_ids, self._late, self._errors, self._last_was_alone, self._failed):
            other.clear()
        self._scorers_died.clear()
        for calls in self._on.values():
            calls.clear()
        self._max_slots = len(self._on) * self._in_flight

    def told(self, event: Event) -> None:
        self._num_events += 1
        match event:
            case Joined(replica):
                if replica not in self._gone:
                    self._failed_starts.pop((replica.role, replica.slot), None)
                    self._joined.add(replica)
                if replica.role == "generator" and replica not in self._ever and replica not in self._gone:
                    self._ever.add(replica)
                    self._on[replica] = set()
                    self._max_slots = max(self._max_slots, len(self._on) * self._in_flight)
            case Left(replica) | Died(replica):
                self.tally[f"{replica.role} {type(event).__name__.lower()}"] += 1
                self._lose(replica, death=isinstance(event, Died))
            case Finished(call):
                if (known := self._take(call)) is not None:
                    self._finished[call] = known[1]
                else:
                    self.tally["late messages"] += 1
            case Failed(call, _, None, "machine"):
                if (known := self._take(call)) is not None:
                    self._errors[known[1].id] += 1
            case Failed(call, _, blames):
                if blames is not None and call in self._calls:
                    item = self._calls[call][1]
                    self._lose(blames, death=True)
                    if self._take(call) is not None and event.fault == "machine":
                        self._errors[item.id] += 1
                    elif blames.role == "scorer" and event.fault == "input":
                        self._scorers_died[item.id] += 1
                elif (known := self._take(call)) is not None:
                    self._failed.add(known[1].id)
            case Starting() | Answered() | Useless() | Room():
                pass

    def judge(self, actions: Iterable[Action[Any]]) -> Iterator[Action[Any]]:
        actions = list(actions)
        for action in actions:
            self.tally[type(action).__name__] += 1
            self._judge(action)
        self._look_at_the_books()
        return iter(actions)

    def _judge(self, action: Action[Any]) -> None:
        assert self.gave_up is None, "it goes on after it gave up"
        match action:
            case Send():
                self._sent(action)
            case Cancel(call, replica):
                known = self._take(call)
                assert known is not None and known[0] == replica, "it cancels a call that is not in flight"
                self._late[known[1].id] += 1
            case Kill(replica):
                assert replica not in self._killed, f"{replica} is killed twice"
                self._killed.add(replica)
                self._lose(replica, death=True)
            case Replace(dead, new):
                assert (new.role, new.slot) == (dead.role, dead.slot) and new.life > dead.life
                assert dead not in self._on, "it replaces one that lives"
                self._replaced(dead)
            case Grow(replica):
                assert replica not in self._gone and replica not in self._ever, f"{replica} is there already"
                bound = self._most(replica.role)
                assert self._num_known(replica.role) <= bound, f"more than {bound} {replica.role}s"
            case Shrink(replica):
                assert not self._on.get(replica), f"{replica} is let go of with work"
                assert self._num_known(replica.role) >= self._least(replica.role), f"too few {replica.role}s"
                self._lose(replica, death=False)
            case Deliver(call, item):
                assert self._finished.pop(call, None) is item, "it delivers what nobody returned"
                self._end(item, "delivered")
                is_usable = item.kind in ("good", "unreadable")
                assert is_usable or (item.kind == "unscorable" and not self._scenario.num_scorers), item
            case Quarantine(_, item, reason, fault):
                assert reason
                # An error that comes in the same moment as the end of its replica may count as either.
                by_machine = self._errors[item.id] + self._late[item.id]
                convicted = by_machine + self._deaths[item.id] >= self._tries and self._last_was_alone[item.id]
                is_right = by_machine >= self._tries if fault == "machine" else item.id in self._failed or convicted
                if fault == "machine" and self._scorers_died[item.id]:
                    is_right = is_right or self._last_was_alone[item.id]
                assert item.id >= 0, "the control is set aside"
                assert is_right, (item, fault, reason)
                self.quarantined.append(item)
                self._end(item, "quarantined")
            case GiveUp(reason):
                self.gave_up = reason
                assert any(word in reason for word in ("generator", "scorer", "every item"))
            case Retry() | Ping():
                pass

    def _num_known(self, role: str) -> int:
        """Replicas that serve or start, or will after a pause, in the decisions' own books."""
        return self._decisions._lives[role].num_expected(now_s=self.now_s)  # type: ignore[index]

    def _least(self, role: str) -> int:
        scenario = self._scenario
        return int(scenario.num_generators if role == "generator" else max(1, scenario.num_scorers))

    def _most(self, role: str) -> int:
        scenario = self._scenario
        more = scenario.num_more_generators if role == "generator" else scenario.num_more_scorers
        return self._least(role) + int(more)

    def _replaced(self, dead: Replica) -> None:
        """Its successor comes after a pause, if it never served, and within the restarts of its slot."""
        slot = (dead.role, dead.slot)
        if failed := self._failed_starts[slot]:
            pause_s = 0.5 * min(60.0, 2.0 ** (failed - 1))
            assert self.now_s >= self._died_s[dead] + pause_s, f"{dead} is replaced at once, after {failed} starts"
            self.tally["replaced after a pause"] += 1
        replaced_s = self._replaced_s.setdefault(slot, [])
        replaced_s.append(self.now_s)
        in_window = [one for one in replaced_s if one > self.now_s - 600.0 + 1e-6]
        assert len(in_window) <= self._scenario.restarts, f"{dead} is replaced too often"

    def _sent(self, send: Send[Any]) -> None:
        replica, item = send.replica, send.item
        assert replica in self._on, f"{item} is sent to {replica}, which is dead or has not started"
        assert self._decisions.state_of(replica) == "serving", f"{replica} is suspect"
        assert item.id not in self._ended, f"{item} had ended"
        assert item.id not in self._in_flight_ids, f"{item} is in flight twice"
        self._in_flight_ids.add(item.id)
        assert len(self._on[replica]) < self._in_flight, f"{replica} has more in flight than it may"
        if send.alone:
            assert not self._on[replica], f"{item} is not alone on {replica}"
            self.tally["alone"] += 1
        else:
            assert not any(alone for _, _, alone, _ in map(self._calls.__getitem__, self._on[replica])), (
                "not alone any more"
            )
        if not send.is_stray:
            others = self._where.setdefault(item.image, Counter())
            assert set(others) <= {replica}, f"{item.image} is served by {replica} and {set(others)}"
            others[replica] += 1
            home = self._homes.setdefault(item.image, replica)
            if home != replica:
                self.tally["moved from the dead" if home not in self._on else "moved from the living"] += 1
                self._homes[item.image] = replica
        elif not send.alone:
            self.tally["elsewhere"] += 1
        self._last_was_alone[item.id] = send.alone
        self._calls[send.call] = (replica, item, send.alone, send.is_stray)
        self._on[replica].add(send.call)

    def _take(self, call: int) -> tuple[Replica, Any, bool, bool] | None:
        known = self._calls.pop(call, None)
        if known is not None:
            replica, item, _, is_stray = known
            self._on[replica].discard(call)
            self._in_flight_ids.discard(item.id)
            if not is_stray:
                where = self._where[item.image]
                where[replica] -= 1
                if not where[replica]:
                    del where[replica]
        return known

    def _lose(self, replica: Replica, *, death: bool) -> None:
        for call in list(self._on.get(replica, ())):
            known = self._take(call)
            if death and known is not None:
                self._strike(known[1])
        self._on.pop(replica, None)
        if replica not in self._gone:
            self._gone.add(replica)
            self._died_s[replica] = self.now_s
            if death and replica not in self._joined:  # who is let go has not failed
                self._failed_starts[replica.role, replica.slot] += 1

    def _strike(self, item: Any) -> None:
        self._deaths[item.id] += 1

    def _end(self, item: Any, how: str) -> None:
        assert item.id not in self._ended, f"{item} ends twice: {self._ended[item.id]}, {how}"
        self._ended[item.id] = how
        self._items.pop(item.id)

    def _look_at_the_books(self) -> None:
        decisions, scenario = self._decisions, self._scenario
        if self.gave_up is not None:
            return
        assert len(decisions.dispatch.calls) == len(self._calls), "it waits for calls that have ended"
        assert decisions.num_held == len(self._items), "items are lost or kept"
        # Calls that fail because a scorer is gone wait beside all others, until its replacement serves.
        slots = self._max_slots * (3 if scenario.num_scorers else 1)
        look_ahead = scenario.look_ahead or max(64, 2 * self._max_slots)
        look_ahead += ItemLimits().failures_before_giving_up  # held back until another succeeds
        assert len(self._items) <= look_ahead + slots, "more is drawn than may be held"
        names = len(self._items) + len(self._on) * (1 + scenario.remembered)
        assert decisions.dispatch.num_names <= names, "names are kept without need"

    def final(self) -> None:
        """The run is over: nothing is left, unless it said why."""
        if self.gave_up is None:
            assert not self._items, f"never ended: {list(self._items.values())[:5]}"
            assert not self._calls and self._decisions.num_held == 0

    @property
    def steps_per_event(self) -> float:
        """Steps that dispatch took for each item drawn and each event: constant, however large the pool."""
        return self._decisions.dispatch.num_steps / (self.tally["drawn"] + self._num_events + self.tally["Retry"])
