"""What a judge's answers have cost, in tokens and dollars, and whether another one may still be paid.

Dollars are put aside before a question is sent, at the most that it can cost, and settled when its answer is there:
so what was allowed is never exceeded, however many questions are on their way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from csr_ray.errors import ConfigError
from csr_ray.records import JsonDict, Message

# Of each message, what an endpoint's template may add to it.
_TOKENS_A_MESSAGE = 16
# More than endpoints take for a picture of a thousand pixels a side.
_TOKENS_A_PICTURE = 4096


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What was paid for.

    Attributes:
        answers: how many were paid for, those that were lost on the way included.
        usd: 0 where no price is known.
    """

    answers: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            answers=self.answers + other.answers,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            usd=self.usd + other.usd,
        )

    def to_plain(self) -> JsonDict:
        return asdict(self)


def most_input_tokens(messages: Sequence[Message]) -> int:
    """As many tokens as messages can have: no tokenizer makes more of a text than it has bytes, and no endpoint more
    of a picture than `_TOKENS_A_PICTURE`."""
    return sum(
        len(message.text.encode()) + _TOKENS_A_MESSAGE + (_TOKENS_A_PICTURE if message.image else 0)
        for message in messages
    )


class Budget:
    """The dollars that a judge may cost. To be used in one event loop.

    Args:
        max_usd: the most; None: as much as it takes, which is counted all the same.
        usd_per_million_input_tokens, usd_per_million_output_tokens: None: not known.
        spent: what was paid before, by earlier starts of the same work; it counts.
    """

    def __init__(
        self,
        max_usd: float | None,
        *,
        usd_per_million_input_tokens: float | None,
        usd_per_million_output_tokens: float | None,
        spent: Spent,
    ) -> None:
        self.spent = spent
        self._max_usd = max_usd
        self._usd_in = (usd_per_million_input_tokens or 0.0) / 1e6
        self._usd_out = (usd_per_million_output_tokens or 0.0) / 1e6
        self._held_usd = 0.0
        self._settled = asyncio.Condition()

    def price(self, *, input_tokens: int, output_tokens: int) -> Spent:
        """What an answer of so many tokens costs."""
        return Spent(
            answers=1,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            usd=input_tokens * self._usd_in + output_tokens * self._usd_out,
        )

    async def hold(self, most: Spent) -> None:
        """Put aside the most that an answer can cost; wait for others to be settled where that may make room.

        Raises:
            ConfigError: it cannot be paid.
        """
        async with self._settled:
            while self._max_usd is not None and self.spent.usd + self._held_usd + most.usd > self._max_usd:
                if not self._held_usd:
                    raise ConfigError(
                        f"judge.max_cost_usd = {self._max_usd}: {self.spent.usd:.4f} dollars are spent, and the next "
                        f"question may cost {most.usd:.4f}; raise it and start the same command again: answers that "
                        "were paid for are kept"
                    )
                await self._settled.wait()
            self._held_usd += most.usd

    async def settle(self, most: Spent, *, paid: Spent) -> None:
        """Give back what `hold` put aside, and book what was paid."""
        async with self._settled:
            self._held_usd = max(0.0, self._held_usd - most.usd)
            # Sums of floats that came and went leave crumbs, which would look like questions under way.
            if self._held_usd < 1e-12:
                self._held_usd = 0.0
            self.spent += paid
            self._settled.notify_all()
