"""The generators' side of the scorers: an image always goes to the same one, and calls that coincide travel together.

Where scorers come and go, an image only moves if its own has gone, or to one that has come (rendezvous hashing).

One engine step ends many sentences, of many trees. Each tree asks for its own scores, but one actor call carries all
requests that are ready at that moment, because the call costs more time than the scores. When a scorer dies, what was
asked of it is asked again of the one that takes its place, and the trees that wait for it lose nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.exceptions import RayActorError

from actors.score.scorer import Scores
from csr_ray.errors import ScorerFailure
from csr_ray.records import Picture

# After so many scorers have died with the same request it is not sent to another.
_MOST_DEATHS = 2

_Asked = tuple[Picture, tuple[str, ...], "asyncio.Future[Scores]"]


@dataclass
class _Place:
    """A scorer's slot: who has it now, how many had it before, and whether that one is known to be dead.

    `is_gone`: there is no such slot any more.
    """

    scorer: Any
    slot: int
    life: int = 0
    is_dead: bool = False
    is_gone: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class ScorerPool:
    """`csr_ray.ports.Scorer` on scorer actors. Belongs to one event loop.

    Args:
        scorers: those of the slots from 0 on; more may be added by `replace`.
        wait_s: how long to wait for the replacement of a scorer that died if there is no other, in seconds.
        patience_s: the same if there is another, which would have to embed the image once more.
    """

    def __init__(self, scorers: Sequence[Any] = (), *, wait_s: float = 60.0, patience_s: float = 60.0) -> None:
        self._places = {slot: _Place(scorer, slot) for slot, scorer in enumerate(scorers)}
        self._wait_s, self._patience_s = wait_s, patience_s
        self._waiting: dict[int, list[_Asked]] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._nats: asyncio.Task[float] | None = None

    @property
    def num(self) -> int:
        return len(self._places)

    def replace(self, slot: int, *, life: int, scorer: Any) -> None:
        """This scorer has the slot now, be it new or another's before, and is the `life`-th after the first."""
        place = self._places.get(slot)
        if place is None or life > place.life:
            self._places[slot] = _Place(scorer, slot, life=life)
            if place is not None:
                place.changed.set()  # for those who wait with the old one

    def remove(self, slot: int, *, life: int) -> None:
        """This scorer is about to end, and nobody takes its place: the others have its images from now on."""
        place = self._places.get(slot)
        if place is not None and place.life <= life and len(self._places) > 1:
            del self._places[slot]
            place.is_gone = True
            place.changed.set()

    async def score(self, picture: Picture, *, texts: Sequence[str]) -> Scores:
        """See `csr_ray.ports.Scorer`.

        Raises:
            ScorerFailure: all scorers died, and nobody took the place of the image's within `wait_s`; or two died
                with this one after the other.
        """
        index = self._home(picture)
        done: asyncio.Future[Scores] = asyncio.get_running_loop().create_future()
        if index not in self._waiting:
            self._waiting[index] = []
            # Sent in the event loop's next turn, so that whatever this turn still makes ready travels along.
            asyncio.get_running_loop().call_soon(self._send, index)
        self._waiting[index].append((picture, tuple(texts), done))
        return await done

    async def nats(self) -> float:
        """See `csr_ray.ports.Scorer`: of one scorer, as all have the same model; asked once.

        Raises:
            ScorerFailure: as `score`.
            ConfigError: the model has no usable logit scale.
        """
        if self._nats is None or (self._nats.done() and self._nats.exception() is not None):
            asked = self._ask(next(iter(self._places)), call=lambda scorer: scorer.nats.remote(), home=None)
            self._nats = asyncio.get_running_loop().create_task(asked)
        return await asyncio.shield(self._nats)

    def _home(self, picture: Picture) -> int:
        key = picture.key.encode()
        return max(self._places, key=lambda slot: hashlib.blake2b(b"%d %s" % (slot, key), digest_size=8).digest())

    def _send(self, index: int) -> None:
        call = asyncio.get_running_loop().create_task(self._call(index, self._waiting.pop(index)))
        self._calls.add(call)  # the loop itself holds tasks weakly
        call.add_done_callback(self._calls.discard)

    async def _call(self, index: int, asked: Sequence[_Asked]) -> None:
        try:
            answers = await self._answers(index, asked)
        except Exception as error:
            answers = [error] * len(asked)
        for (_, _, done), answer in zip(asked, answers, strict=True):
            if done.done():
                continue
            if isinstance(answer, Exception):
                done.set_exception(answer)
            else:
                done.set_result(answer)

    async def _answers(self, index: int, asked: Sequence[_Asked]) -> Sequence[Scores | Exception]:
        request = [(picture, texts) for picture, texts, _ in asked]
        answers: Sequence[Scores | Exception] = await self._ask(
            index, call=lambda scorer: scorer.score.remote(request), home=asked[0][0]
        )
        return answers

    async def _ask(self, index: int, *, call: Callable[[Any], Awaitable[Any]], home: Picture | None) -> Any:
        """What a scorer answers to a call; of whoever takes its place if it dies, or has `home` if its place goes."""
        place, reason, num_deaths = self._places.get(index), "its death is known", 0
        while True:
            if place is None or place.is_gone:
                place = self._places[next(iter(self._places)) if home is None else self._home(home)]
            if num_deaths == _MOST_DEATHS:
                raise ScorerFailure(place.slot, place.life, reason, is_suspect=True)
            if place.is_dead:
                place = await self._successor(place.slot, reason=reason)
            try:
                return await call(place.scorer)
            except RayActorError as error:
                place.is_dead = True
                num_deaths += not place.is_gone
                reason = " ".join(str(error).split())[:300]

    async def _successor(self, index: int, *, reason: str) -> _Place:
        """Who has the scorer's place now; if it stays empty for long, one of the others, which also can score."""
        deadline_s = time.monotonic() + self._wait_s
        while (place := self._places.get(index)) is not None and place.is_dead:
            left_s = deadline_s - time.monotonic()
            try:
                await asyncio.wait_for(place.changed.wait(), max(0.0, min(self._patience_s, left_s)))
            except asyncio.TimeoutError:
                others = [other for other in self._places.values() if not other.is_dead]
                if others:
                    return others[index % len(others)]
                if left_s <= 0:
                    raise ScorerFailure(index, place.life, reason) from None
        return place or next(iter(self._places.values()))
