"""Which prompts a round still has to roll out, in units that are named by what is in them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from csr_ray.records import Prompt
from csr_ray.stages.state import RunState


def prompts_of_round(prompts: Sequence[Prompt], *, index: int, per_round: int | None) -> list[Prompt]:
    """All prompts every round (as the paper does), or the next `per_round` in turn, wrapping around."""
    if per_round is None or per_round >= len(prompts):
        return list(prompts)
    start = index * per_round
    return [prompts[(start + offset) % len(prompts)] for offset in range(per_round)]


def unit_name(ids: Sequence[str]) -> str:
    """A unit is named by the prompts in it, so that prompts that come or go change no other unit's name."""
    return hashlib.blake2b("\n".join(ids).encode(), digest_size=8).hexdigest()


def done_ids(state: RunState, *, index: int) -> set[str]:
    """Prompts of the round that were rolled out and committed, or set aside while they were."""
    return {prompt_id for entry in state.journal.all("rollout", round=index) for prompt_id in entry["ids"]}


def prompts_to_do(state: RunState, prompts: Sequence[Prompt], *, index: int) -> list[Prompt]:
    """The round's prompts that are not done yet.

    A round keeps what it has done, whatever prompts came or went since; of the prompts whose turn it is, it takes as
    many more as its size allows. One whose pairs are decided takes no more.
    """
    if state.journal.find("pairs", round=index):
        return []
    per_round = state.config.data.per_round
    done = done_ids(state, index=index)
    todo = [prompt for prompt in prompts_of_round(prompts, index=index, per_round=per_round) if prompt.id not in done]
    return todo if per_round is None else todo[: max(0, per_round - len(done))]
