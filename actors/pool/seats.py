"""What `actors.pool.dispatch` keeps of work, calls, images and replicas: records without behaviour."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Generic

from actors.pool.events import Replica, T


@dataclass(slots=True)
class Work(Generic[T]):
    """An item on its way, and what went wrong with it.

    It is counted how often its replica died, it ran out of time, or an error came that was not its own.
    `kills_scorers`: it may be what several scorers died of.
    """

    item: T
    image: str
    num_deaths: int = 0
    num_timeouts: int = 0
    num_errors: int = 0
    kills_scorers: bool = False


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A piece of work that is in flight on a replica."""

    number: int
    work: Work[T]
    replica: Replica
    alone: bool
    is_stray: bool
    sent_s: float


@dataclass(slots=True)
class Image(Generic[T]):
    """An image with work that waits or is in flight. `home` is None after its home has gone."""

    name: str
    home: Seat[T] | None
    waiting: deque[Work[T]] = field(default_factory=deque)
    num_in_flight: int = 0


@dataclass(slots=True)
class Seat(Generic[T]):
    """A replica that serves. `waiting` are its images with work that waits; `remembered` those without any work."""

    replica: Replica
    num_free: int
    paused: bool = False
    calls: dict[int, Call[T]] = field(default_factory=dict)
    images: dict[str, Image[T]] = field(default_factory=dict)
    waiting: OrderedDict[str, Image[T]] = field(default_factory=OrderedDict)
    remembered: OrderedDict[str, None] = field(default_factory=OrderedDict)
