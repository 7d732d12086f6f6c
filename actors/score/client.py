"""The generators' side of the scorers: an image always goes to the same one, and calls that coincide travel together.

One engine step ends many sentences, of many trees. Each tree asks for its own scores, but one actor call carries all
requests that are ready at that moment, because the call costs more time than the scores.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

from ray.exceptions import RayActorError

from actors.score.scorer import Scores
from csr_ray.errors import ScorerFailure
from csr_ray.records import Picture

_Asked = tuple[Picture, tuple[str, ...], "asyncio.Future[Scores]"]


class ScorerPool:
    """`csr_ray.ports.Scorer` on scorer actors. Belongs to one event loop."""

    def __init__(self, scorers: Sequence[Any]) -> None:
        self._scorers = list(scorers)
        self._waiting: dict[int, list[_Asked]] = {}
        self._calls: set[asyncio.Task[None]] = set()

    async def score(self, picture: Picture, *, texts: Sequence[str]) -> Scores:
        """See `csr_ray.ports.Scorer`."""
        digest = hashlib.blake2b(picture.key.encode(), digest_size=8).digest()
        index = int.from_bytes(digest, "big") % len(self._scorers)
        done: asyncio.Future[Scores] = asyncio.get_running_loop().create_future()
        if index not in self._waiting:
            self._waiting[index] = []
            # Sent in the event loop's next turn, so that whatever this turn still makes ready travels along.
            asyncio.get_running_loop().call_soon(self._send, index)
        self._waiting[index].append((picture, tuple(texts), done))
        return await done

    def _send(self, index: int) -> None:
        call = asyncio.get_running_loop().create_task(self._call(index, self._waiting.pop(index)))
        self._calls.add(call)  # the loop itself holds tasks weakly
        call.add_done_callback(self._calls.discard)

    async def _call(self, index: int, asked: Sequence[_Asked]) -> None:
        try:
            answers = await self._scorers[index].score.remote([(picture, texts) for picture, texts, _ in asked])
        except RayActorError as error:  # everybody who waits for it has to know who died
            answers = [ScorerFailure(index, " ".join(str(error).split())[:300])] * len(asked)
        except Exception as error:
            answers = [error] * len(asked)
        for (_, _, done), answer in zip(asked, answers, strict=True):
            if done.done():
                continue
            if isinstance(answer, Exception):
                done.set_exception(answer)
            else:
                done.set_result(answer)
