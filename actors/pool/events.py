"""The words between the pool's decisions and the shell that carries them out: what happened, and what to do about it.

An event is something the shell saw (an actor joined, a call returned). An action is something the shell has to do
(send an item, kill an actor). Neither knows Ray: an actor is named by a `Replica`, a call by a number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

from csr_ray.records import Fault

T = TypeVar("T")

Role = Literal["generator", "scorer", "registry"]


class Replica(NamedTuple):
    """One life of one actor. A replacement has the same role and slot and the next life, so it is another replica.

    Whatever is still heard of an earlier life is therefore never taken for news of the later one.
    """

    role: Role
    slot: int
    life: int = 0

    def successor(self) -> Replica:
        return self._replace(life=self.life + 1)

    def __str__(self) -> str:
        return f"{self.role} {self.slot}" + (f" (life {self.life})" if self.life else "")


@dataclass(frozen=True, slots=True)
class Starting:
    """The replica was told to start; nothing may be sent to it yet."""

    replica: Replica


@dataclass(frozen=True, slots=True)
class Joined:
    """The replica is ready to serve: one that was starting, or one that nobody announced (a cluster that grows)."""

    replica: Replica


@dataclass(frozen=True, slots=True)
class Left:
    """The replica was taken out on purpose. What it had in flight is nobody's fault, and nobody replaces it."""

    replica: Replica


@dataclass(frozen=True, slots=True)
class Died:
    """The replica is gone, in whatever state it was."""

    replica: Replica
    reason: str


@dataclass(frozen=True, slots=True)
class Useless:
    """The replica lives but is of no more use: its engine is gone, or it holds other weights. It is to be killed."""

    replica: Replica
    reason: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The call returned a result.

    Attributes:
        shows_health: that the replica and whoever it calls work. A prompt that was refused before the engine saw it
            shows nothing: one broken picture must not hide that every call to the engine fails.
    """

    call: int
    shows_health: bool = True


@dataclass(frozen=True, slots=True)
class Failed:
    """The call returned an error.

    Attributes:
        blames: the replica whose death the error reports: the scorer that the call waited for, or the generator
            itself when its engine is gone. None: nobody died.
        fault: "input": the item itself cannot be used (a prompt too long), or several scorers died with what it asked
            of them; "machine": anything else, so that another try may help.
    """

    call: int
    reason: str
    blames: Replica | None = None
    fault: Fault = "input"


@dataclass(frozen=True, slots=True)
class Room:
    """For how many more replicas of a role the cluster has room; infinity: its autoscaler makes room."""

    role: Role
    num: float


@dataclass(frozen=True, slots=True)
class Answered:
    """A sign of life that ends no call: a ping's answer, a cancelled call that returned, a result not yet read.

    Attributes:
        stalled_s: for how long its work has stood still, as the replica itself says. Seconds, as the next.
        longest_s: the longest that one step of its work has taken so far; None: not known yet.
        what: what has stood still, for the log.
        busy: the share of the time since the last sign of life in which it worked; None: it does not say.
        is_stopped: what stands still is a process below it that is stopped, so it cannot end its start either.
    """

    replica: Replica
    stalled_s: float = 0.0
    longest_s: float | None = None
    what: str = "its work"
    busy: float | None = None
    is_stopped: bool = False


Event = Starting | Joined | Left | Died | Useless | Finished | Failed | Answered | Room


@dataclass(frozen=True, slots=True)
class Send(Generic[T]):
    """Call the replica with the item.

    Attributes:
        alone: nothing else is with it, to see whether this item kills replicas.
        is_stray: it is sent past its image's home, because it is tried alone or has failed there.
    """

    call: int
    replica: Replica
    item: T
    alone: bool = False
    is_stray: bool = False


@dataclass(frozen=True, slots=True)
class Cancel:
    """The call took too long: stop it. Report `Answered` when the replica has obeyed; its result is not wanted."""

    call: int
    replica: Replica


@dataclass(frozen=True, slots=True)
class Ping:
    """Ask the replica for a sign of life and report `Answered`: it has not been heard for a while."""

    replica: Replica


@dataclass(frozen=True, slots=True)
class Kill:
    """End the replica's process. The decisions count it as dead already; no event is expected."""

    replica: Replica
    reason: str


@dataclass(frozen=True, slots=True)
class Replace:
    """Start `new`, which takes the slot of `dead`; report `Joined` when it serves, `Died` if it cannot start."""

    dead: Replica
    new: Replica


@dataclass(frozen=True, slots=True)
class Grow:
    """Start one more replica, beyond those there are; report `Joined` when it serves, `Died` if it cannot start."""

    replica: Replica


@dataclass(frozen=True, slots=True)
class Shrink:
    """End a replica that there is no work for. The decisions count it as gone already; no event is expected."""

    replica: Replica
    reason: str


@dataclass(frozen=True, slots=True)
class Retry(Generic[T]):
    """The item was lost and is queued again. For the log only: its `Send` follows by itself."""

    item: T
    reason: str


@dataclass(frozen=True, slots=True)
class Deliver(Generic[T]):
    """The result of this call is the item's one result: hand it on."""

    call: int
    item: T


@dataclass(frozen=True, slots=True)
class Quarantine(Generic[T]):
    """The item has no result; it is set aside. `call` is the last one for it, `fault` says whose fault it was."""

    call: int
    item: T
    reason: str
    fault: Fault = "input"


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The run cannot go on.

    Attributes:
        replica: whose log tells why; None: nobody's.
        call: whose error tells why; None: nobody's.
        lacks_room: what is missing is room in the cluster.
    """

    reason: str
    replica: Replica | None = None
    call: int | None = None
    lacks_room: bool = False


# `Send` and the others of an item are generic; here the item's type does not matter.
Action = Send[T] | Cancel | Ping | Kill | Replace | Grow | Shrink | Retry[T] | Deliver[T] | Quarantine[T] | GiveUp
