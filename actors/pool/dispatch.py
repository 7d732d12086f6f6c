"""Which replica gets which item: whoever is free takes the next, but an image stays with one replica, its home.

So an image is decoded, encoded and cached once, however many prompts ask about it. A pure state machine: it is told
who joins and leaves and which calls ended, and says what to send. It knows no actors, no clock of its own, and not
why a call ended.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, Generic, TypeVar

from actors.pool.events import Replica, Send, T
from actors.pool.seats import Call, Image, Seat, Work

_V = TypeVar("_V")

_LOOK_AHEAD = 64


class Dispatch(Generic[T]):
    """Items in order, drawn one by one as replicas have room for them.

    While any work of an image is in flight, all its work goes to its home. An image whose work only waits may be
    taken over by a replica that has nothing else to do; one whose home has gone finds a new home. An item that is
    tried alone runs wherever a replica is empty, whatever its image, and one that failed by the machine's fault is
    tried by another replica than the one where it failed, if there is another.

    What is held is bounded, however many items there are: at most `in_flight` items a replica are in flight,
    at most `look_ahead` more are drawn and wait for their homes (items that come back from a dead replica were in
    flight before, so both together stay below the sum), and of images without work the last `remembered` of each
    replica are remembered by name. The price is that no item is drawn while `look_ahead` items wait that all belong
    to busy homes.

    Every operation takes constant time on average, whatever the number of replicas; `num_steps` counts elementary
    steps, for the test of that.

    Args:
        items: in the order in which they are drawn.
        image_of: names the image of an item.
        in_flight: items that a replica works on at once.
        look_ahead: items that may be drawn and wait; None: twice what all replicas have in flight, and at least 64.
        remembered: how many images without work each replica is remembered for, as it may still have them cached.
        first_call: the number of the first call; calls of earlier work have lower ones.
    """

    def __init__(
        self,
        items: Iterable[T],
        *,
        image_of: Callable[[T], str],
        in_flight: int,
        look_ahead: int | None = None,
        remembered: int = 256,
        first_call: int = 0,
    ) -> None:
        if in_flight < 1 or (look_ahead is not None and look_ahead < 1) or remembered < 0:
            raise ValueError(f"in_flight {in_flight}, look_ahead {look_ahead}, remembered {remembered}: too small")
        self._items = iter(items)
        self._image_of = image_of
        self._in_flight = in_flight
        self._look_ahead = look_ahead
        self._num_remembered = remembered
        self._exhausted = False
        self.num_calls = first_call
        self._num_waiting = 0
        self.num_steps = 0
        self.calls: OrderedDict[int, Call[T]] = OrderedDict()  # in the order in which they were sent
        self._seats: dict[Replica, Seat[T]] = {}
        self._images: dict[str, Image[T]] = {}
        self._home_of: dict[str, Seat[T]] = {}  # of images that are remembered
        self._homeless: OrderedDict[str, Image[T]] = OrderedDict()
        self._stealable: OrderedDict[str, Image[T]] = OrderedDict()
        # Replicas with room, first come first served: with work of their own images waiting, and without.
        self._own: OrderedDict[Replica, Seat[T]] = OrderedDict()
        self._idle: OrderedDict[Replica, Seat[T]] = OrderedDict()
        self._alone: deque[Work[T]] = deque()
        self._strays: deque[tuple[Work[T], Replica]] = deque()  # and where each has failed
        self._cell: Seat[T] | None = None  # is emptied, then tries the items of `_alone` one by one

    @property
    def done(self) -> bool:
        """Every item was drawn, and none waits or is in flight."""
        return self._exhausted and not self.calls and self._num_waiting == 0

    @property
    def is_exhausted(self) -> bool:
        """Every item was drawn."""
        return self._exhausted

    def idle(self) -> list[Replica]:
        """Replicas that have nothing in flight, and nothing that waits for them."""
        return [replica for replica, seat in self._seats.items() if not seat.calls and not seat.waiting]

    @property
    def num_held(self) -> int:
        """Items drawn that have not ended."""
        return len(self.calls) + self._num_waiting

    @property
    def num_slots(self) -> int:
        """Items that may be in flight at once."""
        return self._in_flight * len(self._seats)

    @property
    def num_names(self) -> int:
        """Images and replicas that are known by name."""
        return len(self._images) + len(self._home_of) + len(self._seats)

    def join(self, replica: Replica) -> None:
        assert replica not in self._seats, replica
        seat = self._seats[replica] = Seat(replica=replica, num_free=self._in_flight)
        self._file(seat)

    def pause(self, replica: Replica, *, paused: bool) -> None:
        """A paused replica gets nothing new; what it has in flight stays there."""
        seat = self._seats[replica]
        seat.paused = paused
        self._file(seat)

    def leave(self, replica: Replica) -> list[Call[T]]:
        """The replica has gone: its images lose their home. Returns the calls that were lost with it."""
        seat = self._seats.pop(replica, None)
        if seat is None:
            return []
        self._own.pop(replica, None)
        self._idle.pop(replica, None)
        if self._cell is seat:
            self._cell = None
        for number in seat.calls:
            del self.calls[number]
        for name in seat.remembered:
            del self._home_of[name]
        for image in seat.images.values():
            self.num_steps += 1
            image.home, image.num_in_flight = None, 0
            self._stealable.pop(image.name, None)
            if image.waiting:
                self._homeless[image.name] = image
            else:
                del self._images[image.name]
        return list(seat.calls.values())

    def end(self, number: int) -> Call[T] | None:
        """The call is over and its place is free. None if it is not known (any more): it was lost or ended before."""
        call = self.calls.pop(number, None)
        if call is None:
            return None
        self.num_steps += 1
        seat = self._seats[call.replica]
        del seat.calls[number]
        seat.num_free += 1
        if not call.is_stray:
            image = seat.images[call.work.image]
            image.num_in_flight -= 1
            if image.num_in_flight == 0:
                if image.waiting:
                    self._stealable[image.name] = image
                else:
                    self._remember(image, seat)
        self._file(seat)
        return call

    def again(self, work: Work[T], *, alone: bool = False) -> None:
        """Queue lost work before all that waits for its image. `alone`: with nothing else on the replica."""
        self._num_waiting += 1
        if alone:
            self._alone.append(work)
        else:
            self._queue(self._image(work.image), work, first=True)

    def elsewhere(self, failed: Call[T]) -> None:
        """Queue work that failed before all other, for another replica than the one where it failed."""
        self._num_waiting += 1
        self._strays.append((failed.work, failed.replica))

    def sends(self, *, now_s: float) -> list[Send[T]]:
        """What to send now. Afterwards no replica has room for anything that may be sent to it."""
        sends = self._try_alone(now_s)
        while self._strays and (free := self._free_beside(self._strays[0][1])) is not None:
            work, _ = self._strays.popleft()
            sends.append(self._send(work, free, alone=False, is_stray=True, now_s=now_s))
        while True:
            self.num_steps += 1
            if self._own:
                seat = _first(self._own)
                image = _first(seat.waiting)
                sends.append(self._send_first(image, seat, now_s))
            elif self._idle and self._homeless:
                seat = _first(self._idle)
                image = _first(self._homeless)
                sends.append(self._send_first(image, seat, now_s))
            elif self._idle and self._may_draw():
                if (send := self._draw(_first(self._idle), now_s)) is not None:
                    sends.append(send)
            elif self._idle and self._stealable:
                seat = _first(self._idle)
                image = _first(self._stealable)
                sends.append(self._send_first(image, seat, now_s))
            else:
                return sends

    def _free_beside(self, replica: Replica) -> Seat[T] | None:
        """A replica with room, other than this one unless there is no other."""
        for seat in chain(self._idle.values(), self._own.values()):
            self.num_steps += 1
            if seat.replica != replica or len(self._seats) == 1:
                return seat
        return None

    def _may_draw(self) -> bool:
        most = self._look_ahead or max(_LOOK_AHEAD, 2 * self.num_slots)
        return not self._exhausted and self._num_waiting < most

    def _draw(self, seat: Seat[T], now_s: float) -> Send[T] | None:
        """One more item: sent to its image's home, else to `seat`; None if it has to wait or there is none."""
        try:
            item = next(self._items)
        except StopIteration:
            self._exhausted = True
            return None
        work = Work(item=item, image=self._image_of(item))
        image = self._image(work.image)
        if image.home is None:
            self._settle(image, seat)
        home = image.home
        assert home is not None
        self._num_waiting += 1
        self._queue(image, work, first=False)
        if home.num_free and not home.paused and home is not self._cell:
            return self._send_first(image, home, now_s)
        return None

    def _image(self, name: str) -> Image[T]:
        """The image as it is known, or come back to where it is remembered, or new and without a home."""
        image = self._images.get(name)
        if image is None:
            image = self._images[name] = Image(name=name, home=None)
            home = self._home_of.pop(name, None)
            if home is not None:
                del home.remembered[name]
                self._settle(image, home)
        return image

    def _settle(self, image: Image[T], seat: Seat[T]) -> None:
        """The image has a new home."""
        if image.home is not None:
            del image.home.images[image.name]
            image.home.waiting.pop(image.name, None)
            self._file(image.home)
        image.home = seat
        seat.images[image.name] = image
        self._homeless.pop(image.name, None)

    def _queue(self, image: Image[T], work: Work[T], *, first: bool) -> None:
        (image.waiting.appendleft if first else image.waiting.append)(work)
        if image.home is None:
            self._homeless[image.name] = image
            return
        image.home.waiting[image.name] = image
        if image.num_in_flight == 0:
            self._stealable[image.name] = image
        self._file(image.home)

    def _send_first(self, image: Image[T], seat: Seat[T], now_s: float) -> Send[T]:
        """The first work that waits for the image, to this replica, which is or becomes its home."""
        if image.home is not seat:
            assert image.num_in_flight == 0, "an image in progress does not move"
            self._settle(image, seat)
        work = image.waiting.popleft()
        self._stealable.pop(image.name, None)
        seat.waiting.pop(image.name, None)
        if image.waiting:
            seat.waiting[image.name] = image  # behind the others: images take turns
        image.num_in_flight += 1
        return self._send(work, seat, alone=False, is_stray=False, now_s=now_s)

    def _send(self, work: Work[T], seat: Seat[T], *, alone: bool, is_stray: bool, now_s: float) -> Send[T]:
        self._num_waiting -= 1
        number = self.num_calls
        self.num_calls += 1
        call = Call(number=number, work=work, replica=seat.replica, alone=alone, is_stray=is_stray, sent_s=now_s)
        self.calls[number] = seat.calls[number] = call
        seat.num_free -= 1
        self._file(seat)
        return Send(call=number, replica=seat.replica, item=work.item, alone=alone, is_stray=is_stray)

    def _try_alone(self, now_s: float) -> list[Send[T]]:
        """Items to be tried alone get one replica, the emptiest; it takes nothing new until it has tried them all."""
        if self._alone and self._cell is None and self._seats:
            self._cell = max(self._seats.values(), key=lambda seat: (not seat.paused, seat.num_free))
            self._file(self._cell)
        cell = self._cell
        if cell is None or cell.calls or cell.paused:
            return []
        if self._alone:
            return [self._send(self._alone.popleft(), cell, alone=True, is_stray=True, now_s=now_s)]
        self._cell = None
        self._file(cell)
        return []

    def _remember(self, image: Image[T], seat: Seat[T]) -> None:
        """No work is left of the image: only where it lives is kept, and of that the latest."""
        del self._images[image.name], seat.images[image.name]
        seat.remembered[image.name] = None
        self._home_of[image.name] = seat
        if len(seat.remembered) > self._num_remembered:
            oldest, _ = seat.remembered.popitem(last=False)
            del self._home_of[oldest]

    def _file(self, seat: Seat[T]) -> None:
        """Queue the replica among those with room, last; whoever has just been served lets the others go first."""
        self._own.pop(seat.replica, None)
        self._idle.pop(seat.replica, None)
        if seat.num_free and not seat.paused and seat is not self._cell:
            (self._own if seat.waiting else self._idle)[seat.replica] = seat


def _first(ordered: OrderedDict[Any, _V]) -> _V:
    """Not a plain dict: that steps over all that was deleted before its first entry, again and again."""
    return next(iter(ordered.values()))
