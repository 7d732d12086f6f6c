"""What the driver, the mailbox and the train workers say to each other. Knows nothing of Ray, torch or trainers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from csr_ray.errors import UserError
from csr_ray.records import TrainOrder, TrainResult


@dataclass(frozen=True, kw_only=True)
class NumberedOrder:
    """A cycle's training as the mailbox holds it, so that a group that starts again can take it up.

    Attributes:
        number: counts the orders of this group, from 0.
        adapters: what makes the policy to start from, on top of the base model; oldest first.
    """

    number: int
    order: TrainOrder
    adapters: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Spawned:
    """The processes of the group are there; the first beat of each follows within seconds."""

    pids: dict[int, int]  # by rank


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A worker has begun to beat.

    Attributes:
        node: Ray's id of its node.
        placement_group: the group's place in Ray; removing it ends all workers, also those that do not answer.
    """

    rank: int
    host: str
    node: str
    pid: int
    placement_group: Any


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A worker can take its first order; `seconds` is what its imports, model load and rehearsal took."""

    rank: int
    host: str
    pid: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Step:
    """An optimizer step of order `number` is done.

    Attributes:
        metrics: TRL's of that step, by its names.
        begin_s, end_s: on the wall clock of the worker's node; from the end of the step before, or of the training.
    """

    number: int
    step: int
    num_steps: int
    loss: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    begin_s: float = 0.0
    end_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Done:
    """The answer to order `number`."""

    number: int
    result: TrainResult


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A worker ends with an error.

    Attributes:
        user_error: the error, where the user can mend it.
        may_pass: whether the cause may lie elsewhere, such as another worker's death: torch's collectives raise such
            errors in the workers that are left.
        is_lost_peer: whether the error itself says that it is such a one.
    """

    rank: int
    summary: str
    details: str
    may_pass: bool
    is_lost_peer: bool = False
    user_error: UserError | None = field(default=None)


Event = Spawned | Placed | Ready | Step | Done | Failed


@dataclass(frozen=True, kw_only=True)
class Beat:
    """What a worker says every second, from a thread of its own.

    Attributes:
        doing: what its training is at, in words.
        doing_s: for how long.
        is_waiting: it waits for the driver, so it may take any time.
    """

    doing: str
    doing_s: float
    is_waiting: bool


@dataclass(frozen=True, kw_only=True)
class LastBeat:
    """A worker's last beat, and the how-manyth it is."""

    beat: Beat
    number: int


@dataclass(frozen=True, kw_only=True)
class News:
    """What the mailbox has for the driver: events from some position on, and the last beat of each worker."""

    events: tuple[Event, ...]
    beats: dict[int, LastBeat]  # by rank
