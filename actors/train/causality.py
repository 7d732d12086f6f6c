"""Whether a model's tokens see tokens behind them, as a picture's do in Gemma 3 and a prompt's in PaliGemma.

In a pair that is trained as one sequence every token sees only what is before it. How far that moves the log-probs of
a model which is not like that can be less than what rounding does, so it is not looked for there. Where nothing sees
what is behind it, the tokens before one that was changed come out with the same bits, in whatever data type.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

_DECODER_LAYER = re.compile(r"(?:^|\.)language_model\.(?:model\.)?layers\.\d+$")


def sees_ahead(
    policy: torch.nn.Module,
    *,
    compute: Callable[[], object],
    batch: Mapping[str, torch.Tensor],
    image_token: int | None,
) -> bool:
    """Change the last image token of each row, then the last token of each prompt, and look at all before it.

    What is changed is what the first decoder layer is given, so that the vision tower has no part in it.

    Args:
        compute: runs the model on `batch`; called once, and once for each kind of token. Anything may come of it.
        batch: `input_ids`, `attention_mask` and `completion_mask`, each (rows, length), as the model gets them.
    """
    layers = [module for name, module in policy.named_modules() if _DECODER_LAYER.search(name)]
    if not layers:
        return False
    attended = batch["attention_mask"].bool().cpu()
    is_prompt = attended & ~batch["completion_mask"].bool().cpu()
    last = [_last_of(is_prompt)]
    if image_token is not None:
        last.append(_last_of(is_prompt & (batch["input_ids"].cpu() == image_token)))
    plain = _computed(layers, compute, changed=[None] * len(attended))
    # All of them, whatever the first shows: with parameters in shards every worker has to compute as often.
    others = [_computed(layers, compute, changed=changed) for changed in last]
    return any(
        not torch.equal(*(hidden[row, :position][attended[row, :position]] for hidden in (plain, ours)))
        for positions, ours in zip(last, others, strict=True)
        for row, position in enumerate(positions)
        if position is not None
    )


def _last_of(wanted: torch.Tensor) -> list[int | None]:
    """The last position of each row that is wanted."""
    return [int(row.nonzero()[-1]) if bool(row.any()) else None for row in wanted]


def _computed(
    layers: Sequence[torch.nn.Module], compute: Callable[[], object], *, changed: Sequence[int | None]
) -> torch.Tensor:
    """What the last decoder layer makes of rows, (rows, length, width), if one position of each comes negated."""
    found: list[torch.Tensor] = []

    def negate(_: Any, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden = (args[0] if args else named["hidden_states"]).clone()
        for row, position in enumerate(changed):
            if position is not None:
                hidden[row, position] *= -1
        return ((hidden, *args[1:]), named) if args else (args, {**named, "hidden_states": hidden})

    def keep(_: Any, __: Any, output: Any) -> None:
        found.append((output if torch.is_tensor(output) else output[0]).detach().cpu())

    hooks = [layers[0].register_forward_pre_hook(negate, with_kwargs=True), layers[-1].register_forward_hook(keep)]
    try:
        compute()
    finally:
        for hook in hooks:
            hook.remove()
    (hidden,) = found
    return hidden
