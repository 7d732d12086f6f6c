"""VDD decoding in terms of requests to one engine: the same answer, asked with the picture and without it.

A group is one request that shows the picture (member 0) and one for each replacement of it. In each step of the
engine all members stand at the same position, and the logits processor (`actors.generate.contrast_rows`) makes of
their logits the one token that all of them take. The engine may keep members apart: admit one a step later, preempt
it, or prefill it in parts. Then the processor breaks the group off; the tokens on which all members agree were chosen
with all of them there, and the answer goes on behind these, with the same random numbers. A group that gets nowhere
is decoded in turn: each replacement is asked for one token, the processor keeps its logits, and member 0 takes the
token by them.

This module does not know vLLM's classes, images or what is asked.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from actors.generate.expand import Draft
from csr_ray.records import Contrast

CONTRAST: Final = "contrast"
"""The key of a request's `extra_args` under which it is told of its group."""
CONTRAST_CLASS: Final = "actors.generate.contrast_rows:ContrastedRows"
"""The logits processor that reads it, by name: its module imports vLLM, which only engine processes should."""
_TRIES_AT_ONE_PLACE: Final = 4


class DecodeMembers(Protocol):
    """Submits one request a member, in order, each behind its own prompt and this suffix; one draft a member.

    Args:
        members: whose requests these are.
    """

    def __call__(
        self, suffix: Sequence[int], members: Sequence[int], options: Sequence[dict[str, Any]]
    ) -> Awaitable[list[Draft]]: ...


@dataclass
class ContrastDecoding:
    """Decodes contrasted answers. One instance serves all questions of an engine.

    Attributes:
        broken: a token that no answer holds, by which the logits processor says that a group is broken.
        most_requests: as many requests the engine takes at once. More groups than fit in would be torn apart.
        on_broken: called for each group that the engine did not keep together.
        together: let the members run side by side; otherwise they are always asked in turn, which is slower, but
            right whatever the engine does.
    """

    broken: int
    most_requests: int
    on_broken: Callable[[], None] = lambda: None
    together: bool = True
    _names: itertools.count[int] = field(default_factory=itertools.count)
    _in_turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _room: dict[int, asyncio.Semaphore] = field(default_factory=dict)

    async def answer(
        self,
        decode: DecodeMembers,
        *,
        contrast: Contrast,
        temperature: float,
        top_p: float,
        max_tokens: int,
        seed: int,
    ) -> Draft:
        """One whole answer; greedy at temperature 0.

        Its log-probs are those of the policy that sees the picture, before anything is taken off.
        """
        num = 1 + len(contrast.changes)
        group = {
            "num": num,
            "alpha": contrast.alpha,
            "cutoff": contrast.cutoff,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
            "broken": self.broken,
        }
        ids: tuple[int, ...] = ()
        logps: tuple[float, ...] = ()
        num_stuck = 0 if self.together else _TRIES_AT_ONE_PLACE
        async with self._room.setdefault(num, asyncio.Semaphore(max(1, self.most_requests // num))):
            while True:
                told = {**group, "start": len(ids)}
                if num_stuck < _TRIES_AT_ONE_PLACE:
                    draft, is_whole = await self._side_by_side(decode, ids, told, max_tokens=max_tokens - len(ids))
                    num_stuck = 0 if draft.ids else num_stuck + 1
                else:
                    draft = await self._next_in_turn(decode, ids, told)
                    is_whole = draft.ended or draft.full or len(ids) + 1 >= max_tokens
                    num_stuck = 0 if self.together else num_stuck
                ids, logps = ids + draft.ids, logps + draft.logps
                if is_whole:
                    return Draft(ids=ids, logps=logps, ended=draft.ended, full=draft.full)

    async def _side_by_side(
        self, decode: DecodeMembers, suffix: Sequence[int], told: dict[str, Any], *, max_tokens: int
    ) -> tuple[Draft, bool]:
        """What all members agree on, and whether that is the answer's end."""
        name = str(next(self._names))
        members = range(told["num"])
        options = [self._options({**told, "group": name, "member": member}, max_tokens) for member in members]
        drafts = await decode(suffix, list(members), options)
        num_agreed = _num_agreed([draft.ids[: -(draft.stop == self.broken) or None] for draft in drafts])
        main = drafts[0]
        if main.stop != self.broken and num_agreed == len(main.ids):
            return main, True
        self.on_broken()
        return Draft(ids=main.ids[:num_agreed], logps=main.logps[:num_agreed]), False

    async def _next_in_turn(self, decode: DecodeMembers, suffix: Sequence[int], told: dict[str, Any]) -> Draft:
        """The next token, by requests of one token each, of which the last is the picture's."""
        async with self._in_turn:  # the processor keeps the logits of few groups
            while True:
                name = str(next(self._names))
                for member in reversed(range(told["num"])):
                    known = {**told, "group": name, "member": member, "in_turn": True}
                    (draft,) = await decode(suffix, [member], [self._options(known, 1)])
                if draft.stop != self.broken:
                    return draft

    def _options(self, told: dict[str, Any], max_tokens: int) -> dict[str, Any]:
        return {
            "temperature": 0.0,
            "max_tokens": max_tokens,
            "stop_token_ids": [self.broken],
            "logprobs": 0,
            "extra_args": {CONTRAST: told},
        }


def _num_agreed(members: Sequence[Sequence[int]]) -> int:
    """How many tokens all members have begun with."""
    same = itertools.takewhile(lambda tokens: len(set(tokens)) == 1, zip(*members, strict=False))
    return sum(1 for _ in same)
